"""Notes on a run: what is worth a change although every step trains what the recipe specifies.

A teacher that is weaker than the student, steps that jump and recover, and, once the run has
finished, a student that has learned nothing or was still improving. Pure functions on rows of
metrics.jsonl. Collapses and deviations are left to `symptoms` and `diagnosis`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

import numpy as np

from potstill.diagnostics.symptoms import is_probe

Row = Mapping[str, Any]

JUMP, RISE = 3.0, 0.7  # a jump: gradient norm over its median, and rise of the loss in nats
CALM = 10  # steps before a jump, of the same sources, that its medians need
LASTS = 3  # steps after which the loss is still up if the jump did damage
NOISY = 2  # jumps that recover, from which on the steps are noisy
DOUBT = 0.01  # chance below which a difference counts
UNMOVED = 0.95, 1.1  # shares of step 0's distance from the teacher between which nothing is learned
AWAY = (1.5, 0.1)  # factor and offset on it from which on the student has moved away
APART = 0.05  # nats per token above which there is something to learn
SPOILT = ("truncated", "eos_never_seen", "all_rejected")  # causes that are counted as findings
MOSTLY = 0.9  # share of truncated completions from which on it is a note whatever the teacher's
CUT = 0.5  # share of truncated completions above the teacher's from which on it is a note
SAME = 0.15  # difference of the student's share of two steps of one phase, at most
STEPS = 20  # steps of a falling loss, at least
GAIN = 0.1  # share of the gain so far that the same number of steps would add again
LOSSES = {  # of the steps, and the distance of the probes that falls with them
    "train/on_policy_loss": "train/kl_divergence",
    "train/off_policy_loss": "signal/reading_loss",
}
DISTANCES = {
    "train/kl_divergence": "KL from the teacher on its completions",
    "signal/reading_loss": "the loss on the teacher's completions",
}
WORDS = {
    **DISTANCES,
    "train/on_policy_loss": "the training loss on the student's completions",
    "train/off_policy_loss": "the training loss on the teacher's completions",
}


@dataclass(frozen=True)
class Remark:
    """A cause with its evidence, and the steps at which it began and was established."""

    cause: str
    step: int
    detected: int
    evidence: str


def weak_teacher(rows: Sequence[Row]) -> Iterator[Remark]:
    """A teacher that solves fewer problems of the probe than the untrained student.

    McNemar's exact test on the problems that one of the two alone solves, one-sided.
    """
    start = rows[0] if rows else {}
    lost, won = start.get("signal/student_only"), start.get("signal/teacher_only")
    if start.get("step") != 0 or lost is None or won is None:
        return
    n = lost + won
    if sum(comb(n, k) for k in range(lost, n + 1)) < DOUBT * 2**n:
        yield Remark(
            "weak_teacher",
            0,
            0,
            f"the teacher solves {start['signal/teacher_accuracy']:.0%} of the probe, the "
            f"untrained student {start['train/accuracy']:.0%}: {lost} problems only the student, "
            f"{won} only the teacher",
        )


@dataclass(frozen=True)
class Jump:
    """A step that raised loss and gradient norm far above the steps before it."""

    step: int  # the step that moved the student
    detected: int  # the last step that was looked at
    lasting: bool  # the loss was still up then
    evidence: str


def jumps(rows: Sequence[Row]) -> Iterator[Jump]:
    """Jumps whose next steps are known, each with whether it lasted.

    One bad batch of short completions jumps as well; the steps after it are as before.
    """
    steps = [r for r in rows if _finite(r.get("train/grad_norm")) and _finite(r.get("train/loss"))]
    resume = 0
    for i in range(1, len(steps) - LASTS + 1):
        row, phase = steps[i], steps[i].get("train/phase")
        if i < resume or steps[i - 1].get("train/phase") != phase:
            continue
        recent = [r for r in steps[max(0, i - 20) : i] if r.get("train/phase") == phase]
        if len(recent) < CALM:
            continue
        norm, loss = (median(r[f"train/{name}"] for r in recent) for name in ("grad_norm", "loss"))
        if row["train/grad_norm"] <= JUMP * norm or row["train/loss"] <= loss + RISE:
            continue
        after = steps[i : i + LASTS]
        evidence = (
            f"gradient norm {norm:.2f} -> {row['train/grad_norm']:.2f}, loss "
            f"{loss:.2f} -> {row['train/loss']:.2f} nats in one step"
        )
        high = max(loss + RISE, *(r["train/loss"] for r in recent))
        lasting = all(r["train/loss"] > high for r in after if r.get("train/phase") == phase)
        detected = int(after[-1]["step"])
        yield Jump(int(steps[i - 1]["step"]), detected, lasting, evidence)
        resume = i + LASTS


def noisy_steps(rows: Sequence[Row]) -> Iterator[Remark]:
    """Jumps that the next steps undo, in a run without one that lasts."""
    passing = list(jumps(rows))
    if len(passing) >= NOISY and not any(jump.lasting for jump in passing):
        first, last = passing[0], passing[NOISY - 1]
        evidence = f"{len(passing)} jumps that the next steps undo; the first: {first.evidence}"
        yield Remark("noisy_steps", first.step, last.detected, evidence)


def rate_too_high(rows: Sequence[Row]) -> Iterator[Remark]:
    """Both distances from the teacher have risen since step 0, at the last two probes."""
    probes, moves = _distances(rows)
    if len(moves) < len(DISTANCES) or len(probes) < 3:
        return
    if all(b > AWAY[0] * a + AWAY[1] for values in moves.values() for a, b in values):
        last = {name: values[-1] for name, values in moves.items()}
        yield Remark(
            "rate_too_high", int(probes[-2]["step"]), int(probes[-1]["step"]), _listed(last)
        )


def truncated(rows: Sequence[Row]) -> Iterator[Remark]:
    """Completions that are cut off: nearly all of them, or far more than the teacher's."""
    probes = [r for r in rows if is_probe(r) and r.get("signal/truncated") is not None]
    if len(probes) < 3 or probes[0]["step"] != 0:
        return
    first, last = probes[-2:]
    share, teacher = (
        min(first["signal/truncated"], last["signal/truncated"]),
        probes[0].get("signal/teacher_truncated"),
    )
    if share < MOSTLY and (teacher is None or share < teacher + CUT):
        return
    never = teacher == 1.0 and all(r["signal/truncated"] == 1.0 for r in probes)
    known = "" if teacher is None else f" (the teacher's: {teacher:.0%})"
    evidence = f"{share:.0%} of the student's completions reach the limit at the last probes{known}"
    onset = next(i for i in range(len(probes)) if _cut(probes[i:], share))
    cause = "eos_never_seen" if never else "truncated"
    yield Remark(cause, int(probes[onset]["step"]), int(last["step"]), evidence)


