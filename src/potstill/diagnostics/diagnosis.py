"""Diagnosis of a run: its recorded signals become findings with cause, onset, evidence and remedy.

Pure functions on the rows of metrics.jsonl, so that a diagnosis is the same during the run,
afterwards and on another machine. A finding is a collapse (the student has lost its skill) or a
deviation (a step trains something other than the recipe). The cause of a collapse is a deviation
found before it or, failing that, a behaviour of the student. Causes are a closed list: the names in
`potstill.diagnostics.faults` and the three in `OTHERS`. Measuring is left to `monitor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.types import Finding

Row = Mapping[str, Any]

# Thresholds, set on tiny-llama; benchmarks/diagnosis.py measures the error rates on both pairs.
LOST = 0.25  # share of the best probe accuracy so far at or below which the skill is lost
CONFIRM = 2  # consecutive probes with symptoms that make a collapse
JUMP, RISE = 3.0, 0.7  # a spike: gradient norm over its median, and rise of the loss in nats
# Losses that a step reports. Other checks are about the pipeline around the step.
TRAINED = ("student", "teacher", "anchor", "loss")
# A signal is a symptom above factor * best + offset; with its wording and number format.
MOVES: dict[str, tuple[float, float, str, str]] = {
    "signal/teacher_loss": (1.5, 0.2, "completions cost the teacher {} nats per token", ".2f"),
    "signal/entropy": (1.5, 0.05, "the student's entropy is {} nats per token", ".2f"),
    "signal/truncated": (1.0, 0.5, "{} of completions are truncated", ".0%"),
    "signal/repetition": (1.0, 0.3, "{} of tokens repeat the previous token", ".0%"),
}
WEAK, ABSURD = 0.6, 2.0  # share of the best accuracy, and rise of the teacher's loss in nats
COPIES = (2.0, 0.03)  # factor and offset on the untrained student's P(token just read)
FEW = 0.1  # P(EOS) where the teacher ends, below which the student does not stop

# Signals of every probe, described for people.
SIGNALS: dict[str, str] = {
    "train/accuracy": "share of correct completions of the probe, temperature 1",
    "train/kl_divergence": "KL(p, q) on the student's completions, nats per token",
    "signal/length": "tokens per completion of the student",
    "signal/truncated": "share of truncated completions",
    "signal/repetition": "share of tokens that repeat the previous token",
    "signal/entropy": "the student's entropy on its completions, nats per token",
    "signal/teacher_entropy": "the teacher's entropy on the student's completions",
    "signal/kl_early": "KL in the first half of a completion",
    "signal/kl_late": "KL in the second half",
    "signal/teacher_loss": "the teacher's loss on the student's completions, nats per token",
    "signal/reading_loss": "the student's loss on the teacher's completions, nats per token",
    "signal/copy": "the student's P(token just read) on the teacher's completions",
    "signal/end": "the student's P(EOS) where the teacher ends",
}

# Deviations that make a run's numbers unreliable and leave the student intact.
HARMLESS = ("eval_on_train", "seeds_ignored")

# Causes that are not faults: meaning and remedy.
OTHERS: dict[str, tuple[str, str]] = {
    "another_objective": (
        "a step trains something other than the recipe, and no known mistake explains it",
        "compare the data of the step with the recipe: shift, prompt, masks and weights",
    ),
    "not_a_number": (
        "a loss or a gradient is not finite",
        "lower the learning rate, clip gradients, train in bfloat16 or float32",
    ),
    "unexplained": (
        "the student lost its skill and no known cause fits",
        "lower the learning rate; read its completions; compare with on_policy_gkd on this pair",
    ),
}


def sentence(finding: Finding) -> str:
    """A finding in one line."""
    verb = "collapsed" if finding.kind == "collapse" else "deviates"
    return f"{verb} from step {finding.step} on: {finding.cause} ({meaning(finding.cause)})"


def meaning(cause: str) -> str:
    """A cause in one sentence."""
    return FAULTS[cause].what if cause in FAULTS else OTHERS[cause][0]


def advice(cause: str) -> str:
    """The remedy of a cause."""
    return FAULTS[cause].remedy if cause in FAULTS else OTHERS[cause][1]


def ended(how: Mapping[str, int]) -> str:
    """The end of a collapsed run in one line.

    >>> ended({"step": 20, "of": 100, "back_to": 10})
    'stopped at step 20 of 100, back to the student of step 10'
    """
    stopped = f"stopped at step {how['step']} of {how['of']}"
    if "back_to" not in how:
        return stopped
    return f"{stopped}, back to the student of step {how['back_to']}"


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """All findings of a run: the collapse first, then deviations in the order of steps.

    Args:
        rows: the rows of metrics.jsonl; the row of step 0 is the untrained student.
    """
    deviations = list(_deviations(rows))
    return [*_collapse(rows, deviations), *deviations]


def collapse(rows: Sequence[Row]) -> Finding | None:
    """The collapse of a run; None if it has not collapsed."""
    return next((finding for finding in diagnose(rows) if finding.kind == "collapse"), None)


def healthy_until(rows: Sequence[Row]) -> int:
    """The last step at which a probe shows no symptom; 0 if there is none."""
    return max([0, *(int(row["step"]) for row, symptoms in _symptoms(rows) if not symptoms)])


def failure(cause: str, steps: int) -> Finding | None:
    """The finding of a failed run; None unless training caused the failure."""
    if not cause.startswith("not a number"):
        return None
    return Finding("collapse", "not_a_number", steps + 1, steps + 1, cause, advice("not_a_number"))


def _deviations(rows: Sequence[Row]) -> Iterator[Finding]:
    """One finding per cause. A difference without a known cause waits for the next step's check."""
    causes: set[str] = set()
    onsets: dict[str, int] = {}  # quantity -> the first step at which it is wrong
    for row in rows:
        for check in row.get("checks") or ():
            quantity, cause = check["what"], check["cause"]
            onset = onsets.setdefault(quantity, int(row["step"]))
            if not cause and quantity in (row.get("suspects") or ()):
                continue  # the next step tries the known mistakes
            for name in (cause or "another_objective").split("+"):  # "A+B": two faults at once
                if name in causes or (name == "another_objective" and causes):
                    continue
                causes.add(name)
                yield Finding(
                    "deviation", name, onset, int(row["step"]), _evidence(check), advice(name)
                )
    yield from _unfit_teacher(rows)
    broken = min((onsets[part] for part in TRAINED if part in onsets), default=None)
    for spike in _spike(rows):
        if broken is None or spike.step < broken:  # a wrong objective explains a later jump
            yield spike


