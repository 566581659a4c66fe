"""Tasks: problems to train on, other problems to grade on, and a grader. Opened by name.

A task is a frozen dataclass whose fields are its options in a study file. To add one, write the
class and list it in `TASKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from potstill.errors import PotstillError, did_you_mean
from potstill.tasks.overlap import overlap
from potstill.types import Grade, Problem


class Task(Protocol):
    """What the loop and the evaluation ask of a task."""

    @property
    def name(self) -> str:
        """The key in `TASKS`."""

    @property
    def train(self) -> Sequence[Problem]:
        """Problems to train on."""

    @property
    def test(self) -> Sequence[Problem]:
        """Held-out problems, none of them in `train`."""

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade one completion; wrong, never an exception, where it cannot be read."""


TASKS: dict[str, tuple[str, str, str]] = {  # name: (module, class, what it is)
    "arithmetic": (
        "potstill.tasks.arithmetic",
        "Arithmetic",
        "generated word problems in GSM8K's answer format",
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
    """Make a task from its name and options; wrong options are refused with a hint."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if str(name) not in TASKS:
        raise PotstillError(f'unknown task "{name}"', did_you_mean(str(name), TASKS, "tasks"))
    module, attribute, _ = TASKS[name]
    kind = getattr(importlib.import_module(module), attribute)
    fields = list(kind.__dataclass_fields__)
    for key in options:
        if key not in fields:
            raise PotstillError(
                f'task "{name}" has no option "{key}"', did_you_mean(key, fields, "options")
            )
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), PotstillError):
            raise cause from None
        where = ".".join(map(str, first["loc"]))
        raise PotstillError(
            f'task "{name}", option {where}: {first["msg"]}, got {first["input"]!r}',
            f"options: {', '.join(fields)}",
        ) from None


def check_disjoint(task: Task, graded: Sequence[Problem]) -> None:
    """Refuse a task whose graded problems are also trained on."""
    if shared := overlap(task.train, graded):
        test, train = shared[0]
        raise PotstillError(
            f"problems used for training are never graded on: {len(shared)} of {len(graded)} "
            f"graded problems are in the training set (first: {test.id} is {train.id})",
            "remove them from one of the two files",
        )
