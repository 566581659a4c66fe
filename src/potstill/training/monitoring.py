"""What the loop needs of a monitor, so that a run can be trained with one or without.

`diagnostics.monitor.Monitor` is the one that comes with potstill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from potstill.engines.protocol import Engine
from potstill.tasks import Task
from potstill.training.evaluation import Reference
from potstill.types import Finding, StepStats, Trajectory


class Monitor(Protocol):
    """Watches one run: it changes nothing of it."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What is wrong with the run so far."""

    @property
    def collapsed(self) -> bool:
        """Whether the student has lost its skill."""

    @property
    def healthy_until(self) -> int:
        """The last step that is surely good."""

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue from the recorded rows of an interrupted run."""

    def start(self, task: Task, graded: int) -> dict[str, Any] | None:
        """The row of step 0; None where nothing is measured.

        Args:
            task: as it is evaluated.
            graded: how many of its test problems are evaluated.
        """

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Called with the trajectories of a step before its optimizer step."""

    def after(
        self, seen: Mapping[str, Any], stats: StepStats, fresh: Sequence[Trajectory], *, last: bool
    ) -> dict[str, Any]:
        """Further metrics of a step, once it is made.

        Args:
            seen: the step's metrics.
            stats: what the engine reported.
            fresh: the trajectories sampled for it.
            last: whether it is the run's last step.
        """


MonitorFactory = Callable[[Engine, Reference], Monitor]  # the engine without wrappers


class Unmonitored:
    """No monitor."""

    findings: tuple[Finding, ...] = ()
    collapsed = False
    healthy_until = 0

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing to recall."""

    def start(self, task: Task, graded: int) -> None:
        """No row of step 0."""

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Nothing is measured."""

    def after(
        self, seen: Mapping[str, Any], stats: StepStats, fresh: Sequence[Trajectory], *, last: bool
    ) -> dict[str, Any]:
        return {}
