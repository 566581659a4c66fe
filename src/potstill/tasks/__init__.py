"""Tasks: problems to train on, other problems to evaluate on, and a grader. Opened by name.

A task is a frozen pydantic dataclass whose fields are its options in a study file. To add one,
write the class and list it in `TASKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.errors import PotstillError, did_you_mean
from potstill.problems import Grade, Problem
from potstill.tasks.overlap import overlap


class Task(Protocol):
    """The parts of a task that training and evaluation use."""

    @property
    def name(self) -> str:
        """The key in `TASKS`."""

    @property
    def train(self) -> Sequence[Problem]:
        """Problems to train on."""

    @property
    def test(self) -> Sequence[Problem]:
        """Held-out problems, none of them in `train`."""

    @property
    def graded(self) -> bool:
        """False if the task has prompts alone and no grader; then `grade` is never called."""
        return True

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade one completion; one that cannot be read is wrong, never an exception."""


@dataclass(frozen=True)
class Resplit:
    """A task with other problems to train on, or held out."""

    task: Task
    train: Sequence[Problem]
    test: Sequence[Problem]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def graded(self) -> bool:
        return is_graded(self.task)

    @property
    def graded_by(self) -> Any:
        """The grader of the task, if it is one of `graders`."""
        return getattr(self.task, "graded_by", None)

    @property
    def note(self) -> str:
        """A note on the problems for the record of a run: the task's own."""
        return str(getattr(self.task, "note", ""))

    def grade(self, problem: Problem, text: str) -> Grade:
        return self.task.grade(problem, text)

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # not set yet, for example while unpickling
            raise AttributeError(name)
        return getattr(self.task, name)


def is_graded(task: Task) -> bool:
    """True if a task has a grader; a class of a user's own need not say so."""
    return getattr(task, "graded", True)


TASKS: dict[str, tuple[str, str, str]] = {  # name: (module, class, description)
    "arithmetic": (
        "potstill.tasks.arithmetic",
        "Arithmetic",
        "generated word problems in GSM8K's answer format",
    ),
    "data": (
        "potstill.tasks.data",
        "Data",
        "your own data: JSONL, JSON, CSV, Parquet, folders or the hub; questions, prompts, chats",
    ),
    "gsm8k": (
        "potstill.tasks.gsm8k",
        "GSM8K",
        "grade-school maths, openai/gsm8k from the hub or local JSONL",
    ),
    "jsonl": (
        "potstill.tasks.jsonl",
        "Jsonl",
        "your own prompts and answers, exact or numeric match",
    ),
}


def load_task(name: str, **options: Any) -> Task:
    """Make a task from its name and options; its files are read when they are needed.

    Raises:
        PotstillError: no such task, or options that it does not have or that break its limits.
    """
    if str(name) not in TASKS:
        raise PotstillError(f'unknown task "{name}"', did_you_mean(str(name), TASKS, "tasks"))
    module, attribute, _ = TASKS[name]
    task: Task = getattr(importlib.import_module(module), attribute)(**options)
    return task


def check_disjoint(task: Task, graded: Sequence[Problem]) -> None:
    """Raise `PotstillError` if some of the evaluated problems are also trained on."""
    if shared := overlap(task.train, graded):
        test, train = shared[0]
        raise PotstillError(
            f"problems used for training are never graded on: {len(shared)} of {len(graded)} "
            f"graded problems are in the training set (first: {test.id} is {train.id})",
            "remove them from one of the two files",
        )
