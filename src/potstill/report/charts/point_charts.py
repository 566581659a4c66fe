"""Charts with one point a method: levels with intervals, paired differences, the frontier of
levels against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from potstill.report.charts.palette import Look
from potstill.report.charts.spec import Spec, chart, names, number, record, tooltip
from potstill.report.costs import costs
from potstill.report.data import StudyData
from potstill.report.formatting import p_value, span
from potstill.report.results import BASELINE, Row
from potstill.stats.comparisons import Difference, Interval, direction
from potstill.stats.metric import Metric
from potstill.study.storage import REFERENCES


def axis_title(metric: Metric) -> str:
    """Of an axis of levels."""
    return f"{metric.label}, strict, %" if metric.share else f"{metric.label}, {metric.unit}"


def rows(
    values: Sequence[Spec],
    looks: Mapping[str, Look],
    metric: Metric,
    levels: Mapping[str, float],
    *,
    compared: bool = False,
) -> Spec:
    """A row a name: points with intervals, single runs as strokes, vertical lines at the levels.

    Args:
        values: records.
        looks: of the methods.
        metric: of the values.
        levels: name -> the place of a vertical line, in the metric's unit.
        compared: the values are differences.
    """
    order = list(dict.fromkeys(value["y"] for value in values))
    lines = [
        record(name, "level", round(level, metric.digits + 1), None)
        for name, level in levels.items()
    ]
    style = f".{metric.digits}f"
    title = f"{metric.label}, difference in {metric.points}" if compared else axis_title(metric)
    label = tooltip(method="y", **{_word(metric): f"x|{style}"}, interval="interval")
    if compared:
        label = tooltip(method="y", difference=f"x|+{style}", interval="interval", p="p")
    x, low = number("x", title), number("low", title)
    drawn = [*values, *lines] if values else []
    return chart("rows", drawn, looks, x, names("y", order), low=low, tooltip=label)


def _word(metric: Metric) -> str:
    """Of a tooltip's line."""
    return "accuracy" if metric.share else "value"


def point(
    method: str,
    name: str,
    value: Interval | Difference,
    metric: Metric,
    shape: str = "circle",
) -> Spec:
    """A point with its interval in a row of that name, in the metric's unit; hollow where it is a
    difference that is not significant."""
    compared = isinstance(value, Difference)
    hollow = isinstance(value, Difference) and not direction(value)
    p = p_value(value.p) if isinstance(value, Difference) else ""
    text = {"interval": span(value, metric)} if span(value, metric) else {}
    text |= {"p": f"{p} corrected{', not significant' if hollow else ''}"} if p else {}
    mean, low, high = (scaled(x, metric) for x in (value.mean, value.low, value.high))
    ends = {"low": low, "high": high, "shape": shape, "open": hollow}
    return record(method, "difference" if compared else "mean", mean, name, **ends, **text)


def scaled(value: float, metric: Metric) -> float:
    """A value in the metric's unit, with one digit more than is printed."""
    return round(metric.scale * value, metric.digits + 1)


def levels(data: StudyData, table: Sequence[Row], looks: Mapping[str, Look]) -> Spec:
    """The level of every row with its interval, and each seed as a stroke."""
    values: list[Spec] = []
    metric = data.metric
    known = {row.method: row.level for row in table if row.level}
    for method, level in known.items():
        done = data.done(table[0].pair, method).items()
        seeds = {seed: x for seed, record in done if (x := metric.of(record)) is not None}
        for seed, value in seeds.items() if len(seeds) > 1 else ():
            values.append(record(method, "seed", scaled(value, metric), method, seed=seed))
        values.append(point(method, method, level, metric))
    ends = {role: metric.scale * known[role].mean for role in REFERENCES if role in known}
    return rows(values, looks, metric, ends)


def differences(
    table: Sequence[Row], against: str, looks: Mapping[str, Look], metric: Metric
) -> Spec:
    """Paired differences to `against`, filled where they are significant."""
    name = "against_baseline" if against == BASELINE else "against_untrained"
    known = {row.method: getattr(row, name) for row in table if getattr(row, name)}
    values = [point(method, method, value, metric, "square") for method, value in known.items()]
    return rows(values, looks, metric, {"": 0.0}, compared=True)


def frontier(
    table: Sequence[Row],
    cost: Mapping[str, float],
    unit: str,
    looks: Mapping[str, Look],
    metric: Metric,
) -> Spec:
    """Levels against cost; the Pareto-optimal methods are filled and joined, its ends named."""
    known = {row.method: row.level for row in table if row.level and row.method in cost}
    best = pareto({m: (cost[m], metric.goodness(level.mean)) for m, level in known.items()})
    ends, most = {*best[:1], *best[-1:]}, max(cost.values(), default=1.0)
    values: dict[str, Spec] = {}
    for method, level in known.items():
        value = point(method, method, level, metric, "diamond" if method in best else "circle")
        value |= {"x": cost[method], "y": value["x"], "open": method not in best}
        value |= {"align": "right" if cost[method] > 0.3 * most else "center"}
        values[method] = value | {"name": method if method in ends else ""}
    front = [record("", "front", cost[name], values[name]["y"]) for name in best]
    axis = {"axis": {"format": "~s"}} if "token" in unit else {}
    x = number("x", unit, {"domain": [0, 1.06 * most], "nice": False, "padding": 0}, **axis)
    drawn = [*(front if len(best) > 1 else ()), *values.values()]
    shown = {_word(metric): f"y|.{metric.digits}f"}
    label = tooltip(method="method", **shown, interval="interval", cost="x|,.4~g")
    y, low = number("y", axis_title(metric)), number("low", axis_title(metric))
    return chart("frontier", drawn, looks, x, y, low=low, tooltip=label)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other beats in cost and in goodness both, from the cheapest on.

    >>> pareto({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.6)})
    ['a', 'c']
    """
    front: list[str] = []
    top = -math.inf
    for name, (_, level) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if level > top:
            front.append(name)
            top = level
    return front


def spendings(data: StudyData, table: Sequence[Row]) -> list[tuple[str, dict[str, float]]]:
    """The costs that levels can be compared with: (unit, mean of a run by method)."""
    tokens = {row.method: row.tokens for row in table if row.tokens is not None}
    known = costs(data, table[0].pair) if table else []
    usd = {row.method: round(row.usd, 6) for row in known if row.usd is not None}
    seconds = {row.method: round(row.spent.seconds, 2) for row in known}
    time = ("seconds a run (with evaluations)", seconds)
    cost = ("USD a run (with evaluations)", usd) if usd else time
    return [(unit, x) for unit, x in (("completion tokens a run", tokens), cost) if x]
