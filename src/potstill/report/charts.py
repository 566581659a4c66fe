"""The interactive charts of a pair, in the order and under the headings of the page.

Specifications only: plotly.js draws them in the reader's browser, and charts.js gives them the
colours of its theme and one legend for all. As in `learning`, no text of a model or a user
enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from potstill.report.curves import KL, METRICS, SCORE, SEEDED, Curve, curves
from potstill.report.data import StudyData
from potstill.report.findings import Grouped
from potstill.report.learning import Spec, aligned, effect, learning, onsets, seeding
from potstill.report.palette import Look
from potstill.report.points import dots, forest, frontier, spendings
from potstill.report.solved import in_words, problem_map, shares
from potstill.report.stats import BASELINE, Row
from potstill.study.storage import REFERENCES

INTERVAL = "Bars are 95 % bootstrap intervals over seeds and problems"


@dataclass(frozen=True)
class Chart:
    """One drawing with the words around it."""

    name: str  # of its CSV file
    title: str
    note: str
    spec: Spec
    wide: bool = False
    height: int = 320  # pixels


@dataclass(frozen=True)
class Part:
    """Charts under one heading."""

    title: str
    charts: list[Chart] = field(default_factory=list)


def charts(
    data: StudyData, pair: str, looks: dict[str, Look], groups: Sequence[Grouped]
) -> list[Part]:
    """Every chart of a pair that has something to show, by heading."""
    rows = [row for row in data.rows if row.pair == pair]
    parts = (
        Part("Methods compared", [*_compared(data, rows, looks)]),
        Part("The distribution cliff", [*_cliff(data, pair, looks)]),
        Part("Teacher seeding", [*_seeding(data, pair, looks)]),
        Part("Learning curves", [*_learning(data, pair, looks, groups)]),
        Part("Which problems are solved", [*_solved(data, pair)]),
    )
    shown = [Part(p.title, [c for c in p.charts if c.spec["data"]]) for p in parts]
    return [part for part in shown if part.charts]


def _compared(data: StudyData, rows: Sequence[Row], looks: dict[str, Look]) -> Iterator[Chart]:
    trained = [row for row in rows if row.method not in REFERENCES]
    tall = 86 + 30 * max(2, len([row for row in rows if row.accuracy]))
    note = f"{INTERVAL}; short strokes are single seeds, dotted lines the reference rows."
    yield Chart("accuracy", "Accuracy", note, dots(data, rows, looks), height=tall)
    note = f"{INTERVAL}, paired; filled: interval excludes 0 and Holm's p < 0.05."
    against = BASELINE if any(row.against_baseline for row in trained) else "untrained"
    spec = forest(trained, against, looks)
    name = f"difference-to-{against}"
    yield Chart(name, f"Difference to {against}", note, spec, height=tall)
    for unit, cost in spendings(data, trained):
        what = unit.split(" a run")[0]
        note = (
            "Up and to the left is better. Diamonds are Pareto-optimal by their means: none is "
            "both cheaper and better; overlapping bars are no order."
        )
        spec = frontier(trained, cost, unit, looks)
        yield Chart(
            f"accuracy-by-{what.split()[-1].lower()}",
            f"Accuracy against {what}",
            note,
            spec,
            height=max(340, tall),
        )


def _cliff(data: StudyData, pair: str, looks: dict[str, Look]) -> Iterator[Chart]:
    for metric in (SCORE, KL):
        lines = [
            curve
            for curve in curves(data, pair, metric)
            if data.recipes[curve.method].on_policy.kind == "switch"
        ]
        note = (
            "Around the step at which another one starts to write: thin lines are single runs, "
            "thick ones means. A cliff would be a drop that stays."
        )
        spec = aligned(data, metric, lines, looks)
        name = f"hand-over-{metric.key.split('/')[1].replace('_', '-')}"
        yield Chart(name, f"{metric.title}, around the hand-over", note, spec, height=360)


def _seeding(data: StudyData, pair: str, looks: dict[str, Look]) -> Iterator[Chart]:
    seeded = [c for c in curves(data, pair, SEEDED) if data.recipes[c.method].prefix.range[1] > 0]
    if not seeded:
        return
    yield Chart("seed-tokens", SEEDED.title, SEEDED.note, seeding(data, seeded, looks))
    beside = {BASELINE, *(curve.method for curve in seeded)}
    lines = [curve for curve in curves(data, pair, SCORE) if curve.method in beside]
    note = f"{SCORE.note} The seeded methods beside {BASELINE}, which has no prefix."
    yield Chart("seeding-effect", "What seeding does to the score", note, effect(lines, looks))


def _learning(
    data: StudyData, pair: str, looks: dict[str, Look], groups: Sequence[Grouped]
) -> Iterator[Chart]:
    for i, metric in enumerate(METRICS):
        lines = curves(data, pair, metric)
        if not lines:
            continue
        spec = learning(data, pair, metric, lines, looks)
        if i == 0:
            spec["data"] += [t for c in lines for t in _onsets(c, pair, looks, groups)]
        name = metric.key.replace("/", "-").replace("_", "-")
        height = 430 if i == 0 else 320
        yield Chart(name, metric.title, metric.note, spec, wide=i == 0, height=height)


def _onsets(
    curve: Curve, pair: str, looks: dict[str, Look], groups: Sequence[Grouped]
) -> Iterator[Spec]:
    for group in groups:
        mine = (group.pair, group.method) == (pair, curve.method)
        if mine and group.first.kind == "collapse" and len(curve.mean):
            found = zip(group.runs, group.findings, strict=True)
            steps = [(run.cell.seed or 0, finding.step) for run, finding in found]
            yield onsets(curve, looks[curve.method], steps)


def _solved(data: StudyData, pair: str) -> Iterator[Chart]:
    known = shares(data, pair)
    if known:
        note = f"Each column is a problem. {in_words(known)}"
        tall = 110 + 30 * max(2, len(known))
        yield Chart("solved", "Problems by methods", note, problem_map(known), True, tall)
