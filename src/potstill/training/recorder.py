"""Recorders: the destination of a run's metrics, evaluations, findings and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from potstill.problems import Evaluation
from potstill.types import Finding


class Recorder(Protocol):
    """Stores one run: the study's run folder on disk, or `Memory`."""

    checkpoints: Path | None  # folder of the run's checkpoints
    students: Path | None  # folder of its students of some steps, as model folders
    durable: bool  # its metrics are there after an interruption

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows recorded so far."""

    def rewind(self, step: int) -> None:
        """Delete everything recorded after `step`."""

    def note(self, findings: Sequence[Finding]) -> None:
        """Store the findings of the run so far."""

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        """Store the metrics of one step, and examples of its evaluation, if any."""

    def spend(self, state: dict[str, dict[str, float]]) -> str:
        """Store the cost of the run so far; returns the limit that is reached, or ""."""


@dataclass
class Memory:
    """Stores a run in memory."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    checkpoints: Path | None = None
    students: Path | None = None
    durable: bool = False

    def rewind(self, step: int) -> None:
        self.metrics = [row for row in self.metrics if row["step"] <= step]

    def note(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        self.metrics.append(metrics)

    def spend(self, state: dict[str, dict[str, float]]) -> str:
        return ""
