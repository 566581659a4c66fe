"""What a run will take: two real steps at learning rate 0, timed, on the batch of the study.

One on student text and one on teacher text, as far as the recipes have them; every recipe is a
mixture of the two, and gradings are scaled from the ones already made. The optimizer has its
moments afterwards, so that the peak of memory is a training step's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from potstill import objective
from potstill.config import Eval, Train
from potstill.engines import Engine
from potstill.recipe import Recipe
from potstill.rollout import Limits, collect, draw
from potstill.schedule import constant
from potstill.tasks import Task
from potstill.types import Source


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of one pair's runs, each as one process does them."""

    step: dict[Source, float]  # seconds of a step whose whole batch is of one source
    grading: float  # seconds of one grading
    runs: dict[str, float]  # method -> seconds of one run
    peak: int  # bytes
    memory: int  # bytes that there are

    @property
    def words(self) -> str:
        """The estimate as evidence."""
        steps = " and ".join(f"{value:.2g} s on {key} text" for key, value in self.step.items())
        low, high = min(self.runs.values()), max(self.runs.values())
        runs = f"{low:.2g} s" if low == high else f"{low:.2g} to {high:.2g} s"
        return (
            f"a step takes {steps}, a grading {self.grading:.2g} s, a run about {runs} if texts "
            f"stay as long; peak {_size(self.peak)} of {_size(self.memory)}"
        )


def estimate(
    engine: Engine,
    recipes: Sequence[Recipe],
    task: Task,
    settings: Train,
    grading: Eval,
    per_problem: float,
) -> Estimate:
    """Time a step a source and scale it to the runs of every recipe.

    Args:
        engine: bare; its optimizer is stepped at learning rate 0.
        recipes: the study's.
        task: gives prompts.
        settings: steps, batch and limits.
        grading: how often and how many.
        per_problem: seconds of grading one held-out problem.
    """
    sources: dict[Source, Recipe] = {}
    for recipe in recipes:
        if recipe.uses_student:
            sources.setdefault("student", recipe)
        if recipe.uses_teacher:
            sources.setdefault("teacher", recipe)
    step = {s: _timed(engine, r, s, task, settings) for s, r in sources.items()}
    one = per_problem * grading.problems
    runs = {recipe.name: _run(recipe, step, one, settings, grading) for recipe in recipes}
    return Estimate(step, one, runs, *engine.memory())


def _timed(engine: Engine, recipe: Recipe, source: Source, task: Task, settings: Train) -> float:
    """Seconds of one whole step on text of one source."""
    alone = replace(recipe, on_policy=constant(float(source == "student")), replay=None)
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    problems = draw(task.train, settings.batch_size, 0, 0)
    start = time.perf_counter()
    batch = collect(alone, engine, problems, 0.99, 0, 0, limits)
    engine.step(objective.build(alone, batch, engine), 0.0)
    return time.perf_counter() - start


def _run(
    recipe: Recipe, step: dict[Source, float], one: float, settings: Train, grading: Eval
) -> float:
    total = max(1, round(settings.steps * recipe.budget))
    share = float(np.mean([recipe.on_policy(i / total) for i in range(total)]))
    mean = share * step.get("student", 0.0) + (1 - share) * step.get("teacher", 0.0)
    return total * mean + (total // grading.every + 1) * one


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
