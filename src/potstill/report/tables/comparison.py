"""The tables of a comparison of studies: columns for the page, and Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from potstill.report.compare import LETTERS, Comparison
from potstill.report.formatting import visible
from potstill.report.tables import column as c
from potstill.report.tables.column import Column, Format, markdown
from potstill.report.tables.methods import common


def levels(comparison: Comparison, title: str = "{}") -> list[Column]:
    """The result in each study."""
    name = comparison.metric.name
    return [_of_study(comparison, i, name, title) for i in range(len(comparison.sides))]


def differences(comparison: Comparison, style: Format) -> list[Column]:
    """The result in each other study minus that in the first."""

    def column(i: int) -> Column:
        title = f"{LETTERS[i]} − {LETTERS[0]}"
        return Column(title, title, style, value=lambda entry: entry.differences[i])

    return [column(i) for i in range(1, len(comparison.sides))]


def columns(comparison: Comparison) -> list[Column]:
    """All columns of the page's table: rows are `Compared`."""
    studies, costs = range(len(comparison.sides)), {"tokens": "{} tokens", "seconds": "{} time"}
    spent = [_of_study(comparison, i, key, title) for key, title in costs.items() for i in studies]
    metric = comparison.metric
    known = levels(comparison, "{} %" if metric.share else "{}")
    return [*known, *differences(comparison, c.difference(metric)), *spent]


def _of_study(comparison: Comparison, i: int, key: str, title: str) -> Column:
    """A column of the results table, in study i."""
    column = common([comparison.metric])[key]

    def value(entry: Any) -> Any:
        return column.value(entry.rows[i]) if entry.rows[i] else None

    name = title.format(LETTERS[i])
    return replace(column, key=name, title=name, value=value, unit="")


def to_markdown(comparison: Comparison) -> str:
    """The studies, and a table a pair: results and differences, with their intervals."""
    lines = [f"- {s.letter}: `{s.label.replace('`', ' ')}`\n" for s in comparison.sides]
    metric = comparison.metric
    shown = [*levels(comparison), *differences(comparison, c.gain(metric))]
    title = "" if metric.share else f", {metric.title}"
    for pair in comparison.pairs:
        rows = [
            [f"`{entry.method}`", *(x.format.write(x.value(entry)) for x in shown)]
            for entry in comparison.entries
            if entry.pair == pair
        ]
        lines += [
            "\n",
            markdown([f"{pair}{title}", *(column.title for column in shown)], rows),
            "\n",
        ]
        lines += [f"- {words}\n" for words in comparison.pairing[pair]]
    if comparison.settings:
        heads = ["setting", *LETTERS[: len(comparison.sides)]]
        rows = [[visible(text, 60) for text in row] for row in comparison.settings]
        lines += ["\nSettings that differ:\n\n", markdown(heads, rows, texts=len(heads))]
    return "".join(lines)
