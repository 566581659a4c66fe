"""The probe: a few training problems that the student completes again and again during a run.

The random numbers and the teacher's completions are the same each time, so that changes come from
the student alone. Nothing here changes a run; `diagnosis` interprets the signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from potstill.engines.protocol import Engine
from potstill.tasks import Task
from potstill.training.evaluation import TeacherCompletions
from potstill.training.rollout import generator
from potstill.types import Floats, Ids, Problem, Reading, Sample


class Probe:
    """The probe of one run.

    Args:
        engine: the engine without faults.
        task: grades the completions.
        problems: the training problems of the probe.
        max_tokens: limit of a completion.
        seed: seed of the run.
        teacher: the teacher's greedy completions, for the similarity score.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        problems: Sequence[Problem],
        max_tokens: int,
        seed: int,
        teacher: TeacherCompletions,
    ) -> None:
        self.engine, self.task, self.problems = engine, task, problems
        self.max_tokens, self.seed, self.teacher = max_tokens, seed, teacher
        self.prompts = [engine.prompt(problem) for problem in problems]
        samples = engine.sample(
            "teacher", self.prompts, self._limits, 0.0, np.random.default_rng(0)
        )
        self.teacher_readings = self._readings(samples)

    @property
    def _limits(self) -> list[int]:
        return [self.max_tokens] * len(self.prompts)

    def _readings(self, samples: Sequence[Sample]) -> list[Reading]:
        return [(p, sample.tokens) for p, sample in zip(self.prompts, samples, strict=True)]

    def teacher_accuracy(self) -> float:
        """Share of the probe that the teacher solves."""
        correct = [
            self.task.grade(problem, self.engine.decode(completion)).strict
            for problem, (_, completion) in zip(self.problems, self.teacher_readings, strict=True)
        ]
        return float(np.mean(correct))

    def measure(self) -> dict[str, float | None]:
        """Signals of the student with its current weights.

        Returns:
            train/score: mean similarity with the teacher's completions, in [0, 1].
            train/kl_divergence: KL(p, q) in nats per token, estimated on the student's completions.
            train/accuracy: share of correct completions at temperature 1.
            signal/*: see `diagnosis.SIGNALS`.
        """
        engine = self.engine
        rng = generator(self.seed, 0, "probe")
        samples = engine.sample("student", self.prompts, self._limits, 1.0, rng)
        readings = self._readings(samples)
        teacher, student = engine.inspect("teacher", readings), engine.inspect("student", readings)
        reading = engine.inspect("student", self.teacher_readings)
        gaps = [
            p.logprobs.astype(float) - q.logprobs for p, q in zip(student, teacher, strict=True)
        ]
        completions = [engine.decode(sample.tokens) for sample in samples]
        answers = list(zip(self.problems, completions, strict=True))
        ends = [
            expected.end[-1]
            for expected, (_, completion) in zip(reading, self.teacher_readings, strict=True)
            if completion and completion[-1] in engine.eos and len(expected.end)
        ]
        return {
            "train/score": float(np.mean([self.teacher.score(p, c) for p, c in answers])),
            "train/kl_divergence": mean(gaps),
            "train/accuracy": float(np.mean([self.task.grade(p, c).strict for p, c in answers])),
            "signal/length": float(np.mean([len(s.tokens) for s in samples])),
            "signal/truncated": float(
                np.mean([not s.tokens or s.tokens[-1] not in engine.eos for s in samples])
            ),
            "signal/repetition": float(np.mean([repetition(s.tokens) for s in samples])),
            "signal/entropy": mean([expected.entropy for expected in student]),
            "signal/teacher_entropy": mean([expected.entropy for expected in teacher]),
            "signal/kl_early": mean([gap[: len(gap) // 2] for gap in gaps]),
            "signal/kl_late": mean([gap[len(gap) // 2 :] for gap in gaps]),
            "signal/teacher_loss": mean([-expected.logprobs for expected in teacher]),
            "signal/reading_loss": mean([-expected.logprobs for expected in reading]),
            "signal/copy": mean([expected.copy for expected in reading]),
            "signal/end": float(np.mean(ends)) if ends else None,
        }


def repetition(tokens: Ids) -> float:
    """Share of tokens that repeat the previous token.

    >>> repetition((5, 5, 5, 6)), repetition((5,))
    (0.6666666666666666, 0.0)
    """
    if len(tokens) < 2:
        return 0.0
    return sum(a == b for a, b in pairwise(tokens)) / (len(tokens) - 1)


def mean(rows: Sequence[Floats]) -> float | None:
    """Mean over the values of all rows; None if there are no values."""
    values = np.concatenate([np.asarray(row, float) for row in rows]) if rows else np.zeros(0)
    return float(values.mean()) if len(values) else None
