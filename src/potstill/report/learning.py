"""The learning curves as plotly's plain JSON: lines, levels and hand-overs.

Every text in here is our own or a method's name, which is an identifier: plotly reads markup in
texts, so nothing that a model or a user wrote may enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.report.curves import METRICS, SEEDED, Curve, Metric
from potstill.report.data import StudyData
from potstill.report.palette import Look
from potstill.store import REFERENCES

Spec = dict[str, Any]
NEUTRAL = "#8a8f98"  # reads on white and on black


def learning(
    data: StudyData, pair: str, metric: Metric, lines: Sequence[Curve], looks: dict[str, Look]
) -> Spec:
    """One metric's curves of every method, with the reference rows and the hand-overs."""
    spec = _spec(metric, [trace for c in lines for trace in _traces(c, looks[c.method], metric)])
    if metric.key == "eval/accuracy":
        levels = {role: data.accuracy(pair, role) for role in REFERENCES}
        spec["data"] += [_level(role, 100 * y) for role, y in levels.items() if y is not None]
    for curve in lines:
        recipe = data.recipes[curve.method]
        if recipe.on_policy.kind == "switch":
            x, colour = 100 * recipe.on_policy.until, looks[curve.method].colour
            _hand_over(spec["layout"], curve.method, x, colour, named=metric is METRICS[0])
    return spec


def seeding(data: StudyData, lines: Sequence[Curve], looks: dict[str, Look]) -> Spec:
    """The measured prefixes and their schedules."""
    spec = _spec(SEEDED, [t for c in lines for t in _traces(c, looks[c.method], SEEDED)])
    for curve in lines:
        plan = data.recipes[curve.method].prefix
        line = {"color": looks[curve.method].colour, "width": 1.2, "dash": "dot"}
        spec["data"].append(
            _line(curve.method, "plan", list(range(101)), [plan(t / 100) for t in range(101)], line)
            | {"hoverinfo": "skip"}
        )
    return spec


def _traces(curve: Curve, look: Look, metric: Metric) -> list[Spec]:
    """A thin line for every seed, all in one trace with gaps between, and a thick mean."""
    found = []
    thin = {"color": look.colour, "width": 1, "dash": look.dash}
    if len(curve.seeds) > 1:
        xs: list[float | None] = []
        ys: list[float | None] = []
        for _, line in curve.seeds:
            xs += [*curve.progress(line), None]
            ys += [*line.values, None]
        found.append(
            _line(curve.method, "seed", xs, ys, thin) | {"opacity": 0.3, "hoverinfo": "skip"}
        )
    mean = _line(
        curve.method, "mean", curve.progress(curve.mean), curve.mean.values, {**thin, "width": 2.6}
    )
    if metric.key == "eval/accuracy":
        mean |= {"mode": "lines+markers", "marker": {"size": 5}}
    text = f"<b>{curve.method}</b><br>%{{y:.4g}} {metric.unit}<br>step %{{customdata}}"
    hover = {"customdata": curve.mean.steps, "hovertemplate": f"{text}<extra></extra>"}
    found.append(mean | hover)
    return found


def _line(method: str, part: str, xs: Sequence[Any], ys: Sequence[Any], line: Spec) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": method,
        "meta": {"method": method, "part": part},
        "x": xs,
        "y": ys,
        "line": line,
        "connectgaps": False,
    }


def _level(role: str, y: float) -> Spec:
    """A dotted line across, named at its right end."""
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dot"}
    return _line(role, "level", [0, 100], [y, y], line) | {
        "mode": "lines+text",
        "text": ["", role],
        "textposition": "top left",
        "textfont": {"color": NEUTRAL, "size": 11},
        "hovertemplate": f"<b>{role}</b><br>{y:.1f} %<extra></extra>",
    }


def _hand_over(drawn: Spec, method: str, x: float, colour: str, *, named: bool) -> None:
    """A vertical line where another one starts to write; `name` lets the legend hide it."""
    place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "xref": "x"}
    line = {"color": colour, "width": 1.2, "dash": "dash"}
    mark = {"type": "line", "name": method, "layer": "above", "line": line}
    drawn["shapes"].append(mark | place)
    if not named:
        return
    marks = drawn["annotations"]
    drawn["margin"]["t"] = 26 + 13 * len(marks)
    marks.append(
        {
            "name": method,
            "x": x,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 13 * len(marks),  # one above the other: on a phone they would overlap
            "text": f"{method} hands over",
            "showarrow": False,
            "font": {"size": 10, "color": colour},
        }
    )


def _spec(metric: Metric, traces: list[Spec]) -> Spec:
    drawn = layout()
    drawn["xaxis"] |= {"title": {"text": "progress of the run, %"}, "range": [0, 101], "dtick": 20}
    drawn["yaxis"] |= {"title": {"text": metric.unit}}
    return {"data": traces, "layout": drawn}


def layout() -> Spec:
    """What all charts share; the theme's colours come from page.js."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 14, "t": 26, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "zoom",
        "shapes": [],
        "annotations": [],
        "xaxis": {"zeroline": False},
        "yaxis": {"zeroline": False, "automargin": True},
    }
