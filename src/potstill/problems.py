"""Problems, and what models make of them: grades, graded completions, evaluations.

Frozen values, so that they can be pickled, saved and compared without torch. Readers of files and
graders are in `tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Messages = tuple[tuple[str, str], ...]  # (role, text): "system", "user" or "assistant"


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer, or a prompt without one."""

    id: str  # unique within the task, e.g. "test-17"
    question: str  # the user's last message, before any chat template
    answer: str  # the final answer only, e.g. "42"; "" if the data have none
    solution: str = ""  # a worked solution, if the task has one
    extra: Mapping[str, str] = field(default_factory=dict, compare=False)  # other keys of the data
    messages: Messages = ()  # a conversation that ends in the question, if there is more than that
    completions: tuple[str, ...] = ()  # of a teacher, if the data have them

    @property
    def conversation(self) -> str | Messages:
        """The prompt of a model without a context of its own."""
        return self.messages or self.question

    def text(self, key: str) -> str:
        """The text under "solution", "answer" or a key of the data; "" if there is none."""
        fields = {"solution": self.solution, "answer": self.answer}
        return fields[key] if key in fields else self.extra.get(key, "")


@dataclass(frozen=True)
class Grade:
    """Grade of a completion: `strict` requires the answer's format, `flexible` its value only.

    Both are shares in [0, 1]; most graders know right (1) and wrong (0) alone.
    """

    strict: float
    flexible: float
    # True if an answer has the task's format, correct or not; None if the task has no format
    format: bool | None = field(default=None, compare=False)

    @property
    def correct(self) -> bool:
        """True if `strict` is at least a half, where right or wrong has to be decided."""
        return self.strict >= 0.5


@dataclass(frozen=True)
class Graded:
    """A completion with its grade."""

    problem: Problem
    text: str
    grade: Grade
    tokens: int  # completion tokens, EOS included
    ended: bool  # by EOS; False if the limit truncated it


@dataclass(frozen=True)
class Evaluation:
    """Graded completions, in the order of the problems; `samples` of each, one after another."""

    rows: tuple[Graded, ...]
    samples: int = 1

    @property
    def strict(self) -> float:
        """Accuracy of the strict extractor."""
        return float(self.by_problem["strict"].mean())

    @property
    def flexible(self) -> float:
        """Accuracy of the flexible extractor."""
        return float(self.by_problem["flexible"].mean())

    @property
    def format(self) -> float | None:
        """Share of completions with an answer in the task's format; None if there is no format."""
        formats = [row.grade.format for row in self.rows if row.grade.format is not None]
        return float(np.mean(formats)) if formats else None

    @cached_property
    def by_problem(self) -> dict[str, npt.NDArray[np.float64]]:
        """Outcomes (P,) by extractor: the mean of each problem's grades."""
        return {
            name: np.array([getattr(row.grade, name) for row in self.rows], float)
            .reshape(-1, self.samples)
            .mean(1)
            for name in ("strict", "flexible")
        }

    @property
    def outcomes(self) -> dict[str, str | list[float]]:
        """Outcomes of the problems by extractor, as a record has them, see `written`."""
        return {name: written(values) for name, values in self.by_problem.items()}


def written(values: npt.NDArray[np.float64]) -> str | list[float]:
    """Outcomes as text, one digit each, where all are right or wrong; else as numbers.

    >>> written(np.array([1.0, 0.0])), written(np.array([1.0, 0.5]))
    ('10', [1.0, 0.5])
    """
    if np.isin(values, (0.0, 1.0)).all():
        return "".join("01"[int(value)] for value in values)
    return [float(value) for value in values]
