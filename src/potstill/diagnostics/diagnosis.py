"""Diagnosis of a run: its recorded signals become findings with cause, onset, evidence and remedy.

Pure functions on the rows of metrics.jsonl, so that a diagnosis is the same during the run,
afterwards and on another machine. A finding is a collapse (the student has lost its skill), a
deviation (a step trains something other than the recipe) or a note (a setting that is worth a
change). The cause of a collapse is a deviation found before it or, failing that, a behaviour of the
student. Causes are a closed list: the names in `potstill.diagnostics.faults` and those in `OTHERS`.
Measuring is left to `monitor`, thresholds to `symptoms` and `notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.diagnostics import notes
from potstill.diagnostics.faults import FAULTS
from potstill.diagnostics.symptoms import Row, Symptoms, probes_with_symptoms
from potstill.types import Finding

CONFIRM = 2  # consecutive probes with symptoms that make a collapse
# Losses that a step reports. Other checks are about the pipeline around the step.
TRAINED = ("student", "teacher", "anchor", "loss")
COPIES = (2.0, 0.03)  # factor and offset on the untrained student's P(token just read)
FEW = 0.1  # P(EOS) where the teacher ends, below which the student does not stop

# Signals of every probe, described for people.
SIGNALS: dict[str, str] = {
    "train/accuracy": "share of correct completions of the probe, temperature 1",
    "train/kl_divergence": "KL(p, q) on the student's completions, nats per token",
    "signal/length": "tokens per completion of the student",
    "signal/truncated": "share of truncated completions",
    "signal/repetition": "share of tokens that repeat the previous token",
    "signal/loop": "share of tokens that repeat at the best period of up to 16 tokens",
    "signal/distinct": "share of completions that differ from those before them",
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
    "mode_collapse": (
        "the student writes one text whatever the prompt, and the teacher does not agree",
        "train on teacher completions first (off_policy, hybrid), or use student_loss = forward_kl",
    ),
    "weak_teacher": (
        "the teacher solves fewer problems than the untrained student",
        "use a stronger teacher, or check its prompt and chat template",
    ),
    "rate_too_high": (
        "the steps train what the recipe specifies and move the student away from the teacher",
        "lower the learning rate, or raise train.batch_size",
    ),
    "noisy_steps": (
        "single batches raise loss and gradient, and the next steps undo it",
        "raise train.batch_size: a step on few tokens is noisy; or lower the learning rate",
    ),
    "nothing_learned": (
        "the student is as far from the teacher as before training",
        "raise the learning rate or train.steps",
    ),
    "still_improving": (
        "the student was still approaching the teacher at the last step",
        "raise train.steps: at this length, methods are compared by their speed",
    ),
    "truncated": (
        "the student's completions are cut off at the limit",
        "raise train.max_tokens, or train on more of the teacher's completions, which end",
    ),
    "eos_never_seen": (
        "no completion of the teacher or the student ends before the limit",
        "raise train.max_tokens; if it is high enough, check the chat template and the EOS of the "
        "teacher",
    ),
    "all_rejected": (
        "no completion of the teacher was right, and only right ones are trained on",
        "read the teacher's completions and check the grader, raise train.max_tokens, or leave "
        "reject_wrong out",
    ),
    "unexplained": (
        "the student lost its skill and no known cause fits",
        "lower the learning rate; read its completions; compare with on_policy_gkd on this pair",
    ),
}
VERBS = {"collapse": "collapsed", "deviation": "deviates", "note": "has a note"}


def sentence(finding: Finding) -> str:
    """A finding in one line."""
    since = f"{VERBS[finding.kind]} from step {finding.step} on"
    return f"{since}: {finding.cause} ({meaning(finding.cause)})"


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


def diagnose(rows: Sequence[Row], *, finished: bool = False) -> list[Finding]:
    """All findings of a run: the collapse first, then deviations in the order of steps, then notes.

    Args:
        rows: the rows of metrics.jsonl; the row of step 0 is the untrained student.
        finished: true if the run made all its steps: then its outcome has notes too.
    """
    deviations = list(_deviations(rows))
    alarms = [*_collapse(rows, deviations), *deviations]
    remarks = [*notes.noisy_steps(rows)]
    if not any(d.cause == "vocab_permuted" for d in deviations):  # it makes any teacher weak
        remarks = [*notes.weak_teacher(rows), *remarks]
    if finished and not alarms:
        remarks += notes.outcome(rows)
    return alarms + [
        Finding("note", n.cause, n.step, n.detected, n.evidence, advice(n.cause)) for n in remarks
    ]


def alarms(findings: Sequence[Finding]) -> list[Finding]:
    """Collapses and deviations, without notes."""
    return [finding for finding in findings if finding.kind != "note"]


def collapse(rows: Sequence[Row]) -> Finding | None:
    """The collapse of a run; None if it has not collapsed."""
    return next((finding for finding in diagnose(rows) if finding.kind == "collapse"), None)


def healthy_until(rows: Sequence[Row]) -> int:
    """The last step at which a probe shows no symptom; 0 if there is none."""
    probes = probes_with_symptoms(rows)
    return max([0, *(int(row["step"]) for row, symptoms in probes if not symptoms)])


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
    if start.get("step") != 0:
        return
    yield from _worse_than_a_guess(start)
    teacher, student = start.get("signal/teacher_accuracy"), start.get("train/accuracy")
    if teacher is None or student is None:
        return
    if teacher < student / 2 and start["signal/teacher_loss"] > 3 * start["signal/entropy"] + 2:
        loss = start["signal/teacher_loss"]
        evidence = (
            f"the teacher solves {teacher:.0%} of the probe, the untrained student {student:.0%}; "
            f"the teacher's loss on the student's completions is {loss:.1f} nats per token"
        )
        yield Finding("deviation", "vocab_permuted", 0, 0, evidence, advice("vocab_permuted"))


def _worse_than_a_guess(start: Row) -> Iterator[Finding]:
    """A task without a grader: each model finds the other's completions less likely than a guess.

    That the student itself is far from guessing is needed as well.
    """
    guess, entropy = start.get("signal/uniform"), start.get("signal/entropy")
    losses = [start.get(f"signal/{name}") for name in ("teacher_loss", "reading_loss")]
    if guess is None or entropy is None or entropy > guess / 2:
        return
    if all(loss is not None and loss > guess for loss in losses):
        evidence = (
            f"the teacher's loss on the student's completions is {losses[0]:.1f} nats per token, "
            f"the student's on the teacher's {losses[1]:.1f}; a uniform guess has {guess:.1f}"
        )
        yield Finding("deviation", "vocab_permuted", 0, 0, evidence, advice("vocab_permuted"))


def _spike(rows: Sequence[Row]) -> Iterator[Finding]:
    """The first step that moved the student much further than those before it, and for good."""
    name = "learning_rate_spike"
    for jump in notes.jumps(rows):
        if jump.lasting:
            yield Finding("deviation", name, jump.step, jump.detected, jump.evidence, advice(name))
            return


def _collapse(rows: Sequence[Row], deviations: Sequence[Finding]) -> Iterator[Finding]:
    """The first series of consecutive probes that show a student without its skill."""
    streak: list[Row] = []
    for row, symptoms in probes_with_symptoms(rows):
        streak = [*streak, row] if symptoms else []
        if len(streak) == CONFIRM:
            onset, step = int(streak[0]["step"]), int(row["step"])
            cause, reasons = _cause([r for r in rows if r["step"] <= step], symptoms, deviations)
            evidence = "; ".join(dict.fromkeys([*symptoms.evidence, *reasons]))
            yield Finding("collapse", cause, onset, step, evidence, advice(cause))
            return


def _cause(
    rows: Sequence[Row], symptoms: Symptoms, deviations: Sequence[Finding]
) -> tuple[str, list[str]]:
    """Cause of a collapse and its evidence, from deviations and behaviour up to the last row.

    A deviation that the behaviour confirms goes first, then the first deviation, then behaviour.
    Where checks of the steps have found no deviation, the behaviour is not a fault's.
    """
    start, row = rows[0], rows[-1]
    earlier = [d for d in deviations if d.found <= row["step"] and d.cause not in HARMLESS]
    behaviour = dict(_behaviour(start, row))
    for cause, evidence in behaviour.items():
        confirmed = next((d for d in earlier if d.cause == cause), None)
        if confirmed:
            return cause, [evidence, confirmed.evidence]
    if earlier:
        return earlier[0].cause, [d.evidence for d in earlier]
    checked = any("checks" in r for r in rows[1:])
    for cause, evidence in () if checked else behaviour.items():
        return cause, [evidence]
    if symptoms.variety:
        return "mode_collapse", []
    for note in [*notes.weak_teacher(rows), *(notes.rate_too_high(rows) if checked else ())]:
        return note.cause, [note.evidence]
    return ("rate_too_high" if symptoms.away and checked else "unexplained"), []


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
