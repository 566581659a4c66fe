"""The training loop: roll out, filter, weigh, step, evaluate, record. One loop for every method.

It names no method and no engine: a recipe decides through `rollout` and `objective`, an engine
computes. Evaluation, monitoring and checkpoints around each step are in `session`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training import objective
from potstill.training.evaluation import TeacherCompletions
from potstill.training.filtering import RolloutFilter
from potstill.training.monitoring import MonitorFactory
from potstill.training.recorder import Memory, Recorder
from potstill.training.rollout import check_prefix, collect, draw, epochs, limits_of
from potstill.training.session import Trained, open_session
from potstill.training.validating import held_back
from potstill.types import StepStats, Trajectory


def train(
    recipe: Recipe,
    engine: Engine,
    task: Task,
    settings: Train,
    evaluation: Eval,
    *,
    seed: int = 0,
    teacher_completions: TeacherCompletions | None = None,
    recorder: Recorder | None = None,
    monitor: MonitorFactory | None = None,
) -> Trained:
    """Train the engine's student by a recipe.

    Args:
        recipe: the method.
        engine: an open engine; its student is changed.
        task: problems to train on and to evaluate.
        settings: steps, batch, learning rate, and the action on a collapse.
        evaluation: interval and number of held-out problems.
        seed: determines the order of prompts and every sample.
        teacher_completions: of the probe and the evaluated problems; generated if missing.
        recorder: destination of the metrics; default: memory.
        monitor: creates the monitor of the run, such as
            `partial(diagnostics.monitor.Monitor, spec, settings, evaluation)`; default: none.

    Raises:
        PotstillError: the prefix leaves no tokens to the student, or on_collapse needs a monitor.
        NonFinite: a loss or gradient is not finite.
        BudgetReached: the budget is spent; a later call continues from the checkpoint.
    """
    check_prefix(recipe, settings.max_tokens)
    recorder, task = recorder or Memory(), held_back(task, settings.validation)
    total = recipe.total_steps(settings.settled(len(task.train)).steps)
    limits = limits_of(settings)
    session = open_session(
        engine, task, settings, evaluation, teacher_completions, recorder, monitor
    )
    meter, usage = session.meter, session.meter.usage
    start, buffer = session.resume(recipe)
    rollouts = RolloutFilter(recipe, engine, task, recorder.metrics)
    for step in range(start, total):
        done, t, success = step + 1, step / total, rollouts.success
        problems = draw(task.train, settings.batch_size, seed, step)
        passes = epochs(len(task.train), settings.batch_size, step)
        fresh = collect(recipe, meter, problems, t, step, seed, limits, success, passes)
        batch = buffer.exchange(rollouts.keep(fresh), step, seed)
        rate = settings.rate(step, _student_share(batch), total)
        with usage.clock("diagnosis"):
            session.monitor.before(done, fresh, batch)
        stats = meter.step(objective.build(recipe, batch, meter), rate)
        metrics = _metrics(fresh, batch, stats) | rollouts.metrics
        metrics |= {"train/buffer_size": len(buffer)}
        metrics |= {"step": done, "train/learning_rate": rate, "tokens": usage.spent}
        session.record(metrics, stats, fresh, last=done == total)
        if ended := session.end_if_collapsed(done, total):
            return session.finish(done, ended)
        session.save_if_due(done, total, buffer)
    return session.finish(total)


def _student_share(batch: Sequence[Trajectory]) -> float:
    """Share of a batch that the student wrote."""
    return sum(t.source == "student" for t in batch) / max(1, len(batch))


def _metrics(
    fresh: Sequence[Trajectory], batch: Sequence[Trajectory], stats: StepStats
) -> dict[str, Any]:
    """Metrics of one step under the published study's names; losses in nats per token."""
    clipped = {} if stats.clipped is None else {"train/clipped": stats.clipped}
    return {
        **clipped,
        "train/loss": stats.loss,
        "train/on_policy_loss": stats.losses.get("student"),
        "train/off_policy_loss": stats.losses.get("teacher"),
        "train/anchor_loss": stats.losses.get("anchor"),
        "train/grad_norm": stats.grad_norm,
        "train/phase": float(np.mean([t.source == "student" for t in fresh])),
        "train/seed_tokens": float(np.mean([t.prefix for t in fresh])),
        "train/length": float(np.mean([len(t.completion) for t in fresh])),
        "train/age": float(np.mean([fresh[0].version - t.version for t in batch] or [0])),
    }
