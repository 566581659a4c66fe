"""A column of a table, defined once for the page, Markdown, the terminal and CSV.

A column reads a value from a row and has a format; the functions here write any columns of any
rows. Shares are shares for programs and per cent for people. An unknown value is an empty field,
never 0. Nothing is computed here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.report import formatting
from potstill.report.formatting import finite
from potstill.report.significance import direction

SIDES = {1: "up", 0: "", -1: "down"}


@dataclass(frozen=True)
class Field:
    """One field as people see it."""

    text: str = ""
    detail: str = ""  # the small print: an interval, a p-value
    sort: str = ""  # what the page sorts by and writes to CSV
    css: str = ""
    bar: str = ""  # per cent of the field that the page shades

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Format:
    """How values of one kind are written."""

    text: Callable[[Any], str] = str
    detail: Callable[[Any], str] = lambda value: ""
    parts: Mapping[str, str] = field(
        default_factory=dict
    )  # end of the CSV column's name -> attribute
    key: Callable[[Any], Any] = lambda value: value  # what to sort by
    css: Callable[[Any], str] = lambda value: "num"
    bar: bool = False  # the value is a share, and the page shades as much of the field

    def write(self, value: Any) -> str:
        """The value with its small print in brackets."""
        if value is None:
            return ""
        detail = self.detail(value)
        return f"{self.text(value)} ({detail})" if detail else self.text(value)


ENDS = {"": "mean", "_low": "low", "_high": "high"}
TEXT = Format(css=lambda value: "")
SHARE = Format(formatting.per_cent)
COUNT = Format(formatting.count)
DURATION = Format(formatting.duration)
USD = Format(formatting.dollars)
NATS = Format(lambda value: f"{value:.3f}")
INTERVAL = Format(
    lambda value: formatting.per_cent(value.mean),
    formatting.detail,
    ENDS,
    lambda value: value.mean,
    lambda value: "num level" if value else "num",
)
DIFFERENCE = Format(
    lambda value: formatting.signed(value.mean),
    formatting.detail,
    {**ENDS, "_p": "p"},
    lambda value: value.mean,
    lambda value: f"num {SIDES[direction(value)]}",
)
MEAN = Format(INTERVAL.text, parts=ENDS, key=INTERVAL.key)  # an interval, by its mean alone


def ranges(digits: int, scale: float = 1.0) -> Format:
    """A mean over runs with their range."""
    return Format(lambda value: formatting.ranged(value, digits, scale), key=lambda value: value[0])


@dataclass(frozen=True)
class Column:
    """One column."""

    key: str  # the name in CSV and JSON
    title: str
    value: Callable[[Any], Any]  # reads it from a row; None where it is unknown
    format: Format = TEXT
    unit: str = ""  # small, under the title
    help: str = ""  # how to read it
    detail: Callable[[Any], str] | None = None  # small print from the row, not from the value

    @property
    def css(self) -> str:
        """Of the heading."""
        return self.format.css(None).strip()

    def show(self, row: Any) -> Field:
        """A row's field as people see it."""
        value = self.value(row)
        if value is None:
            return Field(css="num none" if self.format.parts else self.css)
        detail = self.detail(row) if self.detail else self.format.detail(value)
        key = self.format.key(value)
        sort = f"{key:.8g}" if finite(key) else key if isinstance(key, str) else ""
        bar = f"{100 * value:.1f}" if self.format.bar else ""
        return Field(self.format.text(value), detail, sort, self.format.css(value).strip(), bar)

    def record(self, row: Any) -> dict[str, Any]:
        """A row's fields for programs; None where nothing is known."""
        value = self.value(row)
        if not self.format.parts:
            return {self.key: value}
        ends = {end: getattr(value, part, None) for end, part in self.format.parts.items()}
        return {f"{self.key}{end}": x if finite(x) else None for end, x in ends.items()}


def filled(columns: Iterable[Column], rows: Sequence[Any]) -> list[Column]:
    """The columns in which some row has a value."""
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def records(columns: Iterable[Column], rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Each row as names and values, for programs."""
    columns = list(columns)
    return [{k: v for column in columns for k, v in column.record(row).items()} for row in rows]


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return file.getvalue()


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table: the first `texts` columns to the left, then numbers to the right.

    >>> print(markdown(["method", "%"], [["`a`", "50.0"]]), end="")
    | method | % |
    |---|--:|
    | `a` | 50.0 |
    """
    rule = "|---" * texts + "|--:" * (len(heads) - texts) + "|"
    first, *rest = (f"| {' | '.join(map(_escaped, line))} |" for line in (heads, *rows))
    return "\n".join([first, rule, *rest]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
