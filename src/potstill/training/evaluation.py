"""Grading a model on held-out problems.

Evaluation is greedy and stores per-problem outcomes, so that methods can be compared problem by
problem. What is looked at between gradings is in `signals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from potstill.engines.protocol import Engine
from potstill.settings import Eval
from potstill.tasks import Task
from potstill.types import Evaluation, Graded, Problem, Role


@dataclass(frozen=True)
class Reference:
    """The teacher's greedy texts that the student's are compared with, by problem id."""

    texts: dict[str, str]

    @classmethod
    def write(
        cls, engine: Engine, task: Task, problems: Sequence[Problem], max_tokens: int
    ) -> Reference:
        """Have the teacher answer the problems."""
        rows = evaluate(engine, "teacher", task, problems, max_tokens).rows
        return cls({row.problem.id: row.text for row in rows})

    def score(self, problem: Problem, text: str) -> float:
        return similarity(text, self.texts[problem.id])


@dataclass
class Evaluator:
    """Grades a student in training when that is due."""

    engine: Engine
    task: Task
    grading: Eval
    max_tokens: int  # completion tokens in training
    reference: Reference | None = None
    fresh: Evaluation | None = None  # the grading made by the last look, if it made one

    def __post_init__(self) -> None:
        self.tested = self.task.test[: self.grading.problems]
        self.probed = self.task.train[: self.grading.probe]
        if self.reference is None:
            self.reference = Reference.write(self.engine, self.task, self.probed, self._tokens)
            self.reference.texts.update(
                Reference.write(self.engine, self.task, self.tested, self._tokens).texts
            )

    @property
    def texts(self) -> Reference:
        """The teacher's texts."""
        assert self.reference is not None
        return self.reference

    @property
    def _tokens(self) -> int:
        return self.grading.max_tokens or self.max_tokens

    def evaluate_if_due(self, step: int, *, last: bool) -> dict[str, float]:
        """Metrics of whatever is due after `step` optimizer steps."""
        self.fresh = None
        found: dict[str, float] = {}
        if last or step % self.grading.every == 0:
            self.fresh = self.grade(again=True)
            scores = [self.texts.score(row.problem, row.text) for row in self.fresh.rows]
            found |= {
                "eval/accuracy": self.fresh.strict,
                "eval/flexible": self.fresh.flexible,
                "eval/avg_score": float(np.mean(scores)),
                "eval/ended": float(np.mean([row.ended for row in self.fresh.rows])),
            }
            if self.fresh.format is not None:
                found["eval/format"] = self.fresh.format
        return found

    def grade(self, *, again: bool = False) -> Evaluation:
        """Grade the student as it is now, or return what the last look has just graded."""
        if again or self.fresh is None:
            return evaluate(self.engine, "student", self.task, self.tested, self._tokens)
        return self.fresh


def evaluate(
    engine: Engine, role: Role, task: Task, problems: Sequence[Problem], max_tokens: int
) -> Evaluation:
    """Greedy completions of the problems, graded by the task."""
    prompts = [engine.prompt(problem) for problem in problems]
    samples = engine.sample(
        role, prompts, [max_tokens] * len(prompts), 0.0, np.random.default_rng(0)
    )
    rows = []
    for problem, sample in zip(problems, samples, strict=True):
        text = engine.decode(sample.tokens)
        ended = bool(sample.tokens) and sample.tokens[-1] in engine.eos
        grade = task.grade(problem, text)
        rows.append(Graded(problem, text, grade, len(sample.tokens), ended))
    return Evaluation(tuple(rows))


def similarity(text: str, teacher: str) -> float:
    """The published study's score: 0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall.

    Words are split at white space, without case; lengths are in characters; recall is the share
    of the teacher's word bigrams that the text has. In [0, 1].

    >>> similarity("a b c", "A b c"), similarity("a b", "c d")
    (1.0, 0.3)
    """
    mine, its = text.lower().split(), teacher.lower().split()
    if not mine or not its:
        return float(mine == its)
    jaccard = len({*mine} & {*its}) / len({*mine} | {*its})
    lengths = sorted((len(text.strip()), len(teacher.strip())))
    bigrams = [set(pairwise(words)) for words in (mine, its)]
    recall = len(bigrams[0] & bigrams[1]) / len(bigrams[1]) if bigrams[1] else float(mine == its)
    return round(0.4 * jaccard + 0.3 * lengths[0] / lengths[1] + 0.3 * recall, 6)
