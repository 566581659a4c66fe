"""The variance between seeds, from few seeds of several methods.

Two or three seeds say little of their own variance. Methods of one pair often share it, so their
mean squares are pooled; but a method whose seeds scatter more must not borrow a small variance. So
Bartlett's test decides: with no sign of different variances (p of at least 0.25, the level for
pooling in T. A. Bancroft, Analysis and inference for incompletely specified models, 1964) all
methods have the pooled mean square. Otherwise each has the larger of its own and the pooled one,
with the degrees of freedom of the one it has. `python -m benchmarks.coverage` compares this rule
with others by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.stats.mean_squares import MeanSquares

POOLING_LEVEL = 0.25  # of Bartlett's test, from which on variances are taken to be equal


@dataclass(frozen=True)
class SeedVariance:
    """A seed mean square with its degrees of freedom; nan, 0 where there is none."""

    square: float
    df: float


def seed_variances(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
    """The seed mean square to use for each of the methods of one pair, in the given order.

    Methods with one seed have the pooled one; without any method of two seeds there is none.
    """
    # A method that always scores the same (a collapsed one) has no variance to share.
    own = [s for s in samples if s.seeds > 1 and not s.constant]
    own = own or [s for s in samples if s.seeds > 1]
    if not own:
        return [SeedVariance(float("nan"), 0.0) for _ in samples]
    squares = np.array([s.seed_square for s in own])
    df = np.array([s.seeds - 1.0 for s in own])
    pooled = SeedVariance(float((squares * df).sum() / df.sum()), float(df.sum()))
    if alike(squares, df):
        return [pooled for _ in samples]
    return [larger(s, pooled) for s in samples]


def larger(one: MeanSquares, pooled: SeedVariance) -> SeedVariance:
    """A method's own seed variance where it is above the pooled one, by more than rounding."""
    if one.seeds > 1 and one.seed_square > pooled.square * (1 + 1e-9):
        return SeedVariance(one.seed_square, one.seeds - 1.0)
    return pooled


def alike(squares: np.ndarray, df: np.ndarray) -> bool:
    """Bartlett's test on mean squares: True where p is at least `POOLING_LEVEL`.

    >>> alike(np.array([1.0, 1.2, 0.9]), np.array([2.0, 2.0, 2.0]))
    True
    >>> alike(np.array([1.0, 1.2, 90.0]), np.array([2.0, 2.0, 2.0]))
    False
    """
    from scipy.special import chdtrc

    k, total = len(squares), df.sum()
    pooled = (squares * df).sum() / total
    if k < 2 or pooled <= 0:
        return True
    if (squares <= 0).any():
        return False
    spread = total * np.log(pooled) - (df * np.log(squares)).sum()
    scale = 1 + ((1 / df).sum() - 1 / total) / (3 * (k - 1))
    return bool(chdtrc(k - 1, spread / scale) >= POOLING_LEVEL)
