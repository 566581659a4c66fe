"""Coverage, false verdicts and power of intervals and comparisons, by simulation of known truth.

Studies are drawn with probit outcomes: a skill a method, an effect a seed, an effect a problem and
one a method and problem. Eight methods have the same true accuracy, so that every difference that
is called significant is false. `--candidates` compares the shipped rule for the variance of seeds
with others, the percentile bootstrap that potstill had before among them.

    python -m benchmarks.coverage                 # the shipped rule, about ten minutes
    python -m benchmarks.coverage --candidates    # all rules, fewer scenarios
    python -m benchmarks.coverage --outcomes nats # outcomes that are no 0 and 1, see `graded`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, ndtri, polygamma
from scipy.stats import norm, t

from benchmarks import graded
from potstill.stats import multiple, seeds
from potstill.stats.comparisons import Comparisons, Difference, direction, seed_part
from potstill.stats.mean_squares import Matrix, MeanSquares, mean_squares
from potstill.stats.multiple import holm
from potstill.stats.seeds import SeedVariance

METHODS = 8
BASELINE, BETTER = "0", "1"
SKILL, OWN, NOISE = 4.0, 0.3, 1.0  # latent deviations: problem, method and problem, single answer


@dataclass(frozen=True)
class Scenario:
    """A kind of study."""

    seeds: int
    points: float  # standard deviation of a method's accuracy between seeds
    problems: int = 500
    wild: int = 0  # methods whose seeds scatter by `wild_points`
    wild_points: float = 12.0
    shared: float = 0.0  # correlation of the effects of equal seeds
    gain: float = 0.0  # points by which one method is better
    accuracy: float = 0.6
    methods: int = METHODS

    def __str__(self) -> str:
        words = [f"seed sd {self.points:g}", f"{self.problems} problems"]
        words += [f"{self.wild} wild ({self.wild_points:g})"] * bool(self.wild)
        words += [f"shared seeds {self.shared:g}"] * bool(self.shared)
        words += [f"accuracy {self.accuracy:.0%}"] * (self.accuracy != 0.6)
        words += [f"{self.methods} methods"] * (self.methods != METHODS)
        return ", ".join(words)

    @property
    def truth(self) -> Mapping[str, float]:
        """The true accuracy of each method, over all seeds and problems."""
        names = map(str, range(self.methods))
        return {n: self.accuracy + (self.gain / 100 if n == BETTER else 0.0) for n in names}


def outcomes(one: Scenario, rng: np.random.Generator) -> dict[str, Matrix]:
    """One study: 0 and 1 (S, P) by method."""
    variance = SKILL**2 + OWN**2 + NOISE**2
    slope = norm.pdf(ndtri(one.accuracy)) / np.sqrt(variance)  # accuracy per latent unit
    skill = rng.normal(0, SKILL, one.problems)
    common, drawn = rng.normal(size=one.seeds), {}
    for i, (name, accuracy) in enumerate(one.truth.items()):
        points = one.wild_points if i >= one.methods - one.wild else one.points
        sd = points / 100 / slope
        own = rng.normal(size=one.seeds)
        effect = sd * (np.sqrt(one.shared) * common + np.sqrt(1 - one.shared) * own)
        mean = ndtri(accuracy) * np.sqrt(variance + sd**2)
        latent = mean + effect[:, None] + skill + rng.normal(0, OWN, one.problems)
        noise = rng.normal(0, NOISE, (one.seeds, one.problems))
        drawn[name] = (latent + noise > 0).astype(float)
    return drawn


Rule = Callable[[Mapping[str, Matrix]], Comparisons]


def shipped(drawn: Mapping[str, Matrix]) -> Comparisons:
    """The rule of potstill.stats."""
    return Comparisons({name: mean_squares(x) for name, x in drawn.items()})


class Own(Comparisons):
    """Each method its own seed variance, degrees of freedom by Satterthwaite."""

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        return [SeedVariance(s.seed_square, s.seeds - 1.0) for s in samples]

    def __init__(self, samples: Mapping[str, MeanSquares]) -> None:
        super().__init__(samples)
        self.variances = dict(zip(samples, self.rule(list(samples.values())), strict=True))


class Pooled(Own):
    """The pooled seed variance for all."""

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        square = float(np.mean([s.seed_square for s in samples]))
        return [SeedVariance(square, sum(s.seeds - 1.0 for s in samples)) for _ in samples]


class Larger(Own):
    """The larger of own and pooled for each, with its degrees of freedom."""

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        both = zip(Own.rule(samples), Pooled.rule(samples), strict=True)
        return [max(pair, key=lambda v: v.square) for pair in both]


class OnePool(Own):
    """Pooled over all methods where they look alike, otherwise the larger of own and pooled."""

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        squares = np.array([s.seed_square for s in samples])
        alike = seeds.alike(squares, np.array([s.seeds - 1.0 for s in samples]))
        return Pooled.rule(samples) if alike else Larger.rule(samples)


class Group(Own):
    """Pooled over the methods that look alike, with any number of seeds."""

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        pool = sorted(samples, key=lambda s: s.seed_square)
        while OnePool.rule(pool) != Pooled.rule(pool):
            pool = pool[:-1]
        shared = seeds.pooled(pool)
        return [seeds.larger(s, shared) if len(pool) < len(samples) else shared for s in samples]


class EmpiricalBayes(Own):
    """Each variance shrunk towards the others', as far as they look alike.

    Source: G. K. Smyth, Linear models and empirical Bayes methods for assessing differential
    expression in microarray experiments, 2004 (limma), sections 4 and 6.
    """

    @staticmethod
    def rule(samples: Sequence[MeanSquares]) -> list[SeedVariance]:
        own = np.maximum([s.seed_square for s in samples], 1e-9)
        df, total = samples[0].seeds - 1.0, sum(s.seeds - 1.0 for s in samples)
        logs = np.log(own) - digamma(df / 2) + np.log(df / 2)
        spread = float(logs.var(ddof=1) - polygamma(1, df / 2))
        if spread <= 0:
            return Pooled.rule(samples)
        prior = 2 * float(brentq(lambda x: float(polygamma(1, x)) - spread, 1e-3, 1e6))
        square = np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2))
        known = min(prior + df, total)
        return [SeedVariance(float(x), known) for x in (prior * square + df * own) / (prior + df)]


class Quadrature(Own):
    """t on seeds and z on problems, added as squares: the widest."""

    def alone(self, a: str, b: str) -> Difference:
        found = super().alone(a, b)
        one, other = self.samples[a], self.samples[b]
        by_seed = sum(seed_part(s, self.variances[n]) for s, n in ((one, a), (other, b)))
        by_problem = float((one.columns - other.columns).var(ddof=1) / len(one.columns))
        df = one.seeds + other.seeds - 2
        half = np.hypot(t.ppf(0.975, df) * by_seed**0.5, norm.ppf(0.975) * by_problem**0.5)
        mean = found.mean
        # The level at which the interval just reaches zero.
        levels = np.geomspace(1e-12, 1, 400)
        halves = np.hypot(
            t.isf(levels / 2, df) * by_seed**0.5, norm.isf(levels / 2) * by_problem**0.5
        )
        p = float(np.interp(-abs(mean), -halves, levels))
        return replace(found, low=float(mean - half), high=float(mean + half), p=p)


class Bootstrap(Own):
    """The percentile bootstrap over seeds and problems, seeds paired (before potstill.stats)."""

    def __init__(self, samples: Mapping[str, MeanSquares], drawn: Mapping[str, Matrix]) -> None:
        super().__init__(samples)
        self.drawn = drawn
        rng = np.random.default_rng(0)
        s, p = next(iter(drawn.values())).shape
        self.rows = rng.multinomial(s, np.full(s, 1 / s), 1000) / s
        self.columns = rng.multinomial(p, np.full(p, 1 / p), 1000) / p

    def alone(self, a: str, b: str) -> Difference:
        delta = self.drawn[a] - self.drawn[b]
        means = ((self.rows @ delta) * self.columns).sum(1)
        low, high = np.quantile(means, [0.025, 0.975])
        tail = min((means <= 0).sum(), (means >= 0).sum())
        p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
        return replace(super().alone(a, b), low=float(low), high=float(high), p=float(p))


def bootstrapped(drawn: Mapping[str, Matrix]) -> Comparisons:
    """The rule before."""
    return Bootstrap({name: mean_squares(x) for name, x in drawn.items()}, drawn)


def ruled(kind: Callable[[Mapping[str, MeanSquares]], Comparisons]) -> Rule:
    return lambda drawn: kind({name: mean_squares(x) for name, x in drawn.items()})


CANDIDATES: dict[str, Rule] = {
    "bootstrap (before)": bootstrapped,
    "own": ruled(Own),
    "pooled": ruled(Pooled),
    "empirical Bayes": ruled(EmpiricalBayes),
    "larger of both": ruled(Larger),
    "one pool if alike": ruled(OnePool),
    "pool of those alike": ruled(Group),
    "t and z in quadrature": ruled(Quadrature),
    "shipped": shipped,
}


@dataclass(frozen=True)
class Rates:
    """Shares of studies, but for coverage: of comparisons."""

    coverage: float  # of a difference by its 95 % interval
    width: float  # mean width of that interval in points
    baseline: float  # some method falsely apart from the baseline, Holm over them alone
    best: float  # some false line about the picked best: all pairs, max-t
    page: float  # any false significance on the page: all pairs, max-t
    power: float  # the better method found apart from the baseline, Holm
    page_power: float  # the same in the family of all pairs


def rates(one: Scenario, rule: Rule, repeats: int, seed: int = 0) -> Rates:
    """Simulate studies of one kind."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        family = rule(outcomes(one, rng))
        found.append(_study(family, one.truth))
    return Rates(*(float(np.mean(column)) for column in zip(*found, strict=True)))


