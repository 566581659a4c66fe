"""Tables and reports as the command line prints them.

In a terminal a table fits the width: short columns stay whole, long texts wrap, columns that can
be spared go, and where that is not enough each row becomes a paragraph. In a pipe or a file a table
is tab-separated, complete and not padded. A column without a value is left out of both.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import typer

from potstill.cli.terminal import echo

if TYPE_CHECKING:
    from potstill.report import Report
    from potstill.report.results import Row as MethodRow
    from potstill.stats.metric import Metric

Row = Mapping[str, Any]
Look = Literal["", "bold", "dim"]
Texts = Sequence[Mapping[str, str]]  # rows of one shape

LOOKS: dict[str, dict[str, bool]] = {"bold": {"bold": True}, "dim": {"dim": True}}
GAP = 2  # spaces between columns
LONG = 24  # characters from which a text may wrap, to no less than this
NOTHING = ("", "-")
NUMBER = re.compile(r"[-+−<]? ?\.?\d[\d.,]*(?!\w)")  # begins with a number: aligned to the right


def print_table(rows: Sequence[Row], *, spare: Sequence[str] = ()) -> None:
    """Print rows of one shape to stdout.

    Args:
        rows: each a mapping from column names to values.
        spare: columns that a narrow terminal goes without, the first one first.
    """
    texts = cleaned(rows)
    if not sys.stdout.isatty():
        for line in separated(texts):
            echo(line)
        return
    for line, look in fitted(texts, shutil.get_terminal_size().columns, spare):
        typer.echo(typer.style(line, **LOOKS[look]) if look else line)


def cleaned(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows as printable text, without the columns that hold nothing.

    >>> cleaned([{"a": 1, "b": ""}, {"a": "x\\x1b[2J", "b": None}])
    [{'a': '1'}, {'a': 'x [2J'}]
    """
    texts = [{key: _printable(value) for key, value in row.items()} for row in rows]
    known = [k for k in (texts[0] if texts else ()) if any(row[k] not in NOTHING for row in texts)]
    return [{key: row[key] for key in known} for row in texts]


def _printable(value: Any) -> str:
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else " " for char in text)


def separated(texts: Texts) -> Iterator[str]:
    """A head and the rows, separated by tabs.

    >>> list(separated([{"a": "1", "b": "2 x"}]))
    ['a\\tb', '1\\t2 x']
    """
    if texts:
        yield "\t".join(texts[0])
    for row in texts:
        yield "\t".join(row.values())


def fitted(texts: Texts, width: int, spare: Sequence[str] = ()) -> Iterator[tuple[str, Look]]:
    """The lines of a table that fit a width, each with its look.

    >>> list(fitted([{"name": "a", "n": "7"}, {"name": "b", "n": "12"}], 20))
    [('name   n', 'bold'), ('a      7', ''), ('b     12', '')]
    """
    names, hidden = columns(texts, width, spare)
    if not names:
        for row in texts:
            yield from _paragraph(row, width)
        return
    widths = _widths(texts, names, width)
    right = {name for name in names if _is_numeric(row[name] for row in texts)}
    for line in _lines({name: name for name in names}, widths, right):
        yield line, "bold"
    for row in texts:
        for line in _lines(row, widths, right):
            yield line, ""
    if hidden:
        for line in _wrap(f"hidden at this width: {', '.join(hidden)}", width):
            yield line, "dim"


