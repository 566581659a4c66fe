"""From the signals of a run to findings: what broke, from which step on, why, and what to do.

Pure functions over the rows of metrics.jsonl, so that a run is judged live, afterwards and on
another machine in the same way. A finding is either a collapse (the student has lost what it
could do) or a deviation (a step trains something else than the recipe says). A collapse takes
its cause from the deviations seen before it, or else from how the student behaves. Causes are a
closed list: the names of `potstill.diagnostics.faults`, and the three of `OTHERS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.types import Finding

Row = Mapping[str, Any]

# Set on tiny-llama; benchmarks/diagnosis.py measures them, on the other pair too.
LOST = 0.25  # of the best accuracy on the probe so far, at which a skill counts as lost
CONFIRM = 2  # probes in a row before a collapse is one
JUMP, RISE = 3.0, 0.7  # of a step's gradient norm over its median, of its loss in nats
# What a step reports of its losses; the rest of the checks are about the pipeline around it.
TRAINED = ("student", "teacher", "anchor", "loss")
# How far a signal of the probe has to move: (factor, offset) on its best so far, and in words.
MOVES: dict[str, tuple[float, float, str, str]] = {
    "signal/teacher_loss": (1.5, 0.2, "its text costs the teacher {} nats per token", ".2f"),
    "signal/entropy": (1.5, 0.05, "its entropy is {} nats per token", ".2f"),
    "signal/truncated": (1.0, 0.5, "{} of its answers run into the limit", ".0%"),
    "signal/repetition": (1.0, 0.3, "{} of its tokens repeat the one before", ".0%"),
}
WEAK, ABSURD = 0.6, 2.0  # accuracy and nats of the teacher's loss, where the text is absurd
COPIES = (2.0, 0.03)  # factor and offset on the untrained P(token just read)
FEW = 0.1  # probability of EOS where the teacher ends, below which a student does not stop

# What is measured at every probe, for people.
SIGNALS: dict[str, str] = {
    "train/accuracy": "right answers on the probed training problems, temperature 1",
    "train/kl_divergence": "KL(p, q) on the student's own tokens, nats per token",
    "signal/length": "completion tokens of the student's answers",
    "signal/truncated": "share of its answers that run into the limit",
    "signal/repetition": "share of tokens that repeat the one before",
    "signal/entropy": "of the student on its own text, nats per token",
    "signal/teacher_entropy": "of the teacher on the student's text",
    "signal/kl_early": "KL in the first half of an answer",
    "signal/kl_late": "KL in the second half",
    "signal/teacher_loss": "the teacher's loss on the student's text, nats per token",
    "signal/reading_loss": "the student's loss on the teacher's text, nats per token",
    "signal/copy": "the student's probability of the token just read, on the teacher's text",
    "signal/end": "its probability of EOS where the teacher ends",
}

# Deviations that spoil what is known of a run, not the student.
HARMLESS = ("eval_on_train", "seeds_ignored")

OTHERS: dict[str, tuple[str, str]] = {
    "another_objective": (
        "a step trains something else than the recipe says, like no mistake that potstill knows",
        "compare what the step is given with the recipe: shift, prompt, masks and weights",
    ),
    "not_a_number": (
        "a loss or a gradient is not a number",
        "lower the learning rate, clip gradients, train in bfloat16 or float32",
    ),
    "unexplained": (
        "the student lost its skill and no known cause fits",
        "lower the learning rate; look at its texts; compare with on_policy_gkd on the same pair",
    ),
}


def sentence(finding: Finding) -> str:
    """The finding as a line for people."""
    what = "collapsed" if finding.kind == "collapse" else "deviates"
    return f"{what} from step {finding.step} on: {finding.cause} ({meaning(finding.cause)})"


def meaning(cause: str) -> str:
    """What a cause is, in words."""
    return FAULTS[cause].what if cause in FAULTS else OTHERS[cause][0]


def advice(cause: str) -> str:
    """What to do about it."""
    return FAULTS[cause].remedy if cause in FAULTS else OTHERS[cause][1]


def ended(how: Mapping[str, int]) -> str:
    """In words, how a run was given up.

    >>> ended({"step": 20, "of": 100, "back_to": 10})
    'stopped at step 20 of 100, back to the student of step 10'
    """
    words = f"stopped at step {how['step']} of {how['of']}"
    return f"{words}, back to the student of step {how['back_to']}" if "back_to" in how else words


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """Everything that a run's rows show, collapse first, then in the order of steps.

    Args:
        rows: of metrics.jsonl; the row of step 0 is the untrained student.
    """
    deviations = list(_deviations(rows))
    return [*_collapse(rows, deviations), *deviations]


def collapse(rows: Sequence[Row]) -> Finding | None:
    """The collapse of a run, if it has collapsed."""
    return next((finding for finding in diagnose(rows) if finding.kind == "collapse"), None)


def healthy_until(rows: Sequence[Row]) -> int:
    """The last step at which a probe shows no symptom; 0 where there is none."""
    return max([0, *(int(row["step"]) for row, symptoms in _symptoms(rows) if not symptoms)])


def failure(cause: str, steps: int) -> Finding | None:
    """The finding behind a cell that failed, where it is one of training."""
    if not cause.startswith("not a number"):
        return None
    return Finding("collapse", "not_a_number", steps + 1, steps + 1, cause, advice("not_a_number"))


def _deviations(rows: Sequence[Row]) -> Iterator[Finding]:
    """One finding a cause; what has no name yet waits for one more step."""
    seen: set[str] = set()
    first: dict[str, int] = {}
    for row in rows:
        for check in row.get("checks") or ():
            what, cause = check["what"], check["cause"]
            begun = first.setdefault(what, int(row["step"]))
            if not cause and what in (row.get("suspects") or ()):
                continue  # the next step tries the known mistakes
            for name in (cause or "another_objective").split("+"):  # some come in company
                if name in seen or (name == "another_objective" and seen):
                    continue
                seen.add(name)
                yield Finding(
                    "deviation", name, begun, int(row["step"]), _evidence(check), advice(name)
                )
    yield from _unfit_teacher(rows)
    broken = min((first[what] for what in TRAINED if what in first), default=None)
    for spike in _spike(rows):
        if broken is None or spike.step < broken:  # a step that trains the wrong thing may jump
            yield spike


def _evidence(check: Mapping[str, Any]) -> str:
    what, trained, expected = check["what"], check["trained"], check["expected"]
    if what in TRAINED:
        name = {"loss": "the step's loss", "anchor": "the anchor"}.get(what, f"{what} tokens")
        got = "nothing" if trained is None else f"{trained:.4f} nats per token"
        wanted = "nothing" if expected is None else f"{expected:.4f}"
        return f"{name}: {got} trained, {wanted} is what the recipe gives on the same batch"
    return f"{what}: {trained:.4g}, {expected:.4g} is right"


def _unfit_teacher(rows: Sequence[Row]) -> Iterator[Finding]:
    """A teacher that does not speak the student's language, at step 0."""
    start = rows[0] if rows else {}
    if start.get("step") != 0 or start.get("signal/teacher_accuracy") is None:
        return
    teacher, student = start["signal/teacher_accuracy"], start["train/accuracy"]
    if teacher < student / 2 and start["signal/teacher_loss"] > 3 * start["signal/entropy"] + 2:
        evidence = (
            f"the teacher solves {teacher:.0%} of the probe, the untrained student {student:.0%}; "
            f"the student's text costs it {start['signal/teacher_loss']:.1f} nats per token"
        )
        yield Finding("deviation", "vocab_permuted", 0, 0, evidence, advice("vocab_permuted"))


