"""The results table: its columns, and which of them each reader gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from potstill.report.costs import costs
from potstill.report.data import RunData, StudyData
from potstill.report.formatting import finite, span, visible
from potstill.report.published import column as published_column
from potstill.report.results import BASELINE, Row
from potstill.report.stats import RESAMPLES
from potstill.report.tables.column import (
    COUNT,
    DIFFERENCE,
    DURATION,
    INTERVAL,
    MEAN,
    NATS,
    SHARE,
    USD,
    Column,
    Format,
    markdown,
    records,
)
from potstill.study.storage import REFERENCES

PUBLISHED = Format(SHARE.text, css=lambda value: "num published")


def _status(text: str | None) -> str:
    return "status bad" if text and "failed" in text else "status"


GAIN = Format(DIFFERENCE.text, span)
STATUS = Format(key=lambda text: text.split()[0], css=_status)


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(row, name)


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


COLUMNS = (
    Column("pair", "pair", _attribute("pair")),
    Column("method", "method", _attribute("method")),
    Column("seeds", "seeds", lambda row: len(row.seeds)),
    Column("failed", "failed", lambda row: len(row.failed)),
    Column("missing", "missing", _attribute("missing")),
    Column(
        "accuracy",
        "accuracy %",
        _attribute("accuracy"),
        INTERVAL,
        "strict, 95 % interval",
        "Share of held-out problems with the right answer in the requested format (strict). "
        f"Intervals are percentile bootstraps with {RESAMPLES} resamples that draw seeds and "
        "problems independently.",
    ),
    Column(
        "flexible",
        "flexible %",
        _attribute("flexible"),
        MEAN,
        help="Share of held-out problems whose last number is the right answer.",
    ),
    Column(
        "vs_baseline",
        f"vs {BASELINE}",
        _attribute("against_baseline"),
        DIFFERENCE,
        "points, Holm p",
        "Differences paired by problem, and by seed where both have it. p is two-sided, from the "
        "same resamples, corrected by Holm over the methods of a pair. ▲ and ▼ mark significant "
        "differences: the interval excludes zero and p < 0.05.",
    ),
    Column(
        "vs_untrained",
        "vs untrained",
        _attribute("against_untrained"),
        DIFFERENCE,
        "points, Holm p",
        "The same against the untrained student.",
    ),
    Column(
        "gap_closed",
        "gap closed %",
        _attribute("gap_closed"),
        SHARE,
        help="(method − untrained) / (teacher − untrained).",
    ),
    Column(
        "equal_tokens",
        "at equal tokens %",
        _attribute("equal_tokens"),
        SHARE,
        help=f"Accuracy when the run had used the total tokens of {BASELINE}, interpolated between "
        "its evaluations; a run that uses fewer is taken at its end.",
    ),
    Column("tokens", "tokens", _attribute("tokens"), COUNT, "a run"),
    Column("seconds", "time", _attribute("seconds"), DURATION, "a run"),
    Column("status", "seeds done", seeds_done, STATUS, detail=_causes),
)


def columns(data: StudyData) -> dict[str, Column]:
    """Every column that the study has, by key: the common ones, and those beyond the rows."""
    usd = {(p, r.method): r.usd for p in data.study.models for r in costs(data, p)}
    known = {column.key: column for column in COLUMNS}
    known["kl"] = Column(
        "kl",
        "KL to teacher",
        lambda row: _kl(data, row),
        NATS,
        "nats a token",
        "KL(student, teacher) on the student's own tokens at the last probe, mean over finished "
        "runs.",
    )
    if any(value is not None for value in usd.values()):
        known["usd"] = Column("usd", "USD", lambda r: usd.get((r.pair, r.method)), USD, "a run")
    if data.study.published:
        known["published"] = Column(
            "published", "published %", lambda r: published(data, r), PUBLISHED, "other models"
        )
    return known


ACCURACY = ("accuracy", "vs_baseline", "vs_untrained", "gap_closed")
CSV = (
    *("pair", "method", "seeds", "failed", "missing", "accuracy", "flexible", *ACCURACY[1:]),
    *("equal_tokens", "tokens", "seconds", "published"),
)
PAGE = (
    *(*ACCURACY, "kl", "equal_tokens", "tokens", "seconds", "usd"),
    *("flexible", "status", "published"),
)
TERMINAL = ("method", *ACCURACY[:2], "status", "gap_closed", "flexible", "tokens", "equal_tokens")


def chosen(columns: Mapping[str, Column], keys: Iterable[str]) -> list[Column]:
    """The columns of these keys that the study has."""
    return [columns[key] for key in keys if key in columns]


def published(data: StudyData, row: Row) -> float | None:
    """The published accuracy of the same method on a pair of the same family."""
    column = published_column(data.study, row.pair)
    return column.accuracy.get(row.method) if column else None


def _kl(data: StudyData, row: Row) -> float | None:
    """KL(student, teacher) at the last probe, nats per token, mean over finished runs."""
    last = []
    for run in data.of(row.pair, row.method, "done"):
        values = [metrics.get("train/kl_divergence") for metrics in run.metrics]
        last += [x for x in values if finite(x)][-1:]
    return sum(last) / len(last) if last else None


def to_records(data: StudyData) -> list[dict[str, Any]]:
    """One record a method and pair, those of table.csv: shares in [0, 1]."""
    return records(chosen(columns(data), CSV), data.rows)


def to_results(data: StudyData) -> dict[str, Any]:
    """The contents of results.json: one record a run of the grid, and the table."""
    asked = bool(data.study.published)
    extra = [{"published": published(data, row)} if asked else {} for row in data.rows]
    return {
        "study": data.study.name,
        "faults": list(data.study.faults),
        "cells": [_run(run) for run in data.runs.values()],
        "table": [asdict(row) | more for row, more in zip(data.rows, extra, strict=True)],
    }


def _run(run: RunData) -> dict[str, Any]:
    record = run.record
    return {
        "pair": run.cell.pair,
        "method": run.cell.method,
        "seed": run.cell.seed,
        "status": run.status,
        "cause": run.cause or None,
        "steps": run.steps,
        **{key: record.get(key) for key in ("accuracy", "flexible", "ended", "seconds")},
        "findings": record.get("findings") or [],
        "tokens": record.get("tokens") or {},
        "activity": record.get("activity") or {},
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """One table for all pairs, to paste: accuracy with interval, and the gain over `untrained`."""
    pairs = list(dict.fromkeys(row.pair for row in rows))
    by_name = {(row.pair, row.method): row for row in rows}
    heads = [head for pair in pairs for head in (pair, "gain")]
    return markdown(
        ["method", *heads],
        [
            [f"`{m}`", *(text for pair in pairs for text in _pasted(by_name.get((pair, m))))]
            for m in dict.fromkeys(row.method for row in rows)
        ],
    )


def _pasted(row: Row | None) -> list[str]:
    level, gain = (row.accuracy, row.against_untrained) if row else (None, None)
    return [INTERVAL.write(level), GAIN.write(gain if level else None)]


def terminal(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows of one pair for a terminal: titles and texts."""
    shown = chosen({column.key: column for column in COLUMNS}, TERMINAL)
    return [{column.title: str(column.show(row)) for column in shown} for row in rows]


def faults_line(faults: Sequence[str]) -> str:
    """A warning at the top of a study with faults on; empty where there are none."""
    return f"FAULTS ARE ON IN THIS STUDY: {', '.join(faults)}\n" if faults else ""
