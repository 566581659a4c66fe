"""Learning curves as plain numbers.

The horizontal axis is progress, step / total steps in per cent, so that hand-overs align between
budgets. No smoothing; long runs are thinned. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.report.data import RunData, StudyData
from potstill.report.formatting import finite
from potstill.stats import metric as stats

POINTS = 120  # at most, a line
Line = Mapping[int, float]  # values by step


@dataclass(frozen=True)
class Series:
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
STRICT = "Strict extractor, {}, from the untrained student on; a cross: a collapse begins."
FORMULA = "0.4 Jaccard + 0.3 length ratio + 0.3 bigram recall, on the probe's problems."
HELD_OUT = "The score at each evaluation, mean over the problems."
SHARE = "0: the teacher writes the training text, 1: the student does."
WRITTEN = "Where the student writes; levels compare only between equal losses."
ESTIMATE = "Estimated on the student's own tokens; the estimate may fall below 0."
OBJECTIVE = "The objective of each method: levels compare only between equal losses."
PREFIX = "Measured; the thin dotted line is the schedule. Short completions hold fewer."
TEACHER = "The teacher's loss on the student's completions"

START = "From the untrained student on; a cross: a collapse begins."
SCORE = Series("train/score", "Similarity with the teacher's completions", UNIT, FORMULA)
KL = Series("train/kl_divergence", "KL(student, teacher)", NATS, ESTIMATE)
SEEDED = Series("train/seed_tokens", "Prefix tokens written by the teacher", "tokens", PREFIX)
METRICS = (
    SCORE,
    Series("eval/avg_score", "The same on held-out problems", UNIT, HELD_OUT),
    Series("train/phase", "Who writes: the student's share of prompts", "share", SHARE),
    Series("train/on_policy_loss", "Loss on the student's own tokens", NATS, WRITTEN),
    KL,
    Series("signal/teacher_loss", TEACHER, NATS, "A jump is the mark of a collapse."),
    Series("train/loss", "Training loss", NATS, OBJECTIVE),
)


def headline(data: StudyData) -> Series:
    """The number that methods are compared by, at each evaluation."""
    metric = data.metric
    title = f"{metric.label[0].upper()}{metric.label[1:]} on held-out problems"
    drawn = "greedy" if metric.samples == 1 else f"mean of {metric.samples} completions"
    note = STRICT.format(drawn) if metric.share else START
    return Series(metric.curve, title, metric.unit, note, metric.scale)


def metrics_of(data: StudyData) -> tuple[Series, ...]:
    """The charts of a study."""
    losses = [one for one in data.metrics[1:] if not one.share]
    held_out = [_held_out(one) for one in losses]
    return (headline(data), *held_out, *METRICS)


def _held_out(metric: stats.Metric) -> Series:
    title = f"{metric.label[0].upper()}{metric.label[1:]} on held-out problems"
    return Series(metric.curve, title, metric.unit, metric.help, metric.scale)


@dataclass(frozen=True)
class Curve:
    """A method's lines in one chart."""

    method: str
    total: int  # steps of a whole run
    seeds: Mapping[int, Line]
    mean: Line

    def progress(self, line: Line) -> list[float]:
        """Steps as per cent of the run."""
        return [round(100 * step / self.total, 2) for step in line]


def curves_of(data: StudyData, pair: str, metric: Series) -> list[Curve]:
    """The curves of every method of a pair that has recorded something."""
    start = data.level(pair, "untrained") if metric == headline(data) else None
    drawn = []
    for method in data.recipes:
        runs = data.of(pair, method)
        lines = {run: line for run in runs if (line := _line(run, metric, start))}
        if lines:
            seeds = {run.cell.seed or 0: _thin(line) for run, line in lines.items()}
            done = [line for run, line in lines.items() if run.status == "done"]
            mean = _mean(done or list(lines.values()))
            drawn.append(Curve(method, runs[0].total, seeds, _thin(mean)))
    return drawn


def _line(run: RunData, metric: Series, start: float | None) -> Line:
    points = [(int(row["step"]), row.get(metric.key)) for row in run.metrics]
    if start is not None and points:
        points.insert(0, (0, start))
    return {step: _round(float(y) * metric.scale) for step, y in points if finite(y)}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _thin(line: Line) -> Line:
    """Every k-th point and the last."""
    stride, last = math.ceil(len(line) / POINTS), len(line) - 1
    return {s: y for i, (s, y) in enumerate(line.items()) if i % (stride or 1) == 0 or i == last}


def _mean(lines: Sequence[Line]) -> Line:
    """The mean at the steps that all lines have: a mean over fewer seeds would jump."""
    steps = sorted(set.intersection(*map(set, lines)))
    return {step: _round(sum(line[step] for line in lines) / len(lines)) for step in steps}
