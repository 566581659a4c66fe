"""The result of a check, and what pre-flight reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from potstill.diagnostics.faults import FAULTS

WITHOUT_TEACHER = "left out: the pair has no teacher"
Status = Literal["passed", "warning", "refused"]


@dataclass(frozen=True)
class Check:
    """Result of one check; `cause` is the fault that the evidence points to, if any."""

    name: str
    status: Status
    evidence: str
    hint: str = ""
    cause: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)  # the evidence for programs

    def noted(self, note: str) -> Check:
        """The check with a note at the end of its evidence."""
        return replace(self, evidence=f"{self.evidence}; {note}") if note else self


def refusal(name: str, evidence: str, cause: str) -> Check:
    """A failed check, with the remedy of its cause."""
    return Check(name, "refused", evidence, FAULTS[cause].remedy, cause)


@dataclass(frozen=True)
class Progress:
    """The start or the end of a check of one pair."""

    name: str
    results: Sequence[Check] | None = None  # None: the check starts
    seconds: float = 0.0
    kept: bool = False  # the results are those of an earlier pre-flight

    @property
    def status(self) -> str:
        """The worst status of the results; "nothing to check" without any."""
        order: tuple[Status, ...] = ("refused", "warning", "passed")
        statuses = {check.status for check in self.results or ()}
        return next((status for status in order if status in statuses), "nothing to check")


class Keeper(Protocol):
    """Keeps the results of checks for a later pre-flight of the same models and settings."""

    def get(self, name: str) -> list[Check] | None:
        """The kept results of a check, with their date in the evidence; None without any."""

    def put(self, name: str, checks: Sequence[Check]) -> None:
        """Keep the results of a check."""


Watch = Callable[[Progress], None]


def unwatched(progress: Progress) -> None:
    """Report nothing."""
