"""Notes: a weak teacher, noisy steps, a rate that is too high, nothing learned, still improving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from potstill.diagnostics import diagnosis
from potstill.diagnostics.diagnosis import alarms, diagnose

Rows = list[dict[str, Any]]


def series(kl: Sequence[float], reading: Sequence[float], accuracy: float = 0.3) -> Rows:
    """A run with a probe every five steps."""
    rows: Rows = []
    for i, (a, b) in enumerate(zip(kl, reading, strict=True)):
        rows.append(
            {
                "step": 5 * i,
                "checks": [],
                "train/kl_divergence": a,
                "signal/reading_loss": b,
                "train/accuracy": accuracy,
                "signal/teacher_loss": a + 0.1,
                "signal/entropy": 0.1,
                "signal/truncated": 0.0,
                "signal/repetition": 0.0,
            }
        )
    return rows


def steps(losses: Sequence[float], norms: Sequence[float], phase: float = 1.0) -> Rows:
    return [
        {"step": i + 1, "train/loss": loss, "train/grad_norm": norm, "train/phase": phase}
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def named(rows: Rows, *, finished: bool = True) -> list[str]:
    return [f.cause for f in diagnose(rows, finished=finished)]


@pytest.mark.parametrize(
    ("student_only", "teacher_only"), [(7, 0), (6, 0), (10, 1), (9, 1), (0, 7), (5, 5), (13, 3)]
)
def test_a_weak_teacher_is_named_by_an_exact_test(student_only: int, teacher_only: int) -> None:
    start = series([0.5], [0.3])[0] | {
        "signal/teacher_accuracy": 0.1,
        "signal/student_only": student_only,
        "signal/teacher_only": teacher_only,
    }
    n = student_only + teacher_only
    weak = binomtest(student_only, n, alternative="greater").pvalue < 0.01
    assert (named([start], finished=False) == ["weak_teacher"]) is bool(weak)
    assert alarms(diagnose([start])) == []


def test_a_collapse_under_a_weak_teacher_is_its_own() -> None:
    """The student follows its teacher down, and a lower rate would not help."""
    rows = series([0.5] * 5, [0.3] * 5, accuracy=0.0)
    rows[0] |= {
        "train/accuracy": 0.7,
        "signal/teacher_accuracy": 0.0,
        "signal/student_only": 11,
        "signal/teacher_only": 0,
    }
    for row in rows[2:]:
        row["signal/entropy"] = 2.0
    first, note = diagnose(rows)
    assert (first.kind, first.cause, first.found) == ("collapse", "weak_teacher", 15)
    assert (note.kind, note.cause) == ("note", "weak_teacher")
    assert "11 problems only the student" in note.evidence and note.evidence in first.evidence
    assert "stronger teacher" in first.advice


def test_a_permuted_vocabulary_is_no_weak_teacher() -> None:
    start = series([9.0], [9.0])[0] | {
        "train/accuracy": 0.7,
        "signal/teacher_accuracy": 0.0,
        "signal/student_only": 11,
        "signal/teacher_only": 0,
    }
    assert named([start]) == ["vocab_permuted"]


CALM, QUIET = [0.1] * 20, [0.02] * 20


@pytest.mark.parametrize(
    ("after", "cause"),
    [
        ([3.0, 2.9, 3.1, 3.0], "learning_rate_spike"),
        ([3.0, 0.1, 0.1, 0.1, 3.0, 0.1, 0.1, 0.1], "noisy_steps"),
        ([3.0, 2.9, 0.1, 0.1, 2.8, 0.1, 2.9, 0.1], "noisy_steps"),
        ([3.0, 3.1, 3.2, 5.0, 3.2, 3.2, 5.0, 3.2, 3.2], "learning_rate_spike"),  # and its wake
        ([3.0, 0.1, 0.1, 0.1], None),  # one bad batch
        ([3.0, 3.0], None),  # the next steps will show
        ([0.7, 0.7, 0.7, 0.7], None),  # not high enough
    ],
)
def test_a_jump_that_lasts_is_a_spike(after: list[float], cause: str | None) -> None:
    norms = [*QUIET, *(0.2 if loss > 0.5 else 0.02 for loss in after)]
    assert named(steps([*CALM, *after], norms)) == ([cause] if cause else [])
    flat = [0.02] * len(norms)  # without a jump of the gradient it is a hard batch
    assert named(steps([*CALM, *after], flat)) == []


def test_a_loss_that_was_as_high_before_does_not_last() -> None:
    """Answers of one token: most batches are easy, and a hard one now and then is not news."""
    before = [0.1] * 9 + [2.5] + [0.1] * 10
    after = [3.0, 2.4, 2.4, 0.1]
    norms = [0.02 if loss < 0.5 else 0.2 for loss in [*before, *after]]
    assert named(steps([*before, *after], norms)) == []
    assert named(steps([*CALM, *after], norms)) == ["learning_rate_spike"]


def test_a_jump_is_measured_by_steps_of_the_same_sources() -> None:
    imitation = steps(CALM, QUIET, phase=0.0)
    own = [{**row, "step": row["step"] + 20} for row in steps([3.0] * 15, [0.5] * 15)]
    assert named([*imitation, *own]) == []


@pytest.mark.parametrize(
    ("kl", "reading", "cause"),
    [
        ([2.0, 2.0, 1.98, 2.01, 2.0], [3.0, 3.0, 2.99, 3.0, 3.0], "nothing_learned"),
        ([2.0, 2.0, 1.98, 1.2, 1.2], [3.0, 3.0, 2.99, 3.0, 3.0], None),
        ([2.0, 2.0, 1.98, 2.0, 2.0], [3.0, 3.0, 2.99, 2.0, 2.0], None),
        ([2.0, 2.0, 1.98, 2.4, 2.4], [3.0, 3.0, 2.99, 3.0, 3.0], None),  # it has changed
        ([0.01] * 5, [0.02] * 5, None),  # there is nothing to learn
        ([2.0, 2.5, 3.5, 3.5, 3.6], [3.0, 4.0, 5.0, 5.0, 5.1], "rate_too_high"),
        ([2.0, 2.5, 3.5, 3.5, 3.6], [3.0, 3.0, 3.0, 2.0, 2.0], None),  # only one distance rose
        ([2.0, 2.0, 2.0, 2.0, 3.6], [3.0, 3.0, 3.0, 3.0, 5.1], None),  # once
    ],
)
def test_the_outcome_of_a_finished_run(
    kl: list[float], reading: list[float], cause: str | None
) -> None:
    rows = series(kl, reading)
    assert named(rows) == ([cause] if cause else [])
    assert named(rows, finished=False) == []


def test_more_right_answers_are_something_learned() -> None:
    rows = series([2.0] * 5, [3.0] * 5)
    assert named(rows) == ["nothing_learned"]
    for row in rows[-2:]:
        row["train/accuracy"] = 0.6
    assert named(rows) == []


def test_a_run_that_falls_to_the_end_is_still_improving() -> None:
    t = np.arange(21)
    falls, settles = 3.0 - 0.1 * t, 1.0 + 2.0 * np.exp(-t / 2)
    flat = np.full(21, 0.5)
    assert named(series(falls, flat)) == ["still_improving"]
    assert named(series(settles, flat)) == []
    (finding,) = diagnose(series(flat, falls), finished=True)
    assert (finding.cause, finding.step, finding.found) == ("still_improving", 50, 100)
    assert "loss on the teacher's completions: 2 -> 1 nats" in finding.evidence


def test_noise_is_seldom_called_an_improvement() -> None:
    rng, t = np.random.default_rng(0), np.arange(21)
    settled = 1.0 + 2.0 * np.exp(-t / 2)
    flat = np.full(21, 0.5)
    noisy = [named(series(settled + rng.normal(0, 0.05, 21), flat)) for _ in range(200)]
    assert sum(names == ["still_improving"] for names in noisy) <= 6


def test_a_broken_run_has_no_outcome() -> None:
    rows = series([2.0] * 5, [3.0] * 5)
    rows[1]["checks"] = [{"what": "student", "trained": 3, "expected": 1, "cause": "eos_untrained"}]
    assert named(rows) == ["eos_untrained"]


def test_a_collapse_at_a_high_rate_is_called_that_where_the_checks_are_clean() -> None:
    kl, reading = [0.5, 2.0, 3.0, 3.1], [0.1, 1.0, 1.5, 1.6]
    rows = series(kl, reading, accuracy=0.0)
    rows[0]["train/accuracy"] = 0.5
    (finding,) = alarms(diagnose(rows))
    assert (finding.cause, finding.found) == ("rate_too_high", 10)
    for row in rows:
        del row["checks"]
    assert [f.cause for f in alarms(diagnose(rows))] == ["unexplained"]


def test_a_note_reads_as_a_sentence() -> None:
    (note,) = diagnose(series([2.0] * 5, [3.0] * 5), finished=True)
    assert diagnosis.sentence(note).startswith("has a note from step 0 on: nothing_learned (the")


# --- completions that are cut off, completions that are all rejected ---


@pytest.mark.parametrize(
    ("shares", "teacher", "cause"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0, "eos_never_seen"),
        ([1.0, 1.0, 1.0, 1.0], 0.0, "truncated"),
        ([1.0, 1.0, 1.0, 1.0], None, "truncated"),
        ([0.0, 0.5, 1.0, 1.0], 1.0, "truncated"),
        ([0.1, 0.1, 0.7, 0.8], 0.2, "truncated"),
        ([1.0, 1.0, 0.9375, 0.9375], 1.0, "truncated"),
        ([0.5, 0.5, 0.85, 0.85], 0.8, None),
        ([0.1, 0.1, 0.7, 0.8], 0.3, None),  # the teacher's are long as well
        ([0.1, 0.1, 0.7, 0.8], None, None),
        ([1.0, 1.0, 1.0, 0.4], 0.0, None),  # it has learned to stop
        ([0.0, 0.0, 0.4, 1.0], 0.0, None),  # once
        ([1.0, 1.0], 0.0, None),  # a single probe after step 0
    ],
)
def test_completions_that_are_cut_off(
    shares: list[float], teacher: float | None, cause: str | None
) -> None:
    n = len(shares)
    rows = series([2.0, *[1.0] * (n - 1)], [2.0, *[1.0] * (n - 1)])
    for row, share in zip(rows, shares, strict=True):
        row["signal/truncated"] = share
    rows[0]["signal/teacher_truncated"] = teacher
    assert named(rows) == ([cause] if cause else [])
    assert named(rows, finished=False) == []


def test_the_note_names_the_shares_and_the_remedy() -> None:
    rows = series([2.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0])
    for row in rows[2:]:
        row["signal/truncated"] = 1.0
    rows[0]["signal/teacher_truncated"] = 0.125
    (found,) = diagnose(rows, finished=True)
    assert (found.kind, found.step, found.found) == ("note", 10, 15)
    assert "100% of the student's completions" in found.evidence
    assert "(the teacher's: 12%)" in found.evidence and "raise train.max_tokens" in found.advice


@pytest.mark.parametrize(
    ("kept", "cause"),
    [([0, 0, 0], "all_rejected"), ([0, 1, 0], None), ([None, None, None], None)],
)
def test_a_run_that_rejects_all_completions(kept: list[int | None], cause: str | None) -> None:
    rows = series([2.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0])
    for row, count in zip(rows[1:], kept, strict=True):
        row |= {"train/kept": count, "train/rejected": 0.0 if count is None else 8.0 - count}
    assert named(rows) == ([cause] if cause else [])


# --- a loss that still falls ---


def curve(
    rng: np.random.Generator, n: int, every: int, slope: float, ar: float = 0.0, noise: float = 0.2
) -> Rows:
    """A run with noisy losses and a few probes that fall by `slope` over the run, after a start."""
    rows = series([2.0], [2.0])
    error = 0.0
    for step in range(1, n + 1):
        error = ar * error + (1 - ar**2) ** 0.5 * float(rng.normal())
        level = 1 + np.exp(-20 * step / n) - slope * step / n
        row = {"step": step, "train/phase": 1.0, "train/on_policy_loss": level + noise * error}
        if step % every == 0:
            kl, reading = level + 0.1 * rng.normal(size=2)
            row = series([kl], [reading])[0] | row
        rows.append(row)
    return rows


@pytest.mark.parametrize(("ar", "most"), [(0.0, 0.04), (0.5, 0.04), (0.9, 0.06)])
@pytest.mark.parametrize(("n", "every"), [(20, 5), (100, 20)])
def test_flat_noisy_curves_are_rarely_still_improving(
    ar: float, most: float, n: int, every: int
) -> None:
    rng, runs = np.random.default_rng(0), 300
    noted = sum("still_improving" in named(curve(rng, n, every, 0.0, ar)) for _ in range(runs))
    assert binomtest(noted, runs, most, alternative="greater").pvalue > 0.01


def test_a_loss_that_falls_is_still_improving_where_probes_are_few() -> None:
    rng, runs = np.random.default_rng(0), 100
    noted = sum("still_improving" in named(curve(rng, 100, 25, 0.8)) for _ in range(runs))
    assert noted >= 80
    rows = curve(rng, 100, 25, 0.8, noise=0.01)
    (found,) = diagnose(rows, finished=True)
    assert "the training loss on the student's completions: 0." in found.evidence
    for row in rows[60:]:
        row["train/phase"] = 0.0  # other completions from here on
    assert named(rows) == []
