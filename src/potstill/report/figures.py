"""The page's charts as SVG, PDF and PNG files for papers; equal studies give equal files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path

from potstill.errors import writing
from potstill.report.charts.spec import Chart, Spec
from potstill.study.storage import REFERENCES

ROW = 22  # pixels of a row with a name
AXIS = {"gridOpacity": 0.4, "domain": False, "tickSize": 4, "tickCount": 6}
LEGEND = {"title": None, "symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2.5}
PAPER = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {**AXIS, "titleFontWeight": "normal"},
    "legend": {"titleFontWeight": "normal", "symbolSize": 300},
    "title": {"anchor": "start", "fontSize": 12, "fontWeight": "normal", "offset": 12},
}


def write_figures(pairs: Mapping[str, Iterable[Chart]], folder: Path) -> tuple[Path, ...]:
    """Write every chart of every pair.

    Returns:
        The files, in order.
    """
    import vl_convert as convert

    written = []
    for pair, charts in pairs.items():
        stem = re.sub(r"[^\w.-]+", "-", pair).strip(".") or "pair"
        for chart in charts:
            svg = convert.vegalite_to_svg(paper(chart, pair))
            pdf, png = convert.svg_to_pdf(svg), convert.svg_to_png(svg, scale=3)
            for kind, content in (("svg", svg.encode()), ("pdf", pdf), ("png", png)):
                path = folder / f"{stem}-{chart.name}.{kind}"
                with writing(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                written.append(path)
    return tuple(written)


def paper(chart: Chart, pair: str) -> Spec:
    """A chart with a size, a title, the colours of paper and, for lines, a legend."""
    spec = deepcopy(chart.spec)
    size = {"width": 430, "height": 230, "title": f"{chart.title}, {pair}", "config": PAPER}
    if order := spec["encoding"]["y"].get("sort"):
        return spec | size | {"height": ROW * len(order)}
    methods = dict.fromkeys(value["method"] for value in spec["data"]["values"])
    shown = {"values": [m for m in methods if m and m not in REFERENCES]}
    for encoding in (spec["encoding"], *(layer.get("encoding", {}) for layer in spec["layer"])):
        for channel in encoding.values():
            if isinstance(channel, dict) and channel.get("field") == "method":
                channel["legend"] = LEGEND | shown
    return spec | size
