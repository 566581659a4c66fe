"""The four questions at the top of a report, as typed values: which method, can I trust that, what
did it cost, did anything break? Their sentences are in `sentences.j2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.algorithms.methods import METHODS
from potstill.diagnostics.notes import SPOILT
from potstill.engines import zoo
from potstill.report.costs import costs
from potstill.report.data import RunData, StudyData
from potstill.report.findings import FindingGroup, notes
from potstill.report.results import BASELINE
from potstill.report.similarity import Similarity, similarities
from potstill.report.verdict import WITHIN, Evidence, Outcome, Verdict, best_row, judge
from potstill.settings import Price
from potstill.stats.comparisons import VERDICT_SEEDS
from potstill.stats.metric import ACCURACY, Metric
from potstill.stats.power import Power, power
from potstill.study.storage import REFERENCES
from potstill.training.spending import Spent, total

Tone = Literal["good", "warn", "bad", "plain"]
FEW_PROBLEMS = 100
FEW_EQUAL = 20  # effective problems, below which intervals of nats cover less than 93 %
FIRM = (Outcome.CLEAR, Outcome.GAIN, Outcome.TIE, Outcome.SINGLE)


@dataclass(frozen=True)
class Trust:
    """The caveats and the limits of a study."""

    seeds: int
    problems: int  # held-out
    runs: int
    missing: int
    failed: int
    without_baseline: bool  # no run of the method that others are compared with
    embedded: tuple[str, ...]  # pairs of tiny embedded models
    misleading: tuple[Similarity, ...]  # similar to the teacher, no more problems solved
    ceilings: tuple[str, ...]  # pairs whose teacher reads hints of the evaluated problems
    deviating: tuple[str, ...]  # "pair method" that trained something else than the recipe
    checked: int  # runs that checked their own loss
    faults: tuple[str, ...]
    without_result: tuple[str, ...]  # "pair role" of untrained and teacher
    without_run: tuple[str, ...]  # built-in methods that the study does not have
    task: str
    pairs: tuple[str, ...]
    metric: Metric = ACCURACY
    effective: float = math.inf  # problems that would tell as much if all had equal shares

    @property
    def few_seeds(self) -> bool:
        return self.seeds < VERDICT_SEEDS

    @property
    def few_problems(self) -> bool:
        return self.problems < FEW_PROBLEMS

    @property
    def skewed(self) -> bool:
        """True where intervals may cover less than 95 %: a few problems have most of the number."""
        return self.effective < FEW_EQUAL

    @property
    def tone(self) -> Tone:
        if self.faults or self.deviating:
            return "bad"
        few = self.few_seeds or self.few_problems or self.skewed
        return "warn" if few or self.missing else "good"


@dataclass(frozen=True)
class CostSummary:
    """The cost of the whole study."""

    seconds: float
    usd: float | None  # None where no price is set
    tokens: float
    runs: int
    shortest: float | None  # seconds of a run, by method; None where none has finished
    longest: float | None
    predicted: float | None  # share of the actual time that pre-flight predicted
    tone: Tone = "plain"


@dataclass(frozen=True)
class Breakage:
    """Failures and findings."""

    collapsed: int  # runs
    deviating: int  # runs
    missing: int
    groups: tuple[FindingGroup, ...]
    failed: tuple[RunData, ...]
    not_finite: tuple[str, ...]  # runs with a step whose loss was not a finite number
    runs: int
    watched: int
    cut: tuple[FindingGroup, ...] = ()  # notes on completions that are cut off or all rejected

    @property
    def noted(self) -> int:
        """Runs with such a note."""
        return len({str(run.cell) for group in self.cut for run in group.runs})

    @property
    def tone(self) -> Tone:
        if self.collapsed or self.deviating or self.failed:
            return "bad"
        return "warn" if self.missing or self.noted else "good"


@dataclass(frozen=True)
class Summary:
    """The answers to the four questions, and the limits of the study."""

    verdicts: Mapping[str, Verdict]  # by pair
    trust: Trust
    cost: CostSummary
    breakage: Breakage
    power: Mapping[str, Power]  # by pair

    @property
    def tone(self) -> Tone:
        """Of the first question."""
        firm = all(verdict.outcome in FIRM for verdict in self.verdicts.values())
        return "plain" if firm else "warn"


def summarize(data: StudyData, groups: Sequence[FindingGroup], within: float = WITHIN) -> Summary:
    """All answers of a study; `within` is the verdict's margin: a share, or nats per token."""
    pairs = data.study.models
    verdicts = {pair: judge(evidence(data, pair, groups, within)) for pair in pairs}
    able = {pair: _power(data, pair) for pair in pairs}
    return Summary(verdicts, trust(data, groups), _cost(data), _broken(data, groups), able)


