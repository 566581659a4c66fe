"""Findings, whole: kind, cause, onset, step, evidence and remedy, and where each limit lies."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.diagnostics import diagnosis, notes
from potstill.diagnostics.diagnosis import advice, collapse, diagnose, ended, failure, healthy_until
from potstill.diagnostics.faults import FAULTS
from potstill.types import Finding

Row = dict[str, Any]


def probe(step: int, **signals: float | None) -> Row:
    """A probe of a sound student; keywords are signals, `accuracy` and `kl` among them."""
    values: Row = {
        "teacher_loss": 0.5,
        "reading_loss": 0.5,
        "entropy": 0.25,
        "teacher_entropy": 0.25,
        "truncated": 0.0,
        "repetition": 0.0,
        "loop": 0.0,
        "distinct": 1.0,
        "length": 12.0,
        "copy": 0.125,
        "end": 0.5,
    }
    kept = {"accuracy": "train/accuracy", "kl": "train/kl_divergence"}
    row: Row = {"step": step, "train/accuracy": 0.5, "train/kl_divergence": 0.5}
    row |= {f"signal/{name}": value for name, value in values.items()}
    return row | {kept.get(name, f"signal/{name}"): value for name, value in signals.items()}


def check(what: str, trained: float | None, expected: float | None, cause: str = "") -> Row:
    return {"what": what, "trained": trained, "expected": expected, "cause": cause}


def deviation(cause: str, step: int, found: int, evidence: str) -> Finding:
    return Finding("deviation", cause, step, found, evidence, advice(cause))


def note(cause: str, step: int, found: int, evidence: str) -> Finding:
    return Finding("note", cause, step, found, evidence, advice(cause))


# --- deviations ---


@pytest.mark.parametrize(
    ("found", "evidence"),
    [
        (
            check("student", 3.0, 0.5),
            "student tokens: the step trains 3.0000 nats per token, the recipe gives 0.5000 on the "
            "same batch",
        ),
        (
            check("teacher", 0.125, None),
            "teacher tokens: the step trains 0.1250 nats per token, the recipe gives no loss on "
            "the same batch",
        ),
        (
            check("anchor", None, 0.25),
            "the anchor: the step trains no loss, the recipe gives 0.2500 on the same batch",
        ),
        (
            check("loss", 2.0, 1.0),
            "the step's loss: the step trains 2.0000 nats per token, the recipe gives 1.0000 on "
            "the same batch",
        ),
        (
            check("problems that the seed draws", 0, 32),
            "problems that the seed draws: 0 (expected: 32)",
        ),
        (check("sampler", 0.123456, 0), "sampler: 0.1235 (expected: 0)"),
    ],
)
def test_the_evidence_of_a_check(found: Row, evidence: str) -> None:
    for cause in ("", "prompt_dropped"):
        rows = [probe(0), {"step": 1, "checks": [{**found, "cause": cause}]}]
        assert diagnose(rows) == [deviation(cause or "another_objective", 1, 1, evidence)]


def student(cause: str) -> Row:
    return check("student", 3.0, 0.5, cause)


def teacher(cause: str) -> Row:
    return check("teacher", 3.0, 0.5, cause)


def named(*rows: Row) -> list[tuple[str, int, int]]:
    return [(f.cause, f.step, f.found) for f in diagnose([probe(0), *rows])]


def test_a_difference_begins_where_its_quantity_first_differs() -> None:
    first = {"step": 1, "checks": [student("")], "suspects": ["student"]}
    second = {"step": 2, "checks": [student("prompt_dropped"), teacher("prefix_trained")]}
    assert named(first, second) == [("prompt_dropped", 1, 2), ("prefix_trained", 2, 2)]
    assert named({"step": 4, "checks": None}, first, second)[0] == ("prompt_dropped", 1, 2)


def test_a_suspect_waits_for_the_next_step_and_a_cause_does_not() -> None:
    row = {"step": 1, "checks": [student("")], "suspects": ["student"]}
    assert named(row) == []
    assert named({**row, "suspects": ["teacher"]}) == [("another_objective", 1, 1)]
    assert named({**row, "suspects": None}) == [("another_objective", 1, 1)]
    known = {**row, "checks": [student("prompt_dropped")]}
    assert named(known) == [("prompt_dropped", 1, 1)]
    both = {**row, "checks": [student(""), teacher("prefix_trained")]}
    assert named(both) == [("prefix_trained", 1, 1)]  # the others of a step are looked at


def test_two_causes_of_one_difference_are_two_findings_and_each_is_one() -> None:
    row = {"step": 1, "checks": [student("prompt_dropped+eos_untrained")]}
    again = {"step": 2, "checks": [student("prompt_dropped+prefix_trained")]}
    assert named(row) == [("prompt_dropped", 1, 1), ("eos_untrained", 1, 1)]
    assert named(row, again) == [*named(row), ("prefix_trained", 1, 2)]
    assert named(row, {"step": 2, "checks": [teacher("")]}) == named(row)
    late = [{"step": 1, "checks": [student("")]}, {"step": 2, "checks": [teacher("")]}]
    assert named(*late) == [("another_objective", 1, 1)]


UNFIT = {"accuracy": 0.5, "teacher_accuracy": 0.125, "teacher_loss": 3.0, "entropy": 0.25}


@pytest.mark.parametrize(
    ("changes", "unfit"),
    [
        ({}, True),
        ({"teacher_accuracy": 0.25}, False),  # half
        ({"teacher_accuracy": 0.2}, True),
        ({"teacher_loss": 2.75}, False),  # three times the entropy, and 2
        ({"teacher_loss": 2.7501}, True),
        ({"accuracy": None}, False),
        ({"teacher_accuracy": None}, False),
    ],
)
def test_a_teacher_that_reads_other_ids(changes: dict[str, float | None], unfit: bool) -> None:
    start = probe(0, **(UNFIT | changes))
    causes = [finding.cause for finding in diagnose([start])]
    assert causes == ["vocab_permuted"] * unfit
    assert diagnose([start | {"step": 5}]) == []


def test_the_finding_of_a_teacher_that_reads_other_ids() -> None:
    evidence = (
        "the teacher solves 12% of the probe, the untrained student 50%; the teacher's loss on the "
        "student's completions is 3.0 nats per token"
    )
    assert diagnose([probe(0, **UNFIT)]) == [deviation("vocab_permuted", 0, 0, evidence)]


# --- jumps ---


def steps(losses: list[float], norms: list[float], first: int = 1, phase: float = 1.0) -> list[Row]:
    return [
        {"step": first + i, "train/loss": loss, "train/grad_norm": norm, "train/phase": phase}
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def jumped(*after: float, norm: float = 1.0, calm: int = 12, low: float = 0.0) -> list[Row]:
    """Calm steps with a gradient norm of 0.25, then these losses with another norm."""
    return steps([low] * calm + list(after), [0.25] * calm + [norm] * len(after))


SPIKE = "gradient norm 0.25 -> 1.00, loss 0.00 -> 2.00 nats in one step"


def test_the_finding_of_a_spike() -> None:
    rows = jumped(2.0, 2.0, 2.0)
    assert diagnose(rows) == [deviation("learning_rate_spike", 12, 15, SPIKE)]
    assert list(notes.jumps(rows)) == [notes.Jump(12, 15, True, SPIKE)]
    assert list(notes.jumps(rows[:-1])) == []  # the next steps will show
    assert list(notes.jumps(jumped(2.0, 2.0, 0.5))) == [notes.Jump(12, 15, False, SPIKE)]


@pytest.mark.parametrize(
    ("rows", "jump"),
    [
        (jumped(2.0, 2.0, 2.0, norm=0.75), False),  # three times the median
        (jumped(2.0, 2.0, 2.0, norm=0.76), True),
        (jumped(0.7, 2.0, 2.0), False),  # 0.7 nats more
        (jumped(0.71, 2.0, 2.0), True),
        (jumped(1.5, 2.0, 2.0, low=1.0), False),
        (jumped(2.0, 2.0, 2.0, calm=9), False),
        (jumped(2.0, 2.0, 2.0, calm=10), True),
        ([{**jumped(2.0)[0], "train/loss": None}, *jumped(2.0, 2.0, 2.0, calm=10)], True),
        (jumped(float("nan"), 2.0, 2.0), False),  # one step less
    ],
)
def test_a_jump_is_far_above_ten_calm_steps(rows: list[Row], jump: bool) -> None:
    assert len(list(notes.jumps(rows))) == jump


def test_a_jump_is_compared_with_the_twenty_steps_before_it() -> None:
    """Eleven of the last 21 steps are high, ten of the last 20: their median is in between."""
    before = [3.0, *[0.0] * 10, *[3.0] * 10]
    rows = steps([*before, 2.5, 4.0, 4.0], [0.25] * 21 + [1.0] * 3)
    (jump,) = notes.jumps(rows)
    assert "loss 1.50 -> 2.50" in jump.evidence
    assert not jump.lasting  # of the 20, 3.0 was as high, and the first step is not
    assert jump.step == 21 and jump.detected == 24


def test_a_jump_lasts_if_the_next_steps_stay_above_all_before_it() -> None:
    def lasting(*after: float, low: float = 0.0) -> bool:
        (jump,) = notes.jumps(jumped(*after, low=low))
        return jump.lasting

    assert not lasting(0.8, 0.7, 0.8) and lasting(0.8, 0.71, 0.8)
    assert not lasting(1.8, 1.7, 1.8, low=1.0) and lasting(1.8, 1.71, 1.8, low=1.0)
    other = {"train/phase": 0.0}  # a step of the other source says nothing
    rows = jumped(2.0, 0.1, 2.0)
    assert not next(notes.jumps(rows)).lasting
    assert next(notes.jumps([*rows[:13], rows[13] | other, rows[14]])).lasting


def test_the_step_before_a_jump_has_its_sources() -> None:
    rows = jumped(2.0, 2.0, 2.0, calm=15)
    rows[14] |= {"train/phase": 0.0}
    assert list(notes.jumps(rows)) == []
    rows[14] |= {"train/phase": 1.0}
    assert len(list(notes.jumps(rows))) == 1


def test_two_jumps_that_pass_are_noisy_steps() -> None:
    rows = jumped(2.0, 0.0, 0.0, 2.0, 0.0, 0.0)
    for row in rows:
        row["train/grad_norm"] = 1.0 if row["train/loss"] else 0.25
    evidence = f"2 jumps that the next steps undo; the first: {SPIKE}"
    assert diagnose(rows) == [note("noisy_steps", 12, 18, evidence)]
    assert diagnose(rows[:-3]) == []
    assert [j.step for j in notes.jumps(rows)] == [12, 15]
    third = steps([2.0, 0.0, 0.0], [1.0, 0.25, 0.25], first=19)
    (finding,) = diagnose([*rows, *third])
    assert (finding.step, finding.found) == (12, 18) and finding.evidence.startswith("3 jumps")


# --- notes ---


def test_a_weak_teacher_needs_both_counts_at_step_0() -> None:
    start = probe(0, teacher_accuracy=0.25, student_only=7, teacher_only=0)
    evidence = (
        "the teacher solves 25% of the probe, the untrained student 50%: 7 problems only the "
        "student, 0 only the teacher"
    )
    assert diagnose([start]) == [note("weak_teacher", 0, 0, evidence)]
    for missing in ("signal/student_only", "signal/teacher_only"):
        assert diagnose([{**start, missing: None}]) == []
    assert list(notes.weak_teacher([{**start, "step": 5}])) == []
    assert list(notes.weak_teacher([])) == []


def test_a_weak_teacher_goes_before_noisy_steps() -> None:
    start = probe(0, teacher_accuracy=0.25, student_only=7, teacher_only=0)
    noisy = jumped(2.0, 0.0, 0.0, 2.0, 0.0, 0.0)
    for row in noisy:
        row["train/grad_norm"] = 1.0 if row["train/loss"] else 0.25
    assert [f.cause for f in diagnose([start, *noisy])] == ["weak_teacher", "noisy_steps"]


def distances(kl: list[float], reading: list[float] | None = None) -> list[Row]:
    reading = reading or kl
    return [
        probe(5 * i, kl=a, reading_loss=b, teacher_loss=9.0, accuracy=None)
        for i, (a, b) in enumerate(zip(kl, reading, strict=True))
    ]


def outcomes(rows: list[Row]) -> list[tuple[str, int, int, str]]:
    return [(r.cause, r.step, r.detected, r.evidence) for r in notes.outcome(rows)]


LISTED = (
    "KL from the teacher on its completions: {} -> {} nats; the loss on the teacher's "
    "completions: {} -> {} nats"
)


def test_the_remark_of_a_rate_that_is_too_high() -> None:
    rows = distances([1.0, 1.0, 2.0, 4.0], [2.0, 2.0, 4.0, 8.0])
    expected = [("rate_too_high", 10, 15, LISTED.format(1, 4, 2, 8))]
    assert outcomes(rows) == expected
    assert [(r.cause, r.step) for r in notes.rate_too_high(rows)] == [("rate_too_high", 10)]
    assert outcomes(distances([1.0, 2.0, 4.0]))[0][:3] == ("rate_too_high", 5, 10)
    assert outcomes(distances([1.0, 4.0])) == []  # two more probes are needed
    longer = outcomes(distances([1.0, 9.0, 9.0, 9.0, 2.0, 4.0]))
    assert longer == [("rate_too_high", 20, 25, LISTED.format(1, 4, 1, 4))]
    assert outcomes(distances([1.0, 1.0, 1.6, 4.0])) == []  # 1.5 times, and 0.1
    assert outcomes(distances([1.0, 1.0, 1.61, 4.0]))[0][0] == "rate_too_high"
    for row in rows:
        row["signal/reading_loss"] = None
    assert list(notes.rate_too_high(rows)) == []


@pytest.mark.parametrize(
    ("kl", "nothing"),
    [
        ([1.0, 1.0, 1.0], True),
        ([1.0, 9.0, 0.95, 1.1], True),
        ([1.0, 9.0, 9.0, 9.0, 9.0, 0.96, 1.09], True),
        ([1.0, 1.0, 0.94, 1.0], False),
        ([1.0, 1.0, 1.0, 1.11], False),
        ([2.0, 2.0, 2.0, 1.89], False),
        ([0.05, 0.05, 0.05], False),  # hardly a distance
        ([0.0625, 0.0625, 0.0625], True),
        ([1.0, 1.0], False),
    ],
)
def test_nothing_is_learned_where_both_distances_stay(kl: list[float], nothing: bool) -> None:
    last = f"{kl[0]:.3g}", f"{kl[-1]:.3g}"
    step = 5 * (len(kl) - 1)
    remark = ("nothing_learned", 0, step, LISTED.format(*last, *last))
    assert outcomes(distances(kl)) == [remark] * nothing


def test_one_known_distance_is_enough_for_an_outcome_and_none_is_not() -> None:
    rows = distances([1.0, 1.0, 1.0])
    rows[1]["train/kl_divergence"] = None
    evidence = "the loss on the teacher's completions: 1 -> 1 nats"
    assert outcomes(rows) == [("nothing_learned", 0, 10, evidence)]
    rows[1]["signal/reading_loss"] = None
    assert outcomes(rows) == []
    assert outcomes(distances([1.0] * 4)[1:]) == []  # without the untrained student
    assert outcomes([]) == []


@pytest.mark.parametrize(
    ("accuracy", "better"),
    [
        ([0.5, 0.5, 0.6, 0.6], True),
        ([0.5, 0.5, 0.6, 0.5], False),
        ([0.5, 0.5, 0.5, 0.6], False),
        ([None, None, 0.1, 0.1], True),
        ([0.5, 0.5, None, 0.6], False),
        ([0.5, 0.9, 0.6, 0.6], True),
        ([0.6, 0.5, 0.6, 0.6], False),
    ],
)
def test_more_right_answers_at_two_probes_are_something(
    accuracy: list[float | None], better: bool
) -> None:
    rows = distances([1.0] * 4)
    for row, value in zip(rows, accuracy, strict=True):
        row["train/accuracy"] = value
    assert (outcomes(rows) == []) is better


def test_the_remark_of_a_student_that_still_improves() -> None:
    falls = [8.0, 7.5, 7.0, 6.5, 6.0, 5.0, 4.0, 3.0]
    remark = ("still_improving", 20, 35, "in the second half, " + LISTED.format(6, 3, 6, 3))
    assert outcomes(distances(falls)) == [remark]
    alone = outcomes(distances([8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0, 4.0], falls))
    evidence = "in the second half, the loss on the teacher's completions: 6 -> 3 nats"
    assert alone == [("still_improving", 20, 35, evidence)]
    assert outcomes(distances(falls[:7]))[0][1:3] == (15, 30)
    assert outcomes(distances(falls[:6])) == []  # three probes are too few for a line


@pytest.mark.parametrize(
    ("late", "falls"),
    [
        ([3.0, 2.0, 1.0, 0.0], True),
        ([0.0, 1.0, 2.0, 3.0], False),
        ([1.0, 1.0, 1.0, 1.0], False),
        ([3.0, 2.25, 0.75, 0.0], True),  # t = -9.9 with 2 degrees of freedom: p = 0.005
        ([3.0, 2.4, 0.6, 0.0], False),  # t = -6.4: p = 0.012
        ([1.0, 0.875, 0.75, 0.625], True),  # a gain of 0.375, a tenth of 9.375 is more
    ],
)
def test_a_line_falls_by_a_t_test(late: list[float], falls: bool) -> None:
    from scipy.stats import linregress

    first = [3.0, 3.0, 3.0, 3.0]
    fit = linregress(range(4), late)
    known = fit.slope < 0 and linregress(range(4), late, alternative="less").pvalue < 0.01
    assert bool(known) is falls
    got = notes._still([*first, *late])
    assert (got is not None) is falls
    if got:
        assert got == pytest.approx((fit.intercept, fit.intercept + 3 * fit.slope))


@pytest.mark.parametrize(
    ("start", "falls"), [(4.5, True), (11.4, True), (11.5, False), (12.0, False)]
)
def test_a_fall_counts_from_a_tenth_of_the_whole_fall_on(start: float, falls: bool) -> None:
    """The second half falls by 0.75 to 4 nats; a tenth of the whole fall is as much from 11.5."""
    late = [4.75, 4.5, 4.25, 4.0]
    assert (notes._still([start, *late[:1] * 3, *late]) is not None) is falls


def test_a_distance_that_ends_above_its_start_does_not_still_improve() -> None:
    assert notes._still([0.5, 9.0, 9.0, 9.0, 4.75, 4.5, 4.25, 4.0]) is None
    assert notes._still([4.0, 9.0, 9.0, 9.0, 4.75, 4.5, 4.25, 4.0]) is None


# --- collapses ---


def lost(step: int, **signals: float | None) -> Row:
    return probe(step, **{"accuracy": 0.0, "teacher_loss": 3.0, **signals})


LOST = (
    "0% of the probe correct, 50% at best; completions cost the teacher 3.00 nats per token, 0.50 "
    "at best"
)


def test_the_finding_of_a_collapse() -> None:
    rows = [probe(0), probe(5), lost(10), lost(15), lost(20)]
    expected = Finding("collapse", "unexplained", 10, 15, LOST, advice("unexplained"))
    assert diagnose(rows) == [expected] and collapse(rows) == expected
    assert collapse(rows[:3]) is None and healthy_until(rows) == 5
    assert healthy_until([lost(0), lost(5)]) == 5 and healthy_until([probe(0)]) == 0
    gap = [probe(0), lost(5), probe(10), lost(15)]
    assert collapse(gap) is None
    assert collapse([probe(0), {"step": 1, "checks": [student("prompt_dropped")]}]) is None


@pytest.mark.parametrize(
    ("signals", "cause", "reason"),
    [
        ({"copy": 0.28}, "unexplained", ""),  # twice the 0.125 of the start, and 0.03
        (
            {"copy": 0.2801},
            "unshifted_targets",
            "the student repeats the token just read with probability 0.28 (untrained: 0.12)",
        ),
        (
            {"end": 0.05, "truncated": 0.75},
            "eos_untrained",
            "EOS has probability 0.05 where the teacher ends; 75% of completions are truncated",
        ),
        ({"end": 0.1, "truncated": 0.75}, "unexplained", ""),
        ({"end": 0.05, "truncated": 0.5}, "unexplained", ""),
        ({"end": None, "copy": None}, "unexplained", ""),
    ],
)
def test_the_behaviour_behind_a_collapse(
    signals: dict[str, float | None], cause: str, reason: str
) -> None:
    (finding,) = diagnose([probe(0), lost(5), lost(10, **signals)])
    assert (finding.cause, finding.step, finding.found) == (cause, 5, 10)
    assert finding.advice == advice(cause) and finding.evidence.startswith("0% of the probe")
    assert finding.evidence.endswith(reason or "0.50 at best") or "truncated" in finding.evidence


@pytest.mark.parametrize(("untrained", "cause"), [(0.1, "unexplained"), (0.11, "eos_untrained")])
def test_a_student_that_never_stopped_has_not_forgotten_to(untrained: float, cause: str) -> None:
    never = {"end": 0.05, "truncated": 0.75}
    (finding,) = diagnose([probe(0, end=untrained), lost(5), lost(10, **never)])
    assert finding.cause == cause
    (finding,) = diagnose([probe(0, end=None), lost(5), lost(10, **never)])
    assert finding.cause == "unexplained"


def test_a_deviation_that_the_behaviour_confirms_is_the_cause() -> None:
    both = [student("prompt_dropped"), teacher("unshifted_targets")]
    rows = [probe(0), lost(5, copy=0.9) | {"checks": both}, lost(10, copy=0.9)]
    first = diagnose(rows)[0]
    assert first.cause == "unshifted_targets"
    assert "probability 0.90" in first.evidence and "teacher tokens: the step" in first.evidence
    rows = [probe(0), lost(5) | {"checks": both}, lost(10)]
    first = diagnose(rows)[0]
    assert first.cause == "prompt_dropped"
    assert "student tokens: the step" in first.evidence and "teacher tokens" in first.evidence


def test_a_deviation_is_the_cause_only_if_it_came_before_and_does_harm() -> None:
    harmless = lost(5) | {"checks": [check("graded problems", 3, 0, "eval_on_train")]}
    assert diagnose([probe(0), harmless, lost(10)])[0].cause == "unexplained"
    late = {"step": 11, "checks": [student("prompt_dropped")]}
    assert diagnose([probe(0), lost(5), lost(10), late])[0].cause == "unexplained"
    now = lost(10) | {"checks": [student("prompt_dropped")]}
    assert diagnose([probe(0), lost(5), now])[0].cause == "prompt_dropped"


def test_a_collapse_at_a_rate_that_is_too_high_needs_the_checks() -> None:
    away = {"kl": 4.0, "reading_loss": 4.0}
    rows = [probe(0), lost(5, **away), lost(10, **away)]
    assert diagnose(rows)[0].cause == "unexplained"
    checked = [rows[0], *(row | {"checks": []} for row in rows[1:])]
    first = diagnose(checked)[0]
    assert first.cause == "rate_too_high"
    assert first.evidence == f"{LOST}; {LISTED.format(0.5, 4, 0.5, 4)}"
    once = [rows[0], rows[1] | {"checks": []}, rows[2]]
    assert diagnose(once)[0].cause == "rate_too_high"
    only_before = [rows[0] | {"checks": []}, *rows[1:]]
    assert diagnose(only_before)[0].cause == "unexplained"


# --- ends ---


def test_a_failure_is_a_finding_where_training_caused_it() -> None:
    cause = "not a number at step 3: loss nan, gradient norm 1.0"
    expected = Finding("collapse", "not_a_number", 3, 3, cause, advice("not_a_number"))
    assert failure(cause, 2) == expected
    assert failure("out of memory at step 3: not a number", 2) is None


def test_the_end_of_a_stopped_run_in_one_line() -> None:
    assert ended({"step": 20, "of": 100}) == "stopped at step 20 of 100"
    back = "stopped at step 20 of 100, back to the student of step 10"
    assert ended({"step": 20, "of": 100, "back_to": 10}) == back


def test_a_fault_has_a_meaning_and_a_remedy_of_its_own() -> None:
    assert diagnosis.meaning("prompt_dropped") == FAULTS["prompt_dropped"].what
    assert advice("prompt_dropped") == FAULTS["prompt_dropped"].remedy


def test_no_rows_have_no_finding() -> None:
    assert diagnose([]) == [] and collapse([]) is None and healthy_until([]) == 0


def test_a_run_is_unfinished_unless_it_is_said_to_be_finished() -> None:
    rows = [probe(step) for step in (0, 5, 10)]
    assert diagnose(rows) == []
    assert [f.cause for f in diagnose(rows, finished=True)] == ["nothing_learned"]


@pytest.mark.parametrize(
    ("what", "step", "explained"),
    [("loss", 3, True), ("loss", 12, True), ("loss", 13, False), ("problems", 3, False)],
)
def test_a_wrong_objective_explains_a_later_spike(what: str, step: int, explained: bool) -> None:
    """The spike is of step 12; a check of the pipeline around the step explains nothing."""
    rows = jumped(2.0, 2.0, 2.0)
    rows[step - 1]["checks"] = [check(what, 3.0, 0.5, "prompt_dropped")]
    causes = [finding.cause for finding in diagnose([probe(0), *rows])]
    assert causes == ["prompt_dropped"] + ["learning_rate_spike"] * (not explained)


def test_a_finding_in_one_line() -> None:
    for kind, verb in (
        ("collapse", "collapsed"),
        ("deviation", "deviates"),
        ("note", "has a note"),
    ):
        line = diagnosis.sentence(Finding(kind, "weak_teacher", 4, 9, "", ""))  # type: ignore[arg-type]
        meaning = "the teacher solves fewer problems than the untrained student"
        assert line == f"{verb} from step 4 on: weak_teacher ({meaning})"
