"""Numbers as text, for people; what is not known is an empty text, never 0."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from potstill.settings import flatten

UNITS = ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def per_cent(value: float | None) -> str:
    """A share as per cent with one digit; nothing where it is not known."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no negative zero


def p_value(value: float) -> str:
    """A p-value as text; nothing where there is none."""
    return "" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


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

    >>> duration(42.3), duration(3725)
    ('42 s', '1 h 02 min')
    """
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def dollars(value: float | None) -> str:
    """An amount, to three digits.

    >>> dollars(0.00123), dollars(47.0), dollars(None)
    ('0.00123', '47', '')
    """
    return "" if value is None else f"{value:.3g}"


def settings(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A nested table as dotted keys and short texts."""
    return [(key, _short(value)) for key, value in flatten(table).items()]


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str | int) for v in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)
