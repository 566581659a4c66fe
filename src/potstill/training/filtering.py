"""Rejection filtering of a step's rollouts, and the running success that moves the prefix.

No model is called, and no completion is graded unless the recipe needs it. Two decisions:

- A rejected completion still counts in the cost; it is only not trained on. The shares of student
  and teacher are those of the remaining completions. A truncated completion is graded as any other.
- Success is a running mean (0.9 of the old value, 0.1 of the new one) of the share of the student's
  correct completions, seeded ones included, starting at 0. A resumed run reads it from the recorded
  metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError
from potstill.problems import Grade
from potstill.tasks import Task
from potstill.tasks.selecting import finder
from potstill.types import Role, Trajectory

MEMORY = 0.9  # weight of the old value in the running success
MANY = 64  # teacher completions from the start on that are all rejected, from which on a run ends


class RolloutFilter:
    """Drops wrong teacher completions and tracks the student's success, if the recipe needs it.

    Args:
        recipe: its `reject_wrong` and `prefix_over` determine what is graded.
        engine: decodes completions.
        task: grades them by its strict extractor.
        rows: metrics recorded in the run so far.
    """

    def __init__(
        self, recipe: Recipe, engine: Engine, task: Task, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self.recipe, self.engine, self.task = recipe, engine, task
        self._problem = finder(task.train)
        self._success = float(rows[-1].get("train/success", 0.0)) if rows else 0.0
        kept = [row["train/kept"] for row in rows if row.get("train/kept") is not None]
        self._kept = any(kept)
        self._rejected = sum(int(row.get("train/rejected") or 0) for row in rows)
        self.metrics: dict[str, float | None] = {}  # of the last call of `keep`

    @property
    def success(self) -> float | None:
        """The argument of the prefix schedule, if the recipe runs it over success."""
        return self._success if self.recipe.prefix_over == "success" else None

    def keep(self, fresh: Sequence[Trajectory]) -> list[Trajectory]:
        """The trajectories to train on."""
        kept, self.metrics = list(fresh), {}
        if self.success is not None:
            graded = [self._grade(t).strict for t in fresh if t.source == "student"]
            if graded:
                self._success = MEMORY * self._success + (1 - MEMORY) * float(np.mean(graded))
            self.metrics["train/success"] = self._success
        if self.recipe.reject_wrong:
            kept = [t for t in fresh if t.source == "student" or self._grade(t).correct]
            rejected, right = len(fresh) - len(kept), sum(t.source == "teacher" for t in kept)
            self.metrics["train/rejected"] = float(rejected)
            self.metrics["train/kept"] = float(right) if rejected + right else None
            self._kept, self._rejected = self._kept or right > 0, self._rejected + rejected
            self._check_kept()
        return kept

    def _check_kept(self) -> None:
        """End a run that never trains on a teacher's completion, although it should."""
        if self._rejected >= MANY and not self._kept:
            raise PotstillError(
                f"all of the first {self._rejected} teacher completions are wrong, and "
                f"{self.recipe.name} trains on right ones alone (reject_wrong)",
                "read the teacher's completions in examples.jsonl and check the grader, raise "
                "train.max_tokens, or leave reject_wrong out",
            )

    def _grade(self, t: Trajectory) -> Grade:
        problem = self._problem(t.problem)
        reader: Role = "student" if t.origin == "file" else t.source  # whose prompt it continues
        text = self.engine.opening(t.prompt, reader) + self.engine.decode(t.completion)
        return self.task.grade(problem, text)
