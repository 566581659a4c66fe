"""Symptoms of a collapse: which probes of a run show a student that has lost its skill?

A skill is lost in one of two ways. Where the task grades, accuracy falls far below its best, and
the completions change with it. Where accuracy cannot show it (no grader, or 0 from the start), the
student's mode collapses: its completions lose their variety, and its distance from the teacher
does not fall. Variety alone is not a symptom: a student that gives the right one-word answers is
certain, brief and repeats itself, and it agrees with the teacher. Pure functions on rows of
metrics.jsonl; naming the cause is left to `diagnosis`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import median
from typing import Any

Row = Mapping[str, Any]

# Thresholds; benchmarks/diagnosis.py and benchmarks/collapse.py measure their error rates.
LOST = 0.25  # share of the best probe accuracy so far at or below which the skill is lost
WEAK, ABSURD = 0.6, 2.0  # share of the best accuracy, and rise of the teacher's loss in nats
# A signal has moved if it is above factor * best + offset; with its wording and number format.
MOVES: dict[str, tuple[float, float, str, str]] = {
    "signal/teacher_loss": (1.5, 0.2, "completions cost the teacher {} nats per token", ".2f"),
    "signal/entropy": (1.5, 0.05, "the student's entropy is {} nats per token", ".2f"),
    "signal/truncated": (1.0, 0.5, "{} of completions are truncated", ".0%"),
    "signal/repetition": (1.0, 0.3, "{} of tokens repeat the previous token", ".0%"),
}
CERTAIN = 0.1  # share of the untrained student's entropy and of the teacher's there
LOOPS = 0.3  # rise of the share of tokens in a loop, over the untrained student and the teacher
ALIKE = 0.5  # share of their number of different completions
SHORT, LONG = 1 / 3, 3.0  # multiples of their lengths
VANISHED, STEPS = 0.05, 5  # share of the first gradient norm; steps whose median counts
FAR = 0.5  # KL in nats per token above which student and teacher disagree
NOT_LOWER = 0.8  # share of the untrained student's KL at or above which it has not fallen
AWAY = (1.5, 0.5)  # factor and offset on the lowest KL so far: it has risen again
FORGOTTEN = (1.2, 1.0)  # the same for the loss on the teacher's completions
LEFT = (2.0, 3.0)  # the same, from which on it is a symptom without any other
SIGNS = 2  # signs of lost variety that make a mode collapse


@dataclass(frozen=True)
class Symptoms:
    """Evidence of one probe that the skill is lost; false if there is none."""

    accuracy: tuple[str, ...] = ()  # it has fallen, and the completions have changed
    variety: tuple[str, ...] = ()  # lost, although the student has not come closer to the teacher
    away: tuple[str, ...] = ()  # the teacher's completions have become very unlikely

    def __bool__(self) -> bool:
        return bool(self.accuracy or self.variety or self.away)

    @property
    def evidence(self) -> list[str]:
        return [*self.accuracy, *self.variety, *self.away]


@dataclass
class _Best:
    """The best value of each signal so far."""

    values: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        for name in ("train/accuracy", "train/kl_divergence", "signal/reading_loss", *MOVES):
            value, known = row.get(name), self.values.get(name)
            if value is not None:
                better = max if name == "train/accuracy" else min
                self.values[name] = value if known is None else better(known, value)


def is_probe(row: Row) -> bool:
    """True if the student was probed at the row's step; a pair may have no teacher."""
    return any(row.get(f"signal/{name}") is not None for name in ("teacher_loss", "length"))


def probes_with_symptoms(rows: Sequence[Row]) -> Iterator[tuple[Row, Symptoms]]:
    """Each probe after step 0, with its symptoms.

    Args:
        rows: the rows of metrics.jsonl; the row of step 0 is the untrained student.
    """
    if not rows or rows[0].get("step") != 0 or not is_probe(rows[0]):
        return
    start, best, norms = rows[0], _Best(), list[float]()
    best.add(start)
    for row in rows[1:]:
        if row.get("train/grad_norm") is not None:
            norms.append(row["train/grad_norm"])
        if not is_probe(row):
            continue
        lost = tuple(_accuracy(row, best))
        if _skilled(row, best):
            yield row, Symptoms(lost)
        else:
            variety = tuple(_variety(start, row, best, norms))
            yield row, Symptoms(lost, variety, tuple(_forgotten(row, best, LEFT)))
        best.add(row)


