"""Graders that compare text: the same text, the same words, a text within the completion."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from potstill.fields import CLOSED, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Identified, need_reference
from potstill.tasks.grading import grade_exact


@reported('grader "exact"')
@dataclass(frozen=True, config=CLOSED)
class Exact(Identified):
    """Equal text: strict strips the ends, flexible ignores case and folds white space."""

    name = "exact"

    def grade(self, problem: Problem, text: str) -> Grade:
        return grade_exact(problem.answer, text)

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
