"""The smallest difference of two methods that a study can show, and what it takes to show less.

It plans with the variance of a difference by source. Planned studies give all methods the same
number of seeds and problems; their seed variances are taken to be alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from potstill.stats.comparisons import LEVEL, VERDICT_SEEDS, Comparisons
from potstill.stats.metric import ACCURACY, Metric
from potstill.stats.multiple import critical

POWER = 0.8
EFFECTS = (0.04, 0.02, 0.01)  # differences to plan for: shares, or nats per token
MOST_SEEDS = 100


@dataclass(frozen=True)
class Components:
    """Where the variance of a difference between two methods comes from, in squared units."""

    seed: float  # between seeds of one method
    problem: float  # of the difference, between problems
    residual: float  # of one seed on one problem

    def parts(self, seeds: int, problems: int) -> tuple[float, float, float]:
        """Variance of a difference by source: seeds, problems, and seeds on single problems."""
        residual = 2 * self.residual / (seeds * problems)
        return 2 * self.seed / seeds, self.problem / problems, residual

    def smallest(self, methods: int, seeds: int, problems: int) -> float:
        """The true difference that is significant with 80 % power.

        Args:
            methods: in the family of comparisons, the untrained student among them.
            seeds: of each method; below three nothing is significant, and the value is infinite.
            problems: held-out ones, or clusters of equal ones.
        """
        from scipy.special import ndtr, stdtrit

        if seeds < VERDICT_SEEDS or problems < 2 or math.isinf(self.seed):
            return math.inf
        by_seed, by_problem, residual = self.parts(seeds, problems)
        total, random = by_seed + by_problem + residual, by_seed + residual
        if not total:
            return 0.0
        trained = max(methods - 1, 1)
        uncertain = random**2 / (trained * (seeds - 1)) + (total - by_seed) ** 2 / (problems - 1)
        df = total**2 / uncertain
        level = float(ndtr(-all_pairs(methods)))
        return float(np.sqrt(total) * (stdtrit(df, POWER) - stdtrit(df, level)))

    def seeds_for(self, effect: float, methods: int, problems: int) -> int | None:
        """The fewest seeds that show a difference on this many problems; None above 100."""
        rising = range(VERDICT_SEEDS, MOST_SEEDS + 1)
        return next((n for n in rising if self.smallest(methods, n, problems) <= effect), None)

    def problems_for(self, effect: float, methods: int, seeds: int) -> int | None:
        """The fewest problems that show a difference with this many seeds, rounded up to two
        digits; None above 100,000."""
        for size in (10**n for n in range(1, 5)):
            for problems in range(size, 10 * size + 1, max(size // 10, 1)):
                if self.smallest(methods, seeds, problems) <= effect:
                    return problems
        return None


# For a study that has no results yet; cautious. On the quick study (`potstill study`) the embedded
# pairs have at most 0.0025 ** 2, 0.0006 and 0.083.
TYPICAL = Components(seed=0.015**2, problem=0.01, residual=0.08)


@dataclass(frozen=True)
class Power:
    """The ability of a study to show differences on one pair."""

    components: Components
    methods: int
    seeds: int
    problems: int
    measured: bool  # from results; False: from `TYPICAL`, or unknown
    metric: Metric = ACCURACY

    @property
    def smallest(self) -> float:
        """The smallest true difference that is significant with 80 % power."""
        return self.components.smallest(self.methods, self.seeds, self.problems)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of the variance of a difference: seeds, problems, seeds on single problems."""
        parts = self.components.parts(max(self.seeds, 1), self.problems)
        total = sum(parts) or 1.0
        return parts[0] / total, parts[1] / total, parts[2] / total

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Larger studies that show those of `EFFECTS` that this one cannot show."""
        known = math.isfinite(self.components.seed)
        return tuple(self._plan(e) for e in EFFECTS if known and e < self.smallest)

    def _plan(self, effect: float) -> Plan:
        seeds = self.components.seeds_for(effect, self.methods, self.problems)
        enough = max(self.seeds, VERDICT_SEEDS)
        problems = self.components.problems_for(effect, self.methods, enough)
        return Plan(effect, seeds, problems)


@dataclass(frozen=True)
class Plan:
    """A larger study that shows a difference: more seeds, or more problems; None: too many."""

    effect: float
    seeds: int | None
    problems: int | None


UNKNOWN = Components(math.inf, math.inf, math.inf)  # numbers whose size nothing is known about


def components(family: Comparisons) -> Components | None:
    """The components of the methods of one pair; None where no method has two seeds.

    Of a single method nothing shows how much a difference varies between problems: a typical
    value is taken for shares, and for other numbers what two independent methods would have.
    """
    known = [s for s in family.samples.values() if s.seeds > 1 and len(s.columns) > 1]
    varied = [s for s in known if not s.constant] or known
    if not varied:
        return None
    residual = float(np.mean([s.residual for s in varied]))
    square = float(np.average([s.seed_square for s in varied], weights=[s.seeds for s in varied]))
    between = [
        float((a.columns - b.columns).var(ddof=1)) - a.residual / a.seeds - b.residual / b.seeds
        for a, b in combinations(varied, 2)
    ]
    alone = TYPICAL.problem if varied[0].shares else 2 * float(varied[0].columns.var(ddof=1))
    problem = max(float(np.mean(between)), 0.0) if between else alone
    seed = max(square - residual, 0.0) / len(varied[0].columns)
    return Components(seed, problem, residual)


def power(
    family: Comparisons,
    methods: int,
    seeds: int,
    problems: int,
    metric: Metric = ACCURACY,
) -> Power:
    """The power of a study: from its results, or from typical components where there are none.

    Args:
        family: the methods of one pair, as far as they have results.
        methods: in the family when it is complete, the untrained student among them.
        seeds: of each method.
        problems: held-out ones.
        metric: of the outcomes; numbers other than shares have no typical components.
    """
    known = components(family)
    typical = TYPICAL if metric.share else UNKNOWN
    return Power(known or typical, methods, seeds, problems, known is not None, metric)


@lru_cache(64)
def all_pairs(methods: int) -> float:
    """The |z| that the largest difference of so many equal methods exceeds in 5 % of studies."""
    if methods < 2:
        return critical(np.eye(1), LEVEL)
    unit = np.eye(methods)
    return critical(
        np.array([unit[a] - unit[b] for a, b in combinations(range(methods), 2)]), LEVEL
    )
