"""Accuracy by the key that chooses among several teachers: what each teacher's problems gained.

A mean over all problems hides that the problems of a weak teacher stand still. It judges nothing,
and is empty for a pair with one teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.report.data import StudyData
from potstill.report.stats import Interval, interval, outcome_matrix


@dataclass(frozen=True)
class Route:
    """One value of the key and the teacher that reads its problems."""

    value: str  # empty: problems that have none under the key
    teacher: str
    problems: int  # held-out ones that are graded


@dataclass(frozen=True)
class Routes:
    """One pair whose teachers share the problems."""

    pair: str
    key: str
    values: tuple[Route, ...]
    rows: Mapping[str, Sequence[Interval | None]]  # method -> accuracy, in the order of `values`


def routes(data: StudyData, pair: str) -> Routes | None:
    """A pair with several teachers and a finished run; None for any other."""
    models = data.study.models[pair]
    done = {
        row.method: [r.record for r in data.of(pair, row.method) if r.status == "done"]
        for row in data.rows
        if row.pair == pair
    }
    known = [record for records in done.values() for record in records if record.get("routes")]
    if not models.route or not known:
        return None
    of = np.array(known[0]["routes"])
    values = tuple(
        Route(value, models.teachers.get(value, models.teacher), count)
        for value, count in Counter(of.tolist()).most_common()
    )
    rows = {
        method: [_accuracy(records, of == one.value) for one in values]
        for method, records in done.items()
    }
    return Routes(pair, models.route, values, rows)


def _accuracy(records: Sequence[Mapping[str, object]], mine: np.ndarray) -> Interval | None:
    return interval(outcome_matrix(records)[:, mine]) if records else None


def to_markdown(found: Iterable[Routes | None]) -> str:
    """A table a pair: accuracy in per cent with its interval."""
    tables = []
    for one in filter(None, found):
        names = [(v.value or f"no {one.key}").replace("|", "\\|") for v in one.values]
        heads = [f"{n} ({v.problems} problems)" for n, v in zip(names, one.values, strict=True)]
        lines = [
            f"| {one.pair}, by {one.key} | {' | '.join(heads)} |",
            "|---|" + "--:|" * len(heads),
        ]
        for method, cells in one.rows.items():
            told = [
                f"{100 * c.mean:.1f} ({100 * c.low:.1f} to {100 * c.high:.1f})" if c else ""
                for c in cells
            ]
            lines.append(f"| `{method}` | {' | '.join(told)} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)
