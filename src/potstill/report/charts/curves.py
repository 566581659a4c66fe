"""Learning curves as plain numbers.

The horizontal axis is progress, step / total steps in per cent, so that hand-overs align between
budgets. No smoothing; long runs are thinned. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report.data import RunData, StudyData
from potstill.report.formatting import finite

POINTS = 120  # at most, a line


@dataclass(frozen=True)
class Metric:
    """One chart of learning curves."""

    key: str  # in metrics.jsonl
    title: str
    unit: str
    note: str
    scale: float = 1.0  # from the recorded number to the unit

    @property
    def name(self) -> str:
        """Of the chart's files."""
        return self.key.replace("/", "-").replace("_", "-")


NATS, UNIT = "nats per token", "score, 0 to 1"
STRICT = "Strict extractor, greedy, from the untrained student on; a cross: a collapse begins."
FORMULA = "0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall, on the probe's problems."
HELD_OUT = "The score at each evaluation, mean over the problems."
SHARE = "0: the teacher writes the training text, 1: the student does."
WRITTEN = "Where the student writes; levels compare only between equal losses."
ESTIMATE = "Estimated on the student's own tokens; the estimate may fall below 0."
OBJECTIVE = "The objective of each method: levels compare only between equal losses."
PREFIX = "Measured; the thin dotted line is the schedule. Short completions hold fewer."
TEACHER = "The teacher's loss on the student's completions"

ACCURACY = Metric("eval/accuracy", "Accuracy on held-out problems", "%", STRICT, 100.0)
SCORE = Metric("train/score", "Similarity with the teacher's completions", UNIT, FORMULA)
KL = Metric("train/kl_divergence", "KL(student, teacher)", NATS, ESTIMATE)
SEEDED = Metric("train/seed_tokens", "Prefix tokens written by the teacher", "tokens", PREFIX)
METRICS = (
    ACCURACY,
    SCORE,
    Metric("eval/avg_score", "The same on held-out problems", UNIT, HELD_OUT),
    Metric("train/phase", "Who writes: the student's share of prompts", "share", SHARE),
    Metric("train/on_policy_loss", "Loss on the student's own tokens", NATS, WRITTEN),
    KL,
    Metric("signal/teacher_loss", TEACHER, NATS, "A jump is the mark of a collapse."),
    Metric("train/loss", "Training loss", NATS, OBJECTIVE),
)


@dataclass(frozen=True)
class Series:
    """One run's curve, or the mean of several."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Curve:
    """A method's lines in one chart."""

    method: str
    total: int  # steps of a whole run
    seeds: tuple[tuple[int, Series], ...]  # seed and its line
    mean: Series

    def progress(self, series: Series) -> list[float]:
        """Steps as per cent of the run."""
        return [round(100 * step / self.total, 2) for step in series.steps]


def curves_of(data: StudyData, pair: str, metric: Metric) -> list[Curve]:
    """The curves of every method of a pair that has recorded something."""
    start = data.accuracy(pair, "untrained") if metric is ACCURACY else None
    drawn = []
    for method in data.recipes:
        runs = data.of(pair, method)
        lines = [(run, _series(run, metric, start)) for run in runs]
        lines = [(run, line) for run, line in lines if len(line)]
        if not lines:
            continue
        seeds = tuple((run.cell.seed or 0, _thin(line)) for run, line in lines)
        counted = [line for run, line in lines if run.status == "done"] or [x for _, x in lines]
        drawn.append(Curve(method, runs[0].total, seeds, _thin(_mean(counted))))
    return drawn


def _series(run: RunData, metric: Metric, start: float | None) -> Series:
    points = [(int(row["step"]), row.get(metric.key)) for row in run.metrics]
    if start is not None and points:
        points.insert(0, (0, start))
    kept = [(step, _round(float(y) * metric.scale)) for step, y in points if finite(y)]
    return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _thin(series: Series) -> Series:
    """Every k-th point and the last."""
    stride, last = math.ceil(len(series) / POINTS), len(series) - 1
    if stride < 2:
        return series
    kept = [i for i in range(len(series)) if i % stride == 0 or i == last]
    return Series(tuple(series.steps[i] for i in kept), tuple(series.values[i] for i in kept))


def _mean(lines: Sequence[Series]) -> Series:
    """The mean at the steps that all lines have: a mean over fewer seeds would jump."""
    tables = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return Series(
        tuple(steps),
        tuple(_round(sum(table[step] for table in tables) / len(tables)) for step in steps),
    )
