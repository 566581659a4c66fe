"""Evaluation of a model on held-out problems, and similarity with the teacher's completions.

Completions are greedy and outcomes are kept per problem, so that methods can be compared problem by
problem. Probes during training (temperature 1, training problems) are in `diagnostics.monitor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from potstill.engines.protocol import Engine
from potstill.problems import Evaluation, Graded, Problem
from potstill.settings import Eval
from potstill.tasks import Task
from potstill.types import Role


@dataclass(frozen=True)
class TeacherCompletions:
    """The teacher's greedy completions, with which the student's are compared."""

    by_problem: dict[str, str]  # problem id -> completion

    @classmethod
    def generate(
        cls, engine: Engine, task: Task, problems: Sequence[Problem], max_tokens: int
    ) -> TeacherCompletions:
        """Generate the teacher's completions of the problems."""
        rows = evaluate(engine, "teacher", task, problems, max_tokens).rows
        return cls({row.problem.id: row.text for row in rows})

    def score(self, problem: Problem, completion: str) -> float:
        """Similarity of a completion with the teacher's completion of the same problem."""
        return similarity(completion, self.by_problem[problem.id])


@dataclass
class Evaluator:
    """Evaluates the student of a run at regular intervals.

    Args:
        engine: the engine without faults.
        task: its test problems are evaluated.
        settings: interval and number of problems.
        max_tokens: limit of completions in training; `settings.max_tokens` overrides it.
        teacher: the teacher's completions of the probe and the evaluated problems; generated here
            if missing.
    """

    engine: Engine
    task: Task
    settings: Eval
    max_tokens: int
    teacher: TeacherCompletions | None = None
    latest: Evaluation | None = None  # made by the last `evaluate_if_due`; None if none was due

    def __post_init__(self) -> None:
        self.problems = self.task.test[: self.settings.problems]
        if self.teacher is None:
            self.teacher = self._generate(self.task.train[: self.settings.probe])
            self.teacher.by_problem.update(self._generate(self.problems).by_problem)

    @property
    def teacher_completions(self) -> TeacherCompletions:
        """The teacher's completions of the probe and the evaluated problems."""
        assert self.teacher is not None
        return self.teacher

    @property
    def _max_tokens(self) -> int:
        return self.settings.max_tokens or self.max_tokens

    def _generate(self, problems: Sequence[Problem]) -> TeacherCompletions:
        return TeacherCompletions.generate(self.engine, self.task, problems, self._max_tokens)

    def evaluate_if_due(self, step: int, *, last: bool) -> dict[str, float]:
        """Metrics of the evaluation after `step` optimizer steps; empty if none is due."""
        self.latest = None
        if not last and step % self.settings.every:
            return {}
        self.latest = self.evaluate()
        scores = [self.teacher_completions.score(row.problem, row.text) for row in self.latest.rows]
        metrics = {
            "eval/accuracy": self.latest.strict,
            "eval/flexible": self.latest.flexible,
            "eval/avg_score": float(np.mean(scores)),
            "eval/ended": float(np.mean([row.ended for row in self.latest.rows])),
        }
        if self.latest.format is not None:
            metrics["eval/format"] = self.latest.format
        return metrics

    def evaluate(self) -> Evaluation:
        """Evaluate the student with its current weights."""
        return evaluate(self.engine, "student", self.task, self.problems, self._max_tokens)


def evaluate(
    engine: Engine, role: Role, task: Task, problems: Sequence[Problem], max_tokens: int
) -> Evaluation:
    """Generate greedy completions of the problems and grade them by the task."""
    prompts = [engine.prompt(problem) for problem in problems]
    samples = engine.sample(
        role, prompts, [max_tokens] * len(prompts), 0.0, np.random.default_rng(0)
    )
    rows = []
    for problem, prompt, sample in zip(problems, prompts, samples, strict=True):
        completion = engine.decode(sample.tokens)
        ended = bool(sample.tokens) and sample.tokens[-1] in engine.eos
        grade = task.grade(problem, engine.opening(prompt, role) + completion)
        rows.append(Graded(problem, completion, grade, len(sample.tokens), ended))
    return Evaluation(tuple(rows))


def similarity(student: str, teacher: str) -> float:
    """The published study's score: 0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall.

    Words are split at white space and compared without case; lengths are in characters; recall is
    the share of the teacher's word bigrams that the student's completion has. In [0, 1].

    >>> similarity("a b c", "A b c"), similarity("a b", "c d")
    (1.0, 0.3)
    """
    words, teacher_words = student.lower().split(), teacher.lower().split()
    if not words or not teacher_words:
        return float(words == teacher_words)
    jaccard = len({*words} & {*teacher_words}) / len({*words} | {*teacher_words})
    shorter, longer = sorted((len(student.strip()), len(teacher.strip())))
    bigrams, teacher_bigrams = set(pairwise(words)), set(pairwise(teacher_words))
    if teacher_bigrams:
        recall = len(bigrams & teacher_bigrams) / len(teacher_bigrams)
    else:
        recall = float(words == teacher_words)
    return round(0.4 * jaccard + 0.3 * shorter / longer + 0.3 * recall, 6)
