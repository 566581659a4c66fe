"""Charts as plain Vega-Lite, drawn by the page and by `figures` alike.

A chart is defined once, without size and theme: its marks are in `layers.json`, its data are
records with method, part, x and y, as arrays where a record is a line. The parameters `hidden` and
`single` let the page's legend leave out methods and single runs in all charts at once. Vega reads
no text as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from potstill.report.charts.palette import SOLID, Look
from potstill.report.formatting import finite

Spec = dict[str, Any]
NEUTRAL = "#8a8f98"  # reads on white and on black
LAYERS = json.loads((files("potstill.report.charts") / "layers.json").read_text(encoding="utf-8"))
SHOWN = "indexof(hidden, datum.method) < 0 && (single || datum.part != 'seed')"
WHEEL = "wheel![event.shiftKey]"
ZOOM = [{"name": "zoom", "select": {"type": "interval", "zoom": WHEEL}, "bind": "scales"}]
PARAMS = [{"name": "hidden", "value": []}, {"name": "single", "value": True}]


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


def chart(
    kind: str,
    values: Sequence[Spec],
    looks: Mapping[str, Look],
    x: Spec,
    y: Spec,
    transform: Sequence[Any] = (),
    **parts: Any,
) -> Spec:
    """The specification of a kind of chart; `parts` replace the $names in its layers."""
    known = {value["method"]: looks.get(value["method"]) for value in values}
    field = {"field": "method", "type": "nominal", "legend": None}
    colours = [look.colour if look else NEUTRAL for look in known.values()]
    dashes = [look.dash if look else SOLID for look in known.values()]
    colour = field | {"scale": {"domain": list(known), "range": colours}}
    dash = field | {"scale": {"domain": list(known), "range": dashes}}
    fill = colour | {"condition": {"test": "datum.open", "value": "transparent"}}
    shape = {"field": "shape", "type": "nominal", "scale": None, "legend": None}
    dots = {"color": None, "stroke": colour, "fill": fill, "shape": shape}
    parts = {"zoom": ZOOM, "dash": dash, "dots": dots | {"tooltip": parts["tooltip"]}} | parts
    titles = {"x": x["title"], "y": y["title"] or "row"}  # of the columns in the page's CSV
    return {
        "usermeta": titles,
        "data": {"values": list(values)},
        "params": PARAMS,
        "transform": [{"filter": SHOWN}, *transform],
        "encoding": {"x": x, "y": y, "color": colour},
        "layer": list(_layers(kind, {value["part"] for value in values}, parts)),
    }


def _layers(kind: str, used: set[str], parts: Mapping[str, Any]) -> Iterator[Spec]:
    """The layers whose part is in the data: one without data has no extent."""
    for one in LAYERS[kind]:
        part = one.get("part", "")
        if not part or part in used:
            test = one.get("test", f"datum.part == '{part}'")
            rest = {key: value for key, value in one.items() if key not in ("part", "test")}
            yield {"transform": [{"filter": test}], **_filled(rest, parts)}


def _filled(value: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and value.startswith("$"):
        return parts[value[1:]]
    return {k: _filled(v, parts) for k, v in value.items()} if isinstance(value, dict) else value


def number(field: str, title: str, scale: Spec | None = None, **more: Any) -> Spec:
    """A quantitative axis."""
    scale = {"zero": False, "padding": 8} | (scale or {})
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def names(field: str, order: Sequence[str]) -> Spec:
    """An axis with a row a name, from the top."""
    axis = {"domain": False, "ticks": False, "labelLimit": 240}
    return {"field": field, "type": "nominal", "sort": list(order), "title": None, "axis": axis}


def tooltip(**fields: str) -> list[Spec]:
    """A tooltip's lines: title=field, or title="field|format" for numbers."""
    lines = []
    for title, text in fields.items():
        field, _, style = text.partition("|")
        kind = {"type": "quantitative", "format": style} if style else {"type": "nominal"}
        lines.append({"field": field, "title": title.replace("_", " "), **kind})
    return lines


def record(method: str, part: str, x: Any, y: Any, **more: Any) -> Spec:
    """One record of a chart's data; numbers that are not finite are left out."""
    rounded = {key: round(v, 4) if isinstance(v, float) else v for key, v in more.items()}
    kept = {k: v for k, v in rounded.items() if not isinstance(v, float) or finite(v)}
    return {"method": method, "part": part, "x": x, "y": y, **kept}
