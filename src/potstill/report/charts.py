"""The interactive charts, as plotly's plain JSON.

Specifications only: plotly.js draws them in the reader's browser, and page.js gives them the
colours of its theme and one legend for all. As in `learning`, no text of a model or a user
enters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from potstill.report.curves import METRICS, SEEDED, curves
from potstill.report.data import StudyData
from potstill.report.learning import NEUTRAL, Spec, layout, learning, seeding
from potstill.report.palette import Look
from potstill.stats import Row
from potstill.store import REFERENCES


@dataclass(frozen=True)
class Chart:
    """One drawing with the words around it."""

    title: str
    note: str
    spec: Spec
    wide: bool = False
    height: int = 300  # pixels


def charts(data: StudyData, pair: str, looks: dict[str, Look]) -> list[Chart]:
    """Every chart of a pair that has something to show."""
    found = [dots(data, pair, looks)]
    for i, metric in enumerate(METRICS):
        lines = curves(data, pair, metric)
        if lines:
            spec = learning(data, pair, metric, lines, looks)
            size: dict[str, Any] = {"wide": True, "height": 420} if i == 0 else {}
            found.append(Chart(metric.title, metric.note, spec, **size))
    seeded = [c for c in curves(data, pair, SEEDED) if data.recipes[c.method].prefix.range[1] > 0]
    if seeded:
        found.append(Chart(SEEDED.title, SEEDED.note, seeding(data, seeded, looks)))
    return [chart for chart in found if chart.spec["data"]]


def dots(data: StudyData, pair: str, looks: dict[str, Look]) -> Chart:
    """Accuracy of every method with its interval, and each seed as a stroke."""
    rows = [row for row in data.rows if row.pair == pair and row.accuracy]
    traces = [trace for row in rows for trace in _dot(data, row, looks)]
    drawn = layout()
    drawn["margin"]["t"] = 8
    drawn["xaxis"] |= {"title": {"text": "accuracy, strict, %"}}
    order = [row.method for row in rows][::-1]
    drawn["yaxis"] |= {"categoryorder": "array", "categoryarray": order, "type": "category"}
    for row in rows:
        if row.method in REFERENCES and row.accuracy:
            x = 100 * row.accuracy.mean
            line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
            place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
            drawn["shapes"].append({"type": "line", "layer": "above", "line": line, **place})
    note = (
        "Mean over seeds with its 95 % bootstrap interval; short strokes are single seeds, dotted "
        "lines the reference rows."
    )
    height = 90 + 30 * max(2, len(rows))
    return Chart("Accuracy with intervals", note, {"data": traces, "layout": drawn}, True, height)


def _dot(data: StudyData, row: Row, looks: dict[str, Look]) -> list[Spec]:
    assert row.accuracy
    mean, low, high = (100 * v for v in (row.accuracy.mean, row.accuracy.low, row.accuracy.high))
    colour = looks[row.method].colour if row.method in looks else NEUTRAL
    bars = {"type": "data", "symmetric": False, "thickness": 2, "width": 5, "color": colour}
    hover, found = f"<b>{row.method}</b><br>{mean:.1f} %", []
    shared = {"type": "scatter", "mode": "markers", "name": row.method}
    meta = {"method": row.method, "part": "dot"}
    done = [run for run in data.of(row.pair, row.method) if run.status == "done"]
    if len(done) > 1:
        xs = [_short(100 * run.record["accuracy"]) for run in done]
        tick = {"symbol": "line-ns", "size": 12, "line": {"color": colour, "width": 1.5}}
        found.append(
            {**shared, "x": xs, "y": [row.method] * len(xs), "marker": tick}
            | {"meta": {**meta, "part": "seed"}, "hoverinfo": "skip"}
        )
    main = {**shared, "x": [_short(mean)], "y": [row.method], "meta": meta}
    if math.isfinite(low):
        bars |= {"array": [_short(high - mean)], "arrayminus": [_short(mean - low)]}
        main["error_x"] = bars
        hover += f"<br>{low:.1f} to {high:.1f}"
    marker = {"color": colour, "size": 11}
    return [*found, {**main, "marker": marker, "hovertemplate": f"{hover}<extra></extra>"}]


def _short(value: float) -> float:
    return round(value, 2)
