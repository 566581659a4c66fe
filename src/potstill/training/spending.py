"""Cost of runs in tokens, seconds, operations and money, and the limits of a budget.

A run records its cost as it goes, so the sum over a study's folder is the cost so far of all
processes, including attempts that failed and were repeated. Prices come from the user: potstill
has no price list. Reading and writing the records is left to `study.budget`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.errors import PotstillError
from potstill.settings import Budget, Price
from potstill.types import KINDS

# Kinds of tokens by the name of their price. The "graded_" ones come from evaluations: they are not
# part of a method's budget but cost the same.
PAID = {
    "prompt": ("prompt", "graded_prompt"),
    "student_sampled": ("student_sampled", "graded_student_sampled"),
    "teacher_sampled": ("teacher_sampled", "graded_teacher_sampled"),
    "student_scored": ("student_scored", "graded_student_scored"),
    "teacher_scored": ("teacher_scored", "graded_scored"),
    "trained": ("trained",),
}


class BudgetReached(PotstillError):
    """The budget of the study is spent. Unfinished runs can continue from their checkpoints."""


@dataclass(frozen=True)
class Spent:
    """Actual or predicted cost."""

    seconds: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)  # by kind
    flops: float | None = 0.0  # operations, see `engines.flops`; None: unknown, as for a service
    saved: float = 0.0  # seconds in addition that a cache of teacher completions saved

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Spent:
        """Read a run's record; all that is missing counts as 0, but for operations."""
        seconds, tokens = float(record.get("seconds") or 0.0), dict(record.get("tokens") or {})
        work = record.get("flops") if tokens else 0.0
        flops = sum(work.values()) or None if isinstance(work, Mapping) else work
        saved = record.get("saved") or 0.0
        saved = sum(saved.values()) if isinstance(saved, Mapping) else saved
        return cls(seconds, tokens, flops, float(saved))

    @property
    def alone(self) -> Spent:
        """The cost without the completions that other runs left behind."""
        return replace(self, seconds=self.seconds + self.saved, saved=0.0)

    def __add__(self, other: Spent) -> Spent:
        kinds = {**self.tokens, **other.tokens}
        tokens = {k: self.tokens.get(k, 0.0) + other.tokens.get(k, 0.0) for k in kinds}
        known = self.flops is not None and other.flops is not None
        flops = (self.flops or 0.0) + (other.flops or 0.0) if known else None
        return Spent(self.seconds + other.seconds, tokens, flops, self.saved + other.saved)

    def __mul__(self, factor: float) -> Spent:
        flops = None if self.flops is None else self.flops * factor
        tokens = {k: n * factor for k, n in self.tokens.items()}
        return Spent(self.seconds * factor, tokens, flops, self.saved * factor)

    def count(self) -> float:
        """Completion tokens without evaluations: the budget at which methods are compared."""
        return sum(self.tokens.get(kind, 0.0) for kind in KINDS)

    def usd(self, price: Price) -> float:
        """Dollars at these prices."""
        tokens = sum(
            getattr(price, name) * sum(self.tokens.get(kind, 0.0) for kind in kinds)
            for name, kinds in PAID.items()
        )
        return price.hour * self.seconds / 3600 + tokens / 1e6


def total(parts: Iterable[Spent]) -> Spent:
    """Sum of the parts."""
    return sum(parts, start=Spent())


def excess(budget: Budget, price: Price, spent: Spent) -> str:
    """A description of the first limit that is reached; "" if none is."""
    for name, limit, value, form in (
        ("usd", budget.usd, spent.usd(price), "{:.4g} USD"),
        ("hours", budget.hours, spent.seconds / 3600, "{:.3g} hours"),
        ("tokens", budget.tokens, spent.count(), "{:.3g} tokens"),
    ):
        if limit is not None and value >= limit:
            return f"{form.format(value)} of budget.{name} = {limit:g}"
    return ""
