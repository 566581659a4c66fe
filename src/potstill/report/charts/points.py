"""Charts with one point a method: accuracy with intervals, paired differences, the frontier of
accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from potstill.report.charts.palette import Look
from potstill.report.charts.spec import (
    NEUTRAL,
    ZOOM,
    Spec,
    by_method,
    chart,
    dots,
    layer,
    number,
    record,
    rows,
    tooltip,
)
from potstill.report.costs import costs
from potstill.report.data import StudyData
from potstill.report.formatting import p_value, span
from potstill.report.results import BASELINE, Row
from potstill.report.significance import direction
from potstill.report.stats import Difference, Interval
from potstill.study.storage import REFERENCES

LEVEL = "accuracy, strict, %"
POINTS = "accuracy, difference in points"


def point(
    method: str, part: str, name: str, value: Interval | Difference, shape: str, hollow: bool
) -> Spec:
    """A point with its interval in a row of that name, in per cent."""
    p = p_value(value.p) if isinstance(value, Difference) else ""
    low, high, interval = 100 * value.low, 100 * value.high, span(value)
    more = {"low": low, "high": high, "shape": shape, "open": hollow}
    text = {"interval": interval} if interval else {}
    text |= {"p": f"{p} after Holm{', not significant' if hollow else ''}"} if p else {}
    return record(method, part, round(100 * value.mean, 2), name, **more, **text)


def accuracy(data: StudyData, table: Sequence[Row], looks: Mapping[str, Look]) -> Spec:
    """Accuracy of every row with its interval, and each seed as a stroke."""
    values: list[Spec] = []
    for row in table:
        if not row.accuracy:
            continue
        known = {s: r["accuracy"] for s, r in data.done(row.pair, row.method).items()}
        known = {seed: level for seed, level in known.items() if level is not None}
        for seed, level in known.items() if len(known) > 1 else ():
            values.append(record(row.method, "seed", round(100 * level, 2), row.method, seed=seed))
        values.append(point(row.method, "mean", row.method, row.accuracy, "circle", False))
    levels = {r.method: 100 * r.accuracy.mean for r in table if r.accuracy}
    return rows(values, looks, LEVEL, {m: levels[m] for m in REFERENCES if m in levels})


def differences(table: Sequence[Row], against: str, looks: Mapping[str, Look]) -> Spec:
    """Paired differences to `against`, filled where they are significant."""
    name = "against_baseline" if against == BASELINE else "against_untrained"
    known = {row.method: getattr(row, name) for row in table if getattr(row, name)}
    values = [difference(method, method, value) for method, value in known.items()]
    return rows(values, looks, POINTS, {"": 0.0})


def difference(method: str, name: str, value: Difference) -> Spec:
    """One difference with its interval; hollow where it is not significant."""
    return point(method, "difference", name, value, "square", not direction(value))


def frontier(
    table: Sequence[Row], cost: Mapping[str, float], unit: str, looks: Mapping[str, Look]
) -> Spec:
    """Accuracy against cost; the Pareto-optimal methods are filled and joined, its ends named."""
    levels = {row.method: row.accuracy for row in table if row.accuracy and row.method in cost}
    best = pareto({method: (cost[method], level.mean) for method, level in levels.items()})
    ends, near = {*best[:1], *best[-1:]}, 0.3 * max(cost.values(), default=0.0)
    values: list[Spec] = []
    for method, level in levels.items():
        shape = "diamond" if method in best else "circle"
        value = point(method, "mean", method, level, shape, method not in best)
        value |= {"x": cost[method], "y": value["x"], "name": method if method in ends else ""}
        values.append(value | {"align": "right" if cost[method] > near else "center"})
    by_name = {value["method"]: value for value in values}
    front = [record("", "front", cost[name], by_name[name]["y"]) for name in best]
    colour, _ = by_method(looks, levels)
    most = 1.06 * max(cost.values(), default=1.0)
    scale = {"domain": [0, most], "nice": False, "padding": 0}
    axis = {"axis": {"format": "~s"}} if "token" in unit else {}
    x, y = number("x", unit, scale=scale, **axis), number("y", LEVEL)
    bar = {"type": "errorbar", "ticks": {"size": 7}}
    shown = tooltip(method="method", accuracy="y|.1f", interval="interval", cost="x|,.4~g")
    name = {"type": "text", "dy": -10, "fontSize": 11, "align": {"expr": "datum.align"}}
    layers = [
        layer(
            "datum.part == 'front'",
            {"type": "line", "color": NEUTRAL, "strokeWidth": 1, "strokeDash": [2, 3]},
            x=x,
            y=y,
        ),
        layer(
            "isValid(datum.low)",
            bar,
            x=x,
            y=number("low", LEVEL),
            y2={"field": "high"},
            color=colour,
        ),
        dots(colour, x, y, shown) | {"params": [ZOOM]},
        layer("datum.name", name, x=x, y=y, text={"field": "name"}, color=colour),
    ]
    return chart([*(front if len(best) > 1 else []), *values], layers, unit, LEVEL)


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
