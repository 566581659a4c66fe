"""Learning curves: a thin line for each seed, a thick mean for each method, levels, hand-overs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.report.charts.curves import ACCURACY, SEEDED, Curve, Metric
from potstill.report.charts.palette import Look
from potstill.report.charts.spec import (
    ZOOM,
    Spec,
    by_method,
    chart,
    layer,
    number,
    record,
    tooltip,
)
from potstill.report.data import StudyData
from potstill.report.findings import FindingGroup
from potstill.study.storage import REFERENCES

PROGRESS = "progress of the run, %"
FULL = {"domain": [0, 100], "padding": 0, "nice": False}
CROSS = "M-1,-1L1,1M1,-1L-1,1"
ACROSS = {"strokeDash": [2, 3], "strokeWidth": 1.5}
MARGIN = 13  # pixels between the labels of two hand-overs


def learning(
    data: StudyData,
    pair: str,
    metric: Metric,
    curves: Sequence[Curve],
    looks: Mapping[str, Look],
    groups: Sequence[FindingGroup] = (),
) -> Spec:
    """One metric's curves of every method, with hand-overs; accuracy with levels and onsets."""
    values = [value for curve in curves for value in _curve(curve)]
    switched = [c.method for c in curves if data.recipes[c.method].on_policy.kind == "switch"]
    overs = {method: 100 * data.recipes[method].on_policy.until for method in switched}
    values += [record(method, "hand-over", [x], [None]) for method, x in overs.items()]
    if metric is ACCURACY:
        known = {role: data.accuracy(pair, role) for role in REFERENCES}
        values += [
            record(role, "level", [0, 100], [100 * y] * 2)
            for role, y in known.items()
            if y is not None
        ]
        values += [v for curve in curves for v in _onsets(curve, pair, groups)]
    spec = _lines(values, looks, metric, PROGRESS, FULL)
    return spec | {
        "layer": [*spec["layer"], *(_labels(overs, looks) if metric is ACCURACY else ())]
    }


def aligned(
    data: StudyData, metric: Metric, curves: Sequence[Curve], looks: Mapping[str, Look]
) -> Spec:
    """Curves over the steps before and after the hand-over of each method."""
    values: list[Spec] = []
    for curve in curves:
        over = curve.total * data.recipes[curve.method].on_policy.until
        for value in _curve(curve):
            value["x"] = [round(x * curve.total / 100 - over, 1) for x in value["x"]]
            values.append(value)
    values += [record("", "hand-over", [0], [None])] * bool(values)
    return _lines(values, looks, metric, "steps from the hand-over", {})


def seeding(data: StudyData, curves: Sequence[Curve], looks: Mapping[str, Look]) -> Spec:
    """The measured prefixes and their schedules."""
    values = [value for curve in curves for value in _curve(curve)]
    for curve in curves:
        plan = data.recipes[curve.method].prefix
        ys = [plan(t / 100) for t in range(101)]
        values.append(record(curve.method, "plan", list(range(101)), ys))
    return _lines(values, looks, SEEDED, PROGRESS, FULL)


def _curve(curve: Curve) -> Iterator[Spec]:
    more = {"total": curve.total}
    for seed, line in curve.seeds if len(curve.seeds) > 1 else ():
        yield record(curve.method, "seed", curve.progress(line), line.values, seed=seed, **more)
    yield record(curve.method, "mean", curve.progress(curve.mean), curve.mean.values, **more)


def _onsets(curve: Curve, pair: str, groups: Sequence[FindingGroup]) -> Iterator[Spec]:
    """Crosses on the mean curve where runs began to collapse."""
    at = dict(zip(curve.mean.steps, curve.mean.values, strict=True))
    for group in groups:
        if (group.pair, group.method) == (pair, curve.method) and group.collapse and at:
            for run, finding in zip(group.runs, group.findings, strict=True):
                nearest = min(at, key=lambda step: abs(step - finding.step))
                x = round(100 * finding.step / curve.total, 2)
                more = {"seed": run.cell.seed or 0, "total": curve.total}
                yield record(curve.method, "onset", [x], [at[nearest]], **more)


def _lines(
    values: Sequence[Spec], looks: Mapping[str, Look], metric: Metric, title: str, scale: Spec
) -> Spec:
    names = [value["method"] for value in values]
    colour, dash = by_method(looks, names)
    x, y = number("x", title, scale=scale), number("y", metric.unit)
    position: dict[str, Any] = {"x": x, "y": y}
    thin = {"type": "line", "strokeWidth": 1, "opacity": 0.28}
    step = {"calculate": "round(datum.x * datum.total / 100)", "as": "step"}
    shown = tooltip(method="method", value="y|.4g", step="step")
    if title != PROGRESS:
        shown[-1:] = tooltip(steps="x|+.0f")
    dots = {"type": "point", "filled": True, "size": 25 if metric is ACCURACY else 70}
    dots["opacity"] = 1 if metric is ACCURACY else 0  # elsewhere only the tooltip's target
    layers = [
        layer("datum.part == 'seed'", thin, **position, color=colour, detail={"field": "seed"}),
        layer(
            "datum.part == 'plan'",
            {"type": "line", **ACROSS, "strokeWidth": 1.2},
            **position,
            color=colour,
        ),
        layer("datum.part == 'level'", {"type": "line", **ACROSS}, **position, color=colour),
        layer(
            "datum.part == 'level' && datum.x == 100",
            {"type": "text", "align": "right", "dy": -6},
            **position,
            color=colour,
            text={"field": "method"},
        ),
        layer(
            "datum.part == 'hand-over'",
            {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.2},
            x=x,
            color=colour,
        ),
        layer(
            "datum.part == 'mean'",
            {"type": "line", "strokeWidth": 2.5},
            **position,
            color=colour,
            strokeDash=dash,
        ),
        layer("datum.part == 'mean'", dots, **position, color=colour, tooltip=shown),
        layer(
            "datum.part == 'onset'",
            {"type": "point", "shape": CROSS, "size": 60, "strokeWidth": 3, "opacity": 1},
            **position,
            color=colour,
            tooltip=tooltip(method="method", seed="seed", **{"collapses from step": "step"}),
        ),
    ]
    layers[5]["params"] = [ZOOM]
    return chart(values, layers, title, metric.unit, [{"flatten": ["x", "y"]}, step])


def _labels(overs: Mapping[str, float], looks: Mapping[str, Look]) -> Iterator[Spec]:
    """Names of the hand-overs, one above the other: on a phone they would overlap."""
    for i, method in enumerate(overs):
        mark = {"type": "text", "dy": -6 - MARGIN * i, "fontSize": 10, "clip": False}
        mark["color"] = looks[method].colour
        test = f"datum.part == 'hand-over' && datum.method == '{method}'"
        text = {"value": f"{method} hands over"}
        yield layer(test, mark, x=number("x", PROGRESS, scale=FULL), y={"value": 0}, text=text)
