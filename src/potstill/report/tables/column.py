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
from functools import partial
from typing import Any

from potstill.report import formatting
from potstill.report.formatting import finite
from potstill.stats.comparisons import direction
from potstill.stats.metric import ACCURACY, Metric


@dataclass(frozen=True)
class Field:
    """One field as people see it."""

    text: str = ""
    detail: str = ""  # the small print: an interval, a p-value
    sort: str = ""  # what the page sorts by and writes to CSV
    css: str = ""
    bar: str = ""  # per cent of the field that the page shades


@dataclass(frozen=True)
class Format:
    """The written form of values of one kind."""

    text: Callable[[Any], str] = str
    detail: Callable[[Any], str] = lambda value: ""
    parts: Mapping[str, str] = field(default_factory=dict)  # end of the CSV name -> attribute
    key: Callable[[Any], Any] = lambda value: value  # what to sort by
    css: Callable[[Any], str] = lambda value: "num"
    bar: bool = False  # the value is a share, and the page shades as much of the field

    def write(self, value: Any) -> str:
        """The value with its small print in brackets."""
        if value is None:
            return ""
        detail = self.detail(value)
        return f"{self.text(value)} ({detail})" if detail else self.text(value)


def _mean(write: Callable[[float], str]) -> Callable[[Any], str]:
    return lambda value: write(value.mean)


def _ends(value: Any) -> str:
    return f"{value.low:.3f} to {value.high:.3f}" if finite(value.low) else ""


ENDS = {"": "mean", "_low": "low", "_high": "high"}
TESTED = {**ENDS, "_p": "p"}


def interval(metric: Metric = ACCURACY, *, small: bool = True) -> Format:
    """An interval of a metric; without small print its mean alone."""
    detail = partial(formatting.detail, metric=metric) if small else lambda value: ""
    css = (lambda v: "num level" if v else "num") if small else (lambda v: "num")
    return Format(_mean(partial(formatting.level, metric=metric)), detail, ENDS, _by_mean, css)


def difference(metric: Metric = ACCURACY) -> Format:
    """A difference of a metric, marked where it is significant: above or below, better or worse."""

    def css(value: Any) -> str:
        mark = {1: " up", 0: "", -1: " down"}[direction(value)]
        return f"num{mark}{' reverse' if mark and not metric.higher_is_better else ''}"

    write = _mean(partial(formatting.change, metric=metric))
    return Format(write, partial(formatting.detail, metric=metric), TESTED, _by_mean, css)


def gain(metric: Metric = ACCURACY) -> Format:
    """A difference with its interval alone."""
    write = _mean(partial(formatting.change, metric=metric))
    return Format(write, partial(formatting.span, metric=metric))


def _by_mean(value: Any) -> float:
    return float(value.mean)


INTERVAL, MEAN, DIFFERENCE, GAIN = interval(), interval(small=False), difference(), gain()
SHARE, COUNT = Format(formatting.per_cent), Format(formatting.count)
DURATION, USD = Format(formatting.duration), Format(formatting.dollars)
NATS = Format(_mean("{:.3f}".format), _ends, ENDS, _by_mean)
TEXT = Format(css=lambda value: "")


@dataclass(frozen=True)
class Column:
    """One column."""

    key: str  # the name in CSV and JSON, and the row's attribute unless `value` reads another
    title: str
    format: Format = TEXT
    unit: str = ""  # small, under the title
    help: str = ""  # how to read it
    value: Callable[[Any], Any] = None  # type: ignore[assignment]
    detail: Callable[[Any], str] | None = None  # small print from the row, not from the value

    def __post_init__(self) -> None:
        if self.value is None:
            object.__setattr__(self, "value", lambda row: getattr(row, self.key))

    @property
    def css(self) -> str:
        """Of the heading."""
        return self.format.css(None)

    def show(self, row: Any) -> Field:
        """A row's field as people see it."""
        value, style = self.value(row), self.format
        if value is None:
            return Field(css="num none" if style.parts else self.css)
        detail, key = (self.detail or (lambda _: style.detail(value)))(row), style.key(value)
        sort = f"{key:.8g}" if finite(key) else key if isinstance(key, str) else ""
        bar = f"{100 * value:.1f}" if style.bar else ""
        return Field(style.text(value), detail, sort, style.css(value), bar)

    def record(self, row: Any) -> dict[str, Any]:
        """A row's fields for programs; None where nothing is known."""
        value = self.value(row)
        ends = {end: getattr(value, part, None) for end, part in self.format.parts.items()}
        known = {f"{self.key}{end}": x if finite(x) else None for end, x in ends.items()}
        return known or {self.key: value}


def filled(columns: Iterable[Column], rows: Sequence[Any]) -> list[Column]:
    """The columns in which some row has a value."""
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def records(columns: Sequence[Column], rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Each row as names and values, for programs."""
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
