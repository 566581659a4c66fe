"""From per-problem outcomes to means, intervals and paired differences.

Outcomes of a method are a matrix (seeds x problems) of 0 and 1. Intervals are 95 % percentile
bootstraps that resample seeds and problems independently, so that both a lucky seed and an easy
problem set are accounted for. Differences are paired: by problem always, by seed where both rows
have it. p-values come from the same resamples and are corrected over the methods of a pair by
Holm's procedure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.study.storage import REFERENCES, Cell
from potstill.types import KINDS

Matrix = npt.NDArray[np.float64]
BASELINE = "on_policy_gkd"
RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, nan where nothing could be resampled."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies, `p` after Holm's correction."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One line of the table: a method on a pair, over its seeds."""

    pair: str
    method: str
    seeds: tuple[int, ...]  # of the cells that are done
    failed: tuple[str, ...]  # "seed: cause" of those that failed
    missing: int  # cells without a result
    accuracy: Interval | None  # strict extractor
    flexible: Interval | None
    against_baseline: Difference | None
    against_untrained: Difference | None
    gap_closed: float | None  # (method - untrained) / (teacher - untrained)
    equal_tokens: float | None  # accuracy when it had spent what the baseline spends in all
    tokens: float | None  # completion tokens per run, all kinds
    seconds: float | None  # per run


def interval(outcomes: Matrix) -> Interval:
    """Mean of a (S, P) matrix and its bootstrap interval over rows and columns."""
    low, high = np.quantile(resample(outcomes), [0.025, 0.975])
    return Interval(float(outcomes.mean()), float(low), float(high))


def difference(deltas: Matrix) -> Difference:
    """Mean of paired differences (S, P), interval and uncorrected two-sided p-value."""
    return _judged(float(deltas.mean()), resample(deltas))


def unpaired(a: Matrix, b: Matrix, *, same_problems: bool) -> Difference:
    """Mean of `a` (S, P) minus mean of `b` (R, Q): seeds are drawn for each by itself.

    Args:
        a: outcomes of one method.
        b: outcomes of the other, under other seeds.
        same_problems: the columns are the same problems, drawn once for both (then P = Q).
    """
    mean = float(a.mean() - b.mean())
    if min(a.shape[1], b.shape[1]) < 2:
        return Difference(mean, *[float("nan")] * 3)
    rng = np.random.default_rng(0)

    def drawn(n: int) -> Matrix:
        """How often each of n is drawn, as weights: (RESAMPLES, n)."""
        return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n

    columns = drawn(a.shape[1])
    others = columns if same_problems else drawn(b.shape[1])
    means = [
        np.einsum("ns,sp,np->n", drawn(len(x)), x, weights, optimize=True)
        for x, weights in ((a, columns), (b, others))
    ]
    return _judged(mean, means[0] - means[1])


def _judged(mean: float, means: Matrix) -> Difference:
    """A difference from its bootstrap means."""
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(np.sum(means <= 0), np.sum(means >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1)) if np.isfinite(low) else float("nan")
    return Difference(mean, float(low), float(high), float(p))


