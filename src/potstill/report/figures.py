"""The page's charts as SVG, PDF and PNG files for papers; equal studies give equal files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from potstill.errors import writing
from potstill.report.charts.spec import Chart, Spec
from potstill.study.storage import REFERENCES

SIZE = {"width": 430, "height": 230}
LEGEND = {"title": None, "symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2.5}
ROW = 22  # pixels of a row with a name
PAPER: Spec = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridOpacity": 0.4,
        "domain": False,
        "tickSize": 4,
        "tickCount": 6,
        "titleFontWeight": "normal",
    },
    "legend": {"titleFontWeight": "normal", "symbolSize": 300},
    "title": {"anchor": "start", "fontSize": 12, "fontWeight": "normal", "offset": 12},
}


def write_figures(pairs: Iterable[tuple[str, Iterable[Chart]]], folder: Path) -> tuple[Path, ...]:
    """Write every chart of every pair.

    Returns:
        The files, in order.
    """
    import vl_convert as convert

    written = []
    for name, spec in _figures(pairs):
        svg = convert.vegalite_to_svg(spec)
        for kind, content in (
            ("svg", svg.encode()),
            ("pdf", convert.svg_to_pdf(svg)),
            ("png", convert.svg_to_png(svg, scale=3)),
        ):
            path = folder / f"{name}.{kind}"
            with writing(path):
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            written.append(path)
    return tuple(written)


def _figures(pairs: Iterable[tuple[str, Iterable[Chart]]]) -> Iterator[tuple[str, Spec]]:
    for pair, charts in pairs:
        stem = re.sub(r"[^\w.-]+", "-", pair).strip(".") or "pair"
        for chart in charts:
            yield f"{stem}-{chart.name}", paper(chart, pair)


def paper(chart: Chart, pair: str) -> Spec:
    """A chart with a size, a title, the colours of paper and, for lines, a legend."""
    spec: dict[str, Any] = deepcopy(chart.spec)
    names = [one["encoding"].get("y", {}).get("sort") for one in spec["layer"]]
    rows = max((len(sort) for sort in names if sort), default=0)
    methods = [m for m in dict.fromkeys(v["method"] for v in spec["data"]["values"]) if m]
    methods = [method for method in methods if method not in REFERENCES]
    size = SIZE | ({"height": ROW * rows} if rows else {})
    for one in spec["layer"] if not rows else ():
        for channel in ("color", "strokeDash", "stroke", "fill"):
            if "legend" in one["encoding"].get(channel, {}):
                one["encoding"][channel]["legend"] = LEGEND | {"values": methods}
    return {**spec, **size, "title": f"{chart.title}, {pair}", "config": PAPER}
