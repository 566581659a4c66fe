"""The parts that graders share: their interface, their identity and their error.

A grader is a frozen value: its options are fields that pydantic validates. It reads the part of a
completion after the thought, and a text that it cannot read is wrong, never an exception: it comes
from a model. A grader that is itself at fault (a user's function that raises) raises `GraderError`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Protocol, runtime_checkable

from potstill.errors import PotstillError
from potstill.fields import brief
from potstill.problems import Grade, Problem
from potstill.tasks.grading import answer_of, grade_exact


class GraderError(PotstillError):
    """A grader failed on a completion. It names the grader and the problem."""


class Grader(Protocol):
    """Grades completions of a task's problems."""

    @property
    def name(self) -> str:
        """The key in `GRADERS`, or the place of a user's function."""

    @property
    def identity(self) -> str:
        """Text that is another one wherever a grade can be: name, options, a file's content."""

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade one completion.

        Raises:
            GraderError: the grader failed, whatever the completion is.
        """

    def check(self, problem: Problem) -> None:
        """Raise `PotstillError` if the grader would accept no answer to the problem."""


@runtime_checkable
class Extractor(Protocol):
    """A grader that can come first in a list: it finds the answer in a completion."""

    def extract(self, text: str) -> str | None:
        """The answer's text, or None if there is none."""


class Identified:
    """A grader whose identity is its name and the options that differ from their defaults."""

    name: str

    @property
    def identity(self) -> str:
        options: dict[str, Any] = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, one.name) != one.default
        }
        return json.dumps({"name": self.name, **options}, sort_keys=True, default=_identity)

    def refuse(self, problem: Problem, rule: str, hint: str) -> PotstillError:
        """The error for a reference that the grader does not accept."""
        got = brief(problem.answer)
        return PotstillError(f'{rule}, got {got} (grader "{self.name}")', hint)


def _identity(value: Any) -> str:
    """An option of an identity, such as a grader in a list."""
    return str(getattr(value, "identity", value))


class Extracting(Identified):
    """A grader that extracts the answer and compares it with the reference as text.

    Strict requires that there is an answer to extract and that it is the reference; flexible
    ignores case and white space, and reads the whole completion if there is nothing to extract.
    """

    def extract(self, text: str) -> str | None:
        raise NotImplementedError

    def grade(self, problem: Problem, text: str) -> Grade:
        answer = answer_of(text)
        extracted = self.extract(answer)
        grade = grade_exact(problem.answer, answer if extracted is None else extracted)
        strict = grade.strict if extracted is not None else 0.0
        return Grade(float(strict), float(grade.flexible), format=extracted is not None)

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)


def need_reference(grader: Identified, problem: Problem) -> None:
    """Raise `PotstillError` if the problem has no reference answer."""
    if not problem.answer.strip():
        raise grader.refuse(
            problem, "it compares with a reference answer", "add the answer to the data"
        )