def resample(matrix: Matrix) -> Matrix:
    """Bootstrap means of a (S, P) matrix: seeds and problems drawn independently.

    With one seed only problems are drawn; with one problem nothing can be: the result is nan.
    """
    from scipy.stats import bootstrap

    seeds, problems = matrix.shape
    if problems < 2:
        return np.full(1, np.nan)

    def mean(*index: Any, axis: int = -1) -> Any:
        rows, columns = index if len(index) == 2 else (np.zeros((1, 1), int), index[0])
        if rows.ndim == 1:
            return matrix[np.ix_(rows, columns)].mean()
        return matrix[rows[..., :, None], columns[..., None, :]].mean((-2, -1))

    axes = (np.arange(seeds), np.arange(problems)) if seeds > 1 else (np.arange(problems),)
    found = bootstrap(
        axes,
        mean,
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        paired=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.bootstrap_distribution, float)


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values of one family of comparisons."""
    from statsmodels.stats.multitest import multipletests

    known = [d for d in differences if d is not None and np.isfinite(d.p)]
    if not known:
        return list(differences)
    corrected = dict(
        zip(map(id, known), multipletests([d.p for d in known], method="holm")[1], strict=True)
    )
    return [
        Difference(d.mean, d.low, d.high, float(corrected[id(d)]))
        if d and id(d) in corrected
        else d
        for d in differences
    ]


def outcome_matrix(records: Iterable[Mapping[str, Any]], extractor: str = "strict") -> Matrix:
    """Stack the outcomes of done cells to (S, P)."""
    return np.array([[float(c) for c in r["outcomes"][extractor]] for r in records])


def accuracy_at(tokens: float, curve: Sequence[tuple[float, float]]) -> float:
    """Read a curve of (tokens spent, accuracy) at a number of tokens, linear in between.

    >>> accuracy_at(50, [(0, 0.4), (100, 0.6)])
    0.5
    """
    spent, accuracy = zip(*curve, strict=True)
    return float(np.interp(tokens, spent, accuracy))


def curve(metrics: Iterable[Mapping[str, Any]], start: float) -> list[tuple[float, float]]:
    """Gradings of one run as (tokens spent, accuracy), from the untrained student on."""
    graded = [(row["tokens"], row.get("eval/accuracy")) for row in metrics]
    return [(0.0, start), *((spent, found) for spent, found in graded if found is not None)]


def table(
    cells: Sequence[Cell],
    methods: Sequence[str],
    results: Mapping[Cell, Mapping[str, Any]],
    metrics: Callable[[Cell], Sequence[Mapping[str, Any]]],
) -> list[Row]:
    """The method table: per pair the reference rows, then the methods.

    Args:
        cells: every cell of the study.
        methods: names of the methods in the order of the table.
        results: records of the cells that have ended.
        metrics: reads the per-step metrics of a cell.
    """
    rows: list[Row] = []
    for pair in dict.fromkeys(cell.pair for cell in cells):
        mine = [cell for cell in cells if cell.pair == pair]
        done = {c: results[c] for c in mine if results.get(c, {}).get("status") == "done"}
        drafts = [_row(pair, m, mine, results, done, metrics) for m in [*REFERENCES, *methods]]
        trained = [r for r in drafts if r.method not in REFERENCES]
        baseline = holm([_against(r, BASELINE, done) for r in trained])
        untrained = holm([_against(r, "untrained", done) for r in trained])
        rows += [r for r in drafts if r.method in REFERENCES]
        for row, first, second in zip(trained, baseline, untrained, strict=True):
            rows.append(replace(row, against_baseline=first, against_untrained=second))
    return rows


def _of(method: str, done: Mapping[Cell, Mapping[str, Any]]) -> dict[int | None, Mapping[str, Any]]:
    return {cell.seed: record for cell, record in done.items() if cell.method == method}


def _against(row: Row, other: str, done: Mapping[Cell, Mapping[str, Any]]) -> Difference | None:
    """Paired difference of a row against another method or a reference row."""
    mine, its = _of(row.method, done), _of(other, done)
    return None if row.method == other else paired(mine, its)


def paired(
    mine: Mapping[int | None, Mapping[str, Any]], its: Mapping[int | None, Mapping[str, Any]]
) -> Difference | None:
    """Paired difference of two rows' records by seed; a record without a seed fits every seed.

    None where they share no seed.
    """
    shared = [s for s in mine if s in its or None in its]
    if not shared:
        return None
    a = outcome_matrix(mine[s] for s in shared)
    b = outcome_matrix(its.get(s, its.get(None, {})) for s in shared)
    return difference(a - b)


def _row(
    pair: str,
    method: str,
    cells: Sequence[Cell],
    results: Mapping[Cell, Mapping[str, Any]],
    done: Mapping[Cell, Mapping[str, Any]],
    metrics: Callable[[Cell], Sequence[Mapping[str, Any]]],
) -> Row:
    mine = [c for c in cells if c.method == method]
    records = [done[c] for c in mine if c in done]
    accuracy = interval(outcome_matrix(records)) if records else None
    ends = [_of(name, done).get(None) for name in REFERENCES]
    gap = None
    if accuracy and all(ends) and method not in REFERENCES:
        low, high = (e["accuracy"] for e in ends if e)
        gap = (accuracy.mean - low) / (high - low) if high != low else None
    return Row(
        pair=pair,
        method=method,
        seeds=tuple(c.seed for c in mine if c in done and c.seed is not None),
        failed=tuple(
            f"seed {c.seed}: {results[c].get('cause', '')}"
            for c in mine
            if results.get(c, {}).get("status") == "failed"
        ),
        missing=sum(c not in results for c in mine),
        accuracy=accuracy,
        flexible=interval(outcome_matrix(records, "flexible")) if records else None,
        against_baseline=None,
        against_untrained=None,
        gap_closed=gap,
        equal_tokens=_equal_tokens(mine, done, metrics),
        tokens=_mean([spent(r) for r in records]) if method not in REFERENCES else None,
        seconds=_mean([r["seconds"] for r in records]),
    )


def spent(record: Mapping[str, Any]) -> float:
    """Completion tokens of one run, all kinds, gradings apart: what its curve counts too."""
    return float(sum(record["tokens"].get(kind, 0) for kind in KINDS))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _equal_tokens(
    mine: Sequence[Cell],
    done: Mapping[Cell, Mapping[str, Any]],
    metrics: Callable[[Cell], Sequence[Mapping[str, Any]]],
) -> float | None:
    """Mean accuracy of the runs when they had spent the baseline's mean total."""
    budget = _mean([spent(r) for r in _of(BASELINE, done).values()])
    untrained = _of("untrained", done).get(None)
    runs = [c for c in mine if c in done and c.seed is not None]
    if budget is None or untrained is None or not runs:
        return None
    return _mean([accuracy_at(budget, curve(metrics(c), untrained["accuracy"])) for c in runs])