def _accuracy(row: Row, best: _Best) -> list[str]:
    """Evidence that accuracy is lost.

    Accuracy on a few problems is noisy. It counts only if the completions have changed as well.
    """
    now, peak = row.get("train/accuracy"), best.values.get("train/accuracy")
    moved = [
        f"{wording.format(format(row[name], spec))}, {format(best.values[name], spec)} at best"
        for name, (factor, offset, wording, spec) in MOVES.items()
        if _value(row, name) > factor * _value(best.values, name) + offset
    ]
    name = "signal/teacher_loss"
    absurd = _value(row, name) > _value(best.values, name) + ABSURD
    if now is None or peak is None:
        return moved if absurd else []
    lost = now <= LOST * peak and peak > 0 and moved
    weak = now <= WEAK * peak and absurd
    return [f"{now:.0%} of the probe correct, {peak:.0%} at best", *moved] if lost or weak else []


def _skilled(row: Row, best: _Best) -> bool:
    """True if accuracy shows that the student has its skill."""
    accuracy, peak = row.get("train/accuracy") or 0.0, best.values.get("train/accuracy") or 0.0
    return accuracy > 0 and accuracy >= WEAK * peak


def _variety(start: Row, row: Row, best: _Best, norms: Sequence[float]) -> list[str]:
    """Evidence of a mode collapse: variety is lost, and the teacher does not agree."""
    harm = list(_harm(start, row, best))
    signs = list(_signs(start, row, norms)) if harm else []
    return signs + harm if len(signs) >= SIGNS else []


def _harm(start: Row, row: Row, best: _Best) -> Iterator[str]:
    """Evidence that the student does not come closer to the teacher, or has moved away."""
    first, now, low = (_value(r, "train/kl_divergence") for r in (start, row, best.values))
    if now >= FAR and (now >= NOT_LOWER * first or now >= AWAY[0] * low + AWAY[1]):
        yield f"KL(p, q) on its completions is {now:.2f} nats per token (untrained: {first:.2f})"
    yield from _forgotten(row, best, FORGOTTEN)


def _forgotten(row: Row, best: _Best, limit: tuple[float, float]) -> Iterator[str]:
    """Evidence that the loss on the teacher's completions is above factor * best + offset."""
    now, low = (_value(r, "signal/reading_loss") for r in (row, best.values))
    if now > limit[0] * low + limit[1]:
        yield f"the teacher's completions cost it {now:.2f} nats per token, {low:.2f} at best"


def _signs(start: Row, row: Row, norms: Sequence[float]) -> Iterator[str]:
    """Signs that the completions have lost their variety, compared with step 0.

    Where the teacher's completions are as uniform, it is not a sign. Comparisons with an unknown
    value are false.
    """
    entropy, usual = _value(row, "signal/entropy"), _value(start, "signal/entropy")
    certain = row.get("signal/teacher_entropy")
    if entropy <= CERTAIN * (usual if certain is None else min(usual, certain)):
        yield f"the student's entropy is {entropy:.2g} nats per token (untrained: {usual:.2g})"
    # recordings of older versions have no loops
    name = "repetition" if row.get("signal/loop") is None else "loop"
    now, usual, teacher = _compared(start, row, name)
    if now > max(usual, teacher) + LOOPS:
        yield f"{now:.0%} of tokens are in a loop (untrained: {usual:.0%})"
    now, usual, teacher = _compared(start, row, "distinct")
    if now <= ALIKE * min(usual, teacher):
        yield f"{now:.0%} of completions are different ones (untrained: {usual:.0%})"
    now, usual, teacher = _compared(start, row, "length")
    if now < SHORT * min(usual, teacher) or now > LONG * max(usual, teacher):
        yield f"a completion has {now:.1f} tokens (untrained: {usual:.1f})"
    if len(norms) >= 2 * STEPS - 1:
        first, last = median(norms[:STEPS]), median(norms[-STEPS:])
        if last <= VANISHED * first:
            yield f"the gradient norm fell from {first:.2g} to {last:.2g}"


def _compared(start: Row, row: Row, name: str) -> tuple[float, float, float]:
    """A signal now, of the untrained student and of the teacher, if that is known."""
    usual = _value(start, f"signal/{name}")
    teacher = start.get(f"signal/teacher_{name}")
    return _value(row, f"signal/{name}"), usual, usual if teacher is None else teacher


def _value(row: Row, name: str) -> float:
    """A signal; not a number if it is unknown, as engines without full-vocabulary log-probs omit
    some."""
    value = row.get(name)
    return nan if value is None else float(value)
