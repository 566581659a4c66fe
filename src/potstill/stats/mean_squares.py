"""One method's outcomes, reduced to the mean squares of the two-way table (seeds x problems).

The model of outcome x of seed s on problem p: a mean, a seed effect, a problem effect and a
residual, all random and independent. Of S seeds and P problems, the mean squares are

    A = P * var_s(mean over problems)            seeds, S - 1 degrees of freedom
    E = residual mean square                     (S - 1)(P - 1) degrees of freedom
    B / S = var_p(mean over seeds)               problems, P - 1 degrees of freedom

and the variance of the mean is (A + B - E) / (S P). Source: N. A. Obuchowski and H. E. Rockette,
Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests, 1995; S. L.
Hillis, A comparison of denominator degrees of freedom methods, 2007 (readers are seeds here, cases
are problems).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MeanSquares:
    """Outcomes of one method, or of a baseline, which has no seeds."""

    seeds: int  # S; 0: a baseline
    mean: float
    columns: Matrix  # (P,) mean over seeds, one a problem or cluster of problems
    seed_square: float  # A; nan below two seeds
    residual: float  # E; nan below two seeds
    shares: bool  # every outcome is in [0, 1], so is the mean
    binary: bool  # every outcome is 0 or 1
    positive: bool  # every outcome is at least 0, so is the mean
    effective: float  # independent problems that would tell as much; fewer where some are repeated

    @property
    def constant(self) -> bool:
        """True where every outcome is the same: there is no variance to estimate from."""
        level = len(self.columns) and np.ptp(self.columns) == 0
        return bool(level) and not self.seed_square > 0


def mean_squares(
    outcomes: npt.ArrayLike,
    *,
    seeded: bool = True,
    clusters: Sequence[object] | None = None,
    shares: bool = True,
) -> MeanSquares:
    """Reduce outcomes to their mean squares.

    Args:
        outcomes: (S, P), any real numbers; or (S,), a number a seed that no problem is behind.
        seeded: False for a baseline: its one row depends on no seed.
        clusters: (P,) a name for each problem; problems of one name are one cluster, since
            repeated problems are not independent evidence. None: all are different.
        shares: False for numbers that have no bounds, even where all happen to be in [0, 1].
    """
    x = np.asarray(outcomes, float)
    if x.ndim == 1:
        square = float(x.var(ddof=1)) if len(x) > 1 else float("nan")
        return MeanSquares(
            len(x), float(x.mean()), np.empty(0), square, 0.0, False, False, False, 0.0
        )
    shares = shares and bool(((x >= 0) & (x <= 1)).all())
    binary = shares and bool(((x == 0) | (x == 1)).all())
    kind = shares, binary, bool((x >= 0).all())
    effective = float(x.shape[1])
    if clusters is not None:
        sizes = np.array([*Counter(clusters).values()], float)
        x, effective = clustered(x, clusters), float(sizes.sum() ** 2 / (sizes**2).sum())
    s, p = x.shape
    rows, columns, mean = x.mean(1), x.mean(0), float(x.mean())
    if s < 2 or not seeded:
        nan = float("nan")
        seeds = s if seeded else 0
        return MeanSquares(seeds, mean, columns, nan, nan, *kind, effective)
    residual = x - rows[:, None] - columns + mean
    error = float((residual**2).sum() / ((s - 1) * (p - 1))) if p > 1 else 0.0
    equal = np.ptp(rows) <= 1e-12 * np.abs(x).max()  # equal but for rounding
    seed_square = 0.0 if equal else float(p * rows.var(ddof=1))
    return MeanSquares(s, mean, columns, seed_square, error, *kind, effective)


def clustered(outcomes: Matrix, clusters: Sequence[object]) -> Matrix:
    """One column a cluster; the mean over columns is the mean over problems.

    A column is the mean plus the scaled deviations of its problems from the mean, so that clusters
    of unequal sizes add no variance where all outcomes are equal (the linearised ratio estimator of
    W. G. Cochran, Sampling techniques, 1977, section 6.5).

    Args:
        outcomes: (P,) or (S, P).
        clusters: (P,) a name for each problem.

    >>> clustered(np.array([1.0, 0.0, 1.0, 1.0]), ["a", "b", "a", "c"]).tolist()
    [1.125, 0.1875, 0.9375]
    """
    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(index) == len(clusters):
        return outcomes
    member = np.zeros((len(clusters), len(index)))
    member[np.arange(len(clusters)), [index[name] for name in clusters]] = 1.0
    mean = outcomes.mean(-1, keepdims=True)
    return np.asarray(mean + (outcomes - mean) @ member * (len(index) / len(clusters)))
