"""Numbers, names and untrusted text as people read them; an unknown value is an empty text.

The command line uses `count` and `duration` too, so that a number looks the same everywhere.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from potstill.settings import flatten
from potstill.stats.metric import ACCURACY, Metric

UNITS = ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # unicode categories that print nothing
KEPT = "\n\t"
LONGEST = 700  # characters shown of one text


def finite(value: Any) -> TypeGuard[float]:
    """True for a number that is neither infinite nor nan."""
    return isinstance(value, int | float) and math.isfinite(value)


def per_cent(value: float | None) -> str:
    """A share as per cent with one digit.

    >>> per_cent(0.125), per_cent(-0.0001), per_cent(None)
    ('12.5', '0.0', '')
    """
    return level(value)


def signed(value: float | None) -> str:
    """A difference of shares in points, with its sign.

    >>> signed(0.031), signed(-0.0001), signed(float("nan"))
    ('+3.1', '+0.0', '')
    """
    return change(value)


def p_value(value: float) -> str:
    """A p-value."""
    return "" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def level(value: float | None, metric: Metric = ACCURACY) -> str:
    """A value in the metric's unit, which is not written.

    >>> from potstill.stats.metric import KL
    >>> level(0.125), level(0.125, KL), level(-0.0001, KL), level(None, KL)
    ('12.5', '0.125', '0.000', '')
    """
    if not finite(value):
        return ""
    text = f"{round(metric.scale * value, metric.digits) + 0.0:.{metric.digits}f}"
    return text.replace("-", "−")


def change(value: float | None, metric: Metric = ACCURACY) -> str:
    """A difference with its sign.

    >>> from potstill.stats.metric import KL
    >>> change(0.031), change(-0.0314, KL)
    ('+3.1', '−0.031')
    """
    if not finite(value):
        return ""
    text = f"{round(metric.scale * value, metric.digits) + 0.0:+.{metric.digits}f}"
    return text.replace("-", "−")


def amount(value: float | None, metric: Metric = ACCURACY) -> str:
    """A value with its unit.

    >>> from potstill.stats.metric import KL
    >>> amount(0.5), amount(0.5, KL)
    ('50.0 %', '0.500 nats per token')
    """
    return f"{level(value, metric)} {metric.unit}" if finite(value) else ""


def points(value: float | None, metric: Metric = ACCURACY) -> str:
    """A difference with its sign and unit.

    >>> points(0.031)
    '+3.1 points'
    """
    return f"{change(value, metric)} {metric.points}" if finite(value) else ""


def margin(value: float, metric: Metric = ACCURACY) -> str:
    """The size of a difference with its unit.

    >>> from potstill.stats.metric import KL
    >>> margin(0.01), margin(0.01, KL)
    ('1.0 points', '0.010 nats per token')
    """
    return f"{level(value, metric)} {metric.points}"


def span(value: Any, metric: Metric = ACCURACY) -> str:
    """The 95 % interval of an `Interval`, or of a `Difference` with signs."""
    write = change if hasattr(value, "p") else level
    if not finite(value.low):
        return ""
    return f"{write(value.low, metric)} to {write(value.high, metric)}"


def detail(value: Any, metric: Metric = ACCURACY) -> str:
    """The small print of an interval or a difference: `span`, and p where there is one.

    >>> from potstill.stats.comparisons import Difference, Interval
    >>> detail(Interval(0.5, 0.45, 0.55)), detail(Difference(0.05, -0.01, 0.11, 0.08))
    ('45.0 to 55.0', '−1.0 to +11.0, p 0.080')
    >>> detail(Interval(0.5, 0.45, 0.55, seeds=1))
    '45.0 to 55.0 for this seed'
    """
    p = p_value(getattr(value, "p", math.nan))
    ends = span(value, metric)
    one = " for this seed" if getattr(value, "seeds", 0) == 1 and ends else ""
    return ", ".join(filter(None, [ends + one, p and f"p {p}"]))


def ranged(value: Any, digits: int, scale: float = 1.0) -> str:
    """The mean of an `Interval` with its ends.

    >>> from potstill.stats.comparisons import Interval
    >>> ranged(Interval(0.5, 0.25, 0.75), 2), ranged(Interval(0.5, math.nan, math.nan), 0, 100)
    ('0.50 (0.25 to 0.75)', '50')
    """
    if value is None:
        return ""
    mean, low, high = (f"{scale * n:.{digits}f}" for n in (value.mean, value.low, value.high))
    known = finite(value.low) and low != high
    return f"{mean} ({low} to {high})" if known else mean


def count(value: float | None) -> str:
    """A number of tokens or operations, three digits.

    >>> count(1234567), count(2.5e13), count(None)
    ('1.23 M', '25 T', '')
    """
    if value is None:
        return ""
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A time, in the two units that matter.

    >>> duration(4.2), duration(42.3), duration(242), duration(3725)
    ('4.2 s', '42 s', '4 min 02 s', '1 h 02 min')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def dollars(value: float | None) -> str:
    """An amount, to three digits.

    >>> dollars(0.00123), dollars(47.0), dollars(None)
    ('0.00123', '47', '')
    """
    return "" if value is None else f"{value:.3g}"


def plural(n: int, word: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def settings(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A nested table as dotted keys and short texts."""

    def text(value: Any) -> str:
        plain = isinstance(value, list) and all(isinstance(v, str | int) for v in value)
        return ", ".join(map(str, value)) if plain else json.dumps(value, ensure_ascii=False)

    return [(key, text(value)) for key, value in flatten(table).items()]


def visible(text: Any, longest: int = LONGEST) -> str:
    """Untrusted text cut to `longest` characters, with control and direction marks written out.

    >>> visible("a" + chr(0x202e) + "b" + chr(7))
    'a⟨U+202E⟩b⟨U+0007⟩'
    """
    whole = str(text)
    shown = "".join(
        f"⟨U+{ord(c):04X}⟩" if c not in KEPT and unicodedata.category(c) in HIDDEN else c
        for c in whole[:longest]
    )
    rest = len(whole) - longest
    return shown if rest <= 0 else f"{shown} … [{rest:,} more characters]"