def _spike(rows: Sequence[Row]) -> Iterator[Finding]:
    """One step that moved the student much further than those before it."""
    seen: list[Row] = []
    for before, row in pairwise(row for row in rows if row.get("train/grad_norm") is not None):
        seen.append(before)
        if len(seen) < 10:
            continue
        usual = sorted(r["train/grad_norm"] for r in seen[-20:])[len(seen[-20:]) // 2]
        jumped = row["train/grad_norm"] > JUMP * usual
        same = row.get("train/phase") == before.get("train/phase")
        worse = (row["train/loss"] or 0) > (before["train/loss"] or 0) + RISE
        if jumped and same and worse:
            evidence = (
                f"gradient norm {usual:.2f} -> {row['train/grad_norm']:.2f}, loss "
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
    """The first probes in a row that all show a student without its skill."""
    streak: list[Row] = []
    for row, symptoms in _symptoms(rows):
        streak = [*streak, row] if symptoms else []
        if len(streak) == CONFIRM:
            onset, found = int(streak[0]["step"]), int(row["step"])
            cause, because = _cause(rows[0], row, deviations, found)
            evidence = "; ".join(symptoms + because)
            yield Finding("collapse", cause, onset, found, evidence, advice(cause))
            return


def _symptoms(rows: Sequence[Row]) -> Iterator[tuple[Row, list[str]]]:
    """Each probe with the evidence that the skill is lost; none where it is not.

    Accuracy on a few problems is noisy, so it never speaks alone: the text has to have changed too.
    """
    probes = [row for row in rows if row.get("signal/teacher_loss") is not None]
    if not probes or probes[0]["step"] != 0:
        return
    best: dict[str, Any] = {name: probes[0].get(name) for name in ("train/accuracy", *MOVES)}
    for row in probes[1:]:
        moved = [
            f"{words.format(format(row[name], spec))}, {format(best[name], spec)} at best"
            for name, (factor, offset, words, spec) in MOVES.items()
            if _known(row.get(name), best.get(name)) and row[name] > factor * best[name] + offset
        ]
        now, was = row["train/accuracy"], best["train/accuracy"]
        lost = now <= LOST * was and was > 0 and moved
        weak = (
            now <= WEAK * was and row["signal/teacher_loss"] > best["signal/teacher_loss"] + ABSURD
        )
        right = [f"{now:.0%} of the probe right, {was:.0%} at best"]
        yield row, right + moved if lost or weak else []
        best = {
            name: max(was, now) if name == "train/accuracy" else min(value, row[name])
            for name, value in best.items()
            if _known(value, row.get(name))
        }


def _known(*values: float | None) -> bool:
    """An engine without whole rows leaves some signals out."""
    return None not in values


def _cause(
    start: Row, row: Row, deviations: Sequence[Finding], found: int
) -> tuple[str, list[str]]:
    """Why: deviations seen by then, the one that the behaviour fits first, or behaviour alone."""
    known = [d for d in deviations if d.found <= found and d.cause not in HARMLESS]
    behaviour = dict(_behaviour(start, row))
    for cause, words in behaviour.items():
        if any(d.cause == cause for d in known):
            mine = next(d for d in known if d.cause == cause)
            return cause, [words, mine.evidence]
    if known:
        return known[0].cause, [d.evidence for d in known]
    for cause, words in behaviour.items():
        return cause, [words]
    return "unexplained", []


def _behaviour(start: Row, row: Row) -> Iterator[tuple[str, str]]:
    """Causes that a student's behaviour alone points to."""
    copy, end = row.get("signal/copy"), row.get("signal/end")
    if copy is not None and copy > COPIES[0] * start["signal/copy"] + COPIES[1]:
        yield (
            "unshifted_targets",
            f"it repeats the token just read with probability {copy:.2f}, "
            f"{start['signal/copy']:.2f} untrained",
        )
    if end is not None and end < FEW < (start["signal/end"] or 0) and row["signal/truncated"] > 0.5:
        yield (
            "eos_untrained",
            f"EOS has probability {end:.2f} where the teacher ends, "
            f"{row['signal/truncated']:.0%} of its answers run into the limit",
        )