def _study(family: Comparisons, truth: Mapping[str, float]) -> tuple[float, ...]:
    pairs = list(combinations(truth, 2))
    raw = {pair: family.alone(*pair) for pair in pairs}
    real = {(a, b): truth[a] - truth[b] for a, b in pairs}
    covered = [raw[pair].low <= real[pair] <= raw[pair].high for pair in pairs]
    width = 100 * np.mean([raw[pair].high - raw[pair].low for pair in pairs])
    against = [pair for pair in pairs if BASELINE in pair]
    p_values = holm([raw[pair].p for pair in against])
    apart = {pair: p < 0.05 and raw[pair].clear for pair, p in zip(against, p_values, strict=True)}
    on_page = {pair: bool(direction(family[pair])) for pair in pairs}
    top = max(truth, key=lambda name: family.samples[name].mean)
    false = [pair for pair in pairs if real[pair] == 0]
    return (
        float(np.mean(covered)),
        float(width),
        float(any(apart.get(pair, False) for pair in false)),
        float(any(on_page[pair] for pair in false if top in pair)),
        float(any(on_page[pair] for pair in false)),
        float(apart[BASELINE, BETTER]),
        float(on_page[BASELINE, BETTER]),
    )


def scenarios() -> Iterator[Scenario]:
    """The table's rows."""
    for n in (3, 5, 10):
        for points in (1.0, 3.0, 6.0):
            yield Scenario(n, points)
        yield Scenario(n, 1.0, wild=2, wild_points=6.0)
        yield Scenario(n, 1.0, wild=2)
        yield Scenario(n, 3.0, problems=50)
        yield Scenario(n, 3.0, problems=200)
        yield Scenario(n, 3.0, shared=0.5)
    yield Scenario(3, 3.0, problems=50, wild=2)
    yield Scenario(3, 1.0, accuracy=0.95)
    yield Scenario(3, 3.0, methods=2)
    yield Scenario(3, 3.0, methods=3)


