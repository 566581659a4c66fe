"""Reads quantities out of text: 1,234  -3/4  50 %  1.5 × 10^3  2.5 million  5 km  \\frac{1}{2}.

A scanner in one pass: chunks of digits and separators first, then the sign, exponent, fraction and
unit around each. No expression here can take more than linear time, and no number is computed
digit by digit, so texts of any length and exponents of any size are fine. It leaves out number
words and expressions to evaluate: "4 + 3" has no answer in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Context, Decimal, InvalidOperation, localcontext

from potstill.tasks.graders.text import INVISIBLE
from potstill.tasks.graders.units import UNITS

MOST_DIGITS = 20_000  # of a number; longer ones are not read
EXACT = Context(prec=2 * MOST_DIGITS + 10, Emax=10**17, Emin=-(10**17), traps=[InvalidOperation])

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile(r"[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile(r"[¼-¾⅐-⅞]")
_WITH_VULGAR = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")  # 1½ is 1 1/2
_BLANKS = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_MINUS = str.maketrans("−‐‑‒–—﹣－", "--------")
_LATEX = [
    (re.compile(r"(?<=[\w)])(?=\\[dtc]?frac)"), " "),  # 1\frac{1}{2} is 1 1/2
    (re.compile(r"\\[dtc]?frac *(\d) *(\d)"), r"\1/\2 "),
    (re.compile(r"\\[dtc]?frac *\{ *(-?[^{}\\]{1,60}?) *\} *\{ *([^{}\\]{1,60}?) *\}"), r"\1/\2 "),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname) *\{([^{}]{0,200})\}"), r" \1 "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\div(?![a-zA-Z])"), "÷"),
    (re.compile(r"\\(?:left|right|!)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;: ]"), " "),
    (re.compile(r"\^ *\{? *\\circ *\}?"), "°"),
    (re.compile(r"\\([$%#&_])"), r"\1"),
]
_CHUNK = re.compile(r"\d(?:[\d.,'’_]|(?<=\d) (?=\d{3}(?!\d)))*|\.\d+")
_BEFORE = re.compile(
    r"(?P<sign>[+-]?) ?(?:(?:US|A|C)?[$€£¥₹]|\b(?:USD|EUR|GBP|CHF|Rs\.?)) ?$|(?P<bare>[+-])$"
)
_INDEX = re.compile(r"(?:\^|[^\W_]_) ?[{(]? ?[+-]?$")
_ROOT = re.compile(r"(?:√|\\sqrt(?:\[\w\])?) ?[{(]?$")
_FACTOR = re.compile(r" ?[*·×]? ?(?:√|π|\\sqrt|\\pi|pi\b)|\*?[xyzni](?!\w)(?! ?\d)")  # 2π, 2x
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,30})(?!\d|\.\d)")
_POWER = re.compile(r" ?[×x*·] ?10 ?(?:\^|\*\*) ?(?:\{ ?([+-]?\d{1,30}) ?\}|\(?([+-]?\d{1,30})\)?)")
_ONLY_POWER = re.compile(r" ?(?:\^|\*\*) ?(?:\{ ?([+-]?\d{1,30}) ?\}|\(?([+-]?\d{1,30})\)?)")
_OVER = re.compile(r" ?[/⁄] ?(?=[\d.])")
_MIXED = re.compile(r"(?: and | |-)(\d{1,15}) ?[/⁄] ?(\d{1,15})(?![\d/⁄])")
_MORE = re.compile(r"(?: ?[/⁄] ?\d{1,30})+")
_PERCENT = re.compile(r" ?(?:%|percent\b|per cent\b)", re.IGNORECASE)
_SCALE = re.compile(r"[ -]?(thousand|million|billion|trillion)\b", re.IGNORECASE)
SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNIT = re.compile(r"[ *_$-]{0,3}((?:°|[^\W\d_])[^\W\d_]{0,30}(?:\^?[23])?(?:/[^\W\d_]{1,10})?)")


@dataclass(frozen=True)
class Quantity:
    """A number in a text: `top` / `bottom`, with what follows it."""

    top: Decimal
    bottom: Decimal
    start: int
    end: int
    percent: bool = False
    scale: int = 0  # powers of ten of "million"
    unit: str = ""  # the word after it, of `UNITS` only
    readable: bool = True  # False for 10/0, 1.2.3 and the like


def plain(text: str) -> str:
    """A text with one spelling of minus, blanks, digits, fractions and LaTeX."""
    text = INVISIBLE.sub("", text)
    text = _SUPERSCRIPT.sub(lambda one: f"^{one[0].translate(SUPERSCRIPTS)}", text)
    text = _WITH_VULGAR.sub(" ", text)
    text = _VULGAR.sub(lambda one: f"{unicodedata.normalize('NFKC', one[0])} ", text)
    text = unicodedata.normalize("NFKC", _BLANKS.sub(" ", text)).translate(_MINUS)
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    return text


def quantities(text: str, decimal: str = ".") -> Iterator[Quantity]:
    """The numbers of a text that `plain` has made, from left to right.

    >>> [str(one.top / one.bottom) for one in quantities("3 of 1,234 is 1/4, 5e3")]
    ['3', '1234', '0.25', '5E+3']
    """
    at = 0
    while chunk := _CHUNK.search(text, at):
        at = chunk.end()
        body = chunk[0].rstrip(".,'’_")
        end = chunk.start() + len(body)
        before = text[max(0, chunk.start() - 8) : chunk.start()]
        if before[-1:].isalpha() and not _BEFORE.search(before):
            continue  # H2O, x2
        if _INDEX.search(before):
            continue  # x^2, x_1
        for piece, start, stop in _pieces(body, chunk.start(), decimal):
            one = _around(text, piece, start, stop, decimal)
            at = max(at, one.end) if stop == end else at
            yield one


def _pieces(body: str, start: int, decimal: str) -> Iterator[tuple[Decimal | None, int, int]]:
    """The number of a chunk, or those of a list without blanks such as 3,14."""
    value = _value(body, decimal)
    if value is not None or not re.search(r"[, ]", body):
        yield value, start, start + len(body)
        return
    for part in re.finditer(r"[^, ]+", body):
        yield _value(part[0], decimal), start + part.start(), start + part.end()


def _value(body: str, decimal: str) -> Decimal | None:
    """The value of digits with separators; None if they are written in no usual way."""
    point, other = decimal, "," if decimal == "." else "."
    whole, dot, rest = body.partition(point)
    if not _grouped(whole, other):
        if dot and not rest.count(other) and _grouped(body, point) and body.count(point) > 1:
            whole, rest = body, ""  # 1.234.567 has no decimal point
        else:
            return None
    elif dot and not rest.isdecimal():
        if not (_grouped(body, point) and body.count(point) > 1):
            return None
        whole, rest = body, ""
    digits = re.sub(r"\D", "", whole)
    if len(digits) + len(rest) > MOST_DIGITS or not digits + rest:
        return None
    return Decimal(f"{digits or '0'}.{rest}" if rest else digits)


_GROUPS = {
    mark: re.compile(rf"\d{{1,3}}(?:{re.escape(mark)}\d{{3}})+")
    for mark in (",", ".", " ", "'", "’", "_")
}
_LAKH = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}")


def _grouped(whole: str, mark: str) -> bool:
    """True for digits alone, or in groups of three, all by one mark."""
    if whole.isdecimal() or not whole:
        return True
    marks = (mark, " ", "'", "’", "_")
    if mark == "," and _LAKH.fullmatch(whole):
        return True
    return any(_GROUPS[one].fullmatch(whole) for one in marks)


def _around(text: str, value: Decimal | None, start: int, end: int, decimal: str) -> Quantity:
    """A quantity with its sign, exponent, denominator, percent sign, scale and unit."""
    one = Quantity(value or Decimal(0), Decimal(1), start, end, readable=value is not None)
    if _ROOT.search(text[max(0, start - 10) : start]):
        one = replace(one, readable=False)
    one = _with_exponent(text, one)
    one = _with_fraction(text, one, decimal)
    before = _BEFORE.search(text, max(0, start - 8), start)
    if before:
        sign = before["sign"] or before["bare"] or ""
        begin = before.start()
        left = text[begin - 1] if begin else " "
        if sign and (left.isalnum() or left in ")]%°"):
            sign, begin = "", begin + 1  # 10-3: an operator
        if sign == "-":
            one = replace(one, top=one.top.copy_negate())
        one = replace(one, start=begin)
    elif re.search(r"= ?- $", text[max(0, start - 4) : start]):
        one = replace(one, top=one.top.copy_negate())
    if _FACTOR.match(text, one.end):
        one = replace(one, readable=False)
    if match := _PERCENT.match(text, one.end):
        return replace(one, percent=True, end=match.end())
    if match := _SCALE.match(text, one.end):
        one = replace(one, scale=SCALES[match[1].lower()], end=match.end())
    if (match := _UNIT.match(text, one.end)) and (unit := _unit(match[1])):
        one = replace(one, unit=unit, end=match.end())
    return one


def _unit(word: str) -> str:
    """A known unit, by its exact spelling first."""
    word = word.replace("^", "")
    return word if word in UNITS else word.lower() if word.lower() in UNITS else ""


def _with_exponent(text: str, one: Quantity) -> Quantity:
    if match := _EXPONENT.match(text, one.end) or _POWER.match(text, one.end):
        exponent = int(next(group for group in match.groups() if group))
        return _scaled(replace(one, end=match.end()), exponent)
    if one.top == 10 and (match := _ONLY_POWER.match(text, one.end)):
        exponent = int(match[1] or match[2])
        return _scaled(replace(one, top=Decimal(1), end=match.end()), exponent)
    if match := _ONLY_POWER.match(text, one.end):  # 2^10 is an expression
        return replace(one, readable=False, end=match.end())
    return one


def _scaled(one: Quantity, exponent: int) -> Quantity:
    if abs(exponent) > 10**15:
        return replace(one, readable=False)
    return replace(one, top=shifted(one.top, exponent))


def shifted(value: Decimal, exponent: int) -> Decimal:
    """A value times a power of ten, with all its digits."""
    return EXACT.scaleb(value, exponent)


def _with_fraction(text: str, one: Quantity, decimal: str) -> Quantity:
    """3/4, and 1 3/4 from its whole part on."""
    over = _OVER.match(text, one.end)
    chunk = over and _CHUNK.match(text, over.end())
    if over and chunk:
        body = chunk[0].rstrip(".,'’_")
        bottom, end = _value(body, decimal), over.end() + len(body)
        more = _OVER.match(text, end)  # 1/2/3, a date
        if not bottom or more or max(len(str(one.top)), len(body)) > 1000:
            return replace(one, readable=False, end=end if not more else _skip(text, end))
        return replace(one, bottom=bottom, end=end)
    if one.top == one.top.to_integral_value() and abs(one.top.adjusted()) < 15:
        mixed = _MIXED.match(text, one.end)
        if mixed and int(mixed[1]) < int(mixed[2]):
            bottom = Decimal(int(mixed[2]))
            with localcontext(EXACT):
                top = one.top * bottom + Decimal(int(mixed[1]))
            return replace(one, top=top, bottom=bottom, end=mixed.end())
    return one


def _skip(text: str, end: int) -> int:
    """The end of 1/2/3/4."""
    match = _MORE.match(text, end)
    return match.end() if match else end


def same(a: Quantity, b: Quantity, relative: float, absolute: float, shift: int = 0) -> bool:
    """True if a times ten to the `shift` is b, within a tolerance of b."""
    left, right = shifted(a.top, shift + a.scale), shifted(b.top, b.scale)
    with localcontext(EXACT):
        if a.bottom == b.bottom:
            if left == right:
                return True
        elif max(len(str(x.top)) for x in (a, b)) < 2000 and left * b.bottom == right * a.bottom:
            return True
    if not relative and not absolute:
        return False
    context = Context(prec=40, Emax=10**17, Emin=-(10**17), traps=[])
    value, goal = context.divide(left, a.bottom), context.divide(right, b.bottom)
    gap = context.abs(context.subtract(value, goal))
    most = max(context.multiply(Decimal(str(relative)), context.abs(goal)), Decimal(str(absolute)))
    return bool(gap <= most)
