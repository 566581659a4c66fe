"""Charts with one point a method: accuracy with intervals, paired differences, the frontier of
accuracy against cost."""

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
from potstill.study.storage import REFERENCES

LEVEL = "accuracy, strict, %"
POINTS = "accuracy, difference in points"
LABELS = {
    LEVEL: tooltip(method="y", accuracy="x|.1f", interval="interval"),
    POINTS: tooltip(method="y", difference="x|+.1f", interval="interval", p="p"),
}


def rows(
    values: Sequence[Spec], looks: Mapping[str, Look], title: str, levels: Mapping[str, float]
) -> Spec:
    """A row a name: points with intervals, single runs as strokes, vertical lines at the levels."""
    order = list(dict.fromkeys(value["y"] for value in values))
    lines = [record(name, "level", round(level, 2), None) for name, level in levels.items()]
    x, low = number("x", title), number("low", title)
    drawn = [*values, *lines] if values else []
    return chart("rows", drawn, looks, x, names("y", order), low=low, tooltip=LABELS[title])


def point(method: str, name: str, value: Interval | Difference, shape: str = "circle") -> Spec:
    """A point with its interval in a row of that name, in per cent; hollow where it is a difference
    that is not significant."""
    compared = isinstance(value, Difference)
    hollow = isinstance(value, Difference) and not direction(value)
    p = p_value(value.p) if isinstance(value, Difference) else ""
    text = {"interval": span(value)} if span(value) else {}
    text |= {"p": f"{p} corrected{', not significant' if hollow else ''}"} if p else {}
    ends = {"low": 100 * value.low, "high": 100 * value.high, "shape": shape, "open": hollow}
    part, mean = "difference" if compared else "mean", round(100 * value.mean, 2)
    return record(method, part, mean, name, **ends, **text)


def accuracy(data: StudyData, table: Sequence[Row], looks: Mapping[str, Look]) -> Spec:
    """Accuracy of every row with its interval, and each seed as a stroke."""
    values: list[Spec] = []
    levels = {row.method: row.accuracy for row in table if row.accuracy}
    for method, level in levels.items():
        done = data.done(table[0].pair, method).items()
        seeds = {seed: r["accuracy"] for seed, r in done if r["accuracy"] is not None}
        for seed, value in seeds.items() if len(seeds) > 1 else ():
            values.append(record(method, "seed", round(100 * value, 2), method, seed=seed))
        values.append(point(method, method, level))
    ends = {role: 100 * levels[role].mean for role in REFERENCES if role in levels}
    return rows(values, looks, LEVEL, ends)


def differences(table: Sequence[Row], against: str, looks: Mapping[str, Look]) -> Spec:
    """Paired differences to `against`, filled where they are significant."""
    name = "against_baseline" if against == BASELINE else "against_untrained"
    known = {row.method: getattr(row, name) for row in table if getattr(row, name)}
    values = [point(method, method, value, "square") for method, value in known.items()]
    return rows(values, looks, POINTS, {"": 0.0})


def frontier(
    table: Sequence[Row], cost: Mapping[str, float], unit: str, looks: Mapping[str, Look]
) -> Spec:
    """Accuracy against cost; the Pareto-optimal methods are filled and joined, its ends named."""
    levels = {row.method: row.accuracy for row in table if row.accuracy and row.method in cost}
    best = pareto({method: (cost[method], level.mean) for method, level in levels.items()})
    ends, most = {*best[:1], *best[-1:]}, max(cost.values(), default=1.0)
    values: dict[str, Spec] = {}
    for method, level in levels.items():
        value = point(method, method, level, "diamond" if method in best else "circle")
        value |= {"x": cost[method], "y": value["x"], "open": method not in best}
        value |= {"align": "right" if cost[method] > 0.3 * most else "center"}
        values[method] = value | {"name": method if method in ends else ""}
    front = [record("", "front", cost[name], values[name]["y"]) for name in best]
    axis = {"axis": {"format": "~s"}} if "token" in unit else {}
    x = number("x", unit, {"domain": [0, 1.06 * most], "nice": False, "padding": 0}, **axis)
    drawn = [*(front if len(best) > 1 else ()), *values.values()]
    label = tooltip(method="method", accuracy="y|.1f", interval="interval", cost="x|,.4~g")
    y, low = number("y", LEVEL), number("low", LEVEL)
    return chart("frontier", drawn, looks, x, y, low=low, tooltip=label)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other beats in cost and in accuracy both, from the cheapest on.

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
    """The costs that accuracy can be compared with: (unit, mean of a run by method)."""
    tokens = {row.method: row.tokens for row in table if row.tokens is not None}
    known = costs(data, table[0].pair) if table else []
    usd = {row.method: round(row.usd, 6) for row in known if row.usd is not None}
    seconds = {row.method: round(row.spent.seconds, 2) for row in known}
    time = ("seconds a run (with evaluations)", seconds)
    cost = ("USD a run (with evaluations)", usd) if usd else time
    return [(unit, x) for unit, x in (("completion tokens a run", tokens), cost) if x]