def _evidence(check: Mapping[str, Any]) -> str:
    quantity, trained, expected = check["what"], check["trained"], check["expected"]
    if quantity in TRAINED:
        names = {"loss": "the step's loss", "anchor": "the anchor"}
        part = names.get(quantity, f"{quantity} tokens")
        measured = "no loss" if trained is None else f"{trained:.4f} nats per token"
        required = "no loss" if expected is None else f"{expected:.4f}"
        return f"{part}: the step trains {measured}, the recipe gives {required} on the same batch"
    return f"{quantity}: {trained:.4g} (expected: {expected:.4g})"


def _unfit_teacher(rows: Sequence[Row]) -> Iterator[Finding]:
    """A teacher whose token ids do not match the student's, at step 0."""
    start = rows[0] if rows else {}
    if start.get("step") != 0 or start.get("signal/teacher_accuracy") is None:
        return
    teacher, student = start["signal/teacher_accuracy"], start["train/accuracy"]
    if teacher < student / 2 and start["signal/teacher_loss"] > 3 * start["signal/entropy"] + 2:
        loss = start["signal/teacher_loss"]
        evidence = (
            f"the teacher solves {teacher:.0%} of the probe, the untrained student {student:.0%}; "
            f"the teacher's loss on the student's completions is {loss:.1f} nats per token"
        )
        yield Finding("deviation", "vocab_permuted", 0, 0, evidence, advice("vocab_permuted"))


