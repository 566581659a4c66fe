"""Which method to use on a pair, as typed values. The sentences are in `sentences.j2`.

A verdict is one recommendation: the cheapest of the methods that are not significantly worse than
the best one and whose mean is within a margin of its mean. Better is more or less, as the metric
says. All comparisons are of one family (all
pairs of methods), so the best is compared as a method that was picked after looking. A collapsed
method, a study with faults on, an insignificant gain and fewer than three seeds lead to no
recommendation. It explains no difference, and holds for no other task or model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from potstill.report.results import BASELINE, Row
from potstill.stats.comparisons import VERDICT_SEEDS, Difference
from potstill.stats.metric import ACCURACY, Metric

WITHIN = 0.01  # a mean this close to the best one's is as good, if the difference is insignificant
MORE_TOKENS = 1.25  # times the baseline's, from which on accuracy at equal tokens is reported


class Outcome(StrEnum):
    """The kinds of verdict; their values are those of results.json."""

    NOTHING = "nothing"  # no result yet, or every method collapsed
    FAULTS = "faults"  # faults are switched on: nothing is recommended
    FEW_SEEDS = "few seeds"  # no method has the seeds that a verdict needs
    NO_GAIN = "no gain"  # no significant improvement over the untrained student
    SINGLE = "single"  # one method alone has a result
    CLEAR = "clear"  # the best is significantly better than every other method
    GAIN = "gain"  # the best is the only gain that no other gain ties with
    TIE = "tie"  # several significant gains are not significantly apart


@dataclass(frozen=True)
class Evidence:
    """The data behind a verdict on one pair."""

    rows: Sequence[Row]  # of the methods, without untrained and teacher
    lead: Mapping[str, Difference | None]  # best minus each other method, corrected
    collapsed: Mapping[str, str] = field(default_factory=dict)  # method -> runs and cause
    faults: Sequence[str] = ()
    price: Mapping[str, float] = field(default_factory=dict)  # method -> USD a run; empty: unpriced
    missing: int = 0  # runs of the pair without a result
    within: float = WITHIN  # the margin: a share, or nats per token
    dropped: Sequence[str] = ()  # methods that a race dropped: they have no results
    metric: Metric = ACCURACY  # of the rows and differences


@dataclass(frozen=True)
class Cost:
    """The cost of a run of one method."""

    method: str
    amount: float
    unit: str  # "USD" or "tokens"


@dataclass(frozen=True)
class EqualTokens:
    """The best method at the tokens that the baseline spends in all."""

    ratio: float  # its tokens to the baseline's
    level: float
    baseline: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on one pair. Methods are in table order."""

    outcome: Outcome
    best: Row | None = None  # the best mean of the significant gains, or of all
    choice: str = ""  # the recommended method; empty for none
    behind: Difference | None = None  # the recommended minus the best; None where they are one
    close: tuple[str, ...] = ()  # the best, and those that tie with it within the margin
    within: float = WITHIN
    tied: tuple[str, ...] = ()  # significant gains that are not significantly below the best
    unclear: tuple[str, ...] = ()  # neither significant gains nor significantly below the best
    below: Mapping[str, Difference] = field(default_factory=dict)  # method -> lead of the best
    rivals: int = 0  # other methods that have a result and did not collapse
    other_gains: bool = False  # some rival is a significant gain too
    surpassed: bool = False  # some method has a better mean, which is not a significant gain
    with_baseline: bool = False  # some method was compared with the baseline
    above_baseline: tuple[str, ...] = ()
    below_baseline: tuple[str, ...] = ()
    below_untrained: tuple[str, ...] = ()
    equal_tokens: EqualTokens | None = None
    cost: Cost | None = None  # of a run of the recommended method, where all close ones have one
    dearest: Cost | None = None  # of the close ones, where it differs
    collapsed: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()  # in every run
    not_run: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    methods: int = 0  # in the study
    seeds: int = 0  # the most that a method finished
    missing: int = 0
    dropped: tuple[str, ...] = ()  # by a race
    metric: Metric = ACCURACY

    @property
    def nearest(self) -> str:
        """The method with the smallest significant lead of the best."""
        return min(self.below, key=lambda name: abs(self.below[name].mean), default="")

    def to_json(self) -> dict[str, Any]:
        """The values that a program may want."""
        record = asdict(self)
        return {
            "kind": str(self.outcome),
            "metric": self.metric.name,
            "methods": [self.choice] if self.choice else [],
            "best": self.best.method if self.best else None,
            **{key: record[key] for key in ("behind", "within", "close", "tied", "unclear")},
            **{key: record[key] for key in ("below", "collapsed", "faults")},
        }


def best_row(
    rows: Sequence[Row], collapsed: Mapping[str, str], metric: Metric = ACCURACY
) -> Row | None:
    """The row to start from: the best mean of those that did not collapse, and of the
    significant gains on the untrained student where there are any."""
    fit = [row for row in rows if row.level and row.method not in collapsed]
    gains = [row for row in fit if _gains(row, metric)]
    return max(gains or fit, key=lambda row: _goodness(row, metric), default=None)


