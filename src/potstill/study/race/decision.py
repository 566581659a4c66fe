"""The decision at one look of a race: a pure function of the outcomes so far.

Who is dropped, whether the race has ended, and the bounds that decided it. It knows no folder and
runs nothing; the same outcomes give the same decision.

Levels. The truly best method is dropped in at most a share `alpha` of races. `alpha` is spent over
the looks by the Pocock-type function of Lan & DeMets (Discrete sequential boundaries for clinical
trials, Biometrika 1983); each look spends its increment, without credit for the correlation of
looks, so that no joint distribution of the small-sample t statistics is needed. Within a look the
increment is shared by the comparisons that the best method could lose, one with each rival
(Bonferroni, one-sided).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Literal

from potstill.stats.comparisons import VERDICT_SEEDS, Comparisons, Difference
from potstill.stats.mean_squares import Matrix, clustered, mean_squares
from potstill.stats.seeds import larger, pooled

# One seed does not show how much seeds differ, so this is assumed: the standard deviation of
# accuracy between seeds, larger than that of any method on the embedded pairs (see LOG.md).
SEED_SD = 0.06

Reason = Literal["failed", "collapsed", "below untrained", "below leader"]
End = Literal["", "none left", "one left", "within", "last look"]


@dataclass(frozen=True)
class Entry:
    """The runs of one method up to a look."""

    outcomes: Matrix  # (S, P) of the finished runs, in [0, 1]
    collapsed: int = 0  # runs with a collapse
    failed: str = ""  # cause of the first failed run


@dataclass(frozen=True)
class Drop:
    """A method that leaves the race; shares in [0, 1], not points."""

    reason: Reason
    mean: float | None = None  # accuracy
    against: str = ""  # the method or baseline that it is compared with
    difference: float | None = None  # to it
    upper: float | None = None  # simultaneous upper bound of the difference
    cause: str = ""  # of a failed run


@dataclass(frozen=True)
class Decision:
    """The decision at one look."""

    seeds: int
    level: float  # part of alpha that this look spends
    means: Mapping[str, float]  # accuracy of each method that has outcomes
    leader: str  # highest mean of those that stay; empty where none stays
    dropped: Mapping[str, Drop] = field(default_factory=dict)
    apart: float | None = None  # upper bound of the largest |difference| of those that stay
    ended: End = ""

    @property
    def survivors(self) -> tuple[str, ...]:
        """Methods that stay, in the study's order."""
        return tuple(name for name in self.means if name not in self.dropped)


def spent(alpha: float, share: float) -> float:
    """Level that is spent when a share of the planned seeds has been seen.

    alpha ln(1 + (e - 1) share): Lan & DeMets (1983), their approximation of Pocock's boundary.

    >>> round(spent(0.05, 0.3), 4), spent(0.05, 0.0), spent(0.05, 1.0)
    (0.0208, 0.0, 0.05)
    """
    return alpha * math.log1p((math.e - 1) * share)


def levels(alpha: float, looks: Sequence[int]) -> list[float]:
    """The level of each look; they sum to alpha.

    >>> [round(level, 4) for level in levels(0.05, [1, 3, 5, 10])]
    [0.0079, 0.0129, 0.0102, 0.019]
    """
    sums = [0.0, *(spent(alpha, seeds / looks[-1]) for seeds in looks)]
    return [after - before for before, after in pairwise(sums)]


def decide(
    entries: Mapping[str, Entry],
    untrained: Matrix,
    *,
    seeds: int,
    level: float,
    within: float,
    last: bool,
    clusters: Sequence[object] | None = None,
) -> Decision:
    """Decide one look.

    Args:
        entries: the methods still in the race, in the study's order.
        untrained: outcomes (P,) of the untrained student.
        seeds: of each method.
        level: part of alpha that this look spends.
        within: the race ends when all survivors are within this of each other; in [0, 1].
        last: no look follows.
        clusters: (P,) a name for each problem; repeated problems have one name.
    """
    means = {m: float(e.outcomes.mean()) for m, e in entries.items() if not e.failed}
    dropped = dict(_broken(entries, means, untrained))
    racing = {m: entries[m].outcomes for m in means if m not in dropped}
    apart, problems = None, len(untrained)
    if seeds >= VERDICT_SEEDS and len(racing) > 1:
        family = careful(racing, clusters)
        dropped |= _below_leader(racing, family, level)
        stay = [m for m in racing if m not in dropped]
        apart = _furthest([family.alone(*pair) for pair in combinations(stay, 2)], level, problems)
    elif seeds < VERDICT_SEEDS:
        dropped |= _below_untrained(racing, untrained, level, clusters)
    stay = [m for m in racing if m not in dropped]
    leader = max(stay, key=lambda m: means[m], default="")
    return Decision(
        seeds, level, means, leader, dropped, apart, _end(len(stay), apart, within, last)
    )


