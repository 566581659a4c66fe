"""Intervals of means and differences of methods on one pair, and their family of comparisons.

Differences are paired by problem and never by seed: equal seeds of two methods share nothing that
a new pair of seeds would. From three seeds on a difference has a p-value, corrected over all pairs
of the family, so that a method picked after looking at the results is tested as a picked one. Two
seeds give an interval and no verdict; one seed an interval for this seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from potstill.stats.mean_squares import Matrix, MeanSquares, mean_squares
from potstill.stats.multiple import critical, holm, max_t
from potstill.stats.seeds import SeedVariance, seed_variances

LEVEL = 0.05  # of significance; intervals are 95 %
VERDICT_SEEDS = 3  # below which nothing is significant
NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, nan where there is nothing to estimate it from."""

    mean: float
    low: float
    high: float
    seeds: int = 0  # 1: for this seed alone; 0: a baseline, which has none


@dataclass(frozen=True)
class Difference:
    """A difference of two means with its own 95 % interval."""

    mean: float
    low: float
    high: float
    p: float  # corrected over the family; nan below `VERDICT_SEEDS` seeds
    seeds: int = 0  # the fewest of a method in it; 1: for these seeds alone
    se: float = NAN  # standard error
    df: float = NAN  # degrees of freedom

    def __neg__(self) -> Difference:
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def clear(self) -> bool:
        """True where the interval excludes zero."""
        return self.low > 0 or self.high < 0


def direction(value: Difference | None) -> int:
    """1 for significantly above, -1 for significantly below, 0 for neither.

    Significant: at least `VERDICT_SEEDS` seeds, the interval excludes zero, and p, corrected over
    the family, is below 0.05.
    """
    if value is None or not value.clear or not value.p < LEVEL:
        return 0
    return 1 if value.mean > 0 else -1


class Comparisons:
    """Methods on the same problems, and all their differences.

    Args:
        samples: by name; those of baselines have no seeds.
        compared: the names whose differences are tested; None: all.
    """

    def __init__(
        self, samples: Mapping[str, MeanSquares], compared: Sequence[str] | None = None
    ) -> None:
        self.compared = tuple(samples if compared is None else compared)
        seeded = {name: s for name, s in samples.items() if s.seeds}
        known = dict(zip(seeded, seed_variances(list(seeded.values())), strict=True))
        self.samples = dict(samples)
        self.variances = {name: known.get(name, SeedVariance(0.0, 0.0)) for name in samples}

    def interval(self, name: str) -> Interval:
        """The mean of one method."""
        return interval(self.samples[name], self.variances[name])

    def alone(self, a: str, b: str) -> Difference:
        """Method a minus method b, with the p of this comparison alone."""
        return difference(self.samples[a], self.variances[a], self.samples[b], self.variances[b])

    def __getitem__(self, pair: tuple[str, str]) -> Difference:
        """The first method minus the second, with p corrected over the family.

        Raises:
            KeyError: the family does not have both.
        """
        a, b = pair
        return self._all[a, b] if (a, b) in self._all else -self._all[b, a]

    @cached_property
    def tested(self) -> tuple[tuple[str, str], ...]:
        """Pairs that have enough seeds for a p-value."""
        pairs = combinations(self.compared, 2)
        return tuple(pair for pair in pairs if np.isfinite(self._raw[pair].p))

    @cached_property
    def critical(self) -> float:
        """The |z| that a comparison has to exceed to be significant in this family."""
        return critical(self._effects(self.tested), LEVEL) if self.tested else NAN

    @cached_property
    def _raw(self) -> dict[tuple[str, str], Difference]:
        return {pair: self.alone(*pair) for pair in combinations(self.samples, 2)}

    @cached_property
    def _all(self) -> dict[tuple[str, str], Difference]:
        p_values = [self._raw[pair].p for pair in self.tested]
        corrected = max_t(p_values, self._effects(self.tested)) if self.tested else []
        return self._raw | {
            pair: replace(self._raw[pair], p=p)
            for pair, p in zip(self.tested, corrected, strict=True)
        }

    def _effects(self, pairs: Sequence[tuple[str, str]]) -> Matrix:
        """(m, 2k) each difference as a combination of independent standard normal errors: those
        of problems, which all methods share, and those of each method's seeds."""
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        samples = [self.samples[name] for name in names]
        width = len(samples[0].columns)
        problems = np.zeros((len(names), len(names)))
        if width > 1:
            problems = np.cov([s.columns for s in samples]) / width
        problems = problems - np.diag([residual_part(s) for s in samples])
        values, vectors = np.linalg.eigh(problems)
        parts = [seed_part(self.samples[name], self.variances[name]) for name in names]
        errors = np.hstack([vectors * np.sqrt(np.maximum(values, 0)), np.diag(np.sqrt(parts))])
        index = {name: i for i, name in enumerate(names)}
        return np.array([errors[index[a]] - errors[index[b]] for a, b in pairs])