def columns(texts: Texts, width: int, spare: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that fit a width, and those that were spared; no column where none fits.

    >>> columns([{"a": "12345678", "b": "1234", "c": "123"}], 13, ["b"])
    (['a', 'c'], ['b'])
    >>> columns([{"a": "12345678", "b": "1234"}], 10, [])
    ([], [])
    """
    names = list(texts[0]) if texts else []
    hidden: list[str] = []
    for name in [*spare, None]:
        least = sum(_least(texts, n) for n in names) + GAP * (len(names) - 1)
        if least <= width:
            return names, hidden
        if name in names:
            names.remove(name)
            hidden.append(name)
    return [], []


def _least(texts: Texts, name: str) -> int:
    """Characters that a column needs; heads wrap, and so do long texts."""
    values = [row[name] for row in texts]
    longest = max(map(len, values))
    if longest > LONG and any(" " in value for value in values):
        longest = LONG
    return max(longest, *map(len, _words(name)))


def _words(head: str) -> list[str]:
    """The parts of a head that may have lines of their own."""
    return head.split() if " " in head else re.findall(r"[^_]+_?|_", head)


def _widths(texts: Texts, names: Sequence[str], width: int) -> dict[str, int]:
    """The width of each column: what it needs, and an equal share of the room that is left."""
    widths = {name: _least(texts, name) for name in names}
    more = {n: max(len(n), *(len(row[n]) for row in texts)) - widths[n] for n in names}
    room = width - sum(widths.values()) - GAP * (len(names) - 1)
    for rank, name in enumerate(sorted(names, key=lambda n: more[n])):
        share = min(more[name], room // (len(names) - rank))
        widths[name] += share
        room -= share
    return widths


def _is_numeric(values: Iterator[str]) -> bool:
    return all(NUMBER.match(value) for value in values if value not in NOTHING)


def _lines(row: Mapping[str, str], widths: Mapping[str, int], right: set[str]) -> Iterator[str]:
    """One row, on as many lines as its longest text needs."""
    cells = {name: _wrapped(row[name], width) for name, width in widths.items()}
    for i in range(max(map(len, cells.values()))):
        parts = []
        for name, lines in cells.items():
            text = lines[i] if i < len(lines) else ""
            parts.append(text.rjust(widths[name]) if name in right else text.ljust(widths[name]))
        yield (" " * GAP).join(parts).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of a width, broken at spaces, or else after an underscore or a slash."""
    if len(text) <= width:
        return [text]
    if " " in text:
        return _wrap(text, width)
    parts, lines = re.findall(r"[^_/]+[_/]?|[_/]", text), [""]
    for part in parts:
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return [piece for line in lines for piece in _wrap(line, width)]


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _paragraph(row: Mapping[str, str], width: int) -> Iterator[tuple[str, Look]]:
    """One row as its first value, its short values on a line, and each long one on its own."""
    (name, first), *others = row.items()
    yield f"{name} {first}" if NUMBER.match(first) else first, "bold"
    known = [(name, value) for name, value in others if value not in NOTHING]
    short = [f"{name}: {value}" for name, value in known if len(value) <= LONG]
    long = [f"{name}: {value}" for name, value in known if len(value) > LONG]
    joined = ", ".join(text.replace(" ", "\xa0") for text in short)  # broken between values alone
    for text in filter(None, [joined, *long]):
        yield from ((line.replace("\xa0", " "), "") for line in _wrap(text, width, "  "))


def print_json(value: Any) -> None:
    echo(json.dumps(value, indent=1))


def show_report(report: Report, as_json: bool) -> None:
    """Print the method tables, what was found, and where the report is."""
    if as_json:
        print_json(report.to_json())
        return
    print_methods(report.rows, report.faults, report.metrics)
    words = (*report.findings, *report.remarks, *report.race, *report.verdict, *report.forgotten)
    words += report.power
    for line in words:
        echo(line)
    counts = f"{report.done} of {report.cells} runs done"
    counts += f", {report.failed} failed" if report.failed else ""
    counts += f", {report.missing} missing" if report.missing else ""
    echo(f"{report.study}: {counts}\n\nreport: {report.html}")


def print_methods(
    rows: Sequence[MethodRow], faults: Sequence[str], metrics: Sequence[Metric]
) -> None:
    """Print a table of methods for each pair, under a banner where faults are on."""
    from potstill.report.tables.methods import faults_line, spare, terminal

    echo(faults_line(faults), end="")
    for pair in dict.fromkeys(row.pair for row in rows):
        echo(pair)
        shown = terminal([row for row in rows if row.pair == pair], metrics)
        print_table(shown, spare=spare(metrics))
        echo()