def _cut(probes: Sequence[Row], share: float) -> bool:
    """True if at least a share of the completions is truncated at each probe."""
    return all(r["signal/truncated"] >= share for r in probes)


def all_rejected(rows: Sequence[Row]) -> Iterator[Remark]:
    """No completion of the teacher was right, and the recipe trains on right ones alone."""
    steps = [r for r in rows if r.get("train/kept") is not None]
    if steps and not any(r["train/kept"] for r in steps):
        count = int(sum(r["train/rejected"] for r in steps))
        evidence = f"all {count} completions of the teacher were rejected"
        yield Remark("all_rejected", int(steps[0]["step"]), int(steps[-1]["step"]), evidence)


def outcome(rows: Sequence[Row]) -> Iterator[Remark]:
    """Notes on a finished run: truncated, moved away, nothing learned, still improving."""
    yield from truncated(rows)
    yield from all_rejected(rows)
    yield from (away := list(rate_too_high(rows)))
    probes, moves = _distances(rows)
    if away or len(probes) < 3 or not moves:
        return
    step, last = int(probes[-1]["step"]), {name: values[-1] for name, values in moves.items()}
    accuracy = [r.get("train/accuracy") or 0.0 for r in probes]
    better = min(accuracy[-2:]) > accuracy[0]
    low, high = UNMOVED
    stays = all(low * a <= b <= high * a for values in moves.values() for a, b in values)
    if stays and not better:
        if max(a for a, _ in last.values()) > APART:
            yield Remark("nothing_learned", 0, step, _listed(last))
        return
    fits = {name: _still([r[name] for r in probes]) for name in moves}
    fits |= dict(_falling_losses(rows, probes))
    if late := {name: ends for name, ends in fits.items() if ends}:
        onset = int(probes[len(probes) // 2]["step"])
        yield Remark("still_improving", onset, step, f"in the second half, {_listed(late)}")


def _falling_losses(
    rows: Sequence[Row], probes: Sequence[Row]
) -> Iterator[tuple[str, tuple[float, float] | None]]:
    """The losses of the steps by source, each as `_still` has it, if its distance falls as well.

    With the distances of the probes, at most 4 % of runs with flat, noisy curves have a note, also
    where the noise of a step has a correlation of 0.5 with that of the step before; at 0.9 it is
    5 %. Where the share of the student's prompts changes, a loss is about other completions, and
    is left out.
    """
    steps = [r for r in rows if r.get("train/phase") is not None]
    phases = [r["train/phase"] for r in steps[len(steps) // 2 :]]
    if len(steps) < STEPS or max(phases) - min(phases) > SAME:
        return
    for name, distance in LOSSES.items():
        losses, distances = (
            [r.get(n) for r in of] for n, of in ((name, steps), (distance, probes))
        )
        if not all(map(_finite, [*losses, *distances])):
            continue
        first, last, _ = _fit([float(value) for value in distances if value is not None])
        if last < first:
            yield name, _still([float(v) for v in losses if v is not None], DOUBT / len(LOSSES))


def _distances(
    rows: Sequence[Row],
) -> tuple[list[Row], dict[str, list[tuple[float, float]]]]:
    """The probes, and each known distance at step 0 with that at each of the last two probes."""
    probes = [r for r in rows if is_probe(r)]
    if not probes or probes[0]["step"] != 0:
        return [], {}
    known = [name for name in DISTANCES if all(r.get(name) is not None for r in probes)]
    return probes, {n: [(probes[0][n], r[n]) for r in probes[-2:]] for n in known}


def _still(values: Sequence[float], doubt: float = DOUBT) -> tuple[float, float] | None:
    """The fitted start and end of a curve's second half if it is still falling, else None."""
    if len(values) - len(values) // 2 < 4:
        return None
    first, last, chance = _fit(values)
    falls = chance < doubt and first - last > GAIN * (values[0] - last) > 0
    return (first, last) if falls else None


def _fit(values: Sequence[float]) -> tuple[float, float, float]:
    """A line through a curve's second half: its start, its end, and the chance of such a fall.

    The chance is that of a one-sided t-test of the slope. Noise that is correlated from one value
    to the next counts as fewer values: n (1 - r) / (1 + r) at a correlation r.
    """
    from scipy.stats import t as student_t

    late = np.asarray(values[len(values) // 2 :], float)
    n = len(late)
    x = np.arange(n) - (n - 1) / 2
    slope = float(x @ late / (x @ x)) if n > 1 else 0.0
    residual = late - late.mean() - slope * x
    square = max(float(residual @ residual), 1e-24)
    r = max(0.0, float(residual[1:] @ residual[:-1]) / square) if n >= STEPS // 2 else 0.0
    independent = n * (1 - r) / (1 + r)
    first, last = float(late.mean() + slope * x[0]), float(late.mean() + slope * x[-1])
    if independent <= 2.5 or n < 3:
        return first, last, 1.0
    error = float(np.sqrt(square / (independent - 2) / (x @ x)))
    return first, last, float(student_t.sf(-slope / max(error, 1e-12), independent - 2))


def _listed(moves: Mapping[str, tuple[float, float]]) -> str:
    return "; ".join(f"{WORDS[n]}: {a:.3g} -> {b:.3g} nats" for n, (a, b) in moves.items())


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
