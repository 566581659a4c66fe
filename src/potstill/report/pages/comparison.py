"""The comparison of studies as one page, in the report's style and with its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.errors import PotstillError, writing
from potstill.report.charts import point_charts as points
from potstill.report.charts.palette import Look, looks
from potstill.report.charts.spec import Chart
from potstill.report.compare import Comparison, readings
from potstill.report.pages import bundle
from potstill.report.tables import comparison as tables
from potstill.study.storage import REFERENCES, write_text

TURNED = ("up", "down", "left", "right")
SHAPES = ("circle", "diamond", "square", "cross", *(f"triangle-{side}" for side in TURNED))
LEVELS = "Bars are 95 % intervals; letters are the studies."
LEADS = "Bars are 95 % intervals; filled: the interval excludes 0 and Holm's p < 0.05."


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page.

    Raises:
        PotstillError: the path is a folder, or cannot be written.
    """
    if path.is_dir():
        raise PotstillError(f'"{path}" is a folder', f"give a file: --out {path}/compare.html")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    known = dict.fromkeys(name for side in comparison.sides for name in side.data.known)
    styles = looks(list(known))
    shown = dict.fromkeys(e.method for e in comparison.entries if e.method not in REFERENCES)
    page = bundle.render(
        "compare.html.j2",
        comparison=comparison,
        metric=comparison.metric,
        looks=styles,
        methods=list(shown),
        columns=tables.columns(comparison),
        pairs=[_pair(comparison, pair, styles) for pair in comparison.pairs],
        faults=[(s, [FAULTS[f] for f in s.data.study.faults]) for s in comparison.sides],
    )
    write_text(path, page)
    return path


def _pair(comparison: Comparison, pair: str, styles: dict[str, Look]) -> dict[str, Any]:
    entries = [entry for entry in comparison.entries if entry.pair == pair]
    first, metric = comparison.sides[0].letter, comparison.metric
    levels, leads = [], []
    for entry in entries:
        sides = zip(comparison.sides, SHAPES, entry.rows, entry.differences, strict=False)
        for side, shape, row, lead in sides:
            name = f"{entry.method} {side.letter}"
            if row and row.level:
                levels.append(points.point(entry.method, name, row.level, metric, shape))
            if lead:
                title = f"{name} − {first}"
                leads.append(points.point(entry.method, title, lead, metric, "square"))
    one, other = 86 + 28 * max(2, len(levels)), 86 + 28 * max(2, len(leads))
    drawn = points.rows(levels, styles, metric, {})
    difference = points.rows(leads, styles, metric, {"": 0.0}, compared=True)
    title = metric.label[0].upper() + metric.label[1:]
    charts = [
        Chart(metric.name.replace("_", "-"), title, LEVELS, drawn, height=one),
        Chart("difference", f"Difference to {first}", LEADS, difference, height=other),
    ]
    return {
        "name": pair,
        "entries": entries,
        "pairing": comparison.pairing[pair],
        "readings": readings(comparison, entries),
        "charts": [chart for chart in charts if not chart.empty],
    }
