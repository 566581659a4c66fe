"""The variance between seeds, from few seeds of several methods.

Two or three seeds say little of their own variance. Methods of one pair often share it, so their
mean squares are pooled; but a method whose seeds scatter more must not borrow a small variance. So
Bartlett's test decides: with no sign of different variances (p of at least 0.25, the level for
pooling in T. A. Bancroft, Analysis and inference for incompletely specified models, 1964) all
methods have the pooled mean square. Otherwise each has the larger of its own and the pooled one,
with the degrees of freedom of the one it has. From five seeds on, the pool then has only methods
that look alike: the largest mean squares leave it until Bartlett's test finds no sign of
differences, as long as three methods stay. With fewer seeds that rule has too many false verdicts.
`python -m benchmarks.coverage` compares these rules with others by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.stats.mean_squares import MeanSquares

POOLING_LEVEL = 0.25  # of Bartlett's test, from which on variances are taken to be equal
GROUP_SEEDS = 5  # of each method, from which on those that differ leave the pool
GROUP_METHODS = 3  # the fewest that stay; with fewer, all are pooled


@dataclass(frozen=True)
class SeedVariance:
    """A seed mean square with its degrees of freedom; nan, 0 where there is none."""

    square: float
    df: float


def seed_variances(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
    """The seed mean square to use for each of the methods of one pair, in the given order.

    Methods with one seed have the pooled one; without any method of two seeds there is none.
    """
    pool = _varied(samples)
    if _alike(pool):
        return [pooled(pool) for _ in samples]
    if min(s.seeds for s in pool) >= GROUP_SEEDS:
        # A square of zero is a coincidence of few problems, and no sign of a small variance.
        pool = sorted((s for s in pool if s.seed_square > 0), key=lambda s: s.seed_square)
        while not _alike(pool):
            pool = pool[:-1]
    shared = pooled(pool if len(pool) >= GROUP_METHODS else samples)
    return [larger(s, shared) for s in samples]


def pooled(samples: Sequence[MeanSquares]) -> SeedVariance:
    """The mean of the seed mean squares, weighted by their degrees of freedom.

    Methods with one seed have none, and neither has a method that always scores the same (one that
    collapsed): it has no variance to share. Without any, nan with 0 degrees of freedom.
    """
    pool = _varied(samples)
    df = sum(s.seeds - 1.0 for s in pool)
    if not pool:
        return SeedVariance(float("nan"), 0.0)
    return SeedVariance(sum(s.seed_square * (s.seeds - 1.0) for s in pool) / df, df)


def _varied(samples: Sequence[MeanSquares]) -> list[MeanSquares]:
    repeated = [s for s in samples if s.seeds > 1]
    return [s for s in repeated if not s.constant] or repeated


def _alike(pool: Sequence[MeanSquares]) -> bool:
    squares = np.array([s.seed_square for s in pool])
    return alike(squares, np.array([s.seeds - 1.0 for s in pool]))


def larger(one: MeanSquares, shared: SeedVariance) -> SeedVariance:
    """A method's own seed variance where it is above the shared one, by more than rounding."""
    if one.seed_square > shared.square * (1 + 1e-9):  # never with one seed, whose square is nan
        return SeedVariance(one.seed_square, one.seeds - 1.0)
    return shared


def alike(squares: np.ndarray, df: np.ndarray) -> bool:
    """Bartlett's test on mean squares: True where p is at least `POOLING_LEVEL`.

    >>> alike(np.array([1.0, 1.2, 0.9]), np.array([2.0, 2.0, 2.0]))
    True
    >>> alike(np.array([1.0, 1.2, 90.0]), np.array([2.0, 2.0, 2.0]))
    False
    """
    from scipy.special import chdtrc

    if len(squares) < 2 or not squares.any():
        return True
    if (squares <= 0).any():
        return False
    k, total = len(squares), df.sum()
    spread = total * np.log((squares * df).sum() / total) - (df * np.log(squares)).sum()
    scale = 1 + ((1 / df).sum() - 1 / total) / (3 * (k - 1))
    return bool(chdtrc(k - 1, spread / scale) >= POOLING_LEVEL)
