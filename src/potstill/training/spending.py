"""What a study spends: tokens, hours and money, and whether its budget allows more.

Cells write down what they have spent as they go, so that the sum over a folder is what all
processes have spent so far, with what a killed or failed attempt spent and had to do again.
Prices are the user's: potstill knows no service's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.settings import Budget, Price
from potstill.types import KINDS

# Tokens that are paid for, by what the price is called; graded ones are no part of a method's
# budget and are paid for all the same.
PAID = {
    "prompt": ("prompt", "graded_prompt"),
    "student_sampled": ("student_sampled", "graded_student_sampled"),
    "teacher_sampled": ("teacher_sampled", "graded_teacher_sampled"),
    "teacher_scored": ("teacher_scored", "graded_scored"),
    "trained": ("trained",),
}
EVERY = 1.0  # seconds between two looks at what other processes have spent


class BudgetReached(PotstillError):
    """The study has spent what it may; what is unfinished goes on from here."""


@dataclass(frozen=True)
class Spent:
    """What was spent, or will be."""

    seconds: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)  # by kind
    flops: float | None = 0.0  # operations, see `flops`; None: unknown, as of a service

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Spent:
        """From a cell's record; unknown is nothing, except for operations."""
        seconds, tokens = float(record.get("seconds") or 0.0), dict(record.get("tokens") or {})
        work = record.get("flops") if tokens else 0.0
        flops = sum(work.values()) or None if isinstance(work, Mapping) else work
        return cls(seconds, tokens, flops)

    def __add__(self, other: Spent) -> Spent:
        kinds = {**self.tokens, **other.tokens}
        tokens = {k: self.tokens.get(k, 0.0) + other.tokens.get(k, 0.0) for k in kinds}
        known = self.flops is not None and other.flops is not None
        flops = (self.flops or 0.0) + (other.flops or 0.0) if known else None
        return Spent(self.seconds + other.seconds, tokens, flops)

    def __mul__(self, factor: float) -> Spent:
        flops = None if self.flops is None else self.flops * factor
        tokens = {k: n * factor for k, n in self.tokens.items()}
        return Spent(self.seconds * factor, tokens, flops)

    def count(self) -> float:
        """Completion tokens: what methods are compared at, gradings apart."""
        return sum(self.tokens.get(kind, 0.0) for kind in KINDS)

    def usd(self, price: Price) -> float:
        """Dollars at these prices."""
        tokens = sum(
            getattr(price, name) * sum(self.tokens.get(kind, 0.0) for kind in kinds)
            for name, kinds in PAID.items()
        )
        return price.hour * self.seconds / 3600 + tokens / 1e6


def total(parts: Iterable[Spent]) -> Spent:
    """The sum."""
    found = Spent()
    for part in parts:
        found = found + part
    return found


def excess(budget: Budget, price: Price, spent: Spent) -> str:
    """The first limit that is reached, in words; empty where none is."""
    for name, limit, value, form in (
        ("usd", budget.usd, spent.usd(price), "{:.4g} USD"),
        ("hours", budget.hours, spent.seconds / 3600, "{:.3g} hours"),
        ("tokens", budget.tokens, spent.count(), "{:.3g} tokens"),
    ):
        if limit is not None and value >= limit:
            return f"{form.format(value)} of budget.{name} = {limit:g}"
    return ""


class Ledger:
    """What the cells of a folder have spent, and whether they may go on.

    Args:
        cells: the folder that holds them.
        budget: what they may spend in all.
        price: to tell dollars.
        told: a limit that is reached as others see it, in words, for a cell whose folder does not
            hold the whole study.
    """

    def __init__(
        self, cells: Path, budget: Budget, price: Price, told: Callable[[], str] = str
    ) -> None:
        self._cells, self._budget, self._price, self._told = cells, budget, price, told
        self._looked = -EVERY
        self._ended: dict[Path, Spent] = {}  # cells with a result: they spend no more
        self._lost: dict[Path, Spent] = {}  # by earlier attempts at cells that run here

    def over(self) -> str:
        """The limit that is reached, in words; empty where none is."""
        if self._budget == Budget():
            return self._told()
        return excess(self._budget, self._price, self.spent()) or self._told()

    def spent(self, mine: Path | None = None) -> Spent:
        """The sum over all cells but one."""
        return total(self._cell(path) for path in self._cells.glob("*/*/*") if path != mine)

    def _cell(self, path: Path) -> Spent:
        if path not in self._ended:
            result, running = _read(path / "result.json"), _read(path / ".spent") or {}
            lost = Spent.read(running.get("lost") or {})
            if not result or result.get("status") != "done":
                return Spent.read(running) + lost
            self._ended[path] = Spent.read(result) + lost
        return self._ended[path]

    def charge(self, cell: Path, spent: Spent, *, now: bool = False) -> str:
        """Write down what a cell has spent and look at the sum, at most once a second.

        Args:
            cell: the cell's folder.
            spent: by it so far.
            now: whatever the clock says.

        Returns:
            The limit that is reached, in words; empty where none is.
        """
        if self._budget == Budget():
            return self._told()
        if cell not in self._lost:
            self._lost[cell] = _thrown_away(_read(cell / ".spent") or {}, spent)
        if not now and time.monotonic() - self._looked < EVERY:
            return self._told()
        self._looked, lost = time.monotonic(), self._lost[cell]
        record: dict[str, Any] = {"seconds": spent.seconds, "tokens": dict(spent.tokens)}
        if lost.seconds or lost.tokens:
            record["lost"] = {"seconds": lost.seconds, "tokens": dict(lost.tokens)}
        partial = cell / ".spent.partial"
        partial.write_text(json.dumps(record))
        partial.replace(cell / ".spent")
        return excess(self._budget, self._price, self.spent(cell) + spent + lost) or self._told()


def _thrown_away(before: Mapping[str, Any], spent: Spent) -> Spent:
    """What earlier attempts spent beyond the point that this one goes on from.

    Args:
        before: what the last attempt wrote down.
        spent: by this one when it is first asked, what its resume point kept among it.
    """
    last, lost = Spent.read(before), Spent.read(before.get("lost") or {})
    gone = {k: n - spent.tokens.get(k, 0.0) for k, n in last.tokens.items()}
    tokens = {k: n for k, n in gone.items() if n > 0}
    return lost + Spent(max(0.0, last.seconds - spent.seconds), tokens)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
