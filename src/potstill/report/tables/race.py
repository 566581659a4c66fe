"""The table of the methods that a race dropped."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.report.formatting import signed
from potstill.report.race import DropRow, RaceSection, reason
from potstill.report.tables import column as c
from potstill.report.tables.column import Column, Format

POINTS = Format(signed)
DROPS = (
    Column("look", "dropped at"),
    Column("reason", "because", value=lambda row: row.drop.reason),
    Column("mean", "accuracy %", c.SHARE, value=lambda row: row.drop.mean),
    Column("against", "compared with", value=lambda row: row.drop.against or None),
    Column("difference", "difference", POINTS, "points", value=lambda row: row.drop.difference),
    Column("upper", "upper bound", POINTS, "points", value=lambda row: row.drop.upper),
    Column("cause", "cause", value=lambda row: row.drop.cause or None),
)


def drops(section: RaceSection) -> tuple[list[Column], Sequence[DropRow]]:
    """A row for each method that was dropped."""
    return c.filled(DROPS, section.dropped), section.dropped


def markdown(sections: Sequence[RaceSection]) -> str:
    """The dropped methods of all pairs, and the outcome of each race, to paste."""
    rows = [
        [f"`{row.method}`", one.course.pair, row.look, reason(row.drop)]
        for one in sections
        for row in one.dropped
    ]
    table = c.markdown(["method", "pair", "dropped at", "because"], rows, texts=4) if rows else ""
    lines = [f"- {one.course.pair}: {text}" for one in sections for text in (one.head, *one.lines)]
    return "\n".join(filter(None, [table, "\n".join(lines)]))
