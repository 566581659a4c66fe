"""`number`: a number in a completion equals the reference, in any usual notation.

Strict is the number with its sign, per cent, scale and unit; flexible is its value alone. The
number after a mark of an answer (####, a box, "the answer is") comes before all others. Among
several, `take` decides; parts of an expression ("4 + 3") and alternatives ("5 or 6") are not
answers. It leaves out number words and expressions to evaluate.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError, did_you_mean
from potstill.fields import CLOSED, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Identified, need_reference
from potstill.tasks.graders.quantities import Quantity, plain, quantities, same
from potstill.tasks.graders.units import UNITS
from potstill.tasks.grading import answer_of

MARK = re.compile(r"####|\\boxed\b|\\fbox\b|\b(?:final )?answer(?: is\b|:| =)", re.IGNORECASE)
END = re.compile(r"\n|[.!?](?=\s+[A-Z(])")  # of a sentence
JOINED = re.compile(r"[\s$]*(?:[-+*×÷·/^x]|\bor\b)[\s$]*|:|[\s$]*≈[\s$]*")
TUPLE = re.compile(r"[(\[{][-+\d./\s,]{3,60}\\?[)\]}]")  # (1, 2)
NOT = re.compile(r"\b(?:not|isn't|≠)\s*$|≠\s*$", re.IGNORECASE)
LONGEST_GAP = 12  # characters of an operator between two numbers
LONGEST = 20_000  # characters of an answer that are read: the last, or the first ones
JSON_NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][+-]?\d+)?")
GROUPED = re.compile(r"-?\d{1,3}(?:\.\d{3})+")


def known_unit(unit: str) -> str:
    """Validator of a unit."""
    if unit and unit not in UNITS:
        raise PotstillError(f'unknown unit "{unit}"', did_you_mean(unit, UNITS, "units"))
    return unit


@reported('grader "number"')
@dataclass(frozen=True, config=CLOSED)
class Number(Identified):
    """A number, equal to the reference within a tolerance.

    Args:
        tolerance: relative to the reference; 0.01 is 1 %.
        absolute_tolerance: in the reference's unit; the larger of the two counts.
        take: the first or the last number, where none is marked as the answer.
        after: a mark, such as "####", that strict requires before the number.
        unit: of the reference, such as "km"; other units of its kind are converted.
        decimal: the decimal mark; the other one separates thousands.
    """

    tolerance: Annotated[float, limits("0 to 1", ge=0, le=1, strict=True)] = 0.0
    absolute_tolerance: Annotated[float, limits("0 or more", ge=0, strict=True)] = 0.0
    take: Literal["last", "first"] = "last"
    after: str = ""
    unit: Annotated[str, AfterValidator(known_unit)] = ""
    decimal: Literal[".", ","] = "."

    name = "number"

    def grade(self, problem: Problem, text: str) -> Grade:
        gold = _reference(problem.answer, self.decimal)
        answer = answer_of(text)
        if gold is None:
            return Grade(0.0, 0.0, format=None)
        numbers = self.read(answer)
        flexible = any(self._value_equal(one, gold) for one in numbers)
        strict, form = numbers, None
        if self.after:
            _, mark, rest = answer.rpartition(self.after)
            strict = self.read(rest, marked=True) if mark else []
            form = bool(strict)
        right = any(self._equal(one, gold) for one in strict)
        return Grade(float(right), float(right or flexible), format=form)

    def extract(self, text: str) -> str | None:
        """The number as it is written, or None."""
        numbers = self.read(text)
        text = plain(text[-LONGEST:] if self.take == "last" else text[:LONGEST])
        return text[numbers[0].start : numbers[0].end] if numbers else None

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
        gold = _reference(problem.answer, self.decimal)
        if gold is None:
            other = "," if self.decimal == "." else "."
            hint = f"write one number, such as 1234{self.decimal}5"
            if other in problem.answer:
                hint += f', or set decimal = "{other}"'
            raise self.refuse(problem, "a reference is one number that can be read", hint)
        if gold.unit and self.unit and UNITS[gold.unit][0] != UNITS[self.unit][0]:
            raise self.refuse(
                problem, f"a reference has the unit {self.unit}", "change one of them"
            )

    def read(self, text: str, *, marked: bool = False) -> list[Quantity]:
        """The number that is the answer, or two that are approximately equal; empty if none is.

        Args:
            text: after the thought.
            marked: whether the text follows a mark of an answer.
        """
        text = plain(text[-LONGEST:] if self.take == "last" else text[:LONGEST])
        numbers = list(quantities(text, self.decimal))
        tuples = _tuples(text, numbers)
        alone = [n for n in range(len(numbers)) if n not in tuples]
        alone = [n for n in alone if _is_alone(text, numbers, n)]
        marks = [] if marked else [*MARK.finditer(text)]
        begin = marks[-1].end() if marks else 0
        after = [n for n in alone if numbers[n].start >= begin]
        if (marks or marked) and after and numbers[after[0]].start <= _end(text, begin):
            return _with_equal(text, numbers, after[0])
        if not after:
            return []
        return _with_equal(text, numbers, after[-1 if self.take == "last" else 0])

    def _equal(self, one: Quantity, gold: Quantity) -> bool:
        tolerances = self.tolerance, self.absolute_tolerance
        unit = gold.unit or self.unit
        if unit and one.unit and unit != one.unit:
            (kind, size), (own, factor) = UNITS[unit], UNITS[one.unit]
            if kind != own:
                return False
            ratio = factor / size
            top = one.top * ratio.numerator if len(str(one.top)) < 1000 else one.top
            one = replace(one, top=top, bottom=one.bottom * ratio.denominator)
        return any(same(one, gold, *tolerances, shift) for shift in _shifts(one, gold))

    def _value_equal(self, one: Quantity, gold: Quantity) -> bool:
        bare = replace(one, unit="", scale=0)
        pairs = [(one, gold), (bare, gold), (bare, replace(gold, scale=0))]
        tolerances = self.tolerance, self.absolute_tolerance
        return any(
            same(a, b, *tolerances, shift)
            for a, b in pairs
            for shift in ((0,) if a.percent == b.percent else (0, -2, 2))
        )


def _shifts(one: Quantity, gold: Quantity) -> list[int]:
    """Powers of ten by which a number may differ: 50 % is 0.5, and 50 where per cent is meant."""
    if one.percent == gold.percent:
        return [0]
    if gold.percent:
        return [0, 2]  # 50, or 0.5, for 50 %
    small = abs(gold.top) < abs(gold.bottom)
    return [-2] if small else [-2, 0]


def _tuples(text: str, numbers: Sequence[Quantity]) -> set[int]:
    """Numbers that are members of a tuple, a set or an interval."""
    members: set[int] = set()
    places = [one.start for one in numbers]
    for match in TUPLE.finditer(text):
        first, end = bisect_left(places, match.start()), bisect_left(places, match.end())
        if end - first > 1:
            members.update(range(first, end))
    return members


def _is_alone(text: str, numbers: Sequence[Quantity], n: int) -> bool:
    """True for a readable number that is not part of an expression or an alternative."""
    one = numbers[n]
    if not one.readable or NOT.search(text, max(0, one.start - 10), one.start):
        return False
    for a, b in ((n - 1, n), (n, n + 1)):
        if a >= 0 and b < len(numbers):
            gap = text[numbers[a].end : numbers[b].start]
            if len(gap) < LONGEST_GAP and JOINED.fullmatch(gap) and "≈" not in gap:
                return False
    return True


def _with_equal(text: str, numbers: Sequence[Quantity], n: int) -> list[Quantity]:
    """A number, and the one before it if it is an approximation of that one."""
    if n and text[numbers[n - 1].end : numbers[n].start].strip(" $") == "≈":
        return [numbers[n], numbers[n - 1]]
    return [numbers[n]]


def _end(text: str, begin: int) -> int:
    """The end of the sentence that begins after a mark."""
    start = re.compile(r"[\s:*{$(]*").match(text, begin)
    end = END.search(text, start.end() if start else begin)
    return end.start() if end else len(text)


@lru_cache(maxsize=4096)
def _reference(answer: str, decimal: str) -> Quantity | None:
    """The one number of a reference answer, or that after its mark; None if there is none."""
    text = plain(answer.rpartition("####")[2]).strip()
    if decimal == "," and JSON_NUMBER.fullmatch(text) and not GROUPED.fullmatch(text):
        decimal = "."  # as JSON writes numbers
    numbers = list(quantities(text, decimal))
    if len(numbers) != 1 or not numbers[0].readable:
        return None
    rest = text[: numbers[0].start] + text[numbers[0].end :]
    return None if re.search(r"\d", rest) or "^" in rest else numbers[0]
