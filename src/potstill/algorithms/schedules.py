"""Schedules: functions of progress t in [0, 1) that print, compare and read from TOML.

Progress is step / total steps, so a longer budget stretches a schedule instead of cutting it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import PotstillError, did_you_mean

NEAR = 1e-9  # a product of floats this close to a whole number is meant to be it
FORMS = "write a number, { linear = [20, 0], until = 0.5 } or { switch = [0, 1], at = 0.5 }"
LARGEST = 1e300  # larger integers do not fit a float


@dataclass(frozen=True)
class Schedule:
    """A value over progress. Build one with `constant`, `linear`, `cosine` or `switch`.

    Args:
        kind: its shape between the ends, a key of `SHAPES`.
        start: value at t = 0.
        end: value from t = `until` on.
        until: progress in (0, 1] at which the end is reached.
    """

    kind: str
    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise PotstillError(
                f'unknown schedule "{self.kind}"', did_you_mean(self.kind, SHAPES, "schedules")
            )
        if not 0 < self.until <= 1:
            raise PotstillError(
                f"a schedule ends at a progress in (0, 1], got {self.until}",
                "0.5 means half of the run",
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise PotstillError(
                f"a schedule's values are finite, got {self.start}, {self.end}",
                "write numbers such as 0.5 or 20",
            )

    def __call__(self, t: float) -> float:
        """Value at progress `t` in [0, 1]."""
        if t >= self.until:
            return self.end
        return self.end + (self.start - self.end) * SHAPES[self.kind](t / self.until)

    def count(self, t: float) -> int:
        """Value at progress `t` as a count, rounded down.

        >>> linear(20, 0, until=0.5)(0.4), linear(20, 0, until=0.5).count(0.4)
        (3.999999999999999, 4)
        """
        return whole(self(t))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value over the run."""
        return min(self.start, self.end), max(self.start, self.end)

    def to_toml(self) -> float | dict[str, Any]:
        """The value that `schedule` reads back."""
        if self.kind == "constant":
            return self.start
        when = "at" if self.kind == "switch" else "until"
        return {self.kind: [self.start, self.end], when: self.until}

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.start:g}"
        arrow = f"{self.start:g} -> {self.end:g}"
        if self.kind == "switch":
            return f"{arrow} at {self.until:g}"
        return f"{arrow} {self.kind}" + (f" until {self.until:g}" if self.until < 1 else "")


# Weight of the start at fraction x of the way, from 1 at x = 0 towards 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "switch": lambda x: 1.0,
}


def whole(value: float) -> int:
    """The largest whole number up to a value, whatever a float lost on the way to it.

    >>> 100 * 0.29, whole(100 * 0.29)
    (28.999999999999996, 29)
    """
    return math.floor(value + NEAR * max(1.0, abs(value)))


def constant(value: float) -> Schedule:
    """The same value throughout.

    >>> constant(0.7)(0.9)
    0.7
    """
    return Schedule("constant", float(value), float(value))


def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    """A straight line from `start` to `end`, reached at progress `until`.

    >>> [linear(20, 0, until=0.5)(t) for t in (0, 0.25, 0.5, 0.9)]
    [20.0, 10.0, 0.0, 0.0]
    """
    return Schedule("linear", float(start), float(end), until)


def cosine(start: float, end: float, until: float = 1.0) -> Schedule:
    """Half a cosine from `start` to `end`, reached at progress `until`.

    >>> round(cosine(1, 0)(0.5), 6)
    0.5
    """
    return Schedule("cosine", float(start), float(end), until)


def switch(start: float, end: float, at: float) -> Schedule:
    """`start` before progress `at`, `end` from there on.

    >>> [switch(0, 1, at=0.5)(t) for t in (0.49, 0.5)]
    [0.0, 1.0]
    """
    return Schedule("switch", float(start), float(end), at)


def schedule(value: Any) -> Schedule:
    """Read a schedule from a number, a `Schedule` or a TOML table.

    >>> str(schedule({"linear": [20, 0], "until": 0.5}))
    '20 -> 0 linear until 0.5'
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, Mapping) or not value:
        return constant(_number("a schedule is a number or a table", value))
    table = dict(value)
    until = _number("until is a progress", table.pop("until", table.pop("at", 1.0)))
    if len(table) != 1:
        raise PotstillError(f"a schedule has one kind, got {sorted(table)}", FORMS)
    ((kind, ends),) = table.items()
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise PotstillError(f"{kind} takes [start, end], got {ends!r}", FORMS)
    start, end = (_number(f"{kind} takes [start, end]", number) for number in ends)
    return Schedule(kind, start, end, until)


def _number(rule: str, value: Any) -> float:
    """A number of a study file, or a `PotstillError` with the rule."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, int) and abs(value) > LARGEST):
        raise PotstillError(f"{rule}, got {value!r}", FORMS)
    return float(value)
