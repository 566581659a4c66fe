"""The tables of a comparison of studies: columns for the page, and Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from potstill.report.compare import Comparison
from potstill.report.formatting import visible
from potstill.report.tables.column import DIFFERENCE, Column, Format, markdown
from potstill.report.tables.methods import COLUMNS, GAIN

BY_KEY = {column.key: column for column in COLUMNS}


def levels(comparison: Comparison, title: str = "{}") -> list[Column]:
    """Accuracy in each study."""
    return [_of_side(i, "accuracy", title) for i in range(len(comparison.sides))]


def differences(comparison: Comparison, style: Format = DIFFERENCE) -> list[Column]:
    """Accuracy in each other study minus that in the first."""

    def value(i: int) -> Callable[[Any], Any]:
        return lambda entry: entry.differences[i]

    first, *others = (side.letter for side in comparison.sides)
    return [
        Column(f"difference_{letter}", f"{letter} − {first}", value(i), style)
        for i, letter in enumerate(others, 1)
    ]


def columns(comparison: Comparison) -> list[Column]:
    """All columns of the page's table: rows are `Compared`."""
    n = range(len(comparison.sides))
    costs = [
        _of_side(i, key, f"{{}} {BY_KEY[key].title}") for key in ("tokens", "seconds") for i in n
    ]
    return [*levels(comparison, "{} %"), *differences(comparison), *costs]


def _of_side(i: int, key: str, title: str) -> Column:
    """A column of the results table, in study i."""
    column, letter = BY_KEY[key], "ABCDEFGH"[i]

    def value(entry: Any) -> Any:
        return column.value(entry.rows[i]) if entry.rows[i] else None

    return replace(column, key=f"{key}_{letter}", title=title.format(letter), value=value, unit="")


def to_markdown(comparison: Comparison) -> str:
    """The studies, and a table a pair: accuracy in per cent, differences in points."""
    lines = [f"- {s.letter}: `{s.label.replace('`', ' ')}`\n" for s in comparison.sides]
    shown = [*levels(comparison), *differences(comparison, GAIN)]
    for pair in comparison.pairs:
        rows = [
            [f"`{entry.method}`", *(str(column.show(entry)) for column in shown)]
            for entry in comparison.entries
            if entry.pair == pair
        ]
        lines += ["\n", markdown([pair, *(column.title for column in shown)], rows), "\n"]
        lines += [f"- {words}\n" for words in comparison.pairing[pair]]
    if comparison.settings:
        heads = ["setting", *(side.letter for side in comparison.sides)]
        rows = [[visible(text, 60) for text in row] for row in comparison.settings]
        lines += ["\nSettings that differ:\n\n", markdown(heads, rows, texts=len(heads))]
    return "".join(lines)
