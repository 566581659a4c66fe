"""`potstill compare`: studies next to each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.app import READ, command
from potstill.cli.options import AsJson, AsMarkdown
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo

if TYPE_CHECKING:
    from potstill.report.compare import Comparison
    from potstill.stats.comparisons import Difference, Interval


@command(
    "compare",
    READ,
    "potstill compare runs/before runs/after",
    "potstill compare runs/a runs/b runs/c --out compare.html",
)
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER FOLDER...", help="Folders of 2 to 8 studies; the first is the baseline."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML page to write.")] = Path(
        "compare.html"
    ),
    markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Compare studies with the first one (paired where possible).

    Differences are paired by problem where both studies evaluated the same problems. Settings that
    differ are listed. With --markdown or --json no page is written.
    """
    from potstill.digests import to_json
    from potstill.report.compare import compare as compared
    from potstill.report.pages.comparison import write_comparison
    from potstill.report.tables.comparison import to_markdown

    comparison = compared(folders)
    if as_json:
        print_json(json.loads(to_json(comparison.to_json())))
    elif markdown:
        echo(to_markdown(comparison), end="")
    else:
        page = write_comparison(comparison, out)
        print_comparison(comparison)
        echo(f"\ncomparison: {page}")


def print_comparison(comparison: Comparison) -> None:
    """Print a table for each pair, how it is paired, and the settings that differ."""
    letters = [side.letter for side in comparison.sides]
    print_table([{"study": side.letter, "folder": side.label} for side in comparison.sides])
    for pair in comparison.pairs:
        metric = comparison.metric
        unit = f"{metric.label}{' in ' if metric.share else ', '}{metric.unit}"
        echo(f"\n{pair}, {unit}, differences in {metric.points}")
        rows = _rows(comparison, pair)
        print_table(rows, spare=[f"{letter} 95 %" for letter in letters])
        for note in comparison.pairing[pair]:
            echo(note)
    for note in comparison.left:
        echo(note)
    if comparison.settings:
        echo("\nsettings that differ")
        heads = ["setting", *letters]
        print_table([dict(zip(heads, row, strict=True)) for row in comparison.settings])


def _rows(comparison: Comparison, pair: str) -> list[dict[str, str]]:
    """A row for each method: the results of all studies, then the differences to the first."""
    from potstill.report.formatting import change, level

    write = partial(level, metric=comparison.metric)
    signed = partial(change, metric=comparison.metric)
    letters = [side.letter for side in comparison.sides]
    rows = []
    for entry in comparison.entries:
        if entry.pair == pair:
            row = {"method": entry.method}
            for letter, one in zip(letters, entry.rows, strict=True):
                row |= _ranged(letter, one.level if one else None, write)
            for letter, one_difference in zip(letters[1:], entry.differences[1:], strict=True):
                row |= _ranged(f"{letter} − {letters[0]}", one_difference, signed)
            rows.append(row)
    return rows


def _ranged(
    name: str, value: Interval | Difference | None, form: Callable[[float], str]
) -> dict[str, str]:
    """A column with a mean and one with its interval, empty where nothing is known."""
    if value is None:
        return {name: "", f"{name} 95 %": ""}
    known = not math.isnan(value.low)
    interval = f"{form(value.low)} to {form(value.high)}" if known else ""
    return {name: form(value.mean), f"{name} 95 %": interval}