def compare(outcomes: Mapping[str, npt.ArrayLike]) -> Comparisons:
    """The family of methods whose outcomes (S, P) are on the same problems."""
    return Comparisons({name: mean_squares(matrix) for name, matrix in outcomes.items()})


def interval(one: MeanSquares, seeds: SeedVariance) -> Interval:
    """The mean of a method's outcomes with its 95 % interval.

    Without seeds, and with one, only problems are random. Shares of right answers have the exact
    binomial interval then, and other shares have it at their own variance, see `independent`.
    """
    parts = [(one, seeds)] if one.seeds > 1 else []
    estimate = _estimate(one.mean, parts, [one.columns], one.shares)
    if one.shares and len(one.columns):
        if one.constant or (one.binary and one.seeds < 2):
            return Interval(one.mean, *exact(one.mean, one.effective), one.seeds)
        if not one.binary and estimate.variance > 0:
            return Interval(one.mean, *exact(one.mean, independent(estimate)), one.seeds)
    low, high = estimate.ends()
    low = 0.0 if one.positive and low < 0 else low
    high = min(high, 1.0) if one.shares and len(one.columns) else high
    return Interval(one.mean, low, high, one.seeds)


def independent(share: _Estimate) -> float:
    """The right or wrong answers that would tell as much about a mean of shares.

    Source: E. L. Korn and B. I. Graubard, Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data, 1998.
    """
    from scipy.special import ndtri, stdtrit

    level = 1 - LEVEL / 2
    return float(
        share.mean
        * (1 - share.mean)
        / share.variance
        * (ndtri(level) / stdtrit(share.df, level)) ** 2
    )


def exact(share: float, problems: float) -> tuple[float, float]:
    """The exact binomial 95 % interval of a share of problems.

    Source: C. J. Clopper and E. S. Pearson, 1934.

    >>> [round(x, 3) for x in exact(0.0, 50)]
    [0.0, 0.071]
    """
    from scipy.special import betaincinv

    right = share * problems
    low = betaincinv(right, problems - right + 1, LEVEL / 2) if right > 0 else 0.0
    high = betaincinv(right + 1, problems - right, 1 - LEVEL / 2) if right < problems else 1.0
    return float(low), float(high)


def difference(
    a: MeanSquares,
    a_seeds: SeedVariance,
    b: MeanSquares,
    b_seeds: SeedVariance,
    *,
    paired: bool = True,
) -> Difference:
    """The mean of `a` minus the mean of `b`, with the p of this comparison alone.

    Args:
        a, b: samples of methods, or of baselines.
        a_seeds, b_seeds: their seed variances.
        paired: both are on the same problems, in the same order.
    """
    seeded = [(s, v) for s, v in ((a, a_seeds), (b, b_seeds)) if s.seeds]
    fewest = min((s.seeds for s, _ in seeded), default=0)
    parts = seeded if fewest != 1 else []
    columns = [a.columns - b.columns] if paired else [a.columns, -b.columns]
    estimate = _estimate(a.mean - b.mean, parts, columns, a.shares and b.shares)
    low, high = estimate.ends()
    p = estimate.p if fewest == 0 or fewest >= VERDICT_SEEDS else NAN
    return Difference(estimate.mean, low, high, p, fewest, estimate.se, estimate.df)


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Differences of one family with p after Holm's correction; a missing p stays missing."""
    p_values = iter(holm([d.p for d in differences if d is not None and np.isfinite(d.p)]))
    return [
        replace(d, p=next(p_values)) if d is not None and np.isfinite(d.p) else d
        for d in differences
    ]


