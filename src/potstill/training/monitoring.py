"""The monitor's protocol, so that a run can be trained with a monitor or without one.

The implementation is `diagnostics.monitor.Monitor`, which training does not import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.training.evaluation import TeacherCompletions
from potstill.types import Finding, StepStats, Trajectory


class RunMonitor(Protocol):
    """Observes one run and changes nothing in it."""

    @property
    def findings(self) -> Sequence[Finding]:
        """Collapse and deviations found so far."""

    @property
    def collapsed(self) -> bool:
        """True once the student has lost its skill."""

    @property
    def healthy_until(self) -> int:
        """The last step at which a probe showed no symptom."""

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue from the recorded rows of an interrupted run."""

    def start(self, evaluated: Sequence[Problem]) -> dict[str, Any] | None:
        """The row of step 0; None if nothing is measured.

        Args:
            evaluated: the problems that the run evaluates.
        """

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Called before an optimizer step, with its fresh trajectories and its batch."""

    def after(
        self,
        metrics: Mapping[str, Any],
        stats: StepStats,
        fresh: Sequence[Trajectory],
        *,
        last: bool,
    ) -> dict[str, Any]:
        """Further metrics, after an optimizer step.

        Args:
            metrics: the step's metrics so far.
            stats: the engine's report of the step.
            fresh: the trajectories sampled for it.
            last: true at the run's last step.
        """


# Creates the monitor from the bare engine and the teacher's completions.
MonitorFactory = Callable[[Engine, TeacherCompletions], RunMonitor]


class Unmonitored:
    """A monitor that measures nothing."""

    findings: tuple[Finding, ...] = ()
    collapsed = False
    healthy_until = 0

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing to continue."""

    def start(self, evaluated: Sequence[Problem]) -> None:
        """No row of step 0."""

    def before(self, step: int, fresh: Sequence[Trajectory], batch: Sequence[Trajectory]) -> None:
        """Nothing to measure."""

    def after(
        self,
        metrics: Mapping[str, Any],
        stats: StepStats,
        fresh: Sequence[Trajectory],
        *,
        last: bool,
    ) -> dict[str, Any]:
        return {}
