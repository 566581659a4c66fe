"""Symptoms of one probe: each limit, on both sides of the last digit of a number."""

from __future__ import annotations

from math import inf, nextafter
from typing import Any

import pytest

from potstill.diagnostics import symptoms as module
from potstill.diagnostics.symptoms import MOVES, Symptoms, probes_with_symptoms

Row = dict[str, Any]
START: Row = {
    "step": 0,
    "train/accuracy": 0.5,
    "train/kl_divergence": 4.0,
    "signal/teacher_loss": 0.75,
    "signal/reading_loss": 2.0,
    "signal/entropy": 2.0,
    "signal/teacher_entropy": 3.0,
    "signal/truncated": 0.125,
    "signal/repetition": 0.125,
    "signal/loop": 0.25,
    "signal/distinct": 1.0,
    "signal/length": 12.0,
    "signal/teacher_loop": 0.125,
    "signal/teacher_distinct": 0.5,
    "signal/teacher_length": 24.0,
}
# A student that lost its variety, by two signs, and came no closer to the teacher.
TWO = {"signal/loop": 1.0, "signal/distinct": 0.0}
WRONG = {"train/accuracy": 0.0}


def symptoms(*rows: Row, start: Row = START) -> Symptoms:
    """Symptoms of the last of some probes, each with its changes to step 0."""
    probes = [{**START, **row, "step": i + 1} for i, row in enumerate(rows)]
    *_, (_, last) = probes_with_symptoms([start, *probes])
    return last


def above(value: float) -> float:
    return nextafter(value, inf)


def below(value: float) -> float:
    return nextafter(value, -inf)


def test_a_sound_probe_has_none() -> None:
    assert symptoms({}) == Symptoms((), (), ()) and not symptoms({})
    assert symptoms({}).evidence == []
    assert symptoms(WRONG) == Symptoms((), (), ())


@pytest.mark.parametrize("signal", MOVES)
def test_accuracy_is_lost_where_a_signal_is_above_its_limit(signal: str) -> None:
    factor, offset, wording, spec = MOVES[signal]
    limit = factor * START[signal] + offset
    assert not symptoms({**WRONG, signal: limit}).accuracy
    now, best = format(above(limit), spec), format(START[signal], spec)
    evidence = ("0% of the probe correct, 50% at best", f"{wording.format(now)}, {best} at best")
    assert symptoms({**WRONG, signal: above(limit)}).accuracy == evidence
    better = {signal: START[signal] / 2}  # the best so far, not the untrained student's
    assert symptoms(better, {**WRONG, signal: limit}).accuracy


def test_an_unknown_signal_has_not_moved() -> None:
    assert not symptoms({**WRONG, "signal/entropy": None}).accuracy
    start = {**START, "signal/entropy": None}
    assert not symptoms({**WRONG, "signal/entropy": 90.0}, start=start).accuracy


MOVED = {"signal/repetition": 0.875}


@pytest.mark.parametrize(
    ("accuracy", "peak", "lost"),
    [(0.125, 0.5, True), (above(0.125), 0.5, False), (0.0, 0.0, False), (0.25, 1.0, True)],
)
def test_a_quarter_of_the_best_accuracy_is_lost(accuracy: float, peak: float, lost: bool) -> None:
    rows = {"train/accuracy": peak}, {**MOVED, "train/accuracy": accuracy}
    start = {**START, "train/accuracy": 0.0}
    assert bool(symptoms(*rows, start=start).accuracy) is lost


def test_more_is_lost_where_the_teachers_loss_is_absurd() -> None:
    absurd = {"signal/teacher_loss": above(2.75)}
    weak = module.WEAK * 0.5
    assert symptoms({**absurd, "train/accuracy": weak}).accuracy
    assert not symptoms({**absurd, "train/accuracy": above(weak)}).accuracy
    high = {"signal/teacher_loss": 2.75, "train/accuracy": weak}
    assert not symptoms(high).accuracy  # two nats more, and no more
    better = {"signal/teacher_loss": 0.5}
    assert symptoms(better, high).accuracy


