"""The charts for papers: SVG and PNG files of each pair.

The same numbers and looks as the page's charts. Drawn without pyplot, so that no window system
and no global state is touched; equal studies give equal SVG files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import writing
from potstill.report.curves import METRICS, Curve, Metric, curves
from potstill.report.data import StudyData
from potstill.report.palette import Look
from potstill.store import REFERENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "potstill",
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
}
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)),
}
NEUTRAL = "#6b7079"


def write_figures(data: StudyData, looks: dict[str, Look], folder: Path) -> tuple[Path, ...]:
    """Write every figure as SVG and PNG.

    Returns:
        The files, in order.
    """
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(data, looks):
            for kind in ("svg", "png"):
                path = folder / f"{name}.{kind}"
                when = {"Date": None} if kind == "svg" else {"Software": None}
                with writing(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(path, dpi=200, bbox_inches="tight", metadata=when)
                written.append(path)
    return tuple(written)


def _figures(data: StudyData, looks: dict[str, Look]) -> Iterator[tuple[str, Figure]]:
    for pair in data.study.models:
        stem = re.sub(r"[^\w.-]+", "-", pair).strip(".") or "pair"
        if any(row.accuracy for row in data.rows if row.pair == pair):
            yield f"{stem}-accuracy", _dots(data, pair, looks)
        for metric in METRICS:
            lines = curves(data, pair, metric)
            if lines:
                name = metric.key.replace("/", "-").replace("_", "-")
                yield f"{stem}-{name}", _curves(data, pair, metric, lines, looks)


def _axes(width: float, height: float, title: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    return figure, axes


def _curves(
    data: StudyData, pair: str, metric: Metric, lines: list[Curve], looks: dict[str, Look]
) -> Figure:
    figure, axes = _axes(6.4, 3.6, f"{metric.title}, {pair}")
    for curve in lines:
        look = looks[curve.method]
        style = {"color": look.colour, "linestyle": DASHES[look.dash]}
        for _, line in curve.seeds if len(curve.seeds) > 1 else ():
            axes.plot(curve.progress(line), line.values, linewidth=0.6, alpha=0.3, **style)
        mean = curve.progress(curve.mean), curve.mean.values
        axes.plot(*mean, linewidth=1.8, label=curve.method, **style)
        recipe = data.recipes[curve.method]
        if recipe.on_policy.kind == "switch":
            axes.axvline(100 * recipe.on_policy.until, color=look.colour, linewidth=0.7)
    if metric.key == "eval/accuracy":
        _levels(data, pair, axes.axhline)
    axes.set_xlabel("progress of the run, %")
    axes.set_ylabel(metric.unit)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _dots(data: StudyData, pair: str, looks: dict[str, Look]) -> Figure:
    rows = [row for row in data.rows if row.pair == pair and row.accuracy][::-1]
    figure, axes = _axes(6.4, 0.7 + 0.3 * len(rows), f"Accuracy with 95 % intervals, {pair}")
    for i, row in enumerate(rows):
        assert row.accuracy
        mean, low, high = row.accuracy.mean, row.accuracy.low, row.accuracy.high
        colour = looks[row.method].colour if row.method in looks else NEUTRAL
        spread = [[100 * (mean - low)], [100 * (high - mean)]] if math.isfinite(low) else None
        axes.errorbar(100 * mean, i, xerr=spread, fmt="o", color=colour, capsize=3)
    _levels(data, pair, axes.axvline)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.set_xlabel("accuracy, strict, %")
    return figure


def _levels(data: StudyData, pair: str, draw: Any) -> None:
    """Dotted lines at the reference rows."""
    for role in REFERENCES:
        level = data.accuracy(pair, role)
        if level is not None:
            draw(100 * level, color=NEUTRAL, linewidth=1, linestyle=":", zorder=0)
