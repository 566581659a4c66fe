"""Completions that the data have, in the place of those that a teacher would write.

Of several completions of a problem each epoch reads another one, in an order that the seed draws,
so that all of them are read equally often. The ids end with the token that ends a completion and
are cut at the limit, as a teacher's are. Nobody knows the probability with which such tokens were
written: their log-probabilities are NaN.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from potstill.engines.protocol import Engine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.tasks.selecting import completion_counts
from potstill.types import Ids, Trajectory

MOST = 20_000  # completions that are tokenized before a run
Encode = Callable[[Problem, str], Ids]


def given(
    engine: Engine, problem: Problem, limit: int, step: int, seed: int, epoch: int
) -> Trajectory:
    """One of a problem's own completions as the teacher's trajectory, at most `limit` tokens."""
    prompt = engine.prompt(problem)
    ids = engine.encode_completion(prompt, chosen(problem, seed, epoch))[:limit]
    unknown = np.full(len(ids), np.nan, np.float32)
    return Trajectory(prompt, ids, unknown, "teacher", version=step, origin="file")


def chosen(problem: Problem, seed: int, epoch: int) -> str:
    """The completion that an epoch reads: within so many epochs as there are, each is read once.

    >>> texts = ("a", "b", "c")
    >>> sorted(chosen(Problem("1", "?", "", completions=texts), 0, epoch) for epoch in (3, 4, 5))
    ['a', 'b', 'c']
    """
    round_, turn = divmod(epoch, len(problem.completions))
    name = zlib.crc32(problem.id.encode())
    order = np.random.default_rng([seed, round_, name]).permutation(len(problem.completions))
    return problem.completions[order[turn]]


@dataclass
class Survey:
    """Counts of the completions of some problems."""

    problems: int = 0
    having: int = 0  # problems with completions
    texts: int = 0
    checked: int = 0  # of the texts; the others are like them
    longest: int = 0  # tokens, the end included
    cut: int = 0  # longer than the limit
    unreadable: int = 0  # cannot be written in the student's tokens
    right: int | None = None  # None: not graded
    error: PotstillError = field(default_factory=lambda: PotstillError(""))  # the first
    example: tuple[Problem, str] | None = None  # the first that is wrong


def survey(
    problems: Sequence[Problem],
    limit: int,
    encode: Encode,
    grade: Callable[[Problem, Ids], bool] | None = None,
) -> Survey:
    """Tokenize the completions of problems, at equal distances if there are very many.

    Args:
        problems: with completions or without.
        limit: tokens of a completion.
        encode: the ids of a problem's completion.
        grade: whether ids are right; None: they are not graded.
    """
    sizes = completion_counts(problems)
    counts = Survey(len(problems), sum(map(bool, sizes)), sum(sizes))
    counts.right = None if grade is None else 0
    every = max(1, -(-counts.texts // MOST))
    places = [(place, n) for place, size in enumerate(sizes) for n in range(size)]
    for place, n in places[::every]:
        problem = problems[place]
        text = problem.completions[n]
        counts.checked += 1
        try:
            ids = encode(problem, text)
        except PotstillError as error:
            counts.error = counts.error if counts.unreadable else error
            counts.unreadable += 1
            continue
        counts.longest = max(counts.longest, len(ids))
        counts.cut += len(ids) > limit
        if grade is not None and counts.right is not None:
            right = grade(problem, ids[:limit])
            counts.right += right
            if not right and counts.example is None:
                counts.example = problem, text
    return counts