@pytest.mark.parametrize("unknown", ["now", "at step 0", "both"])
def test_without_accuracy_the_teachers_loss_alone_counts(unknown: str) -> None:
    none = {"train/accuracy": None}
    start = START if unknown == "now" else START | none
    row = {} if unknown == "at step 0" else none
    evidence = (
        "completions cost the teacher 2.75 nats per token, 0.75 at best",
        "88% of tokens repeat the previous token, 12% at best",
    )
    assert not symptoms({**row, **MOVED, "signal/teacher_loss": 2.75}, start=start).accuracy
    higher = {**row, **MOVED, "signal/teacher_loss": above(2.75)}
    assert symptoms(higher, start=start).accuracy == evidence


# --- variety ---


@pytest.mark.parametrize(("peak", "factor"), [(0.5, 0.6), (0.75, 0.6)])
def test_a_skilled_student_may_repeat_itself(peak: float, factor: float) -> None:
    best, limit = {"train/accuracy": peak}, factor * peak
    assert symptoms(best, {**TWO, "train/accuracy": limit}) == Symptoms()
    assert symptoms(best, {**TWO, "train/accuracy": below(limit)}).variety
    assert symptoms(best, {**TWO, **WRONG}).variety


def test_a_first_right_answer_is_a_skill_where_there_was_none() -> None:
    for none in (0.0, None):
        start = {**START, "train/accuracy": none}
        assert not symptoms({**TWO, "train/accuracy": 0.25}, start=start).variety
        assert symptoms({**TWO, "train/accuracy": 0.0}, start=start).variety
        assert symptoms({**TWO, "train/accuracy": None}, start=start).variety


LEFT = "KL(p, q) on its completions is {:.2f} nats per token (untrained: {:.2f})"


@pytest.mark.parametrize(
    ("first", "lowest", "now", "harm"),
    [
        (4.0, 4.0, 3.2, True),  # four fifths of step 0
        (4.0, 4.0, below(3.2), False),
        (4.0, 1.0, 2.0, True),  # 1.5 times the lowest, and 0.5
        (4.0, 1.0, below(2.0), False),
        (4.0, 1.0, 1.25, False),
        (0.5, 0.5, 0.5, True),  # half a nat
        (0.5, 0.5, below(0.5), False),
    ],
)
def test_kl_is_harm(first: float, lowest: float, now: float, harm: bool) -> None:
    kl = "train/kl_divergence"
    found = symptoms({kl: lowest}, {**TWO, **WRONG, kl: now}, start={**START, kl: first})
    assert bool(found.variety) is harm
    if harm:
        assert found.variety[-1] == LEFT.format(now, first) and len(found.variety) == 3


CLOSE = {"train/kl_divergence": 0.0}


@pytest.mark.parametrize(("limit", "part"), [(1.2 * 2 + 1, "variety"), (2.0 * 2 + 3, "away")])
def test_the_loss_on_the_teachers_completions_is_harm(limit: float, part: str) -> None:
    loss = "signal/reading_loss"
    assert not getattr(symptoms({**TWO, **WRONG, **CLOSE, loss: limit}), part)
    found = getattr(symptoms({**TWO, **WRONG, **CLOSE, loss: above(limit)}), part)
    words = f"the teacher's completions cost it {limit:.2f} nats per token, 2.00 at best"
    assert found[-1] == words
    assert symptoms({loss: 1.0}, {**TWO, **WRONG, **CLOSE, loss: limit})  # the best so far


def test_a_student_with_its_skill_has_no_other_symptom() -> None:
    assert symptoms({"signal/reading_loss": 90.0}) == Symptoms()
    assert symptoms({"signal/reading_loss": 90.0, **WRONG}).away