def _spike(rows: Sequence[Row]) -> Iterator[Finding]:
    """The first step that moved the student much further than the steps before it."""
    norms: list[float] = []
    for before, row in pairwise(row for row in rows if row.get("train/grad_norm") is not None):
        norms.append(before["train/grad_norm"])
        if len(norms) < 10:
            continue
        recent = sorted(norms[-20:])
        median = recent[len(recent) // 2]
        jumped = row["train/grad_norm"] > JUMP * median
        same_sources = row.get("train/phase") == before.get("train/phase")
        worse = (row["train/loss"] or 0) > (before["train/loss"] or 0) + RISE
        if jumped and same_sources and worse:
            evidence = (
                f"gradient norm {median:.2f} -> {row['train/grad_norm']:.2f}, loss "
                f"{before['train/loss']:.2f} -> {row['train/loss']:.2f} nats in one step"
            )
            step = int(before["step"])
            yield Finding(
                "deviation",
                "learning_rate_spike",
                step,
                int(row["step"]),
                evidence,
                advice("learning_rate_spike"),
            )
            return


def _collapse(rows: Sequence[Row], deviations: Sequence[Finding]) -> Iterator[Finding]:
    """The first series of consecutive probes that show a student without its skill."""
    streak: list[Row] = []
    for row, symptoms in _symptoms(rows):
        streak = [*streak, row] if symptoms else []
        if len(streak) == CONFIRM:
            onset, step = int(streak[0]["step"]), int(row["step"])
            cause, reasons = _cause(rows[0], row, deviations, step)
            evidence = "; ".join(symptoms + reasons)
            yield Finding("collapse", cause, onset, step, evidence, advice(cause))
            return


def _symptoms(rows: Sequence[Row]) -> Iterator[tuple[Row, list[str]]]:
    """Each probe with the evidence that the skill is lost; no evidence if it is not.

    Accuracy on a few problems is noisy. It counts only if the completions have changed as well.
    """
    probes = [row for row in rows if row.get("signal/teacher_loss") is not None]
    if not probes or probes[0]["step"] != 0:
        return
    best: dict[str, Any] = {name: probes[0].get(name) for name in ("train/accuracy", *MOVES)}
    for row in probes[1:]:
        moved = [
            f"{wording.format(format(row[name], spec))}, {format(best[name], spec)} at best"
            for name, (factor, offset, wording, spec) in MOVES.items()
            if _known(row.get(name), best.get(name)) and row[name] > factor * best[name] + offset
        ]
        now, peak = row["train/accuracy"], best["train/accuracy"]
        lost = now <= LOST * peak and peak > 0 and moved
        weak = (
            now <= WEAK * peak and row["signal/teacher_loss"] > best["signal/teacher_loss"] + ABSURD
        )
        accuracy = [f"{now:.0%} of the probe correct, {peak:.0%} at best"]
        yield row, accuracy + moved if lost or weak else []
        best = {
            name: max(peak, now) if name == "train/accuracy" else min(value, row[name])
            for name, value in best.items()
            if _known(value, row.get(name))
        }


def _known(*values: float | None) -> bool:
    """True if every value is known. Engines without full-vocabulary log-probs omit some."""
    return None not in values


def _cause(start: Row, row: Row, deviations: Sequence[Finding], step: int) -> tuple[str, list[str]]:
    """Cause of a collapse and its evidence, from the deviations up to a step and the behaviour.

    A deviation that the behaviour confirms goes first, then the first deviation, then behaviour.
    """
    earlier = [d for d in deviations if d.found <= step and d.cause not in HARMLESS]
    behaviour = dict(_behaviour(start, row))
    for cause, evidence in behaviour.items():
        confirmed = next((d for d in earlier if d.cause == cause), None)
        if confirmed:
            return cause, [evidence, confirmed.evidence]
    if earlier:
        return earlier[0].cause, [d.evidence for d in earlier]
    for cause, evidence in behaviour.items():
        return cause, [evidence]
    return "unexplained", []


def _behaviour(start: Row, row: Row) -> Iterator[tuple[str, str]]:
    """Causes that the student's behaviour suggests, with evidence."""
    copy, end = row.get("signal/copy"), row.get("signal/end")
    if copy is not None and copy > COPIES[0] * start["signal/copy"] + COPIES[1]:
        yield (
            "unshifted_targets",
            f"the student repeats the token just read with probability {copy:.2f} "
            f"(untrained: {start['signal/copy']:.2f})",
        )
    if end is not None and end < FEW < (start["signal/end"] or 0) and row["signal/truncated"] > 0.5:
        yield (
            "eos_untrained",
            f"EOS has probability {end:.2f} where the teacher ends; "
            f"{row['signal/truncated']:.0%} of completions are truncated",
        )
