"""The comparison of studies as one page, in the report's style and with its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.errors import PotstillError, writing
from potstill.report.charts import points
from potstill.report.charts.palette import Look, looks
from potstill.report.charts.spec import Chart, Spec, rows
from potstill.report.compare import Comparison, readings
from potstill.report.pages import bundle
from potstill.report.tables import comparison as tables
from potstill.study.storage import REFERENCES, write_text

SHAPES = (
    *("circle", "diamond", "square", "triangle-up", "cross"),
    *("triangle-down", "triangle-left", "triangle-right"),
)


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page.

    Raises:
        PotstillError: the path is a folder, or cannot be written.
    """
    if path.is_dir():
        raise PotstillError(f'"{path}" is a folder', f"give a file: --out {path}/compare.html")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(comparison))
    return path


def render(comparison: Comparison) -> str:
    """The whole page as HTML."""
    known = dict.fromkeys(name for side in comparison.sides for name in side.data.known)
    styles = looks(list(known))
    shown = dict.fromkeys(e.method for e in comparison.entries if e.method not in REFERENCES)
    return bundle.render(
        "compare.html.j2",
        comparison=comparison,
        looks=styles,
        methods=list(shown),
        columns=tables.columns(comparison),
        pairs=[_pair(comparison, pair, styles) for pair in comparison.pairs],
        faults=[(s, [FAULTS[f] for f in s.data.study.faults]) for s in comparison.sides],
    )


def _pair(comparison: Comparison, pair: str, styles: dict[str, Look]) -> dict[str, Any]:
    entries = [entry for entry in comparison.entries if entry.pair == pair]
    first, values, leads = comparison.sides[0].letter, [], []
    for entry in entries:
        sides = zip(comparison.sides, entry.rows, entry.differences, SHAPES, strict=False)
        for side, row, lead, shape in sides:
            if row and row.accuracy:
                name, part = f"{entry.method} {side.letter}", side.letter
                values.append(points.point(entry.method, part, name, row.accuracy, shape, False))
            if lead:
                name = f"{entry.method} {side.letter} − {first}"
                leads.append(points.difference(entry.method, name, lead))
    intervals = "Bars are 95 % bootstrap intervals"
    charts = [
        _chart(
            "accuracy",
            "Accuracy",
            points.LEVEL,
            values,
            {},
            styles,
            f"{intervals}; letters are the studies.",
        ),
        _chart(
            "difference",
            f"Difference to {first}",
            points.POINTS,
            leads,
            {"": 0.0},
            styles,
            f"{intervals}; filled: the interval excludes 0 and Holm's p < 0.05.",
        ),
    ]
    return {
        "name": pair,
        "entries": entries,
        "pairing": comparison.pairing[pair],
        "readings": readings(comparison, entries),
        "charts": [chart for chart in charts if not chart.empty],
    }


def _chart(
    name: str,
    title: str,
    unit: str,
    values: list[Spec],
    levels: dict[str, float],
    styles: dict[str, Look],
    note: str,
) -> Chart:
    height = 86 + 28 * max(2, len(values))
    return Chart(name, title, note, rows(values, styles, unit, levels), height=height)
