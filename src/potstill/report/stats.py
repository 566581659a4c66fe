"""Means, intervals and paired differences of outcomes. It knows no folder and no study.

Outcomes of a method are a matrix (seeds x problems) of 0 and 1. Intervals are 95 % percentile
bootstraps that resample seeds and problems independently, so that both a lucky seed and an easy
problem set are accounted for. p-values come from the same resamples; `holm` corrects them over a
family of comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
RESAMPLES = 4000
LEVEL = 0.05  # of a significant p-value


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, nan where nothing could be resampled."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, `p` after Holm's correction."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """True where the interval excludes zero."""
        return self.low > 0 or self.high < 0


def direction(value: Difference | None) -> int:
    """1 for significantly above, -1 for significantly below, 0 for neither.

    Significant: the interval excludes zero, and p after Holm's correction is below 0.05.
    """
    if value is None or not value.clear or not value.p < LEVEL:
        return 0
    return 1 if value.mean > 0 else -1


def interval(outcomes: Matrix) -> Interval:
    """Mean of a (S, P) matrix and its bootstrap interval over rows and columns."""
    low, high = np.quantile(resample(outcomes), [0.025, 0.975])
    return Interval(float(outcomes.mean()), float(low), float(high))


def difference(deltas: Matrix) -> Difference:
    """Mean of paired differences (S, P), interval and uncorrected two-sided p-value."""
    return _from_means(float(deltas.mean()), resample(deltas))


def unpaired(a: Matrix, b: Matrix, *, same_problems: bool) -> Difference:
    """Mean of `a` (S, P) minus mean of `b` (R, Q); the seeds of each are drawn independently.

    Args:
        a: outcomes of one method.
        b: outcomes of the other, under other seeds.
        same_problems: the columns are the same problems, drawn once for both (then P = Q).
    """
    mean = float(a.mean() - b.mean())
    if min(a.shape[1], b.shape[1]) < 2:
        return Difference(mean, *[float("nan")] * 3)
    rng = np.random.default_rng(0)

    def drawn(n: int) -> Matrix:
        """Weights (RESAMPLES, n): how often each of n is drawn."""
        return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n

    columns = drawn(a.shape[1])
    others = columns if same_problems else drawn(b.shape[1])
    means = [
        np.einsum("ns,sp,np->n", drawn(len(x)), x, weights, optimize=True)
        for x, weights in ((a, columns), (b, others))
    ]
    return _from_means(mean, means[0] - means[1])


def _from_means(mean: float, means: Matrix) -> Difference:
    """A difference from its bootstrap means."""
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(np.sum(means <= 0), np.sum(means >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1)) if np.isfinite(low) else float("nan")
    return Difference(mean, float(low), float(high), float(p))


def resample(matrix: Matrix) -> Matrix:
    """Bootstrap means of a (S, P) matrix: seeds and problems drawn independently.

    With one seed only problems are drawn; with one problem nothing can be: the result is nan.
    """
    from scipy.stats import bootstrap

    seeds, problems = matrix.shape
    if problems < 2:
        return np.full(1, np.nan)

    def mean(*index: Any, axis: int = -1) -> Any:
        rows, columns = index if len(index) == 2 else (np.zeros((1, 1), int), index[0])
        if rows.ndim == 1:
            return matrix[np.ix_(rows, columns)].mean()
        return matrix[rows[..., :, None], columns[..., None, :]].mean((-2, -1))

    axes = (np.arange(seeds), np.arange(problems)) if seeds > 1 else (np.arange(problems),)
    drawn = bootstrap(
        axes,
        mean,
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        paired=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(drawn.bootstrap_distribution, float)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p-values of one family, in the given order.

    The k-th smallest of n is multiplied by n - k + 1; corrected values never fall with rank.
    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> [round(p, 2) for p in holm([0.03, 0.01, 0.04, 0.02])]
    [0.06, 0.04, 0.06, 0.06]
    >>> holm([0.7, 0.6]), holm([])
    ([1.0, 1.0], [])
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The differences of one family with p after Holm's correction; a missing p stays missing."""
    family = [d.p for d in differences if d is not None and np.isfinite(d.p)]
    p_values = iter(holm(family))
    return [
        replace(d, p=float(next(p_values))) if d is not None and np.isfinite(d.p) else d
        for d in differences
    ]


def accuracy_at(tokens: float, curve: Sequence[tuple[float, float]]) -> float:
    """Read a curve of (tokens spent, accuracy) at a number of tokens, linear in between.

    >>> accuracy_at(50, [(0, 0.4), (100, 0.6)])
    0.5
    """
    spent, accuracy = zip(*curve, strict=True)
    return float(np.interp(tokens, spent, accuracy))
