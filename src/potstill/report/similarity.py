"""Similarity check: is text that resembles the teacher's also correct?

The published study had similarity scores of 0.92 to 1.00 at an accuracy of 0. Per method: how
similar its last evaluated completions are to the teacher's, whether they have an answer in the
task's format, and whether more problems are solved than by the untrained student. Accuracy is read
with the flexible extractor, so that a learned format is not taken for a capability. It judges no
cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.report.data import RunData, StudyData
from potstill.report.results import outcome_matrix
from potstill.report.stats import Difference, Interval, difference, interval
from potstill.study.storage import REFERENCES

SIMILAR = 0.9  # a score that reads as success; the published ones began at 0.92

Range = tuple[float, float, float]  # mean over runs, lowest, highest


@dataclass(frozen=True)
class Similarity:
    """One method's completions on one pair, and what they are worth."""

    pair: str
    method: str
    strict: Interval
    flexible: Interval
    gain: Difference | None  # flexible accuracy against the untrained student; p uncorrected
    score: Range | None  # similarity with the teacher's completion, in [0, 1]
    kl: Range | None  # KL(p, q) in nats per token, estimated on the student's own completions
    format: Range | None  # share of completions with an answer in the task's format

    @property
    def misleading(self) -> bool:
        """True where completions are similar but clearly no more problems are solved."""
        similar = self.score is not None and self.score[0] >= SIMILAR
        return similar and self.gain is not None and not self.gain.low > 0


def similarities(data: StudyData) -> list[Similarity]:
    """Every method with a finished run, in table order."""
    return [
        _similarity(data, row.pair, row.method, runs)
        for row in data.rows
        if row.method not in REFERENCES and (runs := data.of(row.pair, row.method, "done"))
    ]


def _similarity(data: StudyData, pair: str, method: str, runs: Sequence[RunData]) -> Similarity:
    records = [run.record for run in runs]
    flexible, gain = outcome_matrix(records, "flexible"), None
    if untrained := list(data.done(pair, "untrained").values()):
        gain = difference(flexible - outcome_matrix(untrained, "flexible"))
    return Similarity(
        pair,
        method,
        strict=interval(outcome_matrix(records)),
        flexible=interval(flexible),
        gain=gain,
        score=_last(runs, "eval/avg_score"),
        kl=_last(runs, "train/kl_divergence"),
        format=_last(runs, "eval/format"),
    )


def _last(runs: Sequence[RunData], name: str) -> Range | None:
    """The last value that each run recorded; None where a run recorded none."""
    values: list[Any] = [
        next((row[name] for row in reversed(run.metrics) if row.get(name) is not None), None)
        for run in runs
    ]
    if None in values:
        return None
    return float(np.mean(values)), float(min(values)), float(max(values))
