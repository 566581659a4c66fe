"""The page's smaller tables (costs, token kinds, time, teachers) and the Markdown of some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.costs import CostRow, Profile, off, sourced
from potstill.report.costs import costs as costs_of
from potstill.report.data import StudyData
from potstill.report.forgotten import DRIFT, Retention, retentions
from potstill.report.formatting import count, duration, per_cent, plural, ranged, visible
from potstill.report.routes import Routes
from potstill.report.similarity import Similarity
from potstill.report.tables import column as c
from potstill.report.tables.column import Column, Format
from potstill.stats.comparisons import Difference, Interval
from potstill.training.spending import Spent

BYTES = Format(lambda value: f"{count(value)}B")
WROTE = {"student": "the student's", "teacher": "the teacher's", "file": "of the data's files"}
PART = Format(lambda share: f"{per_cent(share)} %", bar=True)


def costs(rows: Sequence[CostRow]) -> list[Column]:
    """Means of a run, with how far pre-flight's prediction was off."""
    columns = [
        Column("runs", "runs", Format()),
        _cost("time", "a run", c.DURATION, lambda spent: spent.seconds),
        Column("saved", "saved", c.DURATION, "of it by the cache"),
        _cost("tokens", "a run, without evaluations", c.COUNT, Spent.count),
        Column("device_seconds", "device time", c.DURATION, "a run"),
        Column("flops", "operations", c.COUNT, "a run", value=lambda row: row.spent.flops),
        Column("flops_per_point", "operations", c.COUNT, "a point gained"),
        Column("peak_bytes", "memory", BYTES),
        Column("usd", "USD", c.USD, "a run", detail=_error(lambda r: (r.predicted_usd, r.usd))),
        Column("usd_per_point", "USD", c.USD, "a point gained"),
    ]
    return c.filled(columns, rows)


def _cost(title: str, unit: str, style: Format, amount: Callable[[Spent], float]) -> Column:
    error = _error(lambda row: (row.predicted and amount(row.predicted), amount(row.spent)))
    return Column(title, title, style, unit, value=lambda row: amount(row.spent), detail=error)


def _error(both: Callable[[CostRow], tuple[Any, Any]]) -> Callable[[CostRow], str]:
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
        return Column(name, title, c.COUNT, value=lambda r: r.kinds[name].tokens, detail=flops)

    return [column(name) for name in rows[0].kinds] if rows else []


def sources(rows: Sequence[CostRow]) -> list[Column]:
    """Tokens that a run trained on, by who wrote them; empty where one model wrote all."""

    def column(name: str) -> Column:
        return Column(name, WROTE[name], c.COUNT, value=lambda row: row.sources.get(name))

    return [column(name) for name in sourced(rows)]


def sources_markdown(pairs: Mapping[str, Sequence[CostRow]]) -> str:
    """A table a pair: tokens that a run trained on, by who wrote them."""
    tables = []
    for pair, rows in pairs.items():
        if columns := sources(rows):
            heads = [f"{pair}, tokens trained on", *(column.title for column in columns)]
            lines = [
                [f"`{r.method}`", *(x.format.write(x.value(r)) for x in columns)] for r in rows
            ]
            tables.append(c.markdown(heads, lines))
    return "\n".join(tables)


@dataclass(frozen=True)
class RetentionRow:
    """One model's results on all benchmarks."""

    method: str
    levels: Sequence[Interval | None]
    changes: Sequence[Difference | None]