SIGNS: list[tuple[Row, float, float, str, str]] = [
    (
        {},
        below(0.2),
        above(0.2),
        "signal/entropy",
        "the student's entropy is 0.2 nats per token (untrained: 2)",
    ),
    (
        {"signal/teacher_entropy": 1.0},
        0.1,
        above(0.1),
        "signal/entropy",
        "the student's entropy is 0.1 nats per token (untrained: 2)",
    ),
    (
        {"signal/teacher_entropy": None},
        0.2,
        above(0.2),
        "signal/entropy",
        "the student's entropy is 0.2 nats per token (untrained: 2)",
    ),
    ({}, above(0.55), 0.55, "signal/loop", "55% of tokens are in a loop (untrained: 25%)"),
    (
        {"signal/loop": None},
        above(0.425),
        0.425,
        "signal/repetition",
        "43% of tokens are in a loop (untrained: 12%)",
    ),
    (
        {},
        0.25,
        above(0.25),
        "signal/distinct",
        "25% of completions are different ones (untrained: 100%)",
    ),
    ({}, below(4.0), 4.0, "signal/length", "a completion has 4.0 tokens (untrained: 12.0)"),
    ({}, above(72.0), 72.0, "signal/length", "a completion has 72.0 tokens (untrained: 12.0)"),
]


@pytest.mark.parametrize(("row", "sign", "silent", "signal", "words"), SIGNS)
def test_a_sign_of_lost_variety(
    row: Row, sign: float, silent: float, signal: str, words: str
) -> None:
    """With one other sign, which alone is none."""
    other = {"signal/distinct": 0.0} if signal != "signal/distinct" else {"signal/length": 0.0}
    changes = {**WRONG, **row, **other}
    assert not symptoms({**changes, signal: silent}).variety
    found = symptoms({**changes, signal: sign}).variety
    assert len(found) == 3 and words in found


def test_a_teacher_that_is_not_known_is_as_the_untrained_student() -> None:
    start = {k: v for k, v in START.items() if not k.startswith("signal/teacher_l") or "loss" in k}
    start["signal/teacher_distinct"] = None
    changes = {**WRONG, "signal/loop": 1.0}
    assert symptoms({**changes, "signal/distinct": 0.5}, start=start).variety
    assert not symptoms({**changes, "signal/distinct": above(0.5)}, start=start).variety
    assert symptoms({**changes, "signal/length": above(36.0)}, start=start).variety
    assert not symptoms({**changes, "signal/length": 36.0}, start=start).variety


@pytest.mark.parametrize(
    ("norms", "sign"),
    [
        ([80.0] * 5 + [4.0] * 4, True),
        ([80.0] * 7 + [4.0] * 2, False),
        ([80.0] * 4 + [4.0] * 5, True),
        ([80.0] * 3 + [4.0] * 5, False),  # too few
        ([80.0] * 5 + [4.0] * 5, True),
        ([80.0] * 5 + [above(4.0)] * 5, False),
        ([80.0] * 5 + [40.0] * 20 + [4.0] * 5, True),
        ([80.0] * 5 + [4.0] * 20 + [40.0] * 5, False),
        ([1.0, 80.0, 80.0, 80.0, 1.0, 4.0, 4.0, 4.0, 4.0, 90.0], True),
    ],
)
def test_a_vanished_gradient_is_a_sign(norms: list[float], sign: bool) -> None:
    rows = [{"step": i + 1, "train/grad_norm": norm} for i, norm in enumerate(norms)]
    last = {**START, **WRONG, "signal/loop": 1.0, "step": len(rows) + 1}
    *_, (_, found) = probes_with_symptoms([START, *rows, last])
    assert bool(found.variety) is sign
    if sign:
        assert "the gradient norm fell from 80 to 4" in found.variety


def test_only_probes_after_an_untrained_student_count() -> None:
    probe = {**START, **WRONG, **TWO, "step": 1}
    assert [row["step"] for row, _ in probes_with_symptoms([START, {"step": 1}, probe])] == [1]
    unprobed = {name: value for name, value in START.items() if "signal" not in name}
    for start in ({**START, "step": 1}, unprobed, {"step": 0}):
        assert list(probes_with_symptoms([start, probe])) == []
    assert list(probes_with_symptoms([])) == []
    alone = {**START, "signal/teacher_loss": None, "signal/length": 9.0}  # without a teacher
    assert [row["step"] for row, _ in probes_with_symptoms([alone, probe])] == [1]
