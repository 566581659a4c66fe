"""The parts that charts are made of: plain Vega-Lite, drawn by the page and by `figures` alike.

A chart is defined once, without size and theme. Its data are records: method, part, x and y, in
arrays where a record is a line. The parameters `hidden` and `single` let the page's legend leave
out methods and single runs in all charts at once. A text in a chart is never read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.charts.palette import SOLID, Look
from potstill.report.formatting import finite

Spec = dict[str, Any]
NEUTRAL = "#8a8f98"  # reads on white and on black
SHOWN = "indexof(hidden, datum.method) < 0 && (single || datum.part != 'seed')"
ZOOM = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.shiftKey]"},
    "bind": "scales",
}


@dataclass(frozen=True)
class Chart:
    """One drawing with the words around it."""

    name: str  # of its files
    title: str
    note: str
    spec: Spec
    wide: bool = False
    height: int = 320  # pixels

    @property
    def empty(self) -> bool:
        return not self.spec["data"]["values"]


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def chart(
    values: Sequence[Spec], layers: Iterable[Spec], x: str, y: str, transform: Sequence[Spec] = ()
) -> Spec:
    """A whole specification; x and y are also the titles of the columns in the page's CSV."""
    used = {value["part"] for value in values}
    return {
        "usermeta": {"x": x, "y": y},
        "data": {"values": list(values)},
        "params": [{"name": "hidden", "value": []}, {"name": "single", "value": True}],
        "transform": [{"filter": SHOWN}, *transform],
        "layer": [one for one in layers if _part(one) in ("", *used)],
    }


def layer(test: str, mark: str | Spec, **encoding: Any) -> Spec:
    """The records that pass a test, drawn as a mark."""
    return {"transform": [{"filter": test}], "mark": mark, "encoding": encoding}


def _part(one: Spec) -> str:
    """The part that a layer draws, where it is one alone: a layer without data has no extent."""
    part = re.match(r"datum\.part == '([\w-]+)'", one["transform"][0]["filter"])
    return part[1] if part else ""


def number(field: str, title: str, **more: Any) -> Spec:
    """A quantitative axis."""
    scale = {"zero": False, "padding": 8} | more.pop("scale", {})
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def by_method(looks: Mapping[str, Look], names: Iterable[str]) -> tuple[Spec, Spec]:
    """The colour and the dash of each method; the page has one legend for all charts."""
    known = {name: looks.get(name) for name in dict.fromkeys(names)}
    colours = [look.colour if look else NEUTRAL for look in known.values()]
    dashes = [look.dash if look else SOLID for look in known.values()]
    field = {"field": "method", "type": "nominal", "legend": None}
    domain = {"domain": list(known)}
    return (
        {**field, "scale": {**domain, "range": colours}},
        {**field, "scale": {**domain, "range": dashes}},
    )


def tooltip(**fields: str) -> list[Spec]:
    """A tooltip's lines: title=field, or title="field|format" for numbers."""
    lines = []
    for title, text in fields.items():
        field, _, style = text.partition("|")
        kind = {"type": "quantitative", "format": style} if style else {"type": "nominal"}
        lines.append({"field": field, "title": title, **kind})
    return lines


def record(method: str, part: str, x: Any, y: Any, **more: Any) -> Spec:
    """One record of a chart's data; numbers that are not finite are left out."""
    rounded = {key: round(v, 2) if isinstance(v, float) else v for key, v in more.items()}
    kept = {k: v for k, v in rounded.items() if not isinstance(v, float) or finite(v)}
    return {"method": method, "part": part, "x": x, "y": y, **kept}


def dots(colour: Spec, x: Spec, y: Spec, lines: list[Spec], size: int = 110) -> Spec:
    """Points with a colour, a shape each, hollow where the record is `open`."""
    fill = {"condition": {"test": "datum.open", "value": "transparent"}, **colour}
    shape = {"field": "shape", "type": "nominal", "scale": None, "legend": None}
    mark = {"type": "point", "size": size, "strokeWidth": 2, "opacity": 1}
    return layer(
        "isValid(datum.shape)", mark, x=x, y=y, stroke=colour, fill=fill, shape=shape, tooltip=lines
    )


def rows(
    values: Sequence[Spec],
    looks: Mapping[str, Look],
    x: str,
    levels: Mapping[str, float],
) -> Spec:
    """A row a name, from the top: points with intervals, single runs as strokes, and vertical
    lines at the levels."""
    names = list(dict.fromkeys(value["y"] for value in values))
    colour, _ = by_method(looks, (value["method"] for value in values))
    axis = {"domain": False, "ticks": False, "labelLimit": 240}
    y = {"field": "y", "type": "nominal", "sort": names, "title": None, "axis": axis}
    lines = [record(name, "level", round(level, 2), None) for name, level in levels.items()]
    bar = {"type": "errorbar", "ticks": {"size": 9}, "rule": {"strokeWidth": 2}}
    shown = tooltip(method="y", accuracy="x|.1f", interval="interval", p="p")
    layers = [
        layer(
            "datum.part == 'level'",
            {"type": "rule", "color": NEUTRAL, "strokeDash": [2, 3], "strokeWidth": 1.3},
            x=number("x", x),
        ),
        layer(
            "datum.part == 'seed'",
            {"type": "tick", "thickness": 1.5, "size": 13},
            x=number("x", x),
            y=y,
            color=colour,
        ),
        layer(
            "isValid(datum.low)", bar, x=number("low", x), x2={"field": "high"}, y=y, color=colour
        ),
        dots(colour, number("x", x), y, shown),
    ]
    return chart([*values, *(lines if values else [])], layers, x, "method")