def evidence(
    data: StudyData, pair: str, groups: Sequence[FindingGroup], within: float = WITHIN
) -> Evidence:
    """The data behind a verdict."""
    rows = [r for r in data.rows if r.pair == pair and r.method not in REFERENCES]
    collapsed = {g.method: g.extent for g in groups if g.pair == pair and g.collapse}
    top, known = best_row(rows, collapsed, data.metric), data.family(pair)
    others = [r.method for r in rows if top and r.level and r.method != top.method]
    lead = {method: known[top.method, method] for method in others if top}
    price = {row.method: row.usd for row in costs(data, pair) if row.usd is not None}
    missing = sum(r.status == "missing" for c, r in data.runs.items() if c.pair == pair)
    dropped = list(data.race[pair].dropped) if pair in data.race else []
    faults, metric = data.study.faults, data.metric
    return Evidence(rows, lead, collapsed, faults, price, missing, within, dropped, metric)


def _power(data: StudyData, pair: str) -> Power:
    known, study = data.family(pair), data.study
    seeds = [s.seeds for s in known.samples.values() if s.seeds]
    problems = [len(s.columns) for s in known.samples.values()]
    return power(
        known,
        methods=sum(r.pair == pair and r.method not in REFERENCES for r in data.rows) + 1,
        seeds=min(seeds, default=len(study.seeds)),
        problems=max(problems, default=data.problems),
        metric=data.metric,
    )


def trust(data: StudyData, groups: Sequence[FindingGroup]) -> Trust:
    """The caveats of a study."""
    study = data.study
    contexts = study.contexts.items()
    return Trust(
        seeds=data.seeds,
        problems=data.problems,
        runs=len(data.runs),
        missing=data.counts["missing"],
        failed=data.counts["failed"],
        without_baseline=BASELINE not in study.methods,
        embedded=tuple(p for p in study.models if p in zoo.PAIRS and p not in study.pair),
        misleading=tuple(one for one in similarities(data) if one.misleading),
        ceilings=tuple(name for name, context in contexts if context.ceiling),
        deviating=tuple(sorted({f"{g.pair} {g.method}" for g in groups if not g.collapse})),
        checked=data.watched,
        faults=tuple(study.faults),
        without_result=tuple(
            f"{p} {role}"
            for p in study.models
            for role in data.references(p)
            if data.level(p, role) is None
        ),
        without_run=tuple(name for name in METHODS if name not in data.recipes),
        task=str(study.task.get("name", "unknown")),
        pairs=tuple(study.models),
        metric=data.metric,
        effective=min((_effective(data, pair) for pair in study.models), default=math.inf),
    )


def _effective(data: StudyData, pair: str) -> float:
    """The fewest problems behind a mean of numbers without bounds, P / (1 + (sd / mean)^2).

    Source: L. Kish, Survey sampling, 1965, section 11.7: the size of a sample with such weights.
    """
    samples = data.family(pair).samples.items()
    known = [s.columns for m, s in samples if m != "teacher" and len(s.columns) and not s.shares]
    return min((float(x.sum() ** 2 / (x**2).sum()) for x in known if x.any()), default=math.inf)


def _cost(data: StudyData) -> CostSummary:
    records = [run.record for run in data.runs.values() if run.record]
    spent, price = total(map(Spent.read, records)), data.study.price
    rows = [row for pair in data.study.models for row in costs(data, pair)]
    seconds = [row.spent.seconds for row in rows]
    known = [(row.predicted.seconds, row.spent.seconds) for row in rows if row.predicted]
    actual = sum(took for _, took in known)
    return CostSummary(
        seconds=spent.seconds,
        usd=spent.usd(price) if price != Price() else None,
        tokens=spent.count(),
        runs=len(records),
        shortest=min(seconds, default=None),
        longest=max(seconds, default=None),
        predicted=sum(predicted for predicted, _ in known) / actual if actual else None,
    )


def _broken(data: StudyData, groups: Sequence[FindingGroup]) -> Breakage:
    def affected(collapse: bool) -> int:
        return len({str(run.cell) for g in groups if g.collapse == collapse for run in g.runs})

    def lost(run: RunData) -> bool:
        return any(row["step"] and row.get("train/loss") is None for row in run.metrics)

    return Breakage(
        collapsed=affected(collapse=True),
        deviating=affected(collapse=False),
        missing=data.counts["missing"],
        groups=tuple(groups),
        failed=tuple(run for run in data.runs.values() if run.status == "failed"),
        not_finite=tuple(str(run.cell) for run in data.runs.values() if lost(run)),
        runs=len(data.runs),
        watched=data.watched,
        cut=tuple(group for group in notes(data) if group.first.cause in SPOILT),
    )
