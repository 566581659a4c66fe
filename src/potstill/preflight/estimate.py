"""What a run will take: two real steps at learning rate 0, timed, on the batch of the study.

One on student text and one on teacher text, as far as the recipes have them; every recipe is a
mixture of the two, and gradings are scaled from the ones already made. The optimizer has its
moments afterwards, so that the peak of memory is a training step's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill import objective
from potstill.cost import Spent
from potstill.engines import Engine
from potstill.meter import Metered
from potstill.recipe import Recipe
from potstill.rollout import Limits, collect, draw
from potstill.schedule import constant
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.types import Source

LOSSES = ("student_loss", "teacher_loss", "anchor", "anchor_loss")  # of a recipe


@dataclass(frozen=True)
class Estimate:
    """What one pair's runs take, each as one process does them."""

    step: dict[Source, Spent]  # a step whose whole batch is of one source
    grading: Spent  # one grading
    runs: dict[str, Spent]  # method -> one run
    peak: int  # bytes
    memory: int  # bytes that there are

    @property
    def words(self) -> str:
        """The estimate as evidence."""
        steps = " and ".join(f"{one.seconds:.2g} s on {key} text" for key, one in self.step.items())
        runs = [run.seconds for run in self.runs.values()]
        low, high = min(runs), max(runs)
        took = f"{low:.2g} s" if low == high else f"{low:.2g} to {high:.2g} s"
        return (
            f"a step takes {steps}, a grading {self.grading.seconds:.2g} s, a run about {took} "
            f"if texts stay as long; peak {_size(self.peak)} of {_size(self.memory)}"
        )


def estimate(
    engine: Engine,
    recipes: Sequence[Recipe],
    task: Task,
    settings: Train,
    grading: Eval,
    problem: Spent,
) -> Estimate:
    """Time a step a source and scale it to the runs of every recipe.

    Args:
        engine: bare; its optimizer is stepped at learning rate 0.
        recipes: the study's.
        task: gives prompts.
        settings: steps, batch and limits.
        grading: how often and how many.
        problem: what grading one held-out problem takes.
    """
    sources: dict[Source, Recipe] = {}
    for recipe in recipes:
        if recipe.uses_student:
            sources.setdefault("student", recipe)
        if recipe.uses_teacher:
            sources.setdefault("teacher", recipe)
    step = {s: _timed(engine, r, s, task, settings) for s, r in sources.items()}
    one = problem * grading.problems
    runs = {recipe.name: _run(recipe, step, one, settings, grading) for recipe in recipes}
    return Estimate(step, one, runs, *engine.memory())


def _timed(engine: Engine, recipe: Recipe, source: Source, task: Task, settings: Train) -> Spent:
    """What one whole step on text of one source takes."""
    mine = source == "student"
    alone = Recipe(
        name=recipe.name,
        on_policy=constant(float(mine)),
        prefix=recipe.prefix if mine else constant(0),
        interleave=recipe.interleave if mine else 0,
        **{key: getattr(recipe, key) for key in LOSSES},
    )
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    problems = draw(task.train, settings.batch_size, 0, 0)
    start, meter = time.perf_counter(), Metered(engine)
    batch = collect(alone, meter, problems, 0.99, 0, 0, limits)
    meter.step(objective.build(alone, batch, meter), 0.0)
    return Spent(time.perf_counter() - start, dict(meter.tokens))


def _run(
    recipe: Recipe, step: dict[Source, Spent], one: Spent, settings: Train, grading: Eval
) -> Spent:
    total = max(1, round(settings.steps * recipe.budget))
    share = float(np.mean([recipe.on_policy(i / total) for i in range(total)]))
    mean = step.get("student", Spent()) * share + step.get("teacher", Spent()) * (1 - share)
    return mean * total + one * (total // grading.every + 1)


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
