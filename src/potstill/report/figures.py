"""The charts for papers: SVG, PDF and PNG files of each pair.

The same numbers and looks as the page's charts; those with a point a method are in `papers`. Drawn
without pyplot, so that no window system and no global state is touched; equal studies give equal
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import writing
from potstill.report.curves import METRICS, SCORE, SEEDED, Curve, Metric, curves
from potstill.report.data import StudyData
from potstill.report.palette import Look
from potstill.report.papers import NEUTRAL, axes_of, levels, pointed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "potstill",
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # and in a PDF, as journals ask
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
WHEN: dict[str, dict[str, Any]] = {  # no clock in a file: equal studies, equal files
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}


def write_figures(data: StudyData, looks: dict[str, Look], folder: Path) -> tuple[Path, ...]:
    """Write every figure as SVG, PDF and PNG.

    Returns:
        The files, in order.
    """
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(data, looks):
            for kind, when in WHEN.items():
                path = folder / f"{name}.{kind}"
                with writing(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(path, dpi=200, bbox_inches="tight", metadata=when)
                written.append(path)
    return tuple(written)


def _figures(data: StudyData, looks: dict[str, Look]) -> Iterator[tuple[str, Figure]]:
    for pair in data.study.models:
        stem = re.sub(r"[^\w.-]+", "-", pair).strip(".") or "pair"
        for name, figure in (*pointed(data, pair, looks), *_lined(data, pair, looks)):
            yield f"{stem}-{name}", figure


def _lined(data: StudyData, pair: str, looks: dict[str, Look]) -> Iterator[tuple[str, Figure]]:
    for metric in METRICS:
        if lines := curves(data, pair, metric):
            name = metric.key.replace("/", "-").replace("_", "-")
            yield name, _curves(data, pair, metric, lines, looks)
    recipes = data.recipes
    lines = curves(data, pair, SCORE)
    if over := [c for c in lines if recipes[c.method].on_policy.kind == "switch"]:
        yield "hand-over", _hand_over(data, pair, over, looks)
    lines = curves(data, pair, SEEDED)
    if seeded := [c for c in lines if recipes[c.method].prefix.range[1] > 0]:
        yield "train-seed-tokens", _curves(data, pair, SEEDED, seeded, looks)


def _curves(
    data: StudyData, pair: str, metric: Metric, lines: list[Curve], looks: dict[str, Look]
) -> Figure:
    figure, axes = axes_of(6.4, 3.6, f"{metric.title}, {pair}")
    for curve in lines:
        _draw(axes, curve, looks[curve.method], 100 / curve.total, 0.0)
        recipe = data.recipes[curve.method]
        if recipe.on_policy.kind == "switch":
            colour = looks[curve.method].colour
            axes.axvline(100 * recipe.on_policy.until, color=colour, linewidth=0.7)
    if metric.key == "eval/accuracy":
        levels(data, pair, axes.axhline)
    axes.set_xlabel("progress of the run, %")
    axes.set_ylabel(metric.unit)
    _legend(axes)
    return figure


def _hand_over(data: StudyData, pair: str, lines: list[Curve], looks: dict[str, Look]) -> Figure:
    figure, axes = axes_of(6.4, 3.6, f"{SCORE.title}, around the hand-over, {pair}")
    for curve in lines:
        over = curve.total * data.recipes[curve.method].on_policy.until
        _draw(axes, curve, looks[curve.method], 1.0, over)
    axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle=":")
    axes.set_xlabel("steps from the hand-over")
    axes.set_ylabel(SCORE.unit)
    _legend(axes)
    return figure


def _draw(axes: Any, curve: Curve, look: Look, scale: float, start: float) -> None:
    """Thin lines for seeds and a thick mean, at (step - start) x scale."""

    def xs(steps: tuple[int, ...]) -> list[float]:
        return [(step - start) * scale for step in steps]

    for _, line in curve.seeds if len(curve.seeds) > 1 else ():
        axes.plot(xs(line.steps), line.values, linewidth=0.6, alpha=0.3, color=look.colour)
    style = {"color": look.colour, "linestyle": DASHES[look.dash], "label": curve.method}
    axes.plot(xs(curve.mean.steps), curve.mean.values, linewidth=1.8, **style)


def _legend(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
