"""What a study spends: tokens, hours and money, and whether its budget allows more.

Cells write down what they have spent as they go, so that the sum over a folder is what all
processes have spent so far, with what a killed or failed attempt spent and had to do again.
Prices are the user's: potstill knows no service's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
