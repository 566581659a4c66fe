"""Learning curves as plain numbers, for whatever draws them.

The horizontal axis is progress, step / total steps in per cent, so that hand-overs align between
budgets. No smoothing; long runs are thinned. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from potstill.report.data import Run, StudyData

POINTS = 120  # at most, a line


@dataclass(frozen=True)
class Metric:
    """One chart of learning curves."""

    key: str  # in metrics.jsonl
    title: str
    unit: str
    scale: float = 1.0  # from the recorded number to the unit
    note: str = ""


METRICS = (
    Metric(
        "eval/accuracy",
        "Accuracy on held-out problems",
        "%",
        100.0,
        "Strict extractor, greedy. Every curve starts at the untrained student; a cross is the "
        "onset of a collapse.",
    ),
    Metric(
        "train/score",
        "Similarity with the teacher's text",
        "score, 0 to 1",
        note="0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall, on the probe's problems.",
    ),
    Metric(
        "eval/avg_score",
        "The same on held-out problems",
        "score, 0 to 1",
        note="The score at each grading, mean over the graded problems.",
    ),
    Metric(
        "train/phase",
        "Who writes: the student's share of prompts",
        "share",
        note="0: the teacher writes the training text, 1: the student does.",
    ),
    Metric(
        "train/on_policy_loss",
        "Loss on the student's own tokens",
        "nats per token",
        note="Where the student writes; levels compare only between equal losses.",
    ),
    Metric(
        "train/kl_divergence",
        "KL(student, teacher)",
        "nats per token",
        note="Estimated on the student's own tokens; the estimate may fall below 0.",
    ),
    Metric(
        "signal/teacher_loss",
        "What the teacher makes of the student's text",
        "nats per token",
        note="The teacher's loss on the student's answers; a jump is the mark of a collapse.",
    ),
    Metric(
        "train/loss",
        "Training loss",
        "nats per token",
        note="What each method minimises: levels compare only between equal losses.",
    ),
)
BY_KEY = {metric.key: metric for metric in METRICS}
SCORE, KL = BY_KEY["train/score"], BY_KEY["train/kl_divergence"]
SEEDED = Metric(
    "train/seed_tokens",
    "Tokens that the teacher wrote in front",
    "tokens",
    note="Measured; the thin dotted line is the schedule. Short completions hold fewer.",
)


@dataclass(frozen=True)
class Line:
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
    seeds: tuple[tuple[int, Line], ...]  # seed and its line
    mean: Line

    def progress(self, line: Line) -> list[float]:
        """Steps as per cent of the run."""
        return [round(100 * step / self.total, 2) for step in line.steps]


def curves(data: StudyData, pair: str, metric: Metric) -> list[Curve]:
    """The curves of every method of a pair that has recorded something."""
    start = data.accuracy(pair, "untrained") if metric.key == "eval/accuracy" else None
    found = []
    for method in data.recipes:
        runs = data.of(pair, method)
        lines = [(run, _line(run, metric, start)) for run in runs]
        lines = [(run, line) for run, line in lines if len(line)]
        if not lines:
            continue
        seeds = tuple((run.cell.seed or 0, _thin(line)) for run, line in lines)
        counted = [line for run, line in lines if run.status == "done"] or [x for _, x in lines]
        found.append(Curve(method, runs[0].total, seeds, _thin(_mean(counted))))
    return found


def _line(run: Run, metric: Metric, start: float | None) -> Line:
    points = [(int(row["step"]), row.get(metric.key)) for row in run.metrics]
    if start is not None and points:
        points.insert(0, (0, start))
    kept = [(step, _round(float(y) * metric.scale)) for step, y in points if _is_number(y)]
    return Line(tuple(step for step, _ in kept), tuple(value for _, value in kept))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _thin(line: Line) -> Line:
    """Every k-th point and the last."""
    stride, last = math.ceil(len(line) / POINTS), len(line) - 1
    if stride < 2:
        return line
    kept = [i for i in range(len(line)) if i % stride == 0 or i == last]
    return Line(tuple(line.steps[i] for i in kept), tuple(line.values[i] for i in kept))


def _mean(lines: Sequence[Line]) -> Line:
    """The mean at the steps that all lines have: a mean over fewer seeds would jump."""
    tables = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return Line(
        tuple(steps),
        tuple(_round(sum(table[step] for table in tables) / len(tables)) for step in steps),
    )
