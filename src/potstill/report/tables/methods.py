"""The results table: its columns, and which of them each reader gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter
from typing import Any

from potstill.report import formatting
from potstill.report.costs import costs
from potstill.report.data import RunData, StudyData
from potstill.report.formatting import visible
from potstill.report.published import column as published_column
from potstill.report.results import BASELINE, Row
from potstill.report.similarity import last
from potstill.report.tables import column as c
from potstill.report.tables.column import Column, Format
from potstill.stats.comparisons import Interval
from potstill.stats.metric import ACCURACY, FLEXIBLE, Metric
from potstill.study.storage import REFERENCES

PUBLISHED = Format(c.SHARE.text, css=lambda value: "num published")
BAD = {True: "status bad", False: "status"}
STATUS = Format(key=lambda text: text.split()[0], css=lambda text: BAD["failed" in (text or "")])
TESTED = "points, corrected p"
VS_BASELINE, VS_UNTRAINED = attrgetter("against_baseline"), attrgetter("against_untrained")
NEW = "95 % intervals for new seeds and new problems; of untrained, teacher and single seeds, for \
new problems alone."
PAIRED = "Differences paired by problem. p is two-sided and corrected over all pairs of methods \
and the untrained student (max-t). ▲ and ▼ mark significant differences: three seeds or more, the \
interval excludes zero, and p < 0.05."
EQUAL = f"The same when the run had used the total tokens of {BASELINE}, interpolated between its \
evaluations; a run that uses fewer is taken at its end."
UNTRAINED = "The same against the untrained student."
CLOSED = "(method − untrained) / (teacher − untrained)."
KL = "KL(student, teacher) on the student's own tokens at the last probe, mean over finished runs."


def seeds_done(row: Row) -> str:
    """How many of a method's runs are done; untrained and teacher have one run without a seed."""
    failed, missing = len(row.failed), row.missing
    if row.method in REFERENCES:
        return "failed" if failed else "missing" if missing else "done"
    parts = [f"{len(row.seeds)} of {len(row.seeds) + failed + missing}"]
    parts += [f"{failed} failed"] * bool(failed) + [f"{missing} missing"] * bool(missing)
    return ", ".join(parts)


def _causes(row: Row) -> str:
    return "; ".join(visible(cause, 120) for cause in row.failed[:2])


Measured = Sequence[Metric]  # the one that methods are compared by first
DEFAULT = (ACCURACY, FLEXIBLE)


def common(measured: Measured = DEFAULT) -> dict[str, Column]:
    """The columns that every study has, by key, without those of its other metrics."""
    metric = measured[0]
    unit = "strict" if metric.share else metric.unit
    tested = f"{metric.points}, corrected p"
    level = Format(partial(formatting.level, metric=metric))
    equal = "at equal tokens %" if metric.share else "at equal tokens"
    compared = c.difference(metric)
    known = (
        Column("pair", "pair"),
        Column("method", "method"),
        Column("seeds", "seeds", value=lambda row: len(row.seeds)),
        Column("failed", "failed", value=lambda row: len(row.failed)),
        Column("missing", "missing"),
        Column(
            metric.name,
            metric.title,
            c.interval(metric),
            f"{unit}, 95 % interval",
            f"{metric.help} {NEW}",
            attrgetter("level"),
        ),
        Column("vs_baseline", f"vs {BASELINE}", compared, tested, PAIRED, VS_BASELINE),
        Column("vs_untrained", "vs untrained", compared, tested, UNTRAINED, VS_UNTRAINED),
        Column("gap_closed", "gap closed %", c.SHARE, help=CLOSED),
        Column("equal_tokens", equal, level, help=EQUAL),
        Column("tokens", "tokens", c.COUNT, "a run"),
        Column("seconds", "time", c.DURATION, "a run"),
        Column("status", "seeds done", STATUS, value=seeds_done, detail=_causes),
    )
    others = [_other(metric) for metric in measured[1:]]
    return {column.key: column for column in (*known, *others)}


def _other(metric: Metric) -> Column:
    """A metric other than the first: its mean, of pass@k with its interval."""
    passed = metric.key.startswith("pass@")
    unit = "95 % interval" if passed else "" if metric.share else metric.unit
    style = c.interval(metric, small=passed)
    return Column(
        metric.name, metric.title, style, unit, metric.help, lambda row: row.others.get(metric.name)
    )


COLUMNS = common()
SPENT = ("equal_tokens", "tokens", "seconds")
VERSUS = ("vs_baseline", "vs_untrained", "gap_closed")
GRID = ("pair", "method", "seeds", "failed", "missing")


def names(measured: Measured) -> tuple[str, ...]:
    """The keys of the metrics' columns."""
    return tuple(metric.name for metric in measured)


def csv_keys(measured: Measured) -> tuple[str, ...]:
    """The columns of table.csv."""
    return (*GRID, *names(measured), *VERSUS, *SPENT, "published")


def page_keys(measured: Measured) -> tuple[str, ...]:
    """The columns of the page."""
    first, *others = names(measured)
    return (first, *VERSUS, "probe_kl", *SPENT, "usd", *others, "status", "published")


def terminal_keys(measured: Measured) -> tuple[str, ...]:
    """The columns of a terminal."""
    first, *others = names(measured)
    last = ("gap_closed", *others, "tokens", "equal_tokens")
    return ("method", first, "vs_baseline", "status", *last)


