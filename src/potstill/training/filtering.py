"""What a recipe makes of the texts of a step before they are trained on: teacher texts that are
wrong are rejected, and the student's success moves the prefix.

Grading costs no model; nothing is graded where no field of the recipe asks for it. Decided here:

- A rejected text was written and paid for, and is trained on by nobody: the shares of student and
  teacher are those of what is left. A text that the limit cut is wrong like any other.
- Success is a running mean (0.9 of the old, 0.1 of the new) of the student's texts that are right,
  seeded ones too, from 0 at the start. A resumed run takes it up from the recorded rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.tasks import Task
from potstill.types import Trajectory

MEMORY = 0.9  # of the running success


class RolloutFilter:
    """Grades the texts of a step where the recipe asks for it.

    Args:
        recipe: says whether wrong teacher texts are rejected, and what moves the prefix.
        engine: reads texts.
        task: grades them by its strict extractor.
        rows: what is recorded of the run so far.
    """

    def __init__(
        self, recipe: Recipe, engine: Engine, task: Task, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self.recipe, self.engine, self.task = recipe, engine, task
        self._problems = {problem.id: problem for problem in task.train}
        self._success = float(rows[-1].get("train/success", 0.0)) if rows else 0.0
        self.metrics: dict[str, float] = {}  # of the step just judged

    @property
    def success(self) -> float | None:
        """How far the prefix has come, where success tells it."""
        return self._success if self.recipe.prefix_over == "success" else None

    def keep(self, fresh: Sequence[Trajectory]) -> list[Trajectory]:
        """The texts that are trained on."""
        kept, self.metrics = list(fresh), {}
        mine = [t for t in fresh if t.source == "student"]
        if self.success is not None:
            if mine:
                now = float(np.mean([self._right(t) for t in mine]))
                self._success = MEMORY * self._success + (1 - MEMORY) * now
            self.metrics["train/success"] = self._success
        if self.recipe.reject_wrong:
            kept = [t for t in fresh if t.source == "student" or self._right(t)]
            self.metrics["train/rejected"] = float(len(fresh) - len(kept))
        return kept

    def _right(self, t: Trajectory) -> bool:
        problem = self._problems[t.problem]
        return self.task.grade(problem, self.engine.decode(t.completion)).strict
