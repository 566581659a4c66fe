"""The page's smaller tables (costs, token kinds, time, teachers) and the Markdown of some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.costs import CostRow, off
from potstill.report.formatting import count, duration, per_cent, plural, visible
from potstill.report.profile import Profile
from potstill.report.routes import Routes
from potstill.report.similarity import Similarity
from potstill.report.stats import Interval
from potstill.report.tables.column import (
    COUNT,
    DURATION,
    INTERVAL,
    USD,
    Column,
    Format,
    markdown,
    ranges,
)
from potstill.report.tables.methods import GAIN

Amount = Callable[[Any], float | None]
RUNS = Format(key=lambda value: value)
BYTES = Format(lambda value: f"{count(value)}B")


def costs(rows: Sequence[CostRow]) -> list[Column]:
    """Means of a run, with how far pre-flight's prediction was off."""
    columns = [
        Column("runs", "runs", lambda row: row.runs, RUNS),
        _cost("time", "a run", DURATION, lambda s: s.seconds),
        _cost("tokens", "a run, without evaluations", COUNT, lambda s: s.count()),
        Column("device", "device time", lambda row: row.device_seconds, DURATION, "a run"),
        Column("flops", "operations", lambda row: row.spent.flops, COUNT, "a run"),
        Column("gain", "operations", lambda r: r.flops_per_point, COUNT, "a point gained"),
        Column("memory", "memory", lambda row: row.peak_bytes, BYTES),
    ]
    if rows and rows[0].usd is not None:
        error = _error(lambda row: (row.predicted_usd, row.usd))
        columns += [Column("usd", "USD", lambda row: row.usd, USD, "a run", detail=error)]
        columns += [Column("point", "USD", lambda r: r.usd_per_point, USD, "a point gained")]
    return columns


def _cost(title: str, unit: str, style: Format, amount: Amount) -> Column:
    error = _error(lambda row: (row.predicted and amount(row.predicted), amount(row.spent)))
    return Column(title, title, lambda row: amount(row.spent), style, unit, detail=error)


def _error(both: Callable[[CostRow], Any]) -> Callable[[CostRow], str]:
    def error(row: CostRow) -> str:
        predicted, actual = both(row)
        return f"({off(predicted, actual)})" if predicted else ""

    return error


def token_kinds(rows: Sequence[CostRow]) -> list[Column]:
    """Tokens of a run by kind, with their operations."""

    def column(name: str) -> Column:
        def flops(row: CostRow) -> str:
            work = row.kinds[name].flops
            return f"{count(work)}FLOP" if work else ""

        title = "evaluation" if name == "graded" else name.replace("_", " ")
        return Column(name, title, lambda row: row.kinds[name].tokens, COUNT, detail=flops)

    return [column(name) for name in rows[0].kinds] if rows else []


def times(rows: Sequence[Profile]) -> list[Column]:
    """Seconds of a run, and the share of each activity."""

    def column(name: str) -> Column:
        style = Format(lambda share: f"{per_cent(share)} %", bar=True)
        return Column(
            name,
            name,
            lambda row: row.share(name),
            style,
            detail=lambda row: duration(row.activities[name]),
        )

    total = Column("seconds", "seconds", lambda row: row.seconds, DURATION)
    return [total, *(column(name) for name in rows[0].activities)] if rows else []


@dataclass(frozen=True)
class RouteRow:
    """One method's accuracy by teacher."""

    method: str
    accuracy: Sequence[Interval | None]


def teachers(routes: Routes, named: Callable[[str], str]) -> tuple[list[Column], list[RouteRow]]:
    """Accuracy on the problems that each teacher reads: the columns and the rows."""

    def column(i: int) -> Column:
        route = routes.values[i]
        unit = f"{plural(route.problems, 'problem')}, {visible(named(route.teacher), 80)}"
        title = visible(route.value or "none", 60)
        return Column(route.value, title, lambda row: row.accuracy[i], INTERVAL, unit)

    rows = [RouteRow(method, levels) for method, levels in routes.rows.items()]
    return [column(i) for i in range(len(routes.values))], rows


def routes_markdown(pairs: Iterable[Routes | None]) -> str:
    """A table a pair: accuracy by teacher in per cent with its interval."""
    tables = []
    for routes in filter(None, pairs):
        heads = [f"{v.value or f'no {routes.key}'} ({v.problems} problems)" for v in routes.values]
        rows = [[f"`{m}`", *map(INTERVAL.write, levels)] for m, levels in routes.rows.items()]
        tables.append(markdown([f"{routes.pair}, by {routes.key}", *heads], rows))
    return "\n".join(tables)


SIMILARITY = (
    Column("method", "method", lambda one: f"`{one.method}`"),
    Column("strict", "strict %", lambda one: one.strict, INTERVAL),
    Column("flexible", "flexible %", lambda one: one.flexible, INTERVAL),
    Column("gain", "gain, flexible", lambda one: one.gain, GAIN),
    Column("score", "score", lambda one: one.score, ranges(2)),
    Column("kl", "KL", lambda one: one.kl, ranges(3)),
    Column("format", "format %", lambda one: one.format, ranges(1, 100)),
)


def similarity_markdown(rows: Sequence[Similarity]) -> str:
    """Text and capability next to each other, with 95 % intervals or ranges over runs."""
    heads = ["pair", *(column.title for column in SIMILARITY)]
    body = [[one.pair, *(str(column.show(one)) for column in SIMILARITY)] for one in rows]
    return markdown(heads, body, texts=2) if rows else ""
