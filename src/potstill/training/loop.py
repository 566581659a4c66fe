"""The one training loop: who writes, what each token is told, one optimizer step, what is
recorded.

It knows no method by name and no engine: a recipe decides through `rollout` and `objective`, an
engine computes. Stopped anywhere and started again, it goes on from the last checkpoint to the
same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine, bare
from potstill.errors import PotstillError
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training import checkpoint, objective
from potstill.training.evaluation import Evaluator, Reference
from potstill.training.filtering import RolloutFilter
from potstill.training.metering import Metered, Usage
from potstill.training.monitoring import Monitor, MonitorFactory, Unmonitored
from potstill.training.recorder import Memory, Recorder
from potstill.training.replay import Buffer
from potstill.training.rollout import collect, draw
from potstill.training.spending import BudgetReached
from potstill.types import Evaluation, Limits, StepStats, Trajectory


def train(
    recipe: Recipe,
    engine: Engine,
    task: Task,
    settings: Train,
    grading: Eval,
    *,
    seed: int = 0,
    reference: Reference | None = None,
    recorder: Recorder | None = None,
    monitor: MonitorFactory | None = None,
) -> Trained:
    """Train the engine's student by a recipe.

    Args:
        recipe: the method.
        engine: an open engine; its student is changed.
        task: problems to train on and to grade.
        settings: steps, batch, learning rate, and what to do when the student collapses.
        grading: how often and on how many held-out problems.
        seed: decides the prompts' order and every sample.
        reference: the teacher's texts; written now where missing.
        recorder: where metrics go; default: memory.
        monitor: makes what watches the run, such as
            `partial(diagnostics.monitor.Monitor, run, settings, grading)`; default: nothing does.

    Raises:
        NonFinite: a loss or gradient is no number; BudgetReached: run again, it goes on.
    """
    recorder = recorder or Memory()
    total = max(1, round(settings.steps * recipe.budget))
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    usage = Usage(engine)
    meter, aside = Metered(engine, usage), Metered(bare(engine), usage, "evaluation")
    with usage.clock("evaluation"):
        evaluator = Evaluator(aside, task, grading, settings.max_tokens, reference)
    with usage.clock("diagnosis"):
        watch = monitor(aside, evaluator.texts) if monitor else Unmonitored()
    start, buffer = _resume(recipe, meter, settings, recorder, watch, evaluator)
    rollouts = RolloutFilter(recipe, engine, task, recorder.metrics)
    for step, done in pairwise(range(start, total + 1)):
        problems = draw(task.train, settings.batch_size, seed, step)
        fresh = collect(recipe, meter, problems, step / total, step, seed, limits, rollouts.success)
        batch = buffer.exchange(rollouts.keep(fresh), step, seed)
        rate = settings.rate(step, sum(t.source == "student" for t in batch) / max(1, len(batch)))
        with usage.clock("diagnosis"):
            watch.before(done, fresh, batch)
        stats = meter.step(objective.build(recipe, batch, meter), rate)
        row = _metrics(fresh, batch, stats) | {"train/buffer_size": len(buffer)} | rollouts.metrics
        row |= {"step": done, "train/learning_rate": rate, "tokens": usage.spent}
        with usage.clock("diagnosis"):
            row |= watch.after(row, stats, fresh, last=done == total)
        with usage.clock("evaluation"):
            row |= evaluator.evaluate_if_due(done, last=done == total)
        recorder.record(row, evaluator.fresh)
        recorder.note(watch.findings)
        if ended := _give_up(done, total, watch, engine, settings, recorder):
            return _end(done, evaluator, meter, recorder, ended)
        if done < total:
            _keep(done, meter, buffer, settings, recorder, watch)
    return _end(total, evaluator, meter, recorder)


def _end(
    done: int,
    evaluator: Evaluator,
    meter: Metered,
    recorder: Recorder,
    ended: dict[str, int] | None = None,
) -> Trained:
    """Grade the student that the run ends with."""
    with meter.usage.clock("evaluation"):
        graded = evaluator.grade(again=ended is not None)
    return Trained(done, graded, meter.usage.state(), recorder, ended)


def _resume(
    recipe: Recipe,
    meter: Metered,
    settings: Train,
    recorder: Recorder,
    monitor: Monitor,
    evaluator: Evaluator,
) -> tuple[int, Buffer]:
    """Where to start: the last checkpoint, or step 0, whose signals are recorded first."""
    capacity = recipe.replay.capacity * settings.batch_size if recipe.replay else 0
    if settings.on_collapse != "warn" and isinstance(monitor, Unmonitored):
        raise PotstillError(
            f'on_collapse = "{settings.on_collapse}" needs a monitor, which sees the collapse',
            'write "warn", or give train a monitor',
        )
    if settings.on_collapse == "rollback" and not recorder.checkpoints:
        raise PotstillError(
            'on_collapse = "rollback" needs a folder for checkpoints', 'write "stop", or a recorder'
        )
    found = (
        checkpoint.load(recorder.checkpoints, meter, evaluator.task.train)
        if recorder.checkpoints
        else None
    )
    step, entries, counted = found or (-1, [], None)
    meter.usage.recall(counted)
    recorder.rewind(step)
    monitor.recall(recorder.metrics)
    if found is None and settings.on_collapse == "rollback" and recorder.checkpoints:
        checkpoint.save(recorder.checkpoints, 0, meter, [], meter.usage.state())
    if not recorder.metrics:
        with meter.usage.clock("diagnosis"):
            first = monitor.start(evaluator.task, len(evaluator.tested))
        if first is not None:
            recorder.record(first, None)
    return max(step, 0), Buffer(capacity, entries)


def _keep(
    done: int,
    meter: Metered,
    buffer: Buffer,
    settings: Train,
    recorder: Recorder,
    monitor: Monitor,
) -> None:
    """Write a resume point where one is due, and end here where the budget is spent."""
    over = recorder.spend(meter.usage.state())
    if recorder.checkpoints and (over or done % settings.checkpoint_every == 0):
        place, good = recorder.checkpoints, monitor.healthy_until
        checkpoint.save(place, done, meter, buffer.entries, meter.usage.state(), good)
    if over:
        raise BudgetReached(f"the budget is spent: {over}", "raise it and run again to go on")


def _give_up(
    done: int, total: int, monitor: Monitor, engine: Engine, settings: Train, recorder: Recorder
) -> dict[str, int] | None:
    """Whether a collapsed run ends here, and on which student: the newest, or an earlier one."""
    if settings.on_collapse == "warn" or not monitor.collapsed:
        return None
    if settings.on_collapse == "stop":
        return {"step": done, "of": total}
    assert recorder.checkpoints
    back = checkpoint.back(recorder.checkpoints, engine, monitor.healthy_until)
    return {"step": done, "of": total, "back_to": back}


def _metrics(
    fresh: list[Trajectory], batch: list[Trajectory], stats: StepStats
) -> dict[str, float | None]:
    """One step in numbers, under the published study's names; losses in nats per token."""
    lengths = [len(t.completion) for t in fresh]
    return {
        "train/loss": stats.loss,
        "train/on_policy_loss": stats.losses.get("student"),
        "train/off_policy_loss": stats.losses.get("teacher"),
        "train/anchor_loss": stats.losses.get("anchor"),
        "train/grad_norm": stats.grad_norm,
        "train/phase": float(np.mean([t.source == "student" for t in fresh])),
        "train/seed_tokens": float(np.mean([t.prefix for t in fresh])),
        "train/length": float(np.mean(lengths)),
        "train/age": float(np.mean([fresh[0].version - t.version for t in batch] or [0])),
    }


@dataclass(frozen=True)
class Trained:
    """What a run ends with."""

    steps: int
    evaluation: Evaluation
    spent: dict[str, dict[str, float]]  # tokens by kind and seconds by activity, see `meter`
    recorder: Recorder
    ended: dict[str, int] | None = None  # given up: after step, of how many, and back to which

    @property
    def accuracy(self) -> float:
        """Share of held-out problems solved, strict extractor."""
        return self.evaluation.strict