FRONTIER = (
    Scenario(3, 1.0),
    Scenario(3, 3.0),
    Scenario(3, 6.0),
    Scenario(3, 1.0, wild=2, wild_points=6.0),
    Scenario(3, 1.0, wild=2),
    Scenario(5, 3.0),
    Scenario(5, 1.0, wild=2, wild_points=6.0),
)


def _print(head: str, n: int, one: Rates, power: Rates) -> None:
    shares = (one.coverage, one.baseline, one.best, one.page, power.power, power.page_power)
    values = " | ".join(f"{100 * x:.1f}" for x in shares)
    print(f"| {head} | {n} | {values} | {one.width:.1f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=500, help="studies a row")
    parser.add_argument("--candidates", action="store_true", help="compare the rules")
    kinds = ("right", "shares", "nats")
    parser.add_argument("--outcomes", choices=kinds, default="right", help="of a problem")
    chosen: Any = parser.parse_args(arguments)
    multiple.DRAWS = 4_000  # enough for a decision at 5 %, and five times as fast
    if chosen.outcomes != "right":
        graded.table(chosen.outcomes, chosen.repeats)
        return
    print(f"{chosen.repeats} studies a row; pooling level {seeds.POOLING_LEVEL}. Per cent:")
    print("| scenario | seeds | coverage | false vs baseline | false about the best |", end="")
    print(" any false on the page | power at 4 points, Holm vs baseline | all pairs | width |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for one in FRONTIER if chosen.candidates else scenarios():
        for name, rule in CANDIDATES.items() if chosen.candidates else {"": shipped}.items():
            power = rates(replace(one, gain=4.0), rule, chosen.repeats // 2, seed=1)
            head = f"{one}: {name}" if name else str(one)
            _print(head, one.seeds, rates(one, rule, chosen.repeats), power)


if __name__ == "__main__":
    main()