def seed_part(one: MeanSquares, seeds: SeedVariance) -> float:
    """The variance of a mean that its seeds bring, the residual's share among it."""
    return seeds.square / one.seeds / max(len(one.columns), 1) if one.seeds else 0.0


def residual_part(one: MeanSquares) -> float:
    """The variance of a mean that the residual brings."""
    return one.residual / one.seeds / len(one.columns) if one.seeds > 1 and one.residual else 0.0


@dataclass(frozen=True)
class _Estimate:
    """An estimate with its variance, and with the problems that it was made on."""

    mean: float
    variance: float
    df: float
    problems: int
    skewness: float  # of the estimate; 0 for shares
    shares: bool  # it is of outcomes in [0, 1]

    @property
    def se(self) -> float:
        return float(np.sqrt(self.variance))

    @property
    def p(self) -> float:
        from scipy.special import stdtr

        if self.variance == 0:  # every problem agrees: a sign test
            return 1.0 if self.mean == 0 else min(1.0, 2 * 0.5**self.problems)
        return float(2 * stdtr(self.df, -abs(self.mean) / self.se))

    def ends(self) -> tuple[float, float]:
        """The ends of the 95 % interval.

        Numbers without bounds, such as a KL divergence, are skewed: a few problems have most of it.
        Each end is then the further one of the t interval's and of the one that Hall's
        transformation corrects for skewness (P. Hall, On the removal of skewness by
        transformation, 1992, section 2). It is at most twice as far from the mean as that of the
        t interval: further ends make intervals wider and cover no more (`benchmarks.graded`).
        """
        from scipy.special import stdtrit

        if self.variance == 0 and self.problems:  # no problem differs: the next one still may
            half = exact(0.0, self.problems)[1] if self.shares else NAN
            return self.mean - half, self.mean + half
        t = float(stdtrit(self.df, 1 - LEVEL / 2))
        low, high = self.mean - t * self.se, self.mean + t * self.se
        if abs(self.skewness) > 1e-6:
            below, above = self._unskewed(t), -self._unskewed(-t)
            low = self.mean - min(max(t, below), 2 * t) * self.se
            high = self.mean + min(max(t, above), 2 * t) * self.se
        return low, high

    def _unskewed(self, quantile: float) -> float:
        a, b = self.skewness / 3, self.skewness / 6
        return float((np.cbrt(1 + 3 * a * (quantile - b)) - 1) / a)


def _estimate(
    mean: float,
    parts: Sequence[tuple[MeanSquares, SeedVariance]],
    columns: Sequence[Matrix],
    shares: bool,
) -> _Estimate:
    """Add up the variance of seeds and problems; degrees of freedom by Satterthwaite.

    Args:
        mean: the estimate.
        parts: samples with their seed variances; none: seeds are not random.
        columns: one number a problem or cluster, whose means add up to the estimate.
        shares: of outcomes in [0, 1]: skewness is left out.
    """
    seeds: dict[SeedVariance, float] = {}  # a pooled variance is one estimate, not two
    for one, variance in parts:
        seeds[variance] = seeds.get(variance, 0.0) + seed_part(one, variance)
    problems, width = sum(map(_variance, columns)), min(map(len, columns))
    residual = sum(residual_part(one) for one, _ in parts)
    total = sum(seeds.values()) + max(problems - residual, 0.0)
    if not np.isfinite(problems):
        return _Estimate(mean, NAN, NAN, width, 0.0, shares)
    uncertain = sum(part**2 / variance.df for variance, part in seeds.items() if part)
    uncertain += problems**2 / (width - 1) if width > 1 else 0.0
    df = total**2 / uncertain if uncertain else NAN
    skewness = 0.0 if shares or not total else sum(map(_third, columns)) / total**1.5
    return _Estimate(mean, total, df, width, skewness, shares)


def _variance(columns: Matrix) -> float:
    """The variance of the mean over problems; 0 without problems, nan for a single one."""
    n = len(columns)
    return float(columns.var(ddof=1) / n) if n > 1 else (NAN if n else 0.0)


def _third(columns: Matrix) -> float:
    """The third central moment of the mean over problems; 0 without problems."""
    n = len(columns)
    return float(((columns - columns.mean()) ** 3).mean() / n**2) if n > 1 else 0.0
