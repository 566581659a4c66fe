"""Similarity check: is text that resembles the teacher's also correct?

The published study had similarity scores of 0.92 to 1.00 at an accuracy of 0. Per method: how
similar its last evaluated completions are to the teacher's, whether they have an answer in the
task's format, and whether more problems are solved than by the untrained student. Accuracy is read
with the flexible extractor, so that a learned format is not taken for a capability. It judges no
cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.data import RunData, StudyData
from potstill.report.formatting import finite
from potstill.stats.comparisons import Comparisons, Difference, Interval
from potstill.stats.mean_squares import mean_squares
from potstill.stats.metric import FLEXIBLE

LAST = ("eval/avg_score", "train/kl_divergence", "eval/format")
SIMILAR = 0.9  # a score that reads as success; the published ones began at 0.92


@dataclass(frozen=True)
class Similarity:
    """One method's completions on one pair, and what they are worth."""

    pair: str
    method: str
    strict: Interval
    flexible: Interval
    gain: Difference | None  # flexible accuracy against the untrained student
    score: Interval | None  # similarity with the teacher's completion, in [0, 1]
    kl: Interval | None  # KL(p, q) in nats per token, estimated on the student's own completions
    format: Interval | None  # share of completions with an answer in the task's format

    @property
    def misleading(self) -> bool:
        """True where completions are similar but clearly no more problems are solved."""
        similar = self.score is not None and self.score.mean >= SIMILAR
        return similar and self.gain is not None and not self.gain.low > 0


def similarities(data: StudyData) -> list[Similarity]:
    """Every method with a finished run, in table order; none where no task grades."""
    if not data.metric.share:
        return []
    return [one for pair in data.study.models for one in _similarities(data, pair)]


def _similarities(data: StudyData, pair: str) -> list[Similarity]:
    runs = {method: data.of(pair, method, "done") for method in data.recipes}
    runs = {method: done for method, done in runs.items() if done}
    strict, flexible = data.family(pair), data.family(pair, FLEXIBLE)
    score, kl, form = (last(runs, name) for name in LAST)
    return [
        Similarity(
            pair,
            method,
            strict=strict.interval(method),
            flexible=flexible.interval(method),
            gain=flexible[method, "untrained"] if "untrained" in flexible.samples else None,
            score=score.get(method),
            kl=kl.get(method),
            format=form.get(method),
        )
        for method in runs
        if method in strict.samples
    ]


def last(runs: Mapping[str, Sequence[RunData]], name: str) -> dict[str, Interval]:
    """The last value that each run recorded, mean over the seeds of each method; without methods
    of which some run recorded none."""
    samples = {}
    for method, done in runs.items():
        values = [x for run in done if finite(x := _final(run, name))]
        if values and len(values) == len(done):
            samples[method] = mean_squares(values)
    family = Comparisons(samples)
    return {method: family.interval(method) for method in family.samples}


def _final(run: RunData, name: str) -> Any:
    return next((row[name] for row in reversed(run.metrics) if row.get(name) is not None), None)
