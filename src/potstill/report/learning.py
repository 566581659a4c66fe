"""The learning curves as plotly's plain JSON: lines, levels and hand-overs.

Every text in here is our own or a method's name, which is an identifier: plotly reads markup in
texts, so nothing that a model or a user wrote may enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.report.curves import METRICS, SCORE, SEEDED, Curve, Metric
from potstill.report.data import StudyData
from potstill.report.palette import Look
from potstill.study.storage import REFERENCES

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


def effect(lines: Sequence[Curve], looks: dict[str, Look]) -> Spec:
    """The score of seeded methods beside the one that they are compared with."""
    return _spec(SCORE, [t for c in lines for t in _traces(c, looks[c.method], SCORE)])


def aligned(
    data: StudyData, metric: Metric, lines: Sequence[Curve], looks: dict[str, Look]
) -> Spec:
    """Curves over the steps before and after the hand-over of each method."""
    traces = []
    for curve in lines:
        over = curve.total * data.recipes[curve.method].on_policy.until
        for trace in _traces(curve, looks[curve.method], metric):
            trace["x"] = [
                None if x is None else round(x * curve.total / 100 - over, 1) for x in trace["x"]
            ]
            if "customdata" in trace:
                trace["hovertemplate"] = trace["hovertemplate"].replace(
                    "<extra>", "<br>%{x:+} from the hand-over<extra>"
                )
            traces.append(trace)
    spec = _spec(metric, traces)
    spec["layout"]["xaxis"] = {"zeroline": False, "title": {"text": "steps from the hand-over"}}
    _hand_over(spec["layout"], "", 0.0, NEUTRAL, named=False)
    spec["layout"]["annotations"].append(
        {"x": 0, "y": 1, "yref": "paper", "yanchor": "bottom", "text": "hand-over"}
        | {"name": "", "showarrow": False, "font": {"size": 11, "color": NEUTRAL}}
    )
    return spec


def onsets(curve: Curve, look: Look, found: Sequence[tuple[int, int]]) -> Spec:
    """Crosses on the mean curve where runs began to collapse.

    Args:
        curve: the accuracy of the method.
        look: its look.
        found: seed and step of each.
    """
    at = dict(zip(curve.mean.steps, curve.mean.values, strict=True))
    near = [at[min(at, key=lambda s: abs(s - step))] for _, step in found]
    xs = [round(100 * step / curve.total, 2) for _, step in found]
    text = (
        f"<b>{curve.method}</b><br>seed %{{customdata[0]}} collapses from step %{{customdata[1]}}"
    )
    marker = {"symbol": "x-thin", "size": 12, "line": {"width": 3, "color": look.colour}}
    return _line(curve.method, "onset", xs, near, {}) | {
        "mode": "markers",
        "marker": marker,
        "customdata": [list(pair) for pair in found],
        "hovertemplate": f"{text}<extra></extra>",
    }


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
            _line(curve.method, "seed", xs, ys, {**thin, "dash": "solid"})
            | {"opacity": 0.28, "hoverinfo": "skip"}
        )
        found[-1]["meta"]["seeds"] = [seed for seed, _ in curve.seeds]
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