def forgotten(known: Sequence[Retention]) -> tuple[list[Column], list[RetentionRow]]:
    """Benchmarks on trained students: columns, and a row for the untrained one and each method."""

    def columns(i: int) -> list[Column]:
        one = known[i]
        metric, number = (
            one.metric,
            plural(one.documents, "piece" if one.metric.key == DRIFT else "document"),
        )
        unit = f"{number}{'' if metric.share else f', {metric.unit}'}"
        title = f"{metric.label}{' %' if metric.share else ''}"
        level, change = c.interval(metric), c.difference(metric)
        gain = f"{metric.points}, corrected p"
        return [
            Column(title, title, level, unit, value=lambda row: row.levels[i]),
            Column(f"{i}", "trained − untrained", change, gain, value=lambda row: row.changes[i]),
        ]

    methods = dict.fromkeys(method for one in known for method in one.changes)
    first = RetentionRow("untrained", [one.untrained for one in known], [None] * len(known))
    rows = [
        RetentionRow(m, [x.levels.get(m) for x in known], [x.changes.get(m) for x in known])
        for m in methods
    ]
    return [column for i in range(len(known)) for column in columns(i)], [first, *rows]


def forgotten_markdown(pairs: Mapping[str, Sequence[Retention]]) -> str:
    """A table a pair: each benchmark, and the change to the untrained student."""
    tables = []
    for pair, known in pairs.items():
        if known:
            columns, rows = forgotten(known)
            lines = [
                [f"`{r.method}`", *(x.format.write(x.value(r)) for x in columns)] for r in rows
            ]
            heads = [f"{pair}, forgotten", *(column.title for column in columns)]
            tables.append(c.markdown(heads, lines))
    return "\n".join(tables)


def times(rows: Sequence[Profile]) -> list[Column]:
    """Seconds of a run, and the share of each activity."""

    def column(name: str) -> Column:
        def seconds(row: Profile) -> str:
            return duration(row.activities[name])

        return Column(name, name, PART, value=lambda row: row.share(name), detail=seconds)

    total = Column("seconds", "seconds", c.DURATION)
    return [total, *(column(name) for name in rows[0].activities)] if rows else []


@dataclass(frozen=True)
class RouteRow:
    """One method's results by teacher."""

    method: str
    levels: Sequence[Interval | None]


def teachers(routes: Routes, named: Callable[[str], str]) -> tuple[list[Column], list[RouteRow]]:
    """Results on the problems that each teacher reads: the columns and the rows."""
    style = c.interval(routes.metric)

    def column(i: int) -> Column:
        route = routes.values[i]
        unit = f"{plural(route.problems, 'problem')}, {visible(named(route.teacher), 80)}"
        title = visible(route.value or "none", 60)
        return Column(title, title, style, unit, value=lambda row: row.levels[i])

    rows = [RouteRow(method, levels) for method, levels in routes.rows.items()]
    return [column(i) for i in range(len(routes.values))], rows


def routes_markdown(pairs: Iterable[Routes | None]) -> str:
    """A table a pair: results by teacher with their intervals."""
    tables = []
    for routes in filter(None, pairs):
        heads = [f"{v.value or f'no {routes.key}'} ({v.problems} problems)" for v in routes.values]
        write = c.interval(routes.metric).write
        rows = [[f"`{m}`", *map(write, levels)] for m, levels in routes.rows.items()]
        tables.append(c.markdown([f"{routes.pair}, by {routes.key}", *heads], rows))
    return "\n".join(tables)


def similarity_markdown(rows: Sequence[Similarity]) -> str:
    """Text and capability next to each other, with 95 % intervals or ranges over runs."""
    heads = ["pair", "method", "strict %", "flexible %", "gain, flexible"]
    heads += ["score", "KL", "format %"]
    lines = []
    for one in rows:
        levels = [c.INTERVAL.write(one.strict), c.INTERVAL.write(one.flexible)]
        ranges = [ranged(one.score, 2), ranged(one.kl, 3), ranged(one.format, 1, 100)]
        lines.append([one.pair, f"`{one.method}`", *levels, c.GAIN.write(one.gain), *ranges])
    return c.markdown(heads, lines, texts=2) if rows else ""


def elsewhere(data: StudyData) -> Iterator[str]:
    """In Markdown: what was forgotten, and the tokens trained on by who wrote them."""
    pairs = list(data.study.models)
    yield forgotten_markdown({pair: retentions(data, pair) for pair in pairs})
    yield sources_markdown({pair: costs_of(data, pair) for pair in pairs})
