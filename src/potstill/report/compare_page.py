"""The comparison of studies as one page, in the report's style and with its script.

In charts studies are letters: plotly reads markup in texts, and a folder's name is the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.errors import PotstillError, writing
from potstill.report import bundle
from potstill.report.charts import INTERVAL, Chart
from potstill.report.compare import Comparison, Entry
from potstill.report.learning import NEUTRAL, Spec
from potstill.report.page import FILTERS
from potstill.report.palette import Look, looks
from potstill.report.points import bars, difference, point, rowed
from potstill.report.reading import clear
from potstill.study.storage import REFERENCES, write_text

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "hexagon", "cross", "x")


def write_comparison(told: Comparison, path: Path) -> Path:
    """Write the page.

    Raises:
        PotstillError: the path is a folder, or the disk refuses.
    """
    if path.is_dir():
        raise PotstillError(f'"{path}" is a folder', f"give a file: --out {path}/compare.html")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(told))
    return path


def render(told: Comparison) -> str:
    """The whole page as HTML."""
    recipes = {name: r for side in told.sides for name, r in side.data.recipes.items()}
    known = list(dict.fromkeys(name for side in told.sides for name in side.data.known))
    styles = looks(known, recipes)
    shown = dict.fromkeys(e.method for e in told.entries if e.method not in REFERENCES)
    return bundle.render(
        "compare.html.j2",
        FILTERS,
        told=told,
        looks=styles,
        methods=list(shown),
        pairs=[_pair(told, pair, styles) for pair in told.pairs],
        faults=[(s, [FAULTS[f] for f in s.data.study.faults]) for s in told.sides],
        clear=clear,
        references=REFERENCES,
    )


def _pair(told: Comparison, pair: str, styles: dict[str, Look]) -> dict[str, Any]:
    entries = [entry for entry in told.entries if entry.pair == pair]
    drawn = [_levels(told, entries, styles), _differences(told, entries, styles)]
    return {
        "name": pair,
        "entries": entries,
        "words": told.pairing[pair],
        "reading": reading(told, entries),
        "charts": [(c, bundle.data_block(c.spec)) for c in drawn if c.spec["data"]],
    }


def reading(told: Comparison, entries: Sequence[Entry]) -> list[str]:
    """What differs clearly, in words; a tie is said as one."""
    found = []
    for i, side in enumerate(told.sides[1:], 1):
        name = f"{side.letter} against {told.sides[0].letter}"
        mine = [(e.method, e.differences[i]) for e in entries if e.method not in REFERENCES]
        known = [(method, value) for method, value in mine if value]
        up = [method for method, value in known if clear(value) > 0]
        down = [method for method, value in known if clear(value) < 0]
        parts = [f"clearly higher {', '.join(up)}"] * bool(up)
        parts += [f"clearly lower {', '.join(down)}"] * bool(down)
        if not known:
            found.append(f"{name}: no method has a result in both.")
        elif not parts:
            found.append(f"{name}: no clear difference in any of {len(known)} methods.")
        else:
            rest = len(known) - len(up) - len(down)
            found.append(f"{name}: {'; '.join(parts)}; {rest} without a clear difference.")
    return found


def _levels(told: Comparison, entries: Sequence[Entry], styles: dict[str, Look]) -> Chart:
    names, traces = [], []
    for entry in entries:
        for i, (side, row) in enumerate(zip(told.sides, entry.rows, strict=True)):
            if row is None or row.accuracy is None:
                continue
            name = f"{entry.method} {side.letter}"
            names.append(name)
            traces.append(_level(entry.method, name, row.accuracy, i, styles))
    spec: Spec = {"data": traces, "layout": rowed(names)}
    spec["layout"]["xaxis"] |= {"title": {"text": "accuracy, strict, %"}}
    note = f"{INTERVAL}, of each study by itself; letters are the studies."
    return Chart("accuracy", "Accuracy", note, spec, height=86 + 26 * max(2, len(names)))


def _level(method: str, name: str, value: Any, i: int, styles: dict[str, Look]) -> Spec:
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    colour = styles[method].colour if method in styles else NEUTRAL
    trace = point(method, name.rsplit(" ", 1)[1], [round(mean, 2)], [name])
    hover = f"<b>{name}</b><br>{mean:.1f} %"
    if low == low:  # not nan
        trace["error_x"] = bars(mean, low, high, colour)
        hover += f"<br>{low:.1f} to {high:.1f}"
    trace["marker"] = {"color": colour, "size": 10, "symbol": SYMBOLS[i]}
    return trace | {"hovertemplate": f"{hover}<extra></extra>"}


def _differences(told: Comparison, entries: Sequence[Entry], styles: dict[str, Look]) -> Chart:
    first, names, traces = told.sides[0].letter, [], []
    for entry in entries:
        for side, value in zip(told.sides, entry.differences, strict=True):
            if value is None:
                continue
            name = f"{entry.method} {side.letter} − {first}"
            colour = styles[entry.method].colour if entry.method in styles else NEUTRAL
            names.append(name)
            traces.append(difference(entry.method, value, colour, name))
    spec: Spec = {"data": traces, "layout": rowed(names)}
    spec["layout"]["xaxis"] |= {"title": {"text": "accuracy, difference in points"}}
    line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "name": ""}
    spec["layout"]["shapes"].append(line | {"line": {"color": NEUTRAL, "width": 1.5}})
    note = "Bars are 95 % bootstrap intervals; filled: interval excludes 0 and Holm's p < 0.05."
    title = f"Difference to {first}"
    return Chart("difference", title, note, spec, height=86 + 30 * max(2, len(names)))
