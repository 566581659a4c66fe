"""The verdict and the summary, case by case, as typed values: never more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from potstill.report import data, findings, sentences
from potstill.report.results import Row
from potstill.report.summary import Summary, evidence, summarize
from potstill.report.verdict import Cost, EqualTokens, Evidence, Outcome, judge
from potstill.stats.comparisons import Difference, Interval, direction
from studies import FINDING, Fate, small_study, write_study

UP, DOWN = Difference(0.05, 0.02, 0.08, 0.01), Difference(-0.05, -0.08, -0.02, 0.01)
LEVEL = Difference(0.01, -0.02, 0.04, 0.6)
HIGH = Difference(
    0.05, 0.01, 0.09, 0.08
)  # an interval above zero that the corrected p does not confirm
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
        "level": Interval(accuracy, accuracy - 0.03, accuracy + 0.03) if known else None,
        "others": {},
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
LATE = {"a": "2 of 2 runs, from step 5 on: unshifted_targets"}
# evidence, outcome, recommended method, and other values of the verdict
CASES: dict[str, tuple[Evidence, Outcome, str, dict[str, Any]]] = {
    "nothing yet": (
        Evidence([row("a", None), row("b", None)], {}),
        Outcome.NOTHING,
        "",
        {"not_run": ("a", "b"), "best": None, "collapsed": {}},
    ),
    "all failed": (
        Evidence([row("a", None, failed=("seed 0: x",))], {}),
        Outcome.NOTHING,
        "",
        {"failed": ("a",), "not_run": ()},
    ),
    "one method": (
        Evidence([A], {}),
        Outcome.SINGLE,
        "a",
        {"best": A, "methods": 1, "surpassed": False, "with_baseline": False},
    ),
    "the others failed": (
        Evidence([A, row("b", None, failed=("seed 0: x",))], {}),
        Outcome.SINGLE,
        "a",
        {"failed": ("b",), "methods": 2},
    ),
    "an insignificant lead is a tie, and too far for the cheaper one": (
        Evidence([A, B, row("c", 0.5, tokens=1.0)], {"b": UP, "c": HIGH}),
        Outcome.TIE,
        "a",
        {"tied": ("c",), "close": ("a",), "below": {"b": UP}, "nearest": "b", "behind": None},
    ),
    "clear of all": (
        Evidence([A, B, C], {"b": UP, "c": UP}),
        Outcome.CLEAR,
        "a",
        {"below": {"b": UP, "c": UP}, "tied": (), "unclear": ()},
    ),
    "the cheapest of a tie": (
        Evidence([A, B], {"b": LEVEL}, within=0.02),
        Outcome.TIE,
        "b",
        {
            "tied": ("b",),
            "close": ("a", "b"),
            "behind": -LEVEL,
            "rivals": 1,
            "cost": Cost("b", 5e4, "tokens"),
            "dearest": Cost("a", 1e5, "tokens"),
        },
    ),
    "a smaller margin": (
        Evidence([A, B], {"b": LEVEL}, within=0.005),
        Outcome.TIE,
        "a",
        {"tied": ("b",), "close": ("a",), "behind": None, "dearest": None},
    ),
    "a significantly worse one is never close": (
        Evidence([A, B], {"b": UP}, within=0.5),
        Outcome.CLEAR,
        "a",
        {"close": ("a",), "behind": None},
    ),
    "dollars before tokens": (
        Evidence([A, B], {"b": LEVEL}, price={"a": 0.5, "b": 2.0}, within=0.02),
        Outcome.TIE,
        "a",
        {"cost": Cost("a", 0.5, "USD"), "dearest": Cost("b", 2.0, "USD"), "behind": None},
    ),
    "a cost that one does not have is no cost": (
        Evidence([A, row("b", 0.69, tokens=None)], {"b": LEVEL}, within=0.02),
        Outcome.TIE,
        "a",
        {"cost": None, "dearest": None, "close": ("a", "b")},
    ),
    "a tie that is not a gain is left out": (
        Evidence([A, row("b", 0.69, LEVEL)], {"b": LEVEL}),
        Outcome.GAIN,
        "a",
        {"unclear": ("b",), "other_gains": False},
    ),
    "a significant gain that is significantly below, and one that is neither": (
        Evidence([A, B, row("c", 0.69, LEVEL)], {"b": UP, "c": LEVEL}),
        Outcome.GAIN,
        "a",
        {"unclear": ("c",), "below": {"b": UP}, "other_gains": True},
    ),
    "no gain": (
        Evidence([row("a", 0.7, LEVEL), row("b", 0.6, DOWN)], {"b": UP}),
        Outcome.NO_GAIN,
        "",
        {"below_untrained": ("b",)},
    ),
    "the highest mean is not a significant gain": (
        Evidence([row("a", 0.71, LEVEL), B], {"a": LEVEL}),
        Outcome.GAIN,
        "b",
        {"best": B, "surpassed": True, "unclear": ("a",)},
    ),
    "no untrained row": (
        Evidence([row("a", 0.7, None), row("b", 0.6, None)], {"b": UP}),
        Outcome.CLEAR,
        "a",
        {"below_untrained": ()},
    ),
    "collapsed": (
        Evidence([A, B], {}, collapsed=LATE),
        Outcome.SINGLE,
        "b",
        {"collapsed": LATE, "best": B, "surpassed": False},
    ),
    "all collapsed": (
        Evidence([A], {}, collapsed={"a": "1 of 2 runs"}),
        Outcome.NOTHING,
        "",
        {"collapsed": {"a": "1 of 2 runs"}},
    ),
    "faults on": (
        Evidence([A, B], {"b": UP}, faults=["stale_sampler"]),
        Outcome.FAULTS,
        "",
        {"faults": ("stale_sampler",), "best": A},
    ),
    "few seeds": (
        Evidence([row("a", 0.7, seeds=(0, 1)), row("b", 0.6, seeds=(0,))], {"b": UP}, missing=1),
        Outcome.FEW_SEEDS,
        "",
        {"seeds": 2, "missing": 1, "close": (), "cost": None},
    ),
    "enough seeds, not finished": (
        Evidence(
            [row("a", 0.7, seeds=(0, 1, 2)), row("b", 0.6, seeds=(0,))], {"b": LEVEL}, missing=1
        ),
        Outcome.TIE,
        "a",
        {"seeds": 3, "missing": 1},
    ),
    "an insignificant lead on the baseline": (
        Evidence([row("a", 0.7, against_baseline=HIGH), BASE], {"on_policy_gkd": HIGH}),
        Outcome.TIE,
        "a",
        {"with_baseline": True, "above_baseline": (), "below_baseline": (), "equal_tokens": None},
    ),
    "clear of the baseline": (
        Evidence([row("a", 0.7, against_baseline=UP), BASE], {"on_policy_gkd": UP}),
        Outcome.CLEAR,
        "a",
        {"above_baseline": ("a",), "below_baseline": ()},
    ),
    "below the baseline": (
        Evidence([BASE, row("a", 0.5, against_baseline=DOWN)], {"a": UP}),
        Outcome.CLEAR,
        "on_policy_gkd",
        {"above_baseline": (), "below_baseline": ("a",)},
    ),
    "twice the tokens": (
        Evidence(
            [row("a", 0.7, against_baseline=UP, tokens=2e5, equal_tokens=0.652), BASE],
            {"on_policy_gkd": UP},
        ),
        Outcome.CLEAR,
        "a",
        {"equal_tokens": EqualTokens(2.0, 0.652, 0.65)},
    ),
    "nothing to resample": (
        Evidence([row("a", 0.7, ONE), row("b", 0.6, ONE)], {"b": ONE}),
        Outcome.NO_GAIN,
        "",
        {"below": {}, "unclear": ("b",)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name: str) -> None:
    given, outcome, recommended, values = CASES[name]
    verdict = judge(given)
    assert (verdict.outcome, verdict.choice) == (outcome, recommended)
    assert values
    for key, value in values.items():
        assert getattr(verdict, key) == value, key


@pytest.mark.parametrize("name", CASES)
def test_only_what_the_numbers_show_is_recommended(name: str) -> None:
    """No case recommends a collapsed method, one under faults, or an insignificant gain; the best
    is called clear only where every other method is significantly below it."""
    given = CASES[name][0]
    verdict = judge(given)
    if verdict.outcome is Outcome.CLEAR:
        assert given.lead and all(direction(lead) == 1 for lead in given.lead.values())
    for method in filter(None, [verdict.choice, *verdict.close]):
        assert method not in given.collapsed and not given.faults
        (chosen,) = (r for r in given.rows if r.method == method)
        assert chosen.against_untrained is None or chosen.against_untrained.low > 0


@pytest.mark.parametrize("name", CASES)
def test_every_verdict_has_a_headline_and_names_its_methods(name: str) -> None:
    """The words are a writer's; the names and numbers in them are the verdict's."""
    verdict = judge(CASES[name][0])
    head, lines = sentences.headline(verdict), sentences.reasons(verdict)
    assert head.endswith(".") and "  " not in head and all("  " not in line for line in lines)
    assert verdict.choice in head
    text = " ".join(lines)
    groups = (verdict.tied, verdict.unclear, verdict.below, verdict.collapsed, verdict.failed)
    for group in (*groups, verdict.not_run, verdict.above_baseline, verdict.below_untrained):
        assert all(method in text for method in group)


def test_the_sentences_hold_the_numbers() -> None:
    verdict = judge(CASES["the cheapest of a tie"][0])
    assert sentences.headline(verdict) == (
        "Use b: cheapest of the 2 methods within 2.0 points of the highest mean (a); "
        "−1.0 points (−4.0 to +2.0, p 0.600) to it."
    )
    assert sentences.reasons(verdict) == [
        "Highest mean: a, 70.0 % (67.0 to 73.0), +5.0 points (+2.0 to +8.0, p 0.010) over the "
        "untrained student.",
        "Not significantly worse: b.",
        "Within 2.0 points of it: a and b. Cheapest: b (50 k tokens a run); dearest: a (100 k "
        "tokens a run).",
    ]


def test_too_few_seeds_are_no_verdict_and_one_seed_no_order() -> None:
    given = CASES["few seeds"][0]
    assert sentences.headline(judge(given)) == "Not enough seeds for a verdict: 2 of at least 3."
    one = judge(Evidence([row("a", 0.7, seeds=(0,)), row("b", 0.6, seeds=(0,))], {"b": ONE}))
    assert one.outcome is Outcome.FEW_SEEDS and not one.choice
    assert not any("Highest mean" in line for line in sentences.reasons(one))


def test_a_headline_names_what_makes_it_provisional() -> None:
    head = sentences.headline(judge(CASES["enough seeds, not finished"][0]))
    assert head.endswith(" (not finished).")


def summary(path: Path, fate: Mapping[tuple[str, int], Fate], **changes: Any) -> Summary:
    """The summary of a small study with these fates."""
    study = small_study(**changes)
    write_study(path, study, lambda cell: fate.get((cell.method, cell.seed or 0), {}))
    loaded = data.load(path)
    return summarize(loaded, findings.grouped(loaded))


def test_a_sound_study_answers_the_four_questions(tmp_path: Path) -> None:
    found = summary(tmp_path, {}, seeds=[0, 1, 2, 3, 4])
    assert found.verdicts["tiny-qwen"].outcome is Outcome.NO_GAIN  # 40 problems show little
    able = found.power["tiny-qwen"]
    assert able.measured and (able.methods, able.seeds, able.problems) == (3, 5, 40)
    assert 0.02 < able.smallest < 0.5 and sum(able.shares) == pytest.approx(1)
    trust, cost, broke = found.trust, found.cost, found.breakage
    assert (trust.seeds, trust.few_seeds, trust.problems, trust.few_problems) == (
        5,
        False,
        40,
        True,
    )
    assert trust.tone == "warn" and trust.embedded == ("tiny-qwen",) and not trust.faults
    assert cost.usd is None and cost.seconds == pytest.approx(38, abs=0.5)
    assert cost.runs == 12 and cost.shortest == cost.longest == 3.5 and cost.predicted is None
    assert broke.tone == "good" and broke.runs == 12 and not broke.groups
    assert "reverse_curriculum" in trust.without_run and not trust.without_result
    questions = [question for question, *_ in sentences.answers(found)]
    assert questions == [
        "Which method?",
        "Can I trust that?",
        "What did it cost?",
        "Did anything break?",
    ]


def test_a_collapse_is_not_recommended_and_is_reported(tmp_path: Path) -> None:
    fate = {("hybrid", 0): {"findings": [FINDING]}, ("hybrid", 1): {"fail": "<b>disk</b>"}}
    found = summary(tmp_path, fate)
    verdict, broke = found.verdicts["tiny-qwen"], found.breakage
    assert verdict.choice != "hybrid" and "hybrid" not in verdict.close
    assert verdict.collapsed["hybrid"].startswith("1 of 2 runs")
    assert (broke.tone, broke.collapsed, broke.deviating, broke.missing) == ("bad", 1, 0, 0)
    assert [str(run.cell) for run in broke.failed] == ["tiny-qwen/hybrid/1"]
    lines = sentences.answers(found)[3][3]
    assert any("tiny-qwen/hybrid/1 failed: <b>disk</b>" in line for line in lines)


def test_a_deviation_is_reported_and_trusted_less(tmp_path: Path) -> None:
    finding = {**FINDING, "kind": "deviation"}
    found = summary(tmp_path, {("hybrid", 0): {"findings": [finding]}})
    assert found.trust.deviating == ("tiny-qwen hybrid",) and found.trust.tone == "bad"
    assert (found.breakage.collapsed, found.breakage.deviating) == (0, 1)
    assert "hybrid" not in found.verdicts["tiny-qwen"].collapsed


def test_losses_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    found = summary(tmp_path, {("hybrid", 1): {"null": True}})
    assert found.breakage.not_finite == ("tiny-qwen/hybrid/1",)


def test_faults_and_prices_are_reported(tmp_path: Path) -> None:
    found = summary(tmp_path, {}, faults=["stale_sampler"], price={"hour": 3.6})
    verdict = found.verdicts["tiny-qwen"]
    assert verdict.outcome is Outcome.FAULTS and not verdict.choice
    assert found.tone == "warn" and found.trust.tone == "bad"
    assert found.trust.faults == ("stale_sampler",)
    assert found.cost.usd == pytest.approx(found.cost.seconds / 1000)
    assert sentences.answers(found)[2][2].endswith("USD")


def test_an_unfinished_study_is_reported(tmp_path: Path) -> None:
    found = summary(tmp_path, {("hybrid", 1): {"stop": 3}, ("teacher", 0): {"skip": True}})
    assert (found.trust.missing, found.breakage.missing, found.trust.runs) == (2, 2, 6)
    assert found.breakage.tone == "warn" and found.trust.without_result == ("tiny-qwen teacher",)
    assert found.verdicts["tiny-qwen"].missing == 2


def test_a_difference_has_one_p_on_the_whole_page(tmp_path: Path) -> None:
    """The verdict reads the same family of comparisons as the table."""
    methods = ["on_policy_gkd", "hybrid", "mixture", "off_policy", "extended_on_policy"]
    write_study(tmp_path, small_study(methods=methods, seeds=[0, 1, 2]))
    given = evidence(data.load(tmp_path), "tiny-qwen", [])
    rows = {r.method: r for r in given.rows}
    (top,) = {*methods} - {*given.lead}
    table = {"on_policy_gkd": rows[top].against_baseline}
    if top == "on_policy_gkd":
        against = {method: r.against_baseline for method, r in rows.items() if method != top}
        table = {method: -other for method, other in against.items() if other}
    assert table
    for method, other in table.items():
        assert given.lead[method] == other and other is not None and other.p > 0
