"""A comparison of studies as text: Markdown for people to paste, a record for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from potstill.report.compare import Comparison
from potstill.report.numbers import per_cent, signed
from potstill.report.stats import Difference, Row
from potstill.report.texts import visible


def to_markdown(told: Comparison) -> str:
    """What is compared, and a table a pair: accuracy in per cent, differences in points."""
    lines = [f"- {s.letter}: `{s.label.replace('`', ' ')}`" for s in told.sides]
    for pair in told.pairs:
        lines += ["", *_markdown_table(told, pair), ""]
        lines += [f"- {words}" for words in told.pairing[pair]]
    if told.settings:
        lines += ["", "Settings that differ:", ""]
        heads = ["setting", *(s.letter for s in told.sides)]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in told.settings]
    return "\n".join(lines) + "\n"


def _markdown_table(told: Comparison, pair: str) -> list[str]:
    first = told.sides[0].letter
    heads = [pair, *(s.letter for s in told.sides)]
    heads += [f"{s.letter} − {first}" for s in told.sides[1:]]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for entry in told.entries:
        if entry.pair == pair:
            cells = [_accuracy(row) for row in entry.rows]
            cells += [_points(value) for value in entry.differences[1:]]
            lines.append(f"| `{entry.method}` | {' | '.join(cells)} |")
    return lines


def _accuracy(row: Row | None) -> str:
    if row is None or row.accuracy is None:
        return ""
    low, high = per_cent(row.accuracy.low), per_cent(row.accuracy.high)
    return per_cent(row.accuracy.mean) + (f" ({low} to {high})" if low else "")


def _points(value: Difference | None) -> str:
    if value is None:
        return ""
    low, high = (signed(v) if per_cent(v) else "" for v in (value.low, value.high))
    return signed(value.mean) + (f" ({low} to {high})" if low else "")


def _cell(text: str) -> str:
    return visible(text, 60).replace("|", "\\|").replace("\n", " ")


def to_record(told: Comparison) -> dict[str, Any]:
    """The same for a program; shares in [0, 1]."""
    studies = [
        {
            "letter": s.letter,
            "label": s.label,
            "study": s.data.study.name,
            "faults": list(s.data.study.faults),
        }
        for s in told.sides
    ]
    return {
        "studies": studies,
        "entries": [asdict(entry) for entry in told.entries],
        "pairing": {pair: list(words) for pair, words in told.pairing.items()},
        "settings": [list(row) for row in told.settings],
        "left": list(told.left),
    }
