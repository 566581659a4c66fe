"""Learning curves: a thin line for each seed, a thick mean for each method, levels, hand-overs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.report.charts.curves import SEEDED, Curve, Line, Series, headline
from potstill.report.charts.palette import Look
from potstill.report.charts.spec import Spec, chart, number, record, tooltip
from potstill.report.data import StudyData
from potstill.report.findings import FindingGroup

FULL = {"domain": [0, 100], "padding": 0, "nice": False}
PROGRESS = number("x", "progress of the run, %", FULL)
STEP = {"calculate": "round(datum.x * datum.total / 100)", "as": "step"}
LABEL = tooltip(method="method", value="y|.4g", step="step")


def learning(
    data: StudyData,
    pair: str,
    metric: Series,
    curves: Sequence[Curve],
    looks: Mapping[str, Look],
    groups: Sequence[FindingGroup] = (),
) -> Spec:
    """One metric's curves of every method, with hand-overs; the one that methods are compared by
    with levels and onsets."""
    values, named = [value for curve in curves for value in _curve(curve)], metric == headline(data)
    switched = [c.method for c in curves if data.recipes[c.method].on_policy.kind == "switch"]
    for i, method in enumerate(switched):
        label = {"name": f"{method} hands over", "row": i} if named else {}
        x = 100 * data.recipes[method].on_policy.until
        values.append(record(method, "hand-over", [x], [None], **label))
    for role in data.references(pair) if named and curves else ():
        level = data.level(pair, role)
        ends = [metric.scale * (level or 0)] * 2
        values += [record(role, "level", [0, 100], ends)] * (level is not None)
    values += [v for curve in curves for v in _onsets(curve, pair, groups) if named]
    return _lines(values, looks, metric, PROGRESS, points=named)


def aligned(
    data: StudyData, metric: Series, curves: Sequence[Curve], looks: Mapping[str, Look]
) -> Spec:
    """Curves over the steps before and after the hand-over of each method."""
    values: list[Spec] = []
    for curve in curves:
        over = curve.total * data.recipes[curve.method].on_policy.until
        for value in _curve(curve):
            value["x"] = [round(x * curve.total / 100 - over, 1) for x in value["x"]]
            values.append(value)
    values += [record("", "hand-over", [0], [None])] * bool(values)
    label = tooltip(method="method", value="y|.4g", steps_from_the_hand_over="x|+.0f")
    return _lines(values, looks, metric, number("x", "steps from the hand-over"), label)


def seeding(data: StudyData, curves: Sequence[Curve], looks: Mapping[str, Look]) -> Spec:
    """The measured prefixes and their schedules."""
    values = [value for curve in curves for value in _curve(curve)]
    for curve in curves:
        plan = data.recipes[curve.method].prefix
        ys = [plan(t / 100) for t in range(101)]
        values.append(record(curve.method, "plan", list(range(101)), ys))
    return _lines(values, looks, SEEDED, PROGRESS)


def _lines(
    values: Sequence[Spec],
    looks: Mapping[str, Look],
    metric: Series,
    x: Spec,
    label: Sequence[Spec] = LABEL,
    *,
    points: bool = False,
) -> Spec:
    """The chart; without points those on the lines are only the tooltip's target."""
    y = number("y", metric.unit)
    flat: list[Spec] = [{"flatten": ["x", "y"]}, STEP]
    return chart("lines", values, looks, x, y, flat, tooltip=label, opacity=int(points))


def _curve(curve: Curve) -> Iterator[Spec]:
    def line(part: str, values: Line, **more: int) -> Spec:
        ys = list(values.values())
        return record(curve.method, part, curve.progress(values), ys, total=curve.total, **more)

    for seed, values in curve.seeds.items() if len(curve.seeds) > 1 else ():
        yield line("seed", values, seed=seed)
    yield line("mean", curve.mean)


def _onsets(curve: Curve, pair: str, groups: Sequence[FindingGroup]) -> Iterator[Spec]:
    """Crosses on the mean curve where runs began to collapse."""
    at = curve.mean
    for group in groups:
        if (group.pair, group.method) == (pair, curve.method) and group.collapse and at:
            for run, finding in zip(group.runs, group.findings, strict=True):
                y = at[min(at, key=lambda step: abs(step - finding.step))]
                x, seed = round(100 * finding.step / curve.total, 2), run.cell.seed or 0
                yield record(curve.method, "onset", [x], [y], seed=seed, total=curve.total)