def spare(measured: Measured) -> list[str]:
    """Titles of columns in the order in which a narrow terminal goes without them."""
    known, (_, *others) = common(measured), names(measured)
    keys = (*others, "equal_tokens", "tokens", "gap_closed", "status", "vs_baseline")
    return [known[key].title for key in keys]


def columns(data: StudyData) -> dict[str, Column]:
    """Every column that the study has, by key: the common ones, and those beyond the rows."""
    usd = {(p, r.method): r.usd for p in data.study.models for r in costs(data, p)}
    more = []
    if data.metric.share:  # otherwise the KL on held-out prompts is there
        kl = {p: _kl(data, p) for p in data.study.models}
        last_kl = Column("probe_kl", "KL to teacher", c.NATS, "nats a token", KL)
        more.append(replace(last_kl, value=lambda row: kl[row.pair].get(row.method)))
    if any(value is not None for value in usd.values()):
        price = Column("usd", "USD", c.USD, "a run", value=lambda r: usd.get((r.pair, r.method)))
        more.append(price)
    if data.study.published and data.metric.share:
        value = partial(published, data)
        more.append(Column("published", "published %", PUBLISHED, "other models", value=value))
    known = common(data.metrics)
    if not any(pair.teacher for pair in data.study.models.values()):
        del known["gap_closed"]
    return known | {column.key: column for column in more}


def chosen(columns: Mapping[str, Column], keys: Iterable[str]) -> list[Column]:
    """The columns of these keys that the study has."""
    return [columns[key] for key in keys if key in columns]


def published(data: StudyData, row: Row) -> float | None:
    """The published accuracy of the same method on a pair of the same family."""
    column = published_column(data.study, row.pair)
    return column.accuracy.get(row.method) if column else None


def _kl(data: StudyData, pair: str) -> dict[str, Interval]:
    return last({m: data.of(pair, m, "done") for m in data.recipes}, "train/kl_divergence")


def to_records(data: StudyData) -> list[dict[str, Any]]:
    """One record a method and pair, those of table.csv: shares in [0, 1]."""
    return c.records(chosen(columns(data), csv_keys(data.metrics)), data.rows)


def to_results(data: StudyData) -> dict[str, Any]:
    """The contents of results.json: one record a run of the grid, and the table."""
    show = bool(data.study.published)
    extra = [{"published": published(data, row)} if show else {} for row in data.rows]
    return {
        "study": data.study.name,
        "faults": list(data.study.faults),
        "metric": {key: getattr(data.metric, key) for key in ("name", "unit", "higher_is_better")},
        "cells": [_run(run, data.metrics) for run in data.runs.values()],
        "table": [
            row_record(row, data.metrics) | more for row, more in zip(data.rows, extra, strict=True)
        ],
    }


def row_record(row: Row, measured: Measured) -> dict[str, Any]:
    """A row for programs: the metrics by their names."""
    values = asdict(row)
    levels = {measured[0].name: values.pop("level")}
    others = values.pop("others")
    return values | levels | {name: others.get(name) for name in names(measured[1:])}


def _run(run: RunData, measured: Measured) -> dict[str, Any]:
    record, cell = run.record, run.cell
    return asdict(cell) | {
        "status": run.status,
        "cause": run.cause or None,
        "steps": run.steps,
        **{key: record.get(key) for key in ("accuracy", "flexible", "ended", "seconds")},
        **{m.name: m.of(record) for m in measured if m.key not in ("strict", "flexible")},
        **{key: record.get(key) or {} for key in ("tokens", "activity")},
        **({"token_sources": known} if (known := record.get("token_sources")) else {}),
        "findings": record.get("findings") or [],
    }


def to_markdown(rows: Sequence[Row], measured: Measured = DEFAULT) -> str:
    """One table for all pairs, to paste: each metric with its interval, and the gain over
    `untrained`."""
    level, gain = c.interval(measured[0]), c.gain(measured[0])
    others = [metric for metric in measured[1:] if metric.key != FLEXIBLE.key]
    pairs = list(dict.fromkeys(row.pair for row in rows))
    by_name = {(row.pair, row.method): row for row in rows}
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        line = [f"`{method}`"]
        for row in (by_name.get((pair, method)) for pair in pairs):
            known = row if row and row.level else None
            line += [level.write(known and known.level)]
            line += [gain.write(known and known.against_untrained)]
            line += [c.interval(m).write(known and known.others.get(m.name)) for m in others]
        lines.append(line)
    title = "" if measured[0] is ACCURACY else f", {measured[0].title}"
    heads = [(f"{pair}{title}", "gain", *(m.title for m in others)) for pair in pairs]
    return c.markdown(["method", *(head for pair in heads for head in pair)], lines)


def terminal(rows: Sequence[Row], measured: Measured = DEFAULT) -> list[dict[str, str]]:
    """The rows of one pair for a terminal: titles and texts, without the causes of failures."""
    shown = chosen(common(measured), terminal_keys(measured))
    return [{x.title: x.format.write(x.value(row)) for x in shown} for row in rows]


def faults_line(faults: Sequence[str]) -> str:
    """A warning at the top of a study with faults on; empty where there are none."""
    return f"FAULTS ARE ON IN THIS STUDY: {', '.join(faults)}\n" if faults else ""
