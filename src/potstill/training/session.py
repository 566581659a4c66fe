"""A training session: metering, evaluation, monitoring, checkpoints and budget around the steps.

A run that is interrupted anywhere continues from its last checkpoint and reaches the same numbers.
The steps themselves are left to `loop`; the checks of a run are the monitor's.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine, bare
from potstill.errors import PotstillError, writing
from potstill.problems import Evaluation
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training import checkpoint
from potstill.training.evaluation import Evaluator, TeacherCompletions
from potstill.training.metering import Metered, Usage
from potstill.training.monitoring import MonitorFactory, RunMonitor, Unmonitored
from potstill.training.recorder import Recorder
from potstill.training.replay import Buffer
from potstill.training.spending import BudgetReached
from potstill.training.validating import Validator
from potstill.types import StepStats, Trajectory


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    steps: int
    evaluation: Evaluation
    spent: dict[str, dict[str, float]]  # tokens and operations by kind, seconds by activity
    recorder: Recorder
    ended: dict[str, int] | None = None  # after a collapse: see `Session.end_if_collapsed`
    kept: dict[str, Any] | None = None  # the best student, see `Validator.best`

    @property
    def accuracy(self) -> float | None:
        """Share of held-out problems solved, strict extractor; None if the task has no grader."""
        return self.evaluation.strict if self.evaluation.graded else None


@dataclass(frozen=True)
class Session:
    """The parts around the optimizer step: metering, evaluation, monitoring, recording."""

    settings: Train
    meter: Metered
    evaluator: Evaluator
    monitor: RunMonitor
    recorder: Recorder
    validator: Validator

    def resume(self, recipe: Recipe) -> tuple[int, Buffer]:
        """Restore the last checkpoint, or record step 0; returns the first step to make."""
        folder, usage = self.recorder.checkpoints, self.meter.usage
        last = max((row["step"] for row in self.recorder.metrics), default=0)
        until = last if self.recorder.durable else None  # beyond, its metrics would have a gap
        problems = self.evaluator.task.train
        restored = checkpoint.load(folder, self.meter, problems, until) if folder else None
        step, entries, counts = restored or (-1, [], None)
        usage.recall(counts)
        self.recorder.rewind(step)
        self.monitor.recall(self.recorder.metrics)
        self.validator.recall(self.recorder.metrics)
        if not self.recorder.metrics:
            with usage.clock("diagnosis"):
                row = self.monitor.start(self.evaluator.problems)
            if row is not None:
                self.recorder.record(row, None)
        if folder and not restored and self.settings.on_collapse == "rollback":
            checkpoint.save(folder, 0, self.meter, [], usage.state())  # with step 0's cost
        capacity = recipe.replay.capacity * self.settings.batch_size if recipe.replay else 0
        return max(step, 0), Buffer(capacity, entries)

    def record(
        self,
        metrics: dict[str, Any],
        stats: StepStats,
        fresh: Sequence[Trajectory],
        *,
        last: bool,
    ) -> None:
        """Record a step with the metrics of the monitor and of an evaluation if one is due."""
        with self.meter.usage.clock("diagnosis"):
            metrics |= self.monitor.after(metrics, stats, fresh, last=last)
        with self.meter.usage.clock("evaluation"):
            metrics |= self.evaluator.evaluate_if_due(metrics["step"], last=last)
            metrics |= self.validator.measure_if_due(metrics["step"], last=last)
        self.recorder.record(metrics, self.evaluator.latest)
        self.recorder.note(self.monitor.findings)

    def end_if_collapsed(self, done: int, total: int) -> dict[str, int] | None:
        """End a collapsed run where the settings require it: as it is, or after a rollback.

        Returns:
            The steps made, the steps planned, and the step of the restored student, if any.
        """
        if self.settings.on_collapse == "warn" or not self.monitor.collapsed:
            return None
        if self.settings.on_collapse == "stop":
            return {"step": done, "of": total}
        assert self.recorder.checkpoints
        step = checkpoint.roll_back(
            self.recorder.checkpoints, self.meter, self.monitor.healthy_until
        )
        return {"step": done, "of": total, "back_to": step}

    def save_if_due(self, done: int, total: int, buffer: Buffer) -> None:
        """Save what is due after a step; end the run if the budget is spent."""
        if self.settings.save_every and done % self.settings.save_every == 0:
            self._export(done)
        if done == total:
            return
        state = self.meter.usage.state
        spent = self.recorder.spend(state())
        due = spent or done % self.settings.checkpoint_every == 0
        due = due or self.validator.needed(done) == done
        due = due or (self.settings.keep_state and done == total - 1)
        if self.recorder.checkpoints and due:
            checkpoint.save(
                self.recorder.checkpoints,
                done,
                self.meter,
                buffer.entries,
                state(),
                self.monitor.healthy_until,
                self.validator.needed,
            )
        if spent:
            raise BudgetReached(f"the budget is spent: {spent}", "raise it and run again to go on")

    def _export(self, done: int) -> None:
        """Write the student of a step as a model folder, whole or not at all."""
        assert self.recorder.students
        final = self.recorder.students / f"step-{done}"
        partial = self.recorder.students / f"partial-{done}"
        with writing(final):
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            self.meter.export(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)

    def finish(self, done: int, ended: dict[str, int] | None = None) -> Trained:
        """Restore the best student where it is kept; evaluate unless the last step did."""
        best = self.validator.best()
        older = best is not None and best["step"] != done
        if best and older:
            assert self.recorder.checkpoints
            checkpoint.at(self.recorder.checkpoints, self.meter, best["step"])
        with self.meter.usage.clock("evaluation"):
            latest = None if ended or older else self.evaluator.latest
            evaluation = latest or self.evaluator.evaluate()
        usage = self.meter.usage.state()
        if self.settings.keep_state and self.recorder.checkpoints:
            last = max(
                map(checkpoint.step_of, checkpoint.points(self.recorder.checkpoints)), default=0
            )
            checkpoint.prune(self.recorder.checkpoints, {last, self.validator.needed(last)})
        return Trained(done, evaluation, usage, self.recorder, ended, best)


def open_session(
    engine: Engine,
    task: Task,
    settings: Train,
    evaluation: Eval,
    teacher: TeacherCompletions | None,
    recorder: Recorder,
    monitor: MonitorFactory | None,
) -> Session:
    """Put a meter around the engine and create the evaluator and the monitor."""
    _check_collapse_action(settings, recorder, monitor)
    _check_folders(settings, recorder)
    usage = Usage(engine)
    evaluating = Metered(bare(engine), usage, "evaluation")
    with usage.clock("evaluation"):
        evaluator = Evaluator(evaluating, task, evaluation, settings.max_tokens, teacher)
    with usage.clock("diagnosis"):
        watcher = monitor(evaluating, evaluator.teacher_completions) if monitor else Unmonitored()
    limit = evaluation.max_tokens or settings.max_tokens
    validator = Validator(evaluating, task, settings, limit)
    return Session(settings, Metered(engine, usage), evaluator, watcher, recorder, validator)


def _check_collapse_action(
    settings: Train, recorder: Recorder, monitor: MonitorFactory | None
) -> None:
    """Reject an action on a collapse that the run cannot take."""
    if settings.on_collapse != "warn" and monitor is None:
        raise PotstillError(
            f'on_collapse = "{settings.on_collapse}" needs a monitor to detect the collapse',
            'write "warn", or pass a monitor to train',
        )
    if settings.on_collapse == "rollback" and not recorder.checkpoints:
        raise PotstillError(
            'on_collapse = "rollback" needs a folder for checkpoints',
            'write "stop", or pass a recorder that has one',
        )


def _check_folders(settings: Train, recorder: Recorder) -> None:
    """Reject students that are kept without a folder for them."""
    if settings.keep == "best" and not recorder.checkpoints:
        raise PotstillError(
            'keep = "best" needs a folder for checkpoints',
            'write "last", or pass a recorder that has one',
        )
    if settings.save_every and not recorder.students:
        raise PotstillError(
            f"save_every = {settings.save_every} needs a folder for students",
            "leave it out, or pass a recorder that has one",
        )
