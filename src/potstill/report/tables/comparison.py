"""The tables of a comparison of studies: columns for the page, and Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from potstill.report.compare import LETTERS, Comparison
from potstill.report.formatting import visible
from potstill.report.tables.column import DIFFERENCE, GAIN, Column, Format, markdown
from potstill.report.tables.methods import COLUMNS


def levels(comparison: Comparison, title: str = "{}") -> list[Column]:
    """Accuracy in each study."""
    return [_of_study(i, "accuracy", title) for i in range(len(comparison.sides))]


def differences(comparison: Comparison, style: Format = DIFFERENCE) -> list[Column]:
    """Accuracy in each other study minus that in the first."""

    def column(i: int) -> Column:
        title = f"{LETTERS[i]} − {LETTERS[0]}"
        return Column(title, title, style, value=lambda entry: entry.differences[i])

    return [column(i) for i in range(1, len(comparison.sides))]


def columns(comparison: Comparison) -> list[Column]:
    """All columns of the page's table: rows are `Compared`."""
    studies, costs = range(len(comparison.sides)), {"tokens": "{} tokens", "seconds": "{} time"}
    spent = [_of_study(i, key, title) for key, title in costs.items() for i in studies]
    return [*levels(comparison, "{} %"), *differences(comparison), *spent]


def _of_study(i: int, key: str, title: str) -> Column:
    """A column of the results table, in study i."""

    def value(entry: Any) -> Any:
        return COLUMNS[key].value(entry.rows[i]) if entry.rows[i] else None

    name = title.format(LETTERS[i])
    return replace(COLUMNS[key], key=name, title=name, value=value, unit="")


def to_markdown(comparison: Comparison) -> str:
    """The studies, and a table a pair: accuracy in per cent, differences in points."""
    lines = [f"- {s.letter}: `{s.label.replace('`', ' ')}`\n" for s in comparison.sides]
    shown = [*levels(comparison), *differences(comparison, GAIN)]
    for pair in comparison.pairs:
        rows = [
            [f"`{entry.method}`", *(x.format.write(x.value(entry)) for x in shown)]
            for entry in comparison.entries
            if entry.pair == pair
        ]
        lines += ["\n", markdown([pair, *(column.title for column in shown)], rows), "\n"]
        lines += [f"- {words}\n" for words in comparison.pairing[pair]]
    if comparison.settings:
        heads = ["setting", *LETTERS[: len(comparison.sides)]]
        rows = [[visible(text, 60) for text in row] for row in comparison.settings]
        lines += ["\nSettings that differ:\n\n", markdown(heads, rows, texts=len(heads))]
    return "".join(lines)
