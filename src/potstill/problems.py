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

from potstill.types import Ids

HALF = 0.5  # of a grade, from which on it counts as correct

Messages = tuple[tuple[str, str], ...]  # (role, text): "system", "user", "assistant"; "text"


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
        return self.strict >= HALF


@dataclass(frozen=True)
class Graded:
    """A completion with its grade."""

    problem: Problem
    text: str
    grade: Grade | None  # None: the task has no grader
    tokens: int  # completion tokens, EOS included
    ended: bool  # by EOS; False if the limit truncated it
    ids: Ids = field(default=(), compare=False)  # (T,) the tokens


@dataclass(frozen=True)
class Evaluation:
    """Completions, in the order of the problems; `samples` of each, one after another.

    Args:
        rows: with their grades, if the task has a grader.
        samples: of each problem.
        pass_at: values k of pass@k, see `pass_at_k`.
        losses: of a task without a grader instead of grades: values (P,) in nats per token of the
            problems, see `training.ungraded`.
        estimator: of the KL in `losses`: "full vocabulary" or "sampled tokens".
    """

    rows: tuple[Graded, ...]
    samples: int = 1
    pass_at: tuple[int, ...] = ()
    losses: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    estimator: str = ""

    @property
    def graded(self) -> bool:
        """True if the completions have grades."""
        return not self.losses

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(self.rows) // self.samples

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
        grades = [row.grade for row in self.rows if row.grade is not None]
        formats = [grade.format for grade in grades if grade.format is not None]
        return float(np.mean(formats)) if formats else None

    @cached_property
    def by_problem(self) -> dict[str, npt.NDArray[np.float64]]:
        """Outcomes (P,) by name: the mean of each problem's grades by extractor, or its losses."""
        if not self.graded:
            return dict(self.losses)
        grades = {
            name: np.array([getattr(row.grade, name) for row in self.rows], float).reshape(
                -1, self.samples
            )
            for name in ("strict", "flexible")
        }
        correct = (grades["strict"] >= HALF).sum(1)
        return {
            **{name: values.mean(1) for name, values in grades.items()},
            **{f"pass@{k}": pass_at_k(correct, self.samples, k) for k in self.pass_at},
        }

    @property
    def outcomes(self) -> dict[str, str | list[float]]:
        """Outcomes of the problems by name, as a record has them, see `written`."""
        if not self.graded:
            return {name: values.tolist() for name, values in self.losses.items()}
        return {name: written(values) for name, values in self.by_problem.items()}


def pass_at_k(correct: npt.NDArray[np.int64], samples: int, k: int) -> npt.NDArray[np.float64]:
    """Probability (P,) that one of k samples is correct: 1 - C(n - c, k) / C(n, k), unbiased.

    The quotient is computed as a product, which does not overflow. Source: Chen et al. 2021,
    arXiv 2107.03374, equation 1.

    Args:
        correct: (P,) c, correct samples of each problem.
        samples: n, of each problem.
        k: at most n.

    >>> pass_at_k(np.array([0, 1, 4]), 4, 1).tolist(), pass_at_k(np.array([1, 2]), 4, 3).tolist()
    ([0.0, 0.25, 1.0], [0.75, 1.0])
    """
    drawn = np.arange(k)
    wrong = samples - np.asarray(correct)[:, None]
    return 1.0 - (np.maximum(wrong - drawn, 0.0) / (samples - drawn)).prod(1)


def written(values: npt.NDArray[np.float64]) -> str | list[float]:
    """Outcomes as text, one digit each, where all are right or wrong; else as numbers.

    >>> written(np.array([1.0, 0.0])), written(np.array([1.0, 0.5]))
    ('10', [1.0, 0.5])
    """
    if np.isin(values, (0.0, 1.0)).all():
        return "".join("01"[int(value)] for value in values)
    return [float(value) for value in values]
