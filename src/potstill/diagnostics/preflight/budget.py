"""The time that pre-flight may take: a share of the time that the study is predicted to take.

A check is made at its smallest size first. The time that it took shows how much more of it its
part of the budget pays for, and it is repeated at that size. So no check is left out, and however
slow the models are, the total exceeds the budget by the smallest sizes at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from potstill.diagnostics.preflight.check import Check

SHARE = 0.1  # of the predicted study


@dataclass(frozen=True)
class CheckSize:
    """The size of a check: problems, and tokens of a completion."""

    problems: int
    tokens: int

    @property
    def work(self) -> int:
        """An upper bound of the cost, relative to that of other sizes."""
        return self.problems * self.tokens

    def at_most(self, tokens: int) -> CheckSize:
        """The size with no longer completions than these."""
        return replace(self, tokens=min(self.tokens, tokens))

    def note(self, full: CheckSize) -> str:
        """The difference from the full size, as evidence; "" if there is none."""
        parts = [f"{self.problems} of {full.problems} problems"]
        parts += [f"completions of {self.tokens} tokens"] if self.tokens < full.tokens else []
        return "" if self == full else reduced(", ".join(parts))


def reduced(size: str) -> str:
    """The evidence of a check that was made smaller."""
    return f"on {size}, to stay within {SHARE:.0%} of the study"


@dataclass
class TimeBudget:
    """Seconds that all checks together may take, and those that they have taken.

    Args:
        limit: seconds; None: every check has its full size.
        clock: returns the seconds since some start.
        parts: checks that are still to be made; each has an equal part of what is left.
    """

    limit: float | None = None
    clock: Callable[[], float] = time.perf_counter
    parts: int = 1
    start: float = field(init=False)
    dearest: float = field(default=0.0, init=False)  # seconds of a check at its smallest size

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    def predict(self, study: float, step_of_each_kind: float) -> None:
        """Set the limit from the predicted seconds of the study."""
        if self.limit is not None:
            self.limit = max(SHARE * study, step_of_each_kind)

    def pays(self, seconds: float, share: float = 1.0) -> bool:
        """True if a share of the budget has room for more seconds."""
        return self.limit is None or self.spent + seconds <= share * self.limit

    def affords(self, seconds: float) -> bool:
        """True if one check may take so many seconds."""
        return self.limit is None or seconds <= self.part()

    def part(self, spent: float | None = None) -> float:
        """Seconds that one check may take, so that each later one can have its smallest size."""
        left = max(0.0, (self.limit or 0.0) - (self.spent if spent is None else spent))
        later = max(0, self.parts - 1)
        return max(0.0, min(left / (later + 1), left - later * self.dearest))

    def scaled(
        self, sizes: Sequence[CheckSize], work: Callable[[CheckSize], list[Check]]
    ) -> tuple[CheckSize, list[Check]]:
        """Make a check at the largest size that its part of the budget pays for.

        A check that fails at the smallest size has shown what it can show and is not repeated.

        Args:
            sizes: rising sizes; the first one is always made.
            work: the check.

        Returns:
            The size, and the check's results with a note of what was left out.
        """
        full, best = sizes[-1], sizes[0] if self.limit is not None else sizes[-1]
        spent, start = self.spent, self.clock()
        results = work(best)
        took = self.clock() - start
        self.dearest = price = max(self.dearest, took)  # less if its samples were known already
        part = self.part(spent)
        self.parts -= 1
        if not any(check.status == "refused" for check in results):
            paid = [s for s in sizes if took + price * s.work / best.work <= part]
            if paid and paid[-1].work > best.work:
                best = paid[-1]
                results = work(best)
        return best, [check.noted(best.note(full)) for check in results]