def careful(
    outcomes: Mapping[str, Matrix], clusters: Sequence[object] | None = None
) -> Comparisons:
    """The family of methods, each with the larger of its own seed variance and the pooled one.

    A report pools where variances look alike. A race drops for good, and with two of eight methods
    far noisier the report's rule dropped the best one in 7 % of races, this one in 4 % (LOG.md).
    """
    samples = {name: mean_squares(matrix, clusters=clusters) for name, matrix in outcomes.items()}
    family, shared = Comparisons(samples), pooled(list(samples.values()))
    family.variances = {name: larger(one, shared) for name, one in samples.items()}
    return family


def _broken(
    entries: Mapping[str, Entry], means: Mapping[str, float], untrained: Matrix
) -> Iterator[tuple[str, Drop]]:
    """Methods with a failed run, and those that collapsed.

    A collapse counts where half of the runs or more collapsed and the method solves no more than
    the untrained student: a false alarm on a healthy run drops nothing.
    """
    for method, entry in entries.items():
        if entry.failed:
            yield method, Drop("failed", cause=entry.failed)
        elif 2 * entry.collapsed >= len(entry.outcomes):
            gain = means[method] - float(untrained.mean())
            if gain <= 0:
                yield method, Drop("collapsed", means[method], "untrained", gain)


def _below_untrained(
    racing: Mapping[str, Matrix],
    untrained: Matrix,
    level: float,
    clusters: Sequence[object] | None,
) -> dict[str, Drop]:
    """Methods whose upper bound of the difference to the untrained student is below zero.

    The standard error has the problems, paired, and `SEED_SD`, since too few seeds show no
    variance between seeds.
    """
    from scipy.stats import norm

    dropped = {}
    for method, outcomes in racing.items():
        gain = outcomes.mean(0) - untrained
        gain = gain if clusters is None else clustered(gain, clusters)
        if len(gain) < 2:
            continue  # one problem shows no variance between problems
        se = math.sqrt(gain.var(ddof=1) / len(gain) + SEED_SD**2 / len(outcomes))
        upper = float(gain.mean() + norm.isf(level / len(racing)) * se)
        if upper < 0:
            mean = float(outcomes.mean())
            dropped[method] = Drop("below untrained", mean, "untrained", float(gain.mean()), upper)
    return dropped


def _below_leader(
    racing: Mapping[str, Matrix], family: Comparisons, level: float
) -> dict[str, Drop]:
    """Methods whose simultaneous upper bound of the difference to the leader is below zero."""
    leader = max(racing, key=lambda m: racing[m].mean())
    dropped = {}
    for method in racing:
        if method == leader:
            continue
        difference = family.alone(method, leader)
        problems = racing[method].shape[1]
        upper = _upper(difference, level / (len(racing) - 1), problems)
        if upper < 0:
            mean = float(racing[method].mean())
            dropped[method] = Drop("below leader", mean, leader, difference.mean, upper)
    return dropped


def _furthest(differences: Sequence[Difference], level: float, problems: int) -> float | None:
    """Upper bound of the largest |difference|, without correction over pairs; None without any.

    All pairs have to be within the limit, so each is tested at the full level: an
    intersection-union test (Berger, Multiparameter hypothesis testing and acceptance sampling,
    Technometrics 1982).
    """
    both = [d if d.mean >= 0 else -d for d in differences]
    return max((_upper(d, level, problems) for d in both), default=None)


def _upper(difference: Difference, level: float, problems: int) -> float:
    """One-sided upper bound at a level; infinite where the variance is unknown."""
    from scipy.stats import t

    if difference.se == 0:  # no problem differs from the others, but the next one still may
        return difference.mean + 1 - level ** (1 / problems)
    bound = float(difference.mean + t.isf(level, difference.df) * difference.se)
    return bound if math.isfinite(bound) else math.inf


def _end(left: int, apart: float | None, within: float, last: bool) -> End:
    if left < 2:
        return "one left" if left else "none left"
    if apart is not None and apart <= within:
        return "within"
    return "last look" if last else ""
