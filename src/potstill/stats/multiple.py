"""p-values corrected for a family of comparisons.

`max_t` knows how the comparisons depend on each other (all pairs of methods share their means),
and is sharper for it; `holm` knows nothing and holds for any family.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.stats.mean_squares import Matrix

DRAWS, BATCH = 20_000, 2_000


def max_t(p_values: Sequence[float], effects: Matrix) -> list[float]:
    """Step-down max-t correction of two-sided p-values.

    Of all comparisons not yet decided, the most extreme one is compared with the distribution of
    the most extreme one under no difference at all. Every statistic is first made a normal one by
    its own p-value; the joint distribution is drawn (20,000 draws, a fixed seed).

    Args:
        p_values: (m,) uncorrected.
        effects: (m, k) each comparison as a combination of k independent standard normal errors.

    Source: P. H. Westfall and S. S. Young, Resampling-based multiple testing, 1993, algorithm 2.8;
    T. Hothorn, F. Bretz and P. Westfall, Simultaneous inference in general parametric models, 2008.
    """
    from scipy.special import ndtri

    if len(p_values) < 2:
        return [float(p) for p in p_values]
    z = -ndtri(np.asarray(p_values, float) / 2)
    order = np.argsort(-z)  # equal ones end up equal in any order
    unit = _unit(effects)[order]
    exceeded = np.zeros(len(z))
    rng = np.random.default_rng(0)
    for _ in range(0, DRAWS, BATCH):
        drawn = np.abs(rng.standard_normal((BATCH, unit.shape[1])) @ unit.T)
        largest = np.maximum.accumulate(drawn[:, ::-1], axis=1)[:, ::-1]  # of this and later ones
        exceeded += (largest >= z[order]).sum(0)
    steps = np.maximum.accumulate((exceeded + 1) / (DRAWS + 1))
    corrected = np.empty(len(z))
    corrected[order] = steps
    # Far out there are no draws; there Holm's bound is the sharper one.
    return [float(p) for p in np.minimum(corrected, holm(p_values))]


def critical(effects: Matrix, level: float) -> float:
    """The |z| that the most extreme of the comparisons exceeds by chance with this probability."""
    unit, rng = _unit(effects), np.random.default_rng(0)
    largest = [
        np.abs(rng.standard_normal((BATCH, unit.shape[1])) @ unit.T).max(1)
        for _ in range(0, DRAWS, BATCH)
    ]
    return float(np.quantile(np.concatenate(largest), 1 - level))


def _unit(effects: Matrix) -> Matrix:
    length = np.sqrt((effects**2).sum(1, keepdims=True))
    return np.asarray(effects / np.where(length > 0, length, 1.0))


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
