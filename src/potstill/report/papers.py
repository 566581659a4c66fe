"""Figures for papers with a point a method: accuracy, paired differences, the frontier, the map of
problems. What they show is worked out where the page's charts have it from; here it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.report.data import StudyData
from potstill.report.palette import Look
from potstill.report.points import pareto, spendings
from potstill.report.reading import clear
from potstill.report.solved import ordered, shares
from potstill.report.stats import BASELINE, Difference, Interval, Row
from potstill.study.storage import REFERENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEUTRAL = "#6b7079"


def pointed(data: StudyData, pair: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, Figure]]:
    """Each figure with its name."""
    rows = [row for row in data.rows if row.pair == pair and row.accuracy]
    trained = [row for row in rows if row.method not in REFERENCES]
    if rows:
        yield "accuracy", _accuracy(data, pair, rows, looks)
    against = BASELINE if any(row.against_baseline for row in trained) else "untrained"
    known = [(r, d) for r in trained if (d := _difference(r, against))]
    if known:
        yield f"difference-to-{against}", _forest(pair, known, against, looks)
    for unit, cost in spendings(data, trained):
        costed = [row for row in trained if row.method in cost]
        if len(costed) > 1:
            what = unit.split(" a run")[0]
            name = f"accuracy-by-{what.split()[-1].lower()}"
            yield name, _frontier(pair, costed, cost, unit, looks)
    if solved := shares(data, pair):
        yield "solved", _map(pair, solved)


def axes_of(width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure with one pair of axes; a title is text, never mathematics."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    return figure, axes


def levels(data: StudyData, pair: str, draw: Any) -> None:
    """Dotted lines at the reference rows."""
    for role in REFERENCES:
        level = data.accuracy(pair, role)
        if level is not None:
            draw(100 * level, color=NEUTRAL, linewidth=1, linestyle=":", zorder=0)


def _accuracy(data: StudyData, pair: str, rows: Sequence[Row], looks: Mapping[str, Look]) -> Figure:
    figure, axes = _rows(pair, "Accuracy with 95 % intervals", [row.method for row in rows])
    for i, row in enumerate(rows):
        assert row.accuracy
        _bar(axes, row.accuracy, i, _colour(row.method, looks), filled=True)
    levels(data, pair, axes.axvline)
    axes.set_xlabel("accuracy, strict, %")
    return figure


def _forest(
    pair: str,
    known: Sequence[tuple[Row, Difference]],
    against: str,
    looks: Mapping[str, Look],
) -> Figure:
    names = [row.method for row, _ in known]
    figure, axes = _rows(pair, f"Difference to {against}, 95 % intervals, paired", names)
    for i, (row, value) in enumerate(known):
        _bar(axes, value, i, _colour(row.method, looks), filled=clear(value) != 0)
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    axes.set_xlabel("accuracy, difference in points (filled: Holm's p < 0.05)")
    return figure


def _frontier(
    pair: str,
    rows: Sequence[Row],
    cost: Mapping[str, float],
    unit: str,
    looks: Mapping[str, Look],
) -> Figure:
    known = {r.method: (cost[r.method], r.accuracy.mean) for r in rows if r.accuracy}
    best = pareto(known)
    figure, axes = axes_of(6.4, 3.6, f"Accuracy against cost, Pareto front, {pair}")
    axes.plot(
        [known[m][0] for m in best],
        [100 * known[m][1] for m in best],
        color=NEUTRAL,
        linewidth=0.8,
        linestyle=":",
    )
    for row in rows:
        style = {"marker": "D"} if row.method in best else {"marker": "o", "mfc": "white"}
        x, y = known[row.method]
        assert row.accuracy
        spread = _spread(row.accuracy)
        look = {"color": _colour(row.method, looks), "linestyle": "", "label": row.method}
        axes.errorbar(x, 100 * y, yerr=spread, elinewidth=0.7, **look, **style)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    axes.set_ylabel("accuracy, strict, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _map(pair: str, known: Mapping[str, Any]) -> Figure:
    figure, axes = axes_of(6.4, 0.9 + 0.24 * len(known), f"Problems by methods, {pair}")
    order = ordered(known)
    table = [share[order] for share in known.values()]
    image = axes.imshow(
        table, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(range(len(known)), list(known))
    axes.set_xlabel("held-out problems, easiest first")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="share of seeds that solve it")
    return figure


def _rows(pair: str, title: str, names: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with one row a name, from the top."""
    figure, axes = axes_of(6.4, 0.7 + 0.3 * len(names), f"{title}, {pair}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def _bar(axes: Any, value: Interval | Difference, y: int, colour: str, *, filled: bool) -> None:
    face = colour if filled else "white"
    style = {"fmt": "o", "color": colour, "mfc": face, "capsize": 3}
    axes.errorbar(100 * value.mean, y, xerr=_spread(value), **style)


def _spread(value: Interval | Difference) -> list[list[float]] | None:
    """Lengths of an error bar in per cent; None where there is no interval."""
    if not math.isfinite(value.low):
        return None
    return [[100 * (value.mean - value.low)], [100 * (value.high - value.mean)]]


def _difference(row: Row, against: str) -> Difference | None:
    return row.against_baseline if against == BASELINE else row.against_untrained


def _colour(method: str, looks: Mapping[str, Look]) -> str:
    return looks[method].colour if method in looks else NEUTRAL
