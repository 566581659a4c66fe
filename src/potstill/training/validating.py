"""Validation problems: a part of the training set that is never trained on and never reported.

The best checkpoint of a run is chosen on them. They are the same for every method and seed of a
study: drawn from the training set, with every problem that asks the same question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from potstill.engines.protocol import Engine
from potstill.errors import NonFinite, PotstillError
from potstill.problems import Problem
from potstill.settings import Train
from potstill.tasks import Resplit, Task, is_graded
from potstill.tasks.data.table import Problems
from potstill.tasks.overlap import problem_key
from potstill.training.evaluation import evaluate, has_teacher
from potstill.training.rollout import generator
from potstill.types import Reading

PREFIX = "validation/"  # of the metrics


class Part(Sequence[Problem]):
    """Some problems of a longer sequence, which is read as they are needed."""

    def __init__(self, whole: Sequence[Problem], numbers: Sequence[int]) -> None:
        self._whole, self._numbers = whole, list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Part: ...
    def __getitem__(self, index: int | slice) -> Problem | Part:
        if isinstance(index, slice):
            return Part(self._whole, self._numbers[index])
        return self._whole[self._numbers[index]]


@dataclass(frozen=True)
class HeldBack(Resplit):
    """A task without its validation problems in the training set."""

    validation: Sequence[Problem]


def held_back(task: Task, count: int) -> Task:
    """The task with `count` training problems as validation problems, once.

    Raises:
        PotstillError: the training set has not as many different problems, and one to train on.
    """
    if not count or isinstance(task, HeldBack):
        return task
    keys = [problem_key(problem) for problem in task.train]
    first: dict[bytes, int] = {}
    for number in generator(0, 0, "validation problems").permutation(len(keys)).tolist():
        first.setdefault(keys[number], number)
    if count >= len(first):
        raise PotstillError(
            f"train.validation keeps {count} problems out of training, and the training set has "
            f"{len(first)} different ones",
            "lower train.validation",
        )
    chosen = dict(list(first.items())[:count])
    rest = [number for number, key in enumerate(keys) if key not in chosen]
    kept = _part(task.train, sorted(chosen.values()))
    return HeldBack(task, _part(task.train, rest), task.test, kept)


def check_measure(settings: Train, task: Task) -> None:
    """Refuse accuracy where nothing is graded."""
    if settings.validation and settings.best_by == "accuracy" and not is_graded(task):
        raise PotstillError(
            'best_by = "accuracy" needs a task with a grader, and this one has none',
            'write best_by = "loss"',
        )


def _part(problems: Sequence[Problem], numbers: Sequence[int]) -> Sequence[Problem]:
    """Some of the problems, which know their digest if all do."""
    return problems.at(numbers) if isinstance(problems, Problems) else Part(problems, numbers)


class Validator:
    """Measures the student of a run on the validation problems.

    Args:
        engine: the engine without faults.
        task: the task, with its validation problems held back.
        settings: when and by what.
        max_tokens: limit of a completion.
    """

    def __init__(self, engine: Engine, task: Task, settings: Train, max_tokens: int) -> None:
        self.engine, self.task, self.settings, self.max_tokens = engine, task, settings, max_tokens
        self.problems = list(getattr(task, "validation", ()))
        check_measure(settings, task)
        self._readings: list[Reading] | None = None
        self._history: list[dict[str, Any]] = []

    def recall(self, rows: Sequence[dict[str, Any]]) -> None:
        """Continue after the recorded steps."""
        self._history = [row for row in rows if PREFIX + "loss" in row]

    def best(self, until: int | None = None) -> dict[str, Any] | None:
        """The step with the best validation so far, the first of equals, and its value.

        Args:
            until: leave out later steps.
        """
        by = self.settings.best_by
        sign = -1 if by == "loss" else 1
        known = [
            (sign * row[PREFIX + by], -row["step"])
            for row in self._history
            if until is None or row["step"] <= until
        ]
        if self.settings.keep != "best" or not known:
            return None
        value, step = max(known)
        return {"step": -step, "by": by, "value": sign * value}

    def needed(self, step: int) -> int | None:
        """The checkpoint that one of a given step needs: the best one so far."""
        best = self.best(step)
        return int(best["step"]) if best else None

    def measure_if_due(self, step: int, *, last: bool) -> dict[str, float]:
        """Metrics of the student after `step` optimizer steps; empty if none are due.

        Returns:
            validation/loss: -log p of the teacher's greedy completions (without a teacher: of the
                data's), in nats per token.
            validation/accuracy: share of problems that the student solves, greedily.
        """
        if not self.problems or (not last and step % self.settings.validate_every):
            return {}
        metrics = {PREFIX + "loss": self._loss()}
        if is_graded(self.task):
            evaluation = evaluate(self.engine, "student", self.task, self.problems, self.max_tokens)
            metrics[PREFIX + "accuracy"] = evaluation.strict
        self._history.append({"step": step, **metrics})
        return metrics

    def _loss(self) -> float:
        if self._readings is None:
            self._readings = self._reference()
        scores = self.engine.score("student", self._readings)
        loss = -float(np.concatenate(scores).mean(dtype=float))
        if not np.isfinite(loss):
            raise NonFinite("the validation loss")
        return loss

    def _reference(self) -> list[Reading]:
        engine, prompts = self.engine, [self.engine.prompt(p) for p in self.problems]
        if has_teacher(engine):
            limits, rng = [self.max_tokens] * len(prompts), np.random.default_rng(0)
            samples = engine.sample("teacher", prompts, limits, 0.0, rng)
            readings = [(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
        else:
            readings = [
                (prompt, engine.encode_completion(prompt, text)[: self.max_tokens])
                for prompt, problem in zip(prompts, self.problems, strict=True)
                for text in problem.completions
            ]
        readings = [(prompt, ids) for prompt, ids in readings if ids]
        if not readings:
            raise PotstillError(
                "the validation problems have no completion to measure a loss on",
                'write best_by = "accuracy" and a task with a grader, or leave validation out',
            )
        return readings