def _goodness(row: Row, metric: Metric) -> float:
    return metric.goodness(row.level.mean) if row.level else float("-inf")


def judge(evidence: Evidence) -> Verdict:
    """The verdict on one pair."""
    rows, metric, judged = evidence.rows, evidence.metric, evidence.metric.judged
    top = best_row(rows, evidence.collapsed, metric)
    fit = [r for r in rows if r.level and r.method not in evidence.collapsed and r != top]
    near = [r for r in fit if judged(evidence.lead.get(r.method)) < 1]
    tied = tuple(r.method for r in near if _gains(r, metric))
    empty = [r for r in rows if not r.level]
    outcome = _outcome(evidence, top, fit, near, tied)
    mean = _goodness(top, metric) if top else 0.0
    close = [top] if top else []
    close += [
        r for r in near if r.method in tied and _goodness(r, metric) >= mean - evidence.within
    ]
    cheapest, dearest = _cost_range(evidence, close)
    choice = cheapest.method if cheapest else top.method if top else ""
    lead = evidence.lead.get(choice)
    recommended = outcome not in NOT_RECOMMENDED
    return Verdict(
        outcome=outcome,
        best=top,
        choice=choice if recommended else "",
        behind=-lead if lead and recommended else None,
        close=tuple(row.method for row in close) if recommended else (),
        within=evidence.within,
        tied=tied,
        unclear=tuple(r.method for r in near if not _gains(r, metric)),
        below={m: d for m, d in evidence.lead.items() if d is not None and judged(d) > 0},
        rivals=len(fit),
        other_gains=any(judged(r.against_untrained) > 0 for r in fit),
        surpassed=any(_goodness(r, metric) > mean for r in fit),
        with_baseline=any(r.against_baseline is not None for r in rows),
        above_baseline=tuple(r.method for r in rows if judged(r.against_baseline) > 0),
        below_baseline=tuple(r.method for r in rows if judged(r.against_baseline) < 0),
        below_untrained=tuple(r.method for r in rows if judged(r.against_untrained) < 0),
        equal_tokens=_equal_tokens(rows, top),
        cost=cheapest if recommended else None,
        dearest=dearest if recommended else None,
        collapsed=dict(evidence.collapsed),
        failed=tuple(r.method for r in empty if r.failed),
        not_run=tuple(r.method for r in empty if not r.failed),
        faults=tuple(evidence.faults),
        methods=len(rows),
        seeds=max((len(r.seeds) for r in rows), default=0),
        missing=evidence.missing,
        dropped=tuple(evidence.dropped),
        metric=metric,
    )


NOT_RECOMMENDED = (Outcome.NOTHING, Outcome.FAULTS, Outcome.FEW_SEEDS, Outcome.NO_GAIN)


def _gains(row: Row, metric: Metric) -> bool:
    """True for a significant gain, and where there is no untrained result to compare with."""
    return row.against_untrained is None or metric.judged(row.against_untrained) > 0


def _outcome(
    evidence: Evidence,
    top: Row | None,
    fit: Sequence[Row],
    near: Sequence[Row],
    tied: Sequence[str],
) -> Outcome:
    if top is None:
        return Outcome.NOTHING
    if evidence.faults:
        return Outcome.FAULTS
    if all(len(row.seeds) < VERDICT_SEEDS for row in [top, *fit]):
        return Outcome.FEW_SEEDS
    if not _gains(top, evidence.metric):
        return Outcome.NO_GAIN
    if not fit:
        return Outcome.SINGLE
    if tied:
        return Outcome.TIE
    return Outcome.GAIN if near else Outcome.CLEAR


def _cost_range(evidence: Evidence, close: Sequence[Row]) -> tuple[Cost | None, Cost | None]:
    """The cheapest and the dearest of the close methods, where all have a cost; of equal costs
    the first one's, which is the best method's."""
    price = evidence.price or {row.method: row.tokens for row in close if row.tokens is not None}
    unit = "USD" if evidence.price else "tokens"
    costs = [Cost(row.method, price[row.method], unit) for row in close if row.method in price]
    if not costs or len(costs) < len(close):
        return None, None
    low, high = (f(costs, key=lambda c: c.amount) for f in (min, max))
    return low, high if high.amount > low.amount else None


def _equal_tokens(rows: Sequence[Row], top: Row | None) -> EqualTokens | None:
    base = next((row for row in rows if row.method == BASELINE), None)
    if not top or not top.against_baseline or not top.tokens or top.equal_tokens is None:
        return None
    if not base or not base.level or not base.tokens:
        return None
    ratio = top.tokens / base.tokens
    if ratio < MORE_TOKENS:
        return None
    return EqualTokens(ratio, top.equal_tokens, base.level.mean)
