"""What the verdict says, case by case: never more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from potstill.report import data, findings, stats, summary
from potstill.report.reading import clear
from potstill.report.stats import Difference, Interval, Row
from potstill.report.verdict import Choice, Evidence, choose
from studies import Fate, small_study, write_study
from test_report import FINDING

UP, DOWN = Difference(0.05, 0.02, 0.08, 0.01), Difference(-0.05, -0.08, -0.02, 0.01)
LEVEL = Difference(0.01, -0.02, 0.04, 0.6)
HIGH = Difference(0.05, 0.01, 0.09, 0.08)  # an interval above zero that Holm's p does not bear out
ONE = Difference(0.05, float("nan"), float("nan"), float("nan"))
TEN = tuple(range(10))


def row(method: str, accuracy: float | None, gain: Difference | None = UP, **more: Any) -> Row:
    known = accuracy is not None
    fields: dict[str, Any] = {
        "pair": "p",
        "method": method,
        "seeds": TEN if known else (),
        "failed": (),
        "missing": 0 if known else 10,
        "accuracy": Interval(accuracy, accuracy - 0.03, accuracy + 0.03) if known else None,
        "flexible": None,
        "against_baseline": None,
        "against_untrained": gain if known else None,
        "gap_closed": None,
        "equal_tokens": None,
        "tokens": 1e5 if known else None,
        "seconds": 1.0,
    }
    return Row(**{**fields, **more})


A, B, C = row("a", 0.7), row("b", 0.69, tokens=5e4), row("c", 0.5)
BASE = row("on_policy_gkd", 0.65)
CASES: dict[str, tuple[Evidence, str, str, tuple[str, ...], list[str]]] = {
    "nothing yet": (
        Evidence([row("a", None), row("b", None)], {}),
        "nothing",
        "No method has a result yet.",
        (),
        ["Not run yet: a and b."],
    ),
    "all failed": (
        Evidence([row("a", None, failed=("seed 0: x",))], {}),
        "nothing",
        "No method has a result yet.",
        (),
        ["Failed in every run: a."],
    ),
    "one method": (
        Evidence([A], {}),
        "single",
        "a: no other is in this study, and it has a result.",
        ("a",),
        ["Highest mean: a, 70.0 % (67.0 to 73.0), +5.0 points (+2.0 to +8.0, p 0.010) on the"],
    ),
    "the others failed": (
        Evidence([A, row("b", None, failed=("seed 0: x",))], {}),
        "single",
        "a: no other has a result.",
        ("a",),
        ["Failed in every run: b."],
    ),
    "clear": (
        Evidence([A, B, C], {"b": UP, "c": HIGH}),
        "tie",
        "A tie of 2 methods: a has the highest mean.",
        ("a", "c"),
        ["Not clearly below it: c.", "Clearly below it: b; the nearest is b: a has +5.0 points"],
    ),
    "clear of all": (
        Evidence([A, B, C], {"b": UP, "c": UP}),
        "clear",
        "a: clearly above every other method.",
        ("a",),
        ["Clearly below it: b and c"],
    ),
    "tie of all": (
        Evidence([A, B], {"b": LEVEL}),
        "tie",
        "A tie of all 2 methods: a has the highest mean, b spends least.",
        ("a", "b"),
        ["Of these the cheapest is b, 50 k tokens a run; the dearest a, 100 k tokens a run."],
    ),
    "dollars before tokens": (
        Evidence([A, B], {"b": LEVEL}, price={"a": 0.5, "b": 2.0}),
        "tie",
        "A tie of all 2 methods: a has the highest mean and spends least.",
        ("a", "b"),
        ["the cheapest is a, 0.5 USD a run; the dearest b, 2 USD a run."],
    ),
    "a tie that is no gain is left out": (
        Evidence([A, row("b", 0.69, LEVEL)], {"b": LEVEL}),
        "gain",
        "a: the one clear gain on no training, not clearly above b.",
        ("a",),
        ["Not clearly below it, and no clear gain on no training: b."],
    ),
    "a clear gain that is clearly below, and one that is neither": (
        Evidence([A, B, row("c", 0.69, LEVEL)], {"b": UP, "c": LEVEL}),
        "gain",
        "a: clearly above every other clear gain on no training, not clearly above c.",
        ("a",),
        ["Not clearly below it, and no clear gain on no training: c.", "Clearly below it: b;"],
    ),
    "no gain": (
        Evidence([row("a", 0.7, LEVEL), row("b", 0.6, DOWN)], {"b": UP}),
        "no gain",
        "None: no method is clearly better than no training.",
        (),
        ["Clearly below the untrained student: b."],
    ),
    "the highest mean is no clear gain": (
        Evidence([row("a", 0.71, LEVEL), B], {"a": LEVEL}),
        "gain",
        "b: the one clear gain on no training, not clearly above a.",
        ("b",),
        [
            "Highest mean of the clear gains: b, 69.0 %",
            "Not clearly below it, and no clear gain on no training: a.",
        ],
    ),
    "no untrained row": (
        Evidence([row("a", 0.7, None), row("b", 0.6, None)], {"b": UP}),
        "clear",
        "a: clearly above every other method.",
        ("a",),
        ["The untrained student has no result: whether this is a gain is unknown."],
    ),
    "collapsed": (
        Evidence([A, B], {}, collapsed={"a": "2 of 2 runs, from step 5 on: unshifted_targets"}),
        "single",
        "b: no other has a result.",
        ("b",),
        ["Collapsed: a, 2 of 2 runs, from step 5 on: unshifted_targets."],
    ),
    "all collapsed": (
        Evidence([A], {}, collapsed={"a": "1 of 2 runs"}),
        "nothing",
        "None: every method collapsed.",
        (),
        ["Collapsed: a, 1 of 2 runs."],
    ),
    "faults on": (
        Evidence([A, B], {"b": UP}, faults=["stale_sampler"]),
        "faults",
        "None: faults are switched on (stale_sampler).",
        (),
        ["Highest mean: a, 70.0 %"],
    ),
    "few seeds, not finished": (
        Evidence([row("a", 0.7, seeds=(0, 1)), row("b", 0.6, seeds=(0,))], {"b": UP}, missing=1),
        "clear",
        "a: clearly above every other method (2 seeds only, not finished).",
        ("a",),
        [],
    ),
    "one seed": (
        Evidence([row("a", 0.7, seeds=(3,)), row("b", 0.6, seeds=(3,))], {"b": UP}),
        "clear",
        "a: clearly above every other method (1 seed only).",
        ("a",),
        [],
    ),
    "beside the baseline": (
        Evidence([row("a", 0.7, against_baseline=HIGH), BASE], {"on_policy_gkd": HIGH}),
        "tie",
        "A tie of all 2 methods: a has the highest mean.",
        ("a", "on_policy_gkd"),
        [
            "a against on_policy_gkd: +5.0 points (+1.0 to +9.0, p 0.080): not significant.",
            "No method is clearly apart from on_policy_gkd.",
        ],
    ),
    "clear of the baseline": (
        Evidence([row("a", 0.7, against_baseline=UP), BASE], {"on_policy_gkd": UP}),
        "clear",
        "a: clearly above every other method.",
        ("a",),
        ["Clearly apart from on_policy_gkd: above it a."],
    ),
    "twice the tokens": (
        Evidence(
            [row("a", 0.7, against_baseline=UP, tokens=2e5, equal_tokens=0.652), BASE],
            {"on_policy_gkd": UP},
        ),
        "clear",
        "a: clearly above every other method.",
        ("a",),
        ["It spends 2.0 times the tokens of on_policy_gkd; where it had spent as many, it was"],
    ),
    "nothing to resample": (
        Evidence([row("a", 0.7, ONE), row("b", 0.6, ONE)], {"b": ONE}),
        "no gain",
        "None: no method is clearly better than no training.",
        (),
        ["+5.0 points on the untrained student"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_choice(name: str) -> None:
    told, kind, head, methods, lines = CASES[name]
    found = choose(told)
    assert (found.kind, found.head, found.methods) == (kind, head, methods)
    for line in lines:
        assert any(line in said for said in found.lines), found.lines


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_recommended_is_clear_of_doubt(name: str) -> None:
    """No case recommends a collapsed method, one under faults, or one that is no clear gain; above
    every other is said of none that any other is not clearly below."""
    told = CASES[name][0]
    if "clearly above every other method" in choose(told).head:
        assert all(clear(apart) == 1 for apart in told.apart.values())
    for method in choose(told).methods:
        assert method not in told.collapsed and not told.faults
        (mine,) = (r for r in told.rows if r.method == method)
        assert mine.against_untrained is None or mine.against_untrained.low > 0


def verdict(path: Path, fate: Mapping[tuple[str, int], Fate], **changes: Any) -> tuple[Any, ...]:
    """The choice on tiny-qwen and the four answers of a small study with these fates."""
    study = small_study(**changes)
    write_study(path, study, lambda cell: fate.get((cell.method, cell.seed or 0), {}))
    found = data.load(path)
    groups = findings.grouped(found)
    chosen = summary.choices(found, groups)
    return chosen["tiny-qwen"], summary.answers(found, groups, chosen), summary.untested(found)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 200)


def test_a_sound_study_answers_the_four_questions(tmp_path: Path) -> None:
    choice, answers, untested = verdict(tmp_path, {}, seeds=[0, 1, 2, 3, 4])
    assert isinstance(choice, Choice) and choice.methods
    assert [a.question for a in answers] == [
        "Which method?",
        "Can I trust that?",
        "What did it cost?",
        "Did anything break?",
    ]
    _, trust, cost, broke = answers
    assert trust.tone == "warn" and "Only 40 held-out problems" in " ".join(trust.lines)
    assert cost.head == "38 s of computing" and "No price is set" in cost.lines[-1]
    assert (broke.tone, broke.head) == ("good", "Nothing")
    assert any("reverse_curriculum" in text for text in untested)


def test_a_collapse_is_not_recommended_and_is_said(tmp_path: Path) -> None:
    fate = {("hybrid", 0): {"findings": [FINDING]}, ("hybrid", 1): {"fail": "<b>disk</b>"}}
    choice, answers, _ = verdict(tmp_path, fate)
    assert "hybrid" not in choice.methods
    assert any("Collapsed: hybrid, 1 of" in line for line in choice.lines)
    assert answers[3].tone == "bad" and answers[3].head == "1 collapsed, 1 failed"
    assert any("tiny-qwen/hybrid/1 failed: <b>disk</b>" in line for line in answers[3].lines)


def test_losses_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    _, answers, _ = verdict(tmp_path, {("hybrid", 1): {"null": True}})
    assert "Losses that are no numbers: tiny-qwen/hybrid/1." in answers[3].lines


def test_faults_and_prices_are_said(tmp_path: Path) -> None:
    choice, answers, _ = verdict(tmp_path, {}, faults=["stale_sampler"], price={"hour": 3.6})
    assert choice.kind == "faults" and not choice.methods
    assert answers[1].tone == "bad" and answers[1].head.startswith("No")
    assert answers[2].head.endswith("USD")


def test_a_difference_has_one_p_on_the_whole_page(tmp_path: Path) -> None:
    """The best against the baseline stands in two families of comparisons: the larger p counts."""
    methods = ["on_policy_gkd", "hybrid", "mixture", "off_policy", "extended_on_policy"]
    write_study(tmp_path, small_study(methods=methods))
    found = data.load(tmp_path)
    told = summary.evidence(found, "tiny-qwen", [])
    rows = {r.method: r for r in told.rows}
    for method, value in told.apart.items():
        its = rows[method].against_baseline
        if "on_policy_gkd" not in told.apart and its and value:
            assert value.p >= its.p
    if mine := told.apart.get("on_policy_gkd"):
        (top,) = {*methods} - {*told.apart}
        its = rows[top].against_baseline
        assert its and mine.mean == pytest.approx(its.mean) and mine.p >= its.p
