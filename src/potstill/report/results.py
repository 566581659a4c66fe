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
    accuracy: Interval | None  # strict extractor
    flexible: Interval | None
    against_baseline: Difference | None
    against_untrained: Difference | None
    gap_closed: float | None  # (method - untrained) / (teacher - untrained)
    equal_tokens: float | None  # accuracy when it had spent the baseline's mean total
    tokens: float | None  # completion tokens per run, all kinds
    seconds: float | None  # per run


def table(
    cells: Sequence[RunId],
    methods: Sequence[str],
    results: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
) -> list[Row]:
    """The rows of each pair: untrained and teacher, then the methods.

    Args:
        cells: keys of every run.
        methods: names of the methods in the order of the table.
        results: records of the runs that have ended.
        metrics: reads the per-step metrics of a run.
    """
    rows: list[Row] = []
    for pair in dict.fromkeys(cell.pair for cell in cells):
        here = [cell for cell in cells if cell.pair == pair]
        done = {c: results[c] for c in here if results.get(c, {}).get("status") == "done"}
        by_method = {m: _of(m, done) for m in [*REFERENCES, *methods]}
        strict, flexible = family(by_method), family(by_method, "flexible")
        for method in by_method:
            row = _row(pair, method, here, results, done, metrics, strict, flexible)
            rows.append(row)
    return rows


def family(by_method: Mapping[str, Mapping[Any, Record]], extractor: str = "strict") -> Comparisons:
    """The methods of one pair that have finished runs, and the untrained student and teacher.

    Args:
        by_method: records by method and seed.
        extractor: "strict" or "flexible".
    """
    known = {m: list(records.values()) for m, records in by_method.items() if records}
    widths = Counter(len(r["outcomes"][extractor]) for records in known.values() for r in records)
    width = widths.most_common(1)[0][0] if widths else 0  # others had other problems
    whole = [r for records in known.values() for r in records]
    clusters = next((r["clusters"] for r in whole if len(r.get("clusters") or ()) == width), None)
    samples = {}
    for method, records in known.items():
        same = [r for r in records if len(r["outcomes"][extractor]) == width]
        if same:
            seeded = method not in REFERENCES
            outcomes = outcome_matrix(same, extractor)
            samples[method] = mean_squares(outcomes, seeded=seeded, clusters=clusters)
    return Comparisons(samples, compared=[name for name in samples if name != "teacher"])


def outcome_matrix(records: Iterable[Record], extractor: str = "strict") -> Matrix:
    """Outcomes (S, P) of finished runs."""
    return np.array([[float(c) for c in r["outcomes"][extractor]] for r in records])


def spent(record: Record) -> float:
    """Completion tokens of one run, all kinds, without evaluations: as its curve counts them."""
    return float(sum(record["tokens"].get(kind, 0) for kind in KINDS))


def curve(metrics: Iterable[Mapping[str, Any]], start: float) -> list[tuple[float, float]]:
    """Evaluations of one run as (tokens spent, accuracy), from the untrained student on."""
    points = [(row["tokens"], row.get("eval/accuracy")) for row in metrics]
    return [(0.0, start), *((tokens, level) for tokens, level in points if level is not None)]


def _of(method: str, done: Mapping[RunId, Record]) -> dict[int | None, Record]:
    return {cell.seed: record for cell, record in done.items() if cell.method == method}


def _against(method: str, other: str, strict: Comparisons) -> Difference | None:
    if method == other or method in REFERENCES or not {method, other} <= {*strict.samples}:
        return None
    return strict[method, other]


def accuracy_at(tokens: float, curve: Sequence[tuple[float, float]]) -> float:
    """Read a curve of (tokens spent, accuracy) at a number of tokens, linear in between.

    >>> accuracy_at(50, [(0, 0.4), (100, 0.6)])
    0.5
    """
    spent, accuracy = zip(*curve, strict=True)
    return float(np.interp(tokens, spent, accuracy))


def _row(
    pair: str,
    method: str,
    cells: Sequence[RunId],
    results: Mapping[RunId, Record],
    done: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
    strict: Comparisons,
    flexible: Comparisons,
) -> Row:
    runs = [c for c in cells if c.method == method]
    records = [done[c] for c in runs if c in done]
    accuracy = strict.interval(method) if method in strict.samples else None
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
        accuracy=accuracy,
        flexible=flexible.interval(method) if method in flexible.samples else None,
        against_baseline=_against(method, BASELINE, strict),
        against_untrained=_against(method, "untrained", strict),
        gap_closed=_gap_closed(method, accuracy, done),
        equal_tokens=_equal_tokens(runs, done, metrics),
        tokens=_mean([spent(r) for r in records]) if method not in REFERENCES else None,
        seconds=_mean([Spent.read(r).alone.seconds for r in records]),
    )


def _gap_closed(
    method: str, accuracy: Interval | None, done: Mapping[RunId, Record]
) -> float | None:
    ends = [_of(name, done).get(None) for name in REFERENCES]
    if not accuracy or not all(ends) or method in REFERENCES:
        return None
    low, high = (e["accuracy"] for e in ends if e)
    return (accuracy.mean - low) / (high - low) if high != low else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _equal_tokens(
    cells: Sequence[RunId],
    done: Mapping[RunId, Record],
    metrics: Callable[[RunId], Sequence[Mapping[str, Any]]],
) -> float | None:
    """Mean accuracy of the runs when they had spent the baseline's mean total."""
    budget = _mean([spent(r) for r in _of(BASELINE, done).values()])
    untrained = _of("untrained", done).get(None)
    runs = [c for c in cells if c in done and c.seed is not None]
    if budget is None or untrained is None or not runs:
        return None
    return _mean([accuracy_at(budget, curve(metrics(c), untrained["accuracy"])) for c in runs])
