"""Charts with one point a method: accuracy with intervals, paired differences, the frontier of
accuracy against cost. As in `learning`, no text of a model or a user enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.report.costs import costs
from potstill.report.data import StudyData
from potstill.report.learning import NEUTRAL, Spec, layout
from potstill.report.numbers import count, p_value, signed
from potstill.report.palette import Look
from potstill.report.reading import clear
from potstill.report.stats import BASELINE, Difference, Row
from potstill.study.storage import REFERENCES


def dots(data: StudyData, rows: Sequence[Row], looks: Mapping[str, Look]) -> Spec:
    """Accuracy of every row with its interval, and each seed as a stroke."""
    shown = [row for row in rows if row.accuracy]
    drawn = rowed([row.method for row in shown])
    drawn["xaxis"] |= {"title": {"text": "accuracy, strict, %"}}
    for row in shown:
        if row.method in REFERENCES and row.accuracy:
            drawn["shapes"].append(across(100 * row.accuracy.mean))
    return {"data": [t for row in shown for t in _dot(data, row, looks)], "layout": drawn}


def _dot(data: StudyData, row: Row, looks: Mapping[str, Look]) -> list[Spec]:
    assert row.accuracy
    mean, low, high = (100 * v for v in (row.accuracy.mean, row.accuracy.low, row.accuracy.high))
    colour, found = _colour(row.method, looks), []
    done = {r.cell.seed: r.record for r in data.of(row.pair, row.method) if r.status == "done"}
    known = {seed: x["accuracy"] for seed, x in done.items() if x.get("accuracy") is not None}
    if len(known) > 1:
        xs = [_short(100 * value) for value in known.values()]
        tick = {"symbol": "line-ns", "size": 12, "line": {"color": colour, "width": 1.5}}
        stroke = point(row.method, "seed", xs, [row.method] * len(xs))
        stroke |= {"marker": tick, "hoverinfo": "skip"}
        stroke["meta"]["seeds"] = list(known)
        found.append(stroke)
    hover = f"<b>{row.method}</b><br>{mean:.1f} %"
    main = point(row.method, "mean", [_short(mean)], [row.method])
    if math.isfinite(low):
        main["error_x"] = bars(mean, low, high, colour)
        hover += f"<br>{low:.1f} to {high:.1f}"
    main["marker"] = {"color": colour, "size": 11}
    return [*found, main | {"hovertemplate": f"{hover}<extra></extra>"}]


def forest(rows: Sequence[Row], against: str, looks: Mapping[str, Look]) -> Spec:
    """Paired differences to `against`, filled where they are clear."""
    name = "against_baseline" if against == BASELINE else "against_untrained"
    known = [(row, getattr(row, name)) for row in rows if getattr(row, name)]
    drawn = rowed([row.method for row, _ in known])
    drawn["xaxis"] |= {"title": {"text": "accuracy, difference in points"}}
    drawn["shapes"].append(across(0.0) | {"line": {"color": NEUTRAL, "width": 1.5}})
    traces = [difference(row.method, value, _colour(row.method, looks)) for row, value in known]
    return {"data": traces, "layout": drawn}


def difference(method: str, value: Difference, colour: str, y: str = "") -> Spec:
    """One difference with its interval; hollow where it is not clear."""
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    sure = clear(value) != 0
    hover = f"<b>{y or method}</b><br>{signed(value.mean)} points"
    main = point(method, "difference", [_short(mean)], [y or method])
    if math.isfinite(low):
        main["error_x"] = bars(mean, low, high, colour)
        hover += f"<br>{signed(value.low)} to {signed(value.high)}"
    told = p_value(value.p)
    hover += f"<br>p {told} after Holm" if told else ""
    hover += "" if sure else "<br>not significant"
    symbol = "square" if sure else "square-open"
    main["marker"] = {"color": colour, "size": 10, "symbol": symbol, "line": {"width": 2}}
    return main | {"hovertemplate": f"{hover}<extra></extra>"}


def frontier(
    rows: Sequence[Row], cost: Mapping[str, float], unit: str, looks: Mapping[str, Look]
) -> Spec:
    """Accuracy against cost; what is Pareto-optimal is named and joined."""
    known = [row for row in rows if row.accuracy and row.method in cost]
    best = pareto({r.method: (cost[r.method], r.accuracy.mean) for r in known if r.accuracy})
    drawn = layout()
    drawn["margin"] |= {"t": 22, "r": 30}
    drawn["xaxis"] |= {"title": {"text": unit}, "rangemode": "tozero"}
    drawn["yaxis"] |= {"title": {"text": "accuracy, strict, %"}}
    places = _places(best, cost)
    traces = [_costed(row, cost[row.method], unit, places.get(row.method), looks) for row in known]
    front = [row for name in best for row in known if row.method == name]
    ys = [_short(100 * row.accuracy.mean) for row in front if row.accuracy]
    joined = point("", "front", [cost[name] for name in best], ys) | {"mode": "lines"}
    joined |= {"line": {"color": NEUTRAL, "width": 1, "dash": "dot"}, "hoverinfo": "skip"}
    return {"data": [joined, *traces] if len(best) > 1 else traces, "layout": drawn}


def _places(best: Sequence[str], cost: Mapping[str, float]) -> dict[str, str]:
    """Where the names of the front's points stand: up and to the left no other point can be. Those
    between its ends have none, as they would overlap; the label under the pointer says theirs."""
    near, ends = 0.3 * max(cost.values(), default=0.0), (*best[:1], *best[-1:])
    placed = {name: "top left" if cost[name] > near else "top center" for name in ends}
    return {name: placed.get(name, "") for name in best}


def _costed(row: Row, cost: float, unit: str, place: str | None, looks: Mapping[str, Look]) -> Spec:
    """A method's point; `place` is where the name of a Pareto-optimal one stands."""
    assert row.accuracy
    best = place is not None
    mean, low, high = (100 * v for v in (row.accuracy.mean, row.accuracy.low, row.accuracy.high))
    colour = _colour(row.method, looks)
    told = count(cost) if "token" in unit else f"{cost:.3g}"
    hover = f"<b>{row.method}</b><br>{mean:.1f} %<br>{told} {unit.split(' (')[0]}"
    main = point(row.method, "mean", [cost], [_short(mean)])
    if math.isfinite(low):
        main["error_y"] = bars(mean, low, high, colour) | {"thickness": 1}
    symbol = "diamond" if best else "circle-open"
    main["marker"] = {"color": colour, "size": 12 if best else 10, "symbol": symbol}
    main["marker"]["line"] = {"width": 2 if not best else 0}
    if best:
        hover += "<br>Pareto-optimal"
    if place:
        main |= {"mode": "markers+text", "text": [row.method], "textposition": place}
        main["textfont"] = {"size": 11}
    return main | {"hovertemplate": f"{hover}<extra></extra>"}


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other beats in cost and in accuracy both, from the cheapest on.

    >>> pareto({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.6)})
    ['a', 'c']
    """
    found: list[str] = []
    top = -math.inf
    for name, (_, level) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if level > top:
            found.append(name)
            top = level
    return found


def spendings(data: StudyData, rows: Sequence[Row]) -> list[tuple[str, dict[str, float]]]:
    """What accuracy can be set against: (unit, mean of a run by method)."""
    tokens = {row.method: row.tokens for row in rows if row.tokens is not None}
    told = costs(data, rows[0].pair) if rows else []
    usd = {row.method: round(row.usd, 6) for row in told if row.usd is not None}
    seconds = {row.method: round(row.spent.seconds, 2) for row in told}
    cost = ("USD a run (gradings too)", usd) if usd else ("seconds a run (gradings too)", seconds)
    return [(unit, x) for unit, x in (("completion tokens a run", tokens), cost) if x]


def point(method: str, part: str, xs: Sequence[Any], ys: Sequence[Any]) -> Spec:
    """A trace of markers; `meta` is what the page's script and its CSV go by."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": method,
        "meta": {"method": method, "part": part},
        "x": list(xs),
        "y": list(ys),
    }


def bars(mean: float, low: float, high: float, colour: str) -> Spec:
    """An interval as plotly's error bar."""
    sides = {"array": [_short(high - mean)], "arrayminus": [_short(mean - low)]}
    return {"type": "data", "symmetric": False, "thickness": 2, "width": 5, "color": colour} | sides


def rowed(names: Sequence[str]) -> Spec:
    """A layout with one row a name, from the top."""
    drawn = layout()
    drawn["margin"]["t"] = 8
    order = list(dict.fromkeys(names))[::-1]
    drawn["yaxis"] |= {"categoryorder": "array", "categoryarray": order, "type": "category"}
    return drawn


def across(x: float) -> Spec:
    """A vertical line over the whole height."""
    line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
    place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "layer": "below", "line": line, "name": "", **place}


def _colour(method: str, looks: Mapping[str, Look]) -> str:
    return looks[method].colour if method in looks else NEUTRAL


def _short(value: float) -> float:
    return round(value, 2)
