"""Where a run writes its metrics, evaluations and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from potstill.types import Evaluation, Finding


class Recorder(Protocol):
    """Where a run writes; `store.CellFolder` on disk, `Memory` without one."""

    checkpoints: Path | None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows recorded so far."""

    def rewind(self, step: int) -> None:
        """Forget everything recorded after `step`."""

    def note(self, findings: Sequence[Finding]) -> None:
        """Keep what is found to be wrong with the run so far."""

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        """Keep the metrics of one step, and texts of its grading if there was one."""

    def spend(self, state: dict[str, dict[str, float]]) -> str:
        """Note what the run has spent; says in words which limit is reached, if one is."""


@dataclass
class Memory:
    """Keeps a run's metrics in a list."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    checkpoints: Path | None = None

    def rewind(self, step: int) -> None:
        self.metrics = [row for row in self.metrics if row["step"] <= step]

    def note(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        self.metrics.append(metrics)

    def spend(self, state: dict[str, dict[str, float]]) -> str:
        return ""
