"""The specification of one run. Faults replace parts of it before training."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.tasks import Task


@dataclass(frozen=True)
class RunSpec:
    """Recipe, engine, task and seed of one run."""

    recipe: Recipe
    engine: Engine
    task: Task
    seed: int
