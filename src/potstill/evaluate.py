"""Grading a model on held-out problems, and the cheap probe between gradings.

Evaluation is greedy and stores per-problem outcomes, so that methods can be compared problem by
problem. The probe samples a few fixed training problems at temperature 1: similarity with the
teacher's text, KL to the teacher and accuracy in any phase of any method, on the same prompts
with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from potstill.config import Eval
from potstill.engines import Engine
from potstill.rollout import generator
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
class Examiner:
    """Looks at a student in training: probe and gradings, each when due."""

    engine: Engine
    task: Task
    grading: Eval
    max_tokens: int  # completion tokens in training; the probe uses the same
    seed: int
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
    def _tokens(self) -> int:
        return self.grading.max_tokens or self.max_tokens

    def look(self, step: int, *, last: bool) -> dict[str, float]:
        """Metrics of whatever is due after `step` optimizer steps."""
        assert self.reference is not None
        self.fresh = None
        found: dict[str, float] = {}
        if last or step % self.grading.probe_every == 0:
            found |= probe(
                self.engine, self.task, self.probed, self.reference, self.max_tokens, self.seed
            )
        if last or step % self.grading.every == 0:
            self.fresh = self.grade(again=True)
            scores = [self.reference.score(row.problem, row.text) for row in self.fresh.rows]
            found |= {
                "eval/accuracy": self.fresh.strict,
                "eval/flexible": self.fresh.flexible,
                "eval/avg_score": float(np.mean(scores)),
                "eval/ended": float(np.mean([row.ended for row in self.fresh.rows])),
            }
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
    prompts = [engine.encode(problem.question) for problem in problems]
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


def probe(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    reference: Reference,
    max_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Sample the probe's problems from the newest student.

    Returns:
        train/score: mean similarity with the teacher's text, in [0, 1].
        train/kl_divergence: KL(p, q) in nats per token, estimated on the student's own tokens.
        train/accuracy: share of right answers at temperature 1.
    """
    prompts = [engine.encode(problem.question) for problem in problems]
    limits = [max_tokens] * len(prompts)
    samples = engine.sample("student", prompts, limits, 1.0, generator(seed, 0, "probe"))
    rows = [(prompt, sample.tokens) for prompt, sample in zip(prompts, samples, strict=True)]
    teacher = np.concatenate(engine.score("teacher", rows))
    student = np.concatenate([sample.logprobs for sample in samples])
    texts = [engine.decode(sample.tokens) for sample in samples]
    pairs = list(zip(problems, texts, strict=True))
    return {
        "train/score": float(np.mean([reference.score(p, text) for p, text in pairs])),
        "train/kl_divergence": float(np.mean(student.astype(float) - teacher)),
        "train/accuracy": float(np.mean([task.grade(p, text).strict for p, text in pairs])),
    }


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
