"""Is a text that is like the teacher's a text that is right? The published study's trap: similarity
scores of 0.92 to 1.00 at an accuracy of 0.

Per method: how like the teacher's its last graded texts are, whether they have an answer in the
task's format, and whether more problems are solved than by the untrained student. That is asked of
the flexible extractor, so that a format learned is not taken for a capability. It judges no cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.report.data import Run, StudyData
from potstill.report.stats import Difference, Interval, difference, interval, outcome_matrix
from potstill.study.storage import REFERENCES, Cell

ALIKE = 0.9  # a score that reads as success; the published ones began at 0.92

Range = tuple[float, float, float]  # mean over runs, lowest, highest


@dataclass(frozen=True)
class Likeness:
    """One method's texts on one pair, beside what they are worth."""

    pair: str
    method: str
    strict: Interval
    flexible: Interval
    gain: Difference | None  # flexible accuracy against the untrained student; p uncorrected
    score: Range | None  # similarity with the teacher's text, in [0, 1]
    kl: Range | None  # KL(p, q) in nats per token, estimated on the student's own text
    format: Range | None  # share of texts with an answer in the task's format

    @property
    def trapped(self) -> bool:
        """Whether texts are like the teacher's, and not clearly more problems are solved."""
        alike = self.score is not None and self.score[0] >= ALIKE
        return alike and self.gain is not None and not self.gain.low > 0


def measured(data: StudyData) -> list[Likeness]:
    """Every method with a finished run, in table order."""
    found = []
    for row in data.rows:
        runs = [run for run in data.of(row.pair, row.method) if run.status == "done"]
        if runs and row.method not in REFERENCES:
            untrained = data.runs[Cell(row.pair, "untrained")]
            found.append(_likeness(row.pair, row.method, runs, untrained))
    return found


def _likeness(pair: str, method: str, runs: Sequence[Run], untrained: Run) -> Likeness:
    records = [run.record for run in runs]
    flexible, gain = outcome_matrix(records, "flexible"), None
    if untrained.status == "done":
        gain = difference(flexible - outcome_matrix([untrained.record], "flexible"))
    return Likeness(
        pair,
        method,
        strict=interval(outcome_matrix(records)),
        flexible=interval(flexible),
        gain=gain,
        score=_last(runs, "eval/avg_score"),
        kl=_last(runs, "train/kl_divergence"),
        format=_last(runs, "eval/format"),
    )


def _last(runs: Sequence[Run], name: str) -> Range | None:
    """The last value that each run recorded; None where one recorded none."""
    values: list[Any] = [
        next((row[name] for row in reversed(run.metrics) if row.get(name) is not None), None)
        for run in runs
    ]
    if None in values:
        return None
    return float(np.mean(values)), float(min(values)), float(max(values))


def lines(found: Sequence[Likeness]) -> list[str]:
    """What a reader of similarity scores must know, a line for each method that is trapped."""
    return [
        f"Alike is not able: {one.pair} {one.method} writes like its teacher (score "
        f"{_ranged(one.score, 2)}) and solves {_points(one.gain)} points of the untrained "
        "student's problems more, by the flexible extractor."
        for one in found
        if one.trapped
    ]


def ceilings(data: StudyData) -> list[str]:
    """Teacher rows that have read the solutions of what they are graded on."""
    pairs = [name for name, context in data.study.contexts.items() if context.ceiling]
    if not pairs:
        return []
    return [
        f"The teacher of {' and '.join(pairs)} reads a hint of each problem, the graded ones "
        "included: its row is a ceiling, no rival. No student has seen a hint."
    ]


def to_markdown(found: Sequence[Likeness]) -> str:
    """Text and capability side by side; after means the 95 % interval, or the range over runs."""
    if not found:
        return ""
    head = "| pair | method | strict % | flexible % | gain, flexible | score | KL | format % |"
    rows = [head, "|---|---|--:|--:|--:|--:|--:|--:|"]
    for one in found:
        cells = [
            one.pair,
            f"`{one.method}`",
            _percent(one.strict),
            _percent(one.flexible),
            _points(one.gain),
            _ranged(one.score, 2),
            _ranged(one.kl, 3),
            _ranged(one.format, 1, 100),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _percent(value: Interval) -> str:
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _points(value: Difference | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:+.1f} ({100 * value.low:+.1f} to {100 * value.high:+.1f})"


def _ranged(value: Range | None, digits: int, scale: float = 1.0) -> str:
    if value is None:
        return ""
    mean, low, high = (f"{scale * number:.{digits}f}" for number in value)
    return mean if low == high else f"{mean} ({low} to {high})"
