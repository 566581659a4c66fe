"""Completions of problems for an evaluation: greedy, or drawn with fixed random numbers.

The random numbers of a completion depend on the problem and on the number of the sample alone, so
that evaluations of different students, methods, seeds and steps are paired, and a problem's
completions do not depend on the other problems. Measures of the completions are left to
`evaluation` and `ungraded`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.engines.prompts import by_reader
from potstill.engines.protocol import Engine
from potstill.problems import Graded, Problem
from potstill.settings import Eval
from potstill.tasks import Task, is_graded
from potstill.training.rollout import generator
from potstill.types import Prompt, Role, Sample


def held_out(task: Task, settings: Eval, count: int | None = None) -> Sequence[Problem]:
    """The held-out problems that are evaluated, in the order of the task's test split.

    Args:
        task: the first problems of its test split, or a share of them drawn by `settings.seed`.
        settings: the number of problems, and the seed.
        count: another number; fewer problems of one seed are among more of it.
    """
    count = min(settings.problems if count is None else count, len(task.test))
    if settings.seed is None:
        return task.test[:count]
    drawn = generator(settings.seed, 0, "held-out problems").permutation(len(task.test))[:count]
    return [task.test[i] for i in sorted(drawn.tolist())]


def complete(
    engine: Engine,
    role: Role,
    task: Task,
    problems: Sequence[Problem],
    max_tokens: int,
    settings: Eval,
) -> tuple[list[Graded], list[Prompt], list[Sample]]:
    """Complete each problem `settings.samples` times, and grade where the task has a grader.

    Returns:
        Rows, prompts and samples (P * n), the samples of a problem one after another.
    """
    graded = is_graded(task)
    repeated = [problem for problem in problems for _ in range(settings.samples)]
    once = [engine.prompt(problem) for problem in problems]
    prompts = [prompt for prompt in once for _ in range(settings.samples)]
    samples = _sample(engine, role, prompts, max_tokens, settings)
    rows = []
    for problem, prompt, sample in zip(repeated, prompts, samples, strict=True):
        text = engine.decode(sample.tokens)
        ended = bool(sample.tokens) and sample.tokens[-1] in engine.eos
        grade = task.grade(problem, engine.opening(prompt, role) + text) if graded else None
        rows.append(Graded(problem, text, grade, len(sample.tokens), ended, sample.tokens))
    return rows, prompts, samples


def _sample(
    engine: Engine, role: Role, prompts: Sequence[Prompt], max_tokens: int, settings: Eval
) -> list[Sample]:
    if settings.temperature == 0:
        limits = [max_tokens] * len(prompts)
        return engine.sample(role, prompts, limits, 0.0, np.random.default_rng(0))

    def call(reader: Role, indices: list[int]) -> list[Sample]:
        rng = RowGenerator(
            [(prompts[i].problem, i % settings.samples) for i in indices], settings.seed or 0
        )
        chosen, limits = [prompts[i] for i in indices], [max_tokens] * len(indices)
        truncation = settings.truncation
        return engine.sample(role, chosen, limits, settings.temperature, rng, truncation=truncation)

    return by_reader(role, prompts, call)


class RowGenerator(np.random.Generator):
    """A random generator whose rows of numbers depend on their keys alone.

    Numbers that are not one row or one integer a key, such as those of a teacher with its own
    tokenizer that goes on with some of its completions, come from a generator of all keys.

    Args:
        keys: of the rows: a problem and the number of its sample.
        seed: of all rows.
    """

    def __init__(self, keys: Sequence[tuple[str, int]], seed: int) -> None:
        super().__init__(np.random.PCG64(_entropy(seed, keys)))
        self._keys, self._seed = list(keys), seed
        self._rows = [np.random.default_rng(_entropy(seed, key)) for key in keys]

    def __reduce__(self) -> Any:
        return type(self), (self._keys, self._seed)

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:  # type: ignore[override]
        """Uniform numbers in [0, 1); of shape (rows, n): each row from its own generator."""
        if isinstance(size, tuple) and len(size) == 2 and size[0] == len(self._rows) > 0:
            return np.stack([row.random(size[1], dtype) for row in self._rows])
        return super().random(size, dtype, out)

    def integers(  # type: ignore[override]
        self, low: Any, high: Any = None, size: Any = None, **options: Any
    ) -> Any:
        """Integers; one of each row's own generator if there are as many as rows."""
        if size == len(self._rows) > 0:
            return np.array([row.integers(low, high, **options) for row in self._rows])
        return super().integers(low, high, size, **options)


def _entropy(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")
