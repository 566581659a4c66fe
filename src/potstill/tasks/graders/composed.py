"""Graders made of others: a chain, the best of several, the worst of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders import Grader, load_grader
from potstill.tasks.graders.base import Extractor
from potstill.tasks.grading import answer_of


def several_graders(value: Any) -> Any:
    """Validator of a list of graders."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        raise PotstillError(f"a list of graders, got {brief(value)}", 'such as ["boxed", "number"]')
    return [load_grader(one) for one in value]


Graders = Annotated[tuple[Any, ...], BeforeValidator(several_graders)]


@reported('grader "chain"')
@dataclass(frozen=True, config=CLOSED)
class Chain:
    """Extractors, each on the text of the one before it, and a grader for what they leave.

    Strict requires that every extractor finds something. Flexible grades the text that it has
    where an extractor finds nothing.

    Args:
        graders: all but the last extract.
    """

    graders: Graders

    name = "chain"

    def __post_init__(self) -> None:
        for one in self.graders[:-1]:
            if not isinstance(one, Extractor):
                raise PotstillError(
                    f'"{one.name}" extracts nothing, so that it is the last of a list',
                    "boxed, regex, after, line, json and number extract",
                )

    @property
    def identity(self) -> str:
        return identity_of(self.name, self.graders)

    def grade(self, problem: Problem, text: str) -> Grade:
        text, complete = answer_of(text), True
        for one in self.graders[:-1]:
            extracted = one.extract(text)
            complete = complete and extracted is not None
            text = text if extracted is None else extracted
        grade: Grade = self.graders[-1].grade(problem, text)
        return Grade(grade.strict if complete else 0.0, grade.flexible, format=complete)

    def extract(self, text: str) -> str | None:
        """The text that is left after all graders, which must be extractors."""
        for one in self.graders:
            extracted = one.extract(text)
            if extracted is None:
                return None
            text = extracted
        return text

    def check(self, problem: Problem) -> None:
        self.graders[-1].check(problem)


@reported('grader "any"')
@dataclass(frozen=True, config=CLOSED)
class AnyOf:
    """The best grade of several graders.

    Args:
        graders: names, tables or lists.
    """

    graders: Graders

    name = "any"

    @property
    def identity(self) -> str:
        return identity_of(self.name, self.graders)

    def grade(self, problem: Problem, text: str) -> Grade:
        return combined([one.grade(problem, text) for one in self.graders], max)

    def check(self, problem: Problem) -> None:
        errors: list[PotstillError] = []
        for one in self.graders:
            try:
                one.check(problem)
                return
            except PotstillError as error:
                errors.append(error)
        raise errors[0]


@reported('grader "all"')
@dataclass(frozen=True, config=CLOSED)
class AllOf:
    """The worst grade of several graders.

    Args:
        graders: names, tables or lists.
    """

    graders: Graders

    name = "all"

    @property
    def identity(self) -> str:
        return identity_of(self.name, self.graders)

    def grade(self, problem: Problem, text: str) -> Grade:
        return combined([one.grade(problem, text) for one in self.graders], min)

    def check(self, problem: Problem) -> None:
        for one in self.graders:
            one.check(problem)


def identity_of(name: str, graders: tuple[Grader, ...]) -> str:
    """The identity of a grader that is made of others."""
    return f"{name}({'; '.join(one.identity for one in graders)})"


def combined(grades: list[Grade], choose: Callable[[list[float]], float]) -> Grade:
    """One grade of several, each of its parts chosen alone."""
    formats = [bool(grade.format) for grade in grades if grade.format is not None]
    return Grade(
        choose([float(grade.strict) for grade in grades]),
        choose([float(grade.flexible) for grade in grades]),
        format=bool(choose([float(one) for one in formats])) if formats else None,
    )
