"""The probe: a few training problems that the student completes again and again during a run.

The random numbers and the teacher's completions are the same each time, so that changes come from
the student alone. Nothing here changes a run; `diagnosis` interprets the signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.tasks import Task, is_graded
from potstill.training.evaluation import TeacherCompletions, has_teacher
from potstill.training.rollout import generator
from potstill.types import Floats, Ids, Prompt, Reading, Role, Sample

PERIODS = 16  # tokens of the longest loop that is found


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
        self.graded, self.has_teacher = is_graded(task), has_teacher(engine)
        self.outcomes: list[float] = []  # strict grades of the student's latest completions
        self.teacher_readings = self._read_by_student()

    @property
    def _limits(self) -> list[int]:
        return [self.max_tokens] * len(self.prompts)

    def _readings(self, samples: Sequence[Sample]) -> list[Reading]:
        return [(p, sample.tokens) for p, sample in zip(self.prompts, samples, strict=True)]

    def _read_by_student(self) -> list[Reading]:
        """The teacher's greedy completions; without a teacher the first ones of the data."""
        if self.has_teacher:
            rng = np.random.default_rng(0)
            return self._readings(
                self.engine.sample("teacher", self.prompts, self._limits, 0.0, rng)
            )
        return [
            (prompt, self._cut(prompt, problem.completions[0]))
            for prompt, problem in zip(self.prompts, self.problems, strict=True)
            if problem.completions
        ]

    def _cut(self, prompt: Prompt, text: str) -> Ids:
        return self.engine.encode_completion(prompt, text)[: self.max_tokens]

    def compare_with_teacher(self) -> dict[str, float]:
        """Signals of the teacher, next to the latest of the student; none without a teacher.

        Returns:
            signal/teacher_length, _loop, _distinct, _truncated: as of the student, at temperature 1
            as well.
            signal/teacher_accuracy: share of correct greedy completions.
            signal/teacher_only, signal/student_only: problems that one of the two alone solves.
            signal/uniform: of a task without a grader instead of these: loss of a uniform guess.
        """
        if not self.has_teacher:
            return {}
        rng = generator(self.seed, 0, "probe")
        samples = self.engine.sample("teacher", self.prompts, self._limits, 1.0, rng)
        completions = [sample.tokens for sample in samples]
        signals = {
            **{f"signal/teacher_{name}": value for name, value in _variety(completions).items()},
            "signal/teacher_truncated": self._truncated(completions),
        }
        if not self.graded:
            first = self.engine.rows("student", *self._readings(samples)[0])
            return signals | {"signal/uniform": float(np.log(first.shape[1]))}
        teacher = np.array(self._grades("teacher", [ids for _, ids in self.teacher_readings]))
        student = np.array(self.outcomes)
        return signals | {
            "signal/teacher_accuracy": float(teacher.mean()),
            "signal/teacher_only": int((teacher > student).sum()),
            "signal/student_only": int((student > teacher).sum()),
        }

    def _truncated(self, completions: Sequence[Ids]) -> float:
        """Share of completions that reach the limit."""
        ends = self.engine.eos
        return float(np.mean([not tokens or tokens[-1] not in ends for tokens in completions]))

    def _grades(self, role: Role, completions: Sequence[Ids]) -> list[float]:
        if not self.graded:
            return []
        rows = zip(self.problems, self.prompts, completions, strict=True)
        return [
            self.task.grade(
                problem, self.engine.opening(prompt, role) + self.engine.decode(completion)
            ).strict
            for problem, prompt, completion in rows
        ]

    def measure(self) -> dict[str, float | None]:
        """Signals of the student with its current weights; None where one is unknown.

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
        teacher = engine.inspect("teacher", readings) if self.has_teacher else []
        student = engine.inspect("student", readings)
        reading = engine.inspect("student", self.teacher_readings) if self.teacher_readings else []
        gaps = (
            [p.logprobs.astype(float) - q.logprobs for p, q in zip(student, teacher, strict=True)]
            if self.has_teacher
            else []
        )
        completions = [sample.tokens for sample in samples]
        answers = zip(self.problems, map(engine.decode, completions), strict=True)
        scores = [self.teacher.score(problem, text) for problem, text in answers]
        known = [score for score in scores if score is not None]
        self.outcomes = self._grades("student", completions)
        ends = [
            expected.end[-1]
            for expected, (_, completion) in zip(reading, self.teacher_readings, strict=True)
            if completion and completion[-1] in engine.eos and len(expected.end)
        ]
        return {
            "train/score": float(np.mean(known)) if known else None,
            "train/kl_divergence": mean(gaps),
            "train/accuracy": float(np.mean(self.outcomes)) if self.graded else None,
            **{f"signal/{name}": value for name, value in _variety(completions).items()},
            "signal/truncated": self._truncated(completions),
            "signal/repetition": float(np.mean([repetition(tokens) for tokens in completions])),
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


def loop(tokens: Ids) -> float:
    """Share of tokens that equal the one a period earlier, at the best period up to `PERIODS`.

    >>> loop((5, 6, 5, 6, 5, 6)), loop((5, 6, 7))
    (0.8, 0.0)
    """
    ids = np.asarray(tokens)
    periods = range(1, min(PERIODS, len(ids) - 1) + 1)
    repeats = [int((ids[k:] == ids[:-k]).sum()) for k in periods]
    return max(repeats, default=0) / max(1, len(ids) - 1)


def _variety(completions: Sequence[Ids]) -> dict[str, float]:
    """Length, loops, and the share of completions that differ from all others before them."""
    return {
        "length": float(np.mean([len(tokens) for tokens in completions])),
        "loop": float(np.mean([loop(tokens) for tokens in completions])),
        "distinct": len(set(completions)) / len(completions),
    }


def mean(rows: Sequence[Floats]) -> float | None:
    """Mean over the values of all rows; None if there are no values."""
    values = np.concatenate([np.asarray(row, float) for row in rows]) if rows else np.zeros(0)
    return float(values.mean()) if len(values) else None
