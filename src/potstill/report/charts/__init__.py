"""The charts of a pair, each defined once for the page and for `figures`, in the page's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.report.charts import heat_map, points
from potstill.report.charts.curves import ACCURACY, KL, METRICS, SCORE, SEEDED, curves_of
from potstill.report.charts.lines import aligned, learning, seeding
from potstill.report.charts.palette import Look
from potstill.report.charts.spec import Chart, Section
from potstill.report.data import StudyData
from potstill.report.findings import FindingGroup
from potstill.report.results import BASELINE, Row
from potstill.study.storage import REFERENCES

INTERVAL = "Bars are 95 % bootstrap intervals over seeds and problems"
FILLED = "filled: the interval excludes 0 and Holm's p < 0.05."


def charts(
    data: StudyData, pair: str, looks: Mapping[str, Look], groups: Sequence[FindingGroup]
) -> list[Section]:
    """Every chart of a pair that has something to show, by heading."""
    rows = [row for row in data.rows if row.pair == pair]
    sections = [
        ("Methods compared", _compared(data, rows, looks)),
        ("The distribution cliff", _cliff(data, pair, looks)),
        ("Teacher seeding", _seeding(data, pair, looks)),
        ("Learning curves", _learning(data, pair, looks, groups)),
        ("Which problems are solved", _solved(data, pair)),
    ]
    shown = [Section(t, [chart for chart in made if not chart.empty]) for t, made in sections]
    return [section for section in shown if section.charts]


def _compared(data: StudyData, rows: Sequence[Row], looks: Mapping[str, Look]) -> Iterator[Chart]:
    trained = [row for row in rows if row.method not in REFERENCES]
    tall = 86 + 30 * max(2, len([row for row in rows if row.accuracy]))
    note = f"{INTERVAL}; short strokes are single seeds, dotted lines are untrained and teacher."
    yield Chart("accuracy", "Accuracy", note, points.accuracy(data, rows, looks), height=tall)
    against = BASELINE if any(row.against_baseline for row in trained) else "untrained"
    spec = points.differences(trained, against, looks)
    title = f"Difference to {against}"
    note = f"{INTERVAL}, paired; {FILLED}"
    yield Chart(f"difference-to-{against}", title, note, spec, height=tall)
    for unit, cost in points.spendings(data, trained):
        what = unit.split(" a run")[0]
        note = (
            "Up and to the left is better. Diamonds are Pareto-optimal by their means: no method "
            "is both cheaper and better. Overlapping bars do not establish an order."
        )
        spec = points.frontier(trained, cost, unit, looks)
        name, title = f"accuracy-by-{what.split()[-1].lower()}", f"Accuracy against {what}"
        yield Chart(name, title, note, spec, height=max(340, tall))


def _cliff(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[Chart]:
    for metric in (SCORE, KL) if data.study.published else ():
        lines = [
            curve
            for curve in curves_of(data, pair, metric)
            if data.recipes[curve.method].on_policy.kind == "switch"
        ]
        note = (
            "Around the step at which the other model starts to write: thin lines are single runs, "
            "thick ones means. A cliff would be a drop that stays."
        )
        spec = aligned(data, metric, lines, looks)
        name = f"hand-over-{metric.key.split('/')[1].replace('_', '-')}"
        yield Chart(name, f"{metric.title}, around the hand-over", note, spec, height=360)


def _seeding(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[Chart]:
    lines = curves_of(data, pair, SEEDED) if data.study.published else []
    seeded = [c for c in lines if data.recipes[c.method].prefix.range[1] > 0]
    if not seeded:
        return
    yield Chart("seed-tokens", SEEDED.title, SEEDED.note, seeding(data, seeded, looks))
    compared = {BASELINE, *(curve.method for curve in seeded)}
    scores = [curve for curve in curves_of(data, pair, SCORE) if curve.method in compared]
    note = f"{SCORE.note} The seeded methods and {BASELINE}, which has no prefix."
    spec = learning(data, pair, SCORE, scores, looks)
    yield Chart("seeding-effect", "The effect of seeding on the score", note, spec)


def _learning(
    data: StudyData, pair: str, looks: Mapping[str, Look], groups: Sequence[FindingGroup]
) -> Iterator[Chart]:
    for metric in METRICS:
        if lines := curves_of(data, pair, metric):
            spec = learning(data, pair, metric, lines, looks, groups)
            first = metric is ACCURACY
            yield Chart(
                metric.name, metric.title, metric.note, spec, first, height=430 if first else 320
            )


def _solved(data: StudyData, pair: str) -> Iterator[Chart]:
    if known := heat_map.shares(data, pair):
        note = f"Each column is a problem. {heat_map.in_words(known)}"
        tall = 110 + 30 * max(2, len(known))
        yield Chart("solved", "Problems by methods", note, heat_map.heat_map(known), True, tall)
