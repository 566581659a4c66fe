"""The charts of a pair, each defined once for the page and for `figures`, in the page's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.report.charts import heat_map
from potstill.report.charts import point_charts as points
from potstill.report.charts.curves import KL, SCORE, SEEDED, curves_of, headline, metrics_of
from potstill.report.charts.lines import aligned, learning, seeding
from potstill.report.charts.palette import Look
from potstill.report.charts.spec import Chart
from potstill.report.data import StudyData
from potstill.report.findings import FindingGroup
from potstill.report.results import BASELINE
from potstill.study.storage import REFERENCES

INTERVAL = "Bars are 95 % intervals over seeds and problems"
FILLED = "filled: the interval excludes 0 and the corrected p < 0.05."
CHEAPER = "{} and to the left is better. Diamonds are Pareto-optimal by their means: no method is \
both cheaper and better. Overlapping bars do not establish an order."
AROUND = "Around the step at which the other model starts to write: thin lines are single runs, \
thick ones means. A cliff would be a drop that stays."


def charts(
    data: StudyData, pair: str, looks: Mapping[str, Look], groups: Sequence[FindingGroup]
) -> dict[str, list[Chart]]:
    """Every chart of a pair that has something to show, by heading."""
    sections = {"Methods compared": _compared(data, pair, looks)}
    if data.study.published:
        sections["The distribution cliff"] = _cliff(data, pair, looks)
        sections["Teacher seeding"] = _seeding(data, pair, looks)
    sections["Learning curves"] = _learning(data, pair, looks, groups)
    sections["Which problems are solved"] = _solved(data, pair)
    shown = {title: [c for c in made if not c.empty] for title, made in sections.items()}
    return {title: made for title, made in shown.items() if made}


def _compared(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[Chart]:
    rows = [row for row in data.rows if row.pair == pair]
    trained = [row for row in rows if row.method not in REFERENCES]
    tall, metric = 86 + 30 * max(2, len([row for row in rows if row.level])), data.metric
    ends = " and ".join(data.references(pair))
    note = f"{INTERVAL}; short strokes are single seeds; dotted: {ends}."
    name, label = metric.name.replace("_", "-"), metric.label[0].upper() + metric.label[1:]
    yield Chart(name, label, note, points.levels(data, rows, looks), height=tall)
    against = BASELINE if any(row.against_baseline for row in trained) else "untrained"
    title = f"Difference to {against}"
    spec = points.differences(trained, against, looks, metric)
    note = f"{INTERVAL}, paired; {FILLED}"
    yield Chart(f"difference-to-{against}", title, note, spec, height=tall)
    for unit, cost in points.spendings(data, trained):
        what = unit.split(" a run")[0]
        file, title = f"{name}-by-{what.split()[-1].lower()}", f"{label} against {what}"
        spec = points.frontier(trained, cost, unit, looks, metric)
        note = CHEAPER.format("Up" if metric.higher_is_better else "Down")
        yield Chart(file, title, note, spec, height=max(340, tall))


def _cliff(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[Chart]:
    for metric in (SCORE, KL):
        curves = curves_of(data, pair, metric)
        switched = [c for c in curves if data.recipes[c.method].on_policy.kind == "switch"]
        spec = aligned(data, metric, switched, looks)
        name = metric.name.replace("train", "hand-over")
        yield Chart(name, f"{metric.title}, around the hand-over", AROUND, spec, height=360)


def _seeding(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[Chart]:
    curves = curves_of(data, pair, SEEDED)
    seeded = [c for c in curves if data.recipes[c.method].prefix.range[1] > 0]
    yield Chart("seed-tokens", SEEDED.title, SEEDED.note, seeding(data, seeded, looks))
    compared = {BASELINE, *(curve.method for curve in seeded)} if seeded else set()
    scores = [curve for curve in curves_of(data, pair, SCORE) if curve.method in compared]
    note = f"{SCORE.note} The seeded methods and {BASELINE}, which has no prefix."
    spec = learning(data, pair, SCORE, scores, looks)
    yield Chart("seeding-effect", "The effect of seeding on the score", note, spec)


def _learning(
    data: StudyData, pair: str, looks: Mapping[str, Look], groups: Sequence[FindingGroup]
) -> Iterator[Chart]:
    for metric in metrics_of(data):
        spec = learning(data, pair, metric, curves_of(data, pair, metric), looks, groups)
        wide = metric == headline(data)
        height = 430 if wide else 320
        yield Chart(metric.name, metric.title, metric.note, spec, wide, height)


def _solved(data: StudyData, pair: str) -> Iterator[Chart]:
    if known := heat_map.shares(data, pair):
        note = f"Each column is a problem. {heat_map.in_words(known)}"
        tall = 110 + 30 * max(2, len(known))
        spec = heat_map.heat_map(known, "share of seeds" if data.binary else "mean grade")
        yield Chart("solved", "Problems by methods", note, spec, True, tall)
