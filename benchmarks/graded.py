"""Coverage and false verdicts where outcomes are no 0 and 1, by simulation of known truth.

Two kinds of outcomes. Shares: each is the mean of four answers, right or wrong, as `samples = 4`
gives (avg@4). Nats: log-normal numbers, as the KL divergence of each problem; the spread is the
standard deviation of their logarithm between problems, 1 by default: the mean is then 1.7 times
the median. Eight methods are equal, and an untrained student, which has no seeds, is worse.

    python -m benchmarks.coverage --outcomes shares
    python -m benchmarks.coverage --outcomes nats
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from potstill.stats.comparisons import Comparisons, direction
from potstill.stats.mean_squares import Matrix, mean_squares

UNTRAINED = "untrained"
ANSWERS = 4  # of each problem, behind a share
OWN, NOISE = 0.3, 0.3  # deviations of the logarithm: method and problem, single outcome


@dataclass(frozen=True)
class Graded:
    """A kind of study."""

    kind: str  # "shares" or "nats"
    seeds: int
    problems: int
    wild: int = 0  # methods whose seeds scatter `factor` times as much
    factor: float = 3.0
    spread: float = 1.0  # of problems: nats on the logarithm, shares on the latent scale
    mean: float = 0.0  # of shares; nats: 0.5
    by_seed: float = 0.1  # deviation between seeds on the same scale as the spread
    methods: int = 8

    def __str__(self) -> str:
        level = f"mean {self.mean:.0%}" if self.kind == "shares" else f"spread {self.spread:g}"
        wild = f", {self.wild} wild ({self.factor * self.by_seed:g})" if self.wild else ""
        return f"{level}, seed sd {self.by_seed:g}, {self.problems} problems{wild}"

    def deviation(self, method: int) -> float:
        """Between seeds."""
        return self.by_seed * (self.factor if method >= self.methods - self.wild else 1)

    @property
    def truth(self) -> dict[str, float]:
        """The true mean of each method, over all seeds and problems."""
        if self.kind == "shares":
            return dict.fromkeys(map(str, range(self.methods)), self.mean) | {
                UNTRAINED: 0.6 * self.mean
            }
        return dict.fromkeys(map(str, range(self.methods)), 0.5) | {UNTRAINED: 1.5}


def drawn(one: Graded, rng: np.random.Generator) -> dict[str, Matrix]:
    """One study: outcomes (S, P) by method, (1, P) of the untrained student."""
    problem = rng.normal(0, one.spread, one.problems)
    found = {}
    for i, (name, mean) in enumerate(one.truth.items()):
        seeds = 1 if name == UNTRAINED else one.seeds
        sd = 0.0 if name == UNTRAINED else one.deviation(i)
        effect = rng.normal(0, sd, seeds)[:, None] + problem + rng.normal(0, OWN, one.problems)
        if one.kind == "shares":
            whole = np.sqrt(1 + one.spread**2 + OWN**2 + sd**2)
            chance = ndtr(ndtri(mean) * whole + effect)
            found[name] = rng.binomial(ANSWERS, chance) / ANSWERS
        else:
            noise = rng.normal(0, NOISE, effect.shape)
            half = (one.spread**2 + OWN**2 + NOISE**2 + sd**2) / 2
            found[name] = mean * np.exp(effect + noise - half)
    return found


@dataclass(frozen=True)
class GradedRates:
    """In shares of comparisons or intervals; `false` in shares of studies."""

    differences: float  # of equal methods, covered
    gains: float  # against the untrained student, covered
    means: float  # of methods, covered
    baseline: float  # the untrained student's mean, covered
    false: float  # any significant difference of equal methods
    shown: float  # gains that are significant
    width: float  # of a method's mean


def rates(one: Graded, repeats: int, seed: int = 0) -> GradedRates:
    """Simulate studies of one kind."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        samples = {
            name: mean_squares(x, seeded=name != UNTRAINED, shares=one.kind == "shares")
            for name, x in drawn(one, rng).items()
        }
        found.append(_study(Comparisons(samples), one.truth))
    return GradedRates(*(float(np.mean(column)) for column in zip(*found, strict=True)))


def _study(family: Comparisons, truth: Mapping[str, float]) -> tuple[float, ...]:
    methods = [name for name in truth if name != UNTRAINED]
    pairs = list(combinations(methods, 2))
    between = [family.alone(*pair) for pair in pairs]
    gains = [family.alone(name, UNTRAINED) for name in methods]
    real = truth[methods[0]] - truth[UNTRAINED]
    levels = [family.interval(name) for name in methods]
    before = family.interval(UNTRAINED)
    return (
        float(np.mean([d.low <= 0 <= d.high for d in between])),
        float(np.mean([d.low <= real <= d.high for d in gains])),
        float(np.mean([x.low <= truth[methods[0]] <= x.high for x in levels])),
        float(before.low <= truth[UNTRAINED] <= before.high),
        float(any(direction(family[pair]) for pair in pairs)),
        float(np.mean([direction(family[name, UNTRAINED]) != 0 for name in methods])),
        float(np.mean([x.high - x.low for x in levels])),
    )


def scenarios(kind: str) -> Iterator[Graded]:
    """The table's rows."""
    means = (0.5, 0.8, 0.95) if kind == "shares" else (0.5,)
    for seeds in (3, 5):
        for problems in (30, 50, 100, 500):
            for mean in means:
                yield Graded(kind, seeds, problems, mean=mean)
        for mean in means[:1]:
            for factor in (3.0, 6.0):
                yield Graded(kind, seeds, 200, wild=2, factor=factor, mean=mean)
            yield Graded(kind, seeds, 200, by_seed=0.3, mean=mean)
        if kind == "nats":
            yield from (Graded(kind, seeds, n, spread=0.5) for n in (20, 30))
            yield from (Graded(kind, seeds, n, spread=1.5) for n in (50, 100, 200, 500))


def table(kind: str, repeats: int) -> None:
    """Print a row a kind of study."""
    print(f"{repeats} studies a row, {kind}. Per cent, but for the width:")
    print("| scenario | seeds | equal methods covered | gains covered | means covered |", end="")
    print(" untrained covered | any false on the page | gains shown | mean width |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for one in scenarios(kind):
        r = rates(one, repeats)
        shares = (r.differences, r.gains, r.means, r.baseline, r.false, r.shown)
        values = " | ".join(f"{100 * x:.1f}" for x in shares)
        print(f"| {one} | {one.seeds} | {values} | {r.width:.3f} |", flush=True)
