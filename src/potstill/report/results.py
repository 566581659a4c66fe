"""The results table: one row for each method on each pair, from the records of its runs.

The untrained student and the methods of a pair are one family: the same comparison has the same
corrected p-value wherever it is shown. How rows are written is left to `tables`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.stats.comparisons import Comparisons, Difference, Interval
from potstill.stats.mean_squares import Matrix, mean_squares
from potstill.stats.metric import ACCURACY, FLEXIBLE, Metric
from potstill.study.storage import REFERENCES, RunId
from potstill.training.spending import Spent
from potstill.types import KINDS

BASELINE = "on_policy_gkd"  # the method that all others are compared with

Record = Mapping[str, Any]  # a run's result.json


@dataclass(frozen=True)
class Row:
    """One line of the table: a method on a pair, over its seeds."""

    pair: str
    method: str
    seeds: tuple[int, ...]  # of the runs that are done
    failed: tuple[str, ...]  # "seed: cause" of those that failed
    missing: int  # runs without a result
    level: Interval | None  # of the metric that methods are compared by
    others: Mapping[str, Interval]  # of the other metrics, by name
    against_baseline: Difference | None  # method minus baseline, in the metric's own direction
    against_untrained: Difference | None
    gap_closed: float | None  # (method - untrained) / (teacher - untrained)
    equal_tokens: float | None  # the level when it had spent the baseline's mean total
    tokens: float | None  # completion tokens per run, all kinds
    seconds: float | None  # per run


def table(
    cells: Sequence[RunId],
    methods: Sequence[str],
    results: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
    measured: Sequence[Metric] = (ACCURACY, FLEXIBLE),
) -> list[Row]:
    """The rows of each pair: untrained and teacher, then the methods.

    Args:
        cells: keys of every run.
        methods: names of the methods in the order of the table.
        results: records of the runs that have ended.
        metrics: reads the per-step metrics of a run.
        measured: the numbers of an evaluation, the one to compare methods by first.
    """
    rows: list[Row] = []
    for pair in dict.fromkeys(cell.pair for cell in cells):
        here = [cell for cell in cells if cell.pair == pair]
        done = {c: results[c] for c in here if results.get(c, {}).get("status") == "done"}
        by_method = {m: _of(m, done) for m in [*REFERENCES, *methods]}
        families = {metric: family(by_method, metric) for metric in measured}
        for method in by_method:
            rows.append(_row(pair, method, here, results, done, metrics, families))
    return rows


def family(by_method: Mapping[str, Mapping[Any, Record]], metric: Metric = ACCURACY) -> Comparisons:
    """The methods of one pair that have finished runs, and the untrained student and teacher.

    Args:
        by_method: records by method and seed.
        metric: the number to compare; records without it are left out.
    """
    key = metric.key
    known = {m: [r for r in by_method[m].values() if key in r["outcomes"]] for m in by_method}
    widths = Counter(len(r["outcomes"][key]) for records in known.values() for r in records)
    width = widths.most_common(1)[0][0] if widths else 0  # others had other problems
    whole = [r for records in known.values() for r in records]
    clusters = next((r["clusters"] for r in whole if len(r.get("clusters") or ()) == width), None)
    samples = {}
    for method, records in known.items():
        same = [r for r in records if len(r["outcomes"][key]) == width]
        if same:
            seeded = method not in REFERENCES
            samples[method] = mean_squares(
                outcome_matrix(same, key), seeded=seeded, clusters=clusters, shares=metric.share
            )
    return Comparisons(samples, compared=[name for name in samples if name != "teacher"])


def outcome_matrix(records: Iterable[Record], key: str = ACCURACY.key) -> Matrix:
    """Outcomes (S, P) of finished runs: a record has text of 0 and 1, or numbers."""
    return np.array([[float(c) for c in r["outcomes"][key]] for r in records])


def spent(record: Record) -> float:
    """Completion tokens of one run, all kinds, without evaluations: as its curve counts them."""
    return float(sum(record["tokens"].get(kind, 0) for kind in KINDS))


def curve(
    metrics: Iterable[Mapping[str, Any]], start: float, key: str = ACCURACY.curve
) -> list[tuple[float, float]]:
    """Evaluations of one run as (tokens spent, level), from the untrained student on."""
    points = [(row["tokens"], row.get(key)) for row in metrics]
    return [(0.0, start), *((tokens, level) for tokens, level in points if level is not None)]


def _of(method: str, done: Mapping[RunId, Record]) -> dict[int | None, Record]:
    return {cell.seed: record for cell, record in done.items() if cell.method == method}


def _against(method: str, other: str, known: Comparisons) -> Difference | None:
    if method == other or method in REFERENCES or not {method, other} <= {*known.samples}:
        return None
    return known[method, other]


def level_at(tokens: float, curve: Sequence[tuple[float, float]]) -> float:
    """Read a curve of (tokens spent, level) at a number of tokens, linear in between.

    >>> level_at(50, [(0, 0.4), (100, 0.6)])
    0.5
    """
    spent, levels = zip(*curve, strict=True)
    return float(np.interp(tokens, spent, levels))


def _row(
    pair: str,
    method: str,
    cells: Sequence[RunId],
    results: Mapping[RunId, Record],
    done: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
    families: Mapping[Metric, Comparisons],
) -> Row:
    runs = [c for c in cells if c.method == method]
    records = [done[c] for c in runs if c in done]
    levels = {m: f.interval(method) for m, f in families.items() if method in f.samples}
    metric, known = next(iter(families.items()))
    return Row(
        pair=pair,
        method=method,
        seeds=tuple(c.seed for c in runs if c in done and c.seed is not None),
        failed=tuple(
            f"seed {c.seed}: {results[c].get('cause', '')}"
            for c in runs
            if results.get(c, {}).get("status") == "failed"
        ),
        missing=sum(c not in results for c in runs),
        level=levels.get(metric),
        others={other.name: levels[other] for other in [*families][1:] if other in levels},
        against_baseline=_against(method, BASELINE, known),
        against_untrained=_against(method, "untrained", known),
        gap_closed=_gap_closed(method, levels.get(metric), done, metric),
        equal_tokens=_equal_tokens(runs, done, metrics, metric),
        tokens=_mean([spent(r) for r in records]) if method not in REFERENCES else None,
        seconds=_mean([Spent.read(r).alone.seconds for r in records]),
    )


def _gap_closed(
    method: str, level: Interval | None, done: Mapping[RunId, Record], metric: Metric
) -> float | None:
    """None without both ends: a pair may have no teacher."""
    before, after = (metric.of(_of(name, done).get(None, {})) for name in REFERENCES)
    if level is None or before is None or after is None or method in REFERENCES:
        return None
    return (level.mean - before) / (after - before) if after != before else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _equal_tokens(
    cells: Sequence[RunId],
    done: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
    metric: Metric,
) -> float | None:
    """Mean level of the runs when they had spent the baseline's mean total."""
    budget = _mean([spent(r) for r in _of(BASELINE, done).values()])
    start = metric.of(_of("untrained", done).get(None, {}))
    runs = [c for c in cells if c in done and c.seed is not None]
    if budget is None or start is None or not runs:
        return None
    return _mean([level_at(budget, curve(metrics(c), start, metric.curve)) for c in runs])
