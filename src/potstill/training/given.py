"""Completions that the data have, in the place of those that a teacher would write.

Of several completions of a problem each epoch reads another one, in an order that the seed draws,
so that all of them are read equally often. The ids end with the token that ends a completion and
are cut at the limit, as a teacher's are. Nobody knows the probability with which such tokens were
written: their log-probabilities are NaN.
"""

from __future__ import annotations

import zlib

import numpy as np

from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.types import Trajectory


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
