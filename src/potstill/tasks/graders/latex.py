"""`math`: expressions that math-verify finds equal, such as 1/2, 0.5 and \\frac{1}{2}.

It runs in a process of its own: sympy may take for ever on an expression of a few characters, and
then the completion is wrong. It needs the extra `potstill[math]`.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import Annotated

from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import GraderError, Identified, need_reference
from potstill.tasks.graders.process import OutOfTime, ProcessError, function_process
from potstill.tasks.grading import answer_of

LONGEST = 20_000  # characters of an answer that are read, the last ones
MEMORY = 2.0  # GB
COMPARE = "potstill.tasks.graders.expressions:equal"


@reported('grader "math"')
@dataclass(frozen=True, config=CLOSED)
class Math(Identified):
    """Equal by math-verify; it reads a box first, then LaTeX, then a plain expression.

    Args:
        timeout: seconds of a comparison; one that takes longer is wrong.
    """

    timeout: Annotated[float, limits("0.1 to 600 seconds", ge=0.1, le=600, strict=True)] = 5.0

    name = "math"

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise PotstillError(
                'grader "math" needs math-verify, which is not installed',
                'pip install "potstill[math]"',
            )

    @property
    def identity(self) -> str:
        return f"{super().identity} math-verify {version('math-verify')}"

    def grade(self, problem: Problem, text: str) -> Grade:
        try:
            answer = answer_of(text)[-LONGEST:]
            equal = bool(answer) and self._call(problem.answer, answer)
        except OutOfTime:
            equal = False
        except ProcessError as error:
            if "memory" not in str(error):
                raise GraderError(
                    f'grader "math" failed on problem "{problem.id}": {error}',
                    "please report this, with the completion",
                ) from None
            equal = False
        return Grade(float(equal), float(equal))

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
        try:
            accepted = self._call(problem.answer, "")
        except ProcessError:
            accepted = False
        if not accepted:
            raise self.refuse(
                problem,
                "a reference is an expression that math-verify reads",
                'write it as LaTeX, or set grade = "boxed", which compares text',
            )

    def _call(self, answer: str, text: str) -> bool:
        process = function_process(COMPARE, MEMORY)
        return bool(process.call({"arguments": {"answer": answer, "text": text}}, self.timeout))
