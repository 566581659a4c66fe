"""What one run is about to be trained with."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.tasks import Task


@dataclass(frozen=True)
class RunSpec:
    """What one cell is about to be trained with: what faults may change."""

    recipe: Recipe
    engine: Engine
    task: Task
    seed: int
