"""Intervals against closed forms and simulations, paired differences, the table's edge cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from potstill.report import stats
from potstill.report.results import Row, curve, outcome_matrix
from potstill.report.results import table as results_table
from potstill.report.stats import Difference, accuracy_at, corrected, difference, interval
from potstill.study.storage import RunId


def outcomes(share: float, seeds: int, problems: int) -> np.ndarray:
    """The same `share` of problems right for every seed."""
    row = (np.arange(problems) < round(share * problems)).astype(float)
    return np.tile(row, (seeds, 1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.95])
def test_one_seed_gives_the_interval_of_a_proportion(share: float) -> None:
    found = interval(outcomes(share, 1, 500))
    wilson = binomtest(round(share * 500), 500).proportion_ci(method="wilson")
    assert found.mean == pytest.approx(share)
    assert found.low == pytest.approx(wilson.low, abs=0.01)
    assert found.high == pytest.approx(wilson.high, abs=0.01)


@pytest.mark.parametrize(("seeds", "problems"), [(20, 400), (40, 60)])
@pytest.mark.parametrize(("by_seed", "by_problem"), [(0.0, 0.4), (0.05, 0.4), (0.2, 0.1)])
def test_many_seeds_give_the_width_of_both_variances(
    seeds: int, problems: int, by_seed: float, by_problem: float
) -> None:
    """outcome = seed effect + problem effect, each with exactly the variance asked for."""
    rng = np.random.default_rng(1)

    def effects(count: int, sd: float) -> np.ndarray:
        drawn = rng.normal(size=count)
        return sd * (drawn - drawn.mean()) / drawn.std()

    matrix = 0.5 + effects(seeds, by_seed)[:, None] + effects(problems, by_problem)
    found = interval(matrix)
    width = 2 * 1.96 * math.sqrt(by_seed**2 / seeds + by_problem**2 / problems)
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert found.mean == pytest.approx(0.5)


def simulate(
    rng: np.random.Generator, seeds: int = 10, problems: int = 100, gain: float = 0.0
) -> np.ndarray:
    """A study's outcomes (S, P): problems of several difficulties, seeds of several skills."""
    logits = rng.normal(0.3, 1.0, problems) + rng.normal(gain, 0.3, (seeds, 1))
    return (rng.random((seeds, problems)) < 1 / (1 + np.exp(-logits))).astype(float)


def test_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 300)
    rng = np.random.default_rng(2)
    logits = rng.normal(0.3, 1.0, 4000)[:, None] + rng.normal(0, 0.3, 1000)
    truth = (1 / (1 + np.exp(-logits))).mean()
    found = [interval(simulate(rng)) for _ in range(200)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.88 <= covered <= 0.99, covered


def null_p_values(
    rng: np.random.Generator, by_seed: float, by_problem: float, noise: float
) -> np.ndarray:
    """p of 200 studies of two equal methods: effects of seeds, of problems, and of both."""
    found = []
    for _ in range(200):
        deltas = rng.normal(0, by_seed, (20, 1)) + rng.normal(0, by_problem, 100)
        found.append(difference(deltas + rng.normal(0, noise, (20, 100))).p)
    return np.array(found)


def test_p_values_are_level_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 300)
    p = null_p_values(np.random.default_rng(3), by_seed=0.05, by_problem=0.2, noise=0.1)
    assert kstest(p, "uniform").statistic < 0.1
    assert 0.01 <= (p <= 0.05).mean() <= 0.10 and p.min() > 0


def test_p_values_err_on_the_safe_side_where_all_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing seeds and problems independently counts pure noise up to three times (Owen 2007)."""
    monkeypatch.setattr(stats, "RESAMPLES", 300)
    p = null_p_values(np.random.default_rng(4), by_seed=0.0, by_problem=0.0, noise=0.5)
    assert (p <= 0.05).mean() <= 0.05


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(4)
    delta = difference(simulate(rng, gain=1.0) - simulate(rng))
    assert delta.clear and delta.low > 0 and delta.p < 0.01
    nothing = difference(np.zeros((3, 50)))
    assert (nothing.mean, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    assert not nothing.clear


def test_pairing_by_problem_makes_differences_tighter() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.random(300)
    a = (difficulty < 0.6 + rng.normal(0, 0.05, (5, 1))).astype(float)
    b = (difficulty < 0.5 + rng.normal(0, 0.05, (5, 1))).astype(float)
    paired = difference(a - b)
    unpaired = math.hypot(*(found.high - found.low for found in map(interval, (a, b))))
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    assert paired.high - paired.low < 0.85 * unpaired


def test_holm_against_numbers_by_hand() -> None:
    def of(p: float) -> Difference:
        return Difference(0.1, 0.0, 0.2, p)

    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then the running maximum
    family = corrected([of(0.03), None, of(0.01), of(0.04), of(math.nan), of(0.02)])
    p = [None if one is None else one.p for one in family]
    assert p[1] is None and p[4] is not None and math.isnan(p[4])
    assert [p[i] for i in (2, 5, 0, 3)] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert [one.p for one in corrected([of(0.7), of(0.6)]) if one] == [1.0, 1.0]
    assert corrected([None, None]) == [None, None] and corrected([]) == []
    same = of(0.02)
    assert [one.p for one in corrected([same, of(0.02)]) if one] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize("shape", [(1, 1), (4, 1)])
def test_one_problem_has_a_mean_and_no_interval(shape: tuple[int, int]) -> None:
    matrix = np.ones(shape)
    found, delta = interval(matrix), difference(matrix)
    assert found.mean == delta.mean == 1.0
    assert all(math.isnan(x) for x in (found.low, found.high, delta.low, delta.high, delta.p))
    assert not delta.clear


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 40)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_outcomes_that_are_all_equal_have_no_spread(shape: tuple[int, int], value: float) -> None:
    found = interval(np.full(shape, value))
    assert (found.mean, found.low, found.high) == (value, value, value)


def test_the_same_outcomes_give_the_same_numbers() -> None:
    matrix = simulate(np.random.default_rng(6))
    assert interval(matrix) == interval(matrix.copy())
    assert difference(matrix - 0.5) == difference(matrix - 0.5)


def test_curves_skip_steps_without_a_grading() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 10},
        {"step": 2, "tokens": 20, "eval/accuracy": None},
        {"step": 3, "tokens": 30, "eval/accuracy": 0.0},
        {"step": 4, "tokens": 40, "eval/accuracy": 0.8},
    ]
    assert curve(rows, 0.5) == [(0.0, 0.5), (30, 0.0), (40, 0.8)]
    assert curve([], 0.5) == [(0.0, 0.5)]


def test_accuracy_at_equal_tokens_is_read_between_gradings() -> None:
    points = [(0, 0.4), (100, 0.6), (200, 0.5)]
    assert [accuracy_at(x, points) for x in (0, 25, 100, 150)] == [0.4, 0.45, 0.6, 0.55]
    assert accuracy_at(10**9, points) == 0.5  # spent less than that: its last accuracy


UNCOUNTED = {"prompt": 999, "graded_student_sampled": 600, "graded_prompt": 400}


def record(share: float, tokens: int = 0, problems: int = 40, **more: Any) -> dict[str, Any]:
    right = "".join("1" if i < round(share * problems) else "0" for i in range(problems))
    return {
        "status": "done",
        "accuracy": share,
        "outcomes": {"strict": right, "flexible": "1" * problems},
        "tokens": {"student_sampled": tokens, "trained": 10, **UNCOUNTED} if tokens else {},
        "seconds": 2.0,
        **more,
    }


METHODS = ("on_policy_gkd", "hybrid", "off_policy")
CELLS = [RunId("p", "teacher"), RunId("p", "untrained")]
CELLS += [RunId("p", method, seed) for seed in (0, 1) for method in METHODS]
RESULTS: dict[RunId, dict[str, Any]] = {
    RunId("p", "teacher"): record(0.9),
    RunId("p", "untrained"): record(0.5),
    RunId("p", "on_policy_gkd", 0): record(0.7, tokens=90),
    RunId("p", "on_policy_gkd", 1): record(0.7, tokens=190),
    RunId("p", "hybrid", 0): record(0.8, tokens=290),
    RunId("p", "hybrid", 1): {"status": "failed", "cause": "out of memory at step 3: no"},
}


def metrics(cell: RunId) -> list[dict[str, Any]]:
    """Two gradings: half way to the end in tokens and in accuracy, then the end."""
    result = RESULTS.get(cell, {"status": ""})
    if result["status"] != "done":
        return []
    total, accuracy = sum(result["tokens"].values()) - 1999, result["accuracy"]
    return [
        {"step": 1, "tokens": total / 2, "eval/accuracy": (0.5 + accuracy) / 2},
        {"step": 2, "tokens": 0.7 * total, "eval/accuracy": None},
        {"step": 3, "tokens": total, "eval/accuracy": accuracy},
    ]


def table(
    results: Mapping[RunId, Mapping[str, Any]] = RESULTS, cells: Sequence[RunId] = CELLS
) -> dict[str, Row]:
    return {row.method: row for row in results_table(cells, METHODS, results, metrics)}


def test_the_table_leaves_out_what_failed_and_what_is_missing() -> None:
    rows = table()
    assert list(rows) == ["untrained", "teacher", *METHODS]
    hybrid, off_policy = rows["hybrid"], rows["off_policy"]
    assert hybrid.seeds == (0,) and hybrid.missing == 0
    assert hybrid.failed == ("seed 1: out of memory at step 3: no",)
    assert hybrid.accuracy is not None and hybrid.accuracy.mean == 0.8
    assert hybrid.flexible is not None and hybrid.flexible.mean == 1.0
    assert (off_policy.seeds, off_policy.failed, off_policy.missing) == ((), (), 2)
    for name in ("accuracy", "against_baseline", "against_untrained", "gap_closed", "equal_tokens"):
        assert getattr(off_policy, name) is None
    assert rows["untrained"].gap_closed is None and rows["untrained"].tokens is None
    assert rows["on_policy_gkd"].against_baseline is None


def test_gap_closed_tokens_and_equal_tokens() -> None:
    rows = table()
    assert rows["on_policy_gkd"].gap_closed == pytest.approx(0.5)
    assert rows["hybrid"].gap_closed == pytest.approx(0.75)
    assert rows["on_policy_gkd"].tokens == (100 + 200) / 2 and rows["hybrid"].tokens == 300
    # on 150 of its 300 tokens hybrid is half way between 0.5 and 0.8
    assert rows["hybrid"].equal_tokens == pytest.approx(0.65)
    # seed 0 spent 100 < 150 and keeps 0.7; seed 1 is at 0.5 + 0.2 * 150 / 200
    assert rows["on_policy_gkd"].equal_tokens == pytest.approx((0.7 + 0.65) / 2)
    level = {**RESULTS, RunId("p", "teacher"): record(0.5)}
    assert table(level)["hybrid"].gap_closed is None  # there is no gap


def test_differences_pair_the_seeds_that_both_have() -> None:
    results = {**RESULTS, RunId("p", "on_policy_gkd", 1): record(0.1, tokens=190)}
    rows = table(results)
    against = rows["hybrid"].against_baseline
    assert against is not None and against.mean == pytest.approx(0.8 - 0.7)  # seed 0 alone
    untrained = rows["on_policy_gkd"].against_untrained
    assert untrained is not None and untrained.mean == pytest.approx((0.7 + 0.1) / 2 - 0.5)
    del results[RunId("p", "on_policy_gkd", 0)]
    assert table(results)["hybrid"].against_baseline is None  # no seed in common


def test_p_values_are_corrected_over_the_methods_of_a_pair() -> None:
    results = {**RESULTS, RunId("p", "off_policy", 0): record(0.75, tokens=50)}
    rows = table(results)
    mine = [RunId("p", name, 0) for name in METHODS]
    raw = [
        difference(outcome_matrix([results[c]]) - outcome_matrix([record(0.5)])).p for c in mine[1:]
    ]
    raw.append(
        difference(
            outcome_matrix([results[RunId("p", "on_policy_gkd", s)] for s in (0, 1)])
            - outcome_matrix([record(0.5)])
        ).p
    )
    against = [rows[name].against_untrained for name in ("hybrid", "off_policy", "on_policy_gkd")]
    assert all(one is not None and one.p >= p for one, p in zip(against, raw, strict=True))
    assert min(one.p for one in against if one) == pytest.approx(3 * min(raw))


@pytest.mark.parametrize("gone", ["teacher", "untrained"])
def test_a_reference_row_that_failed_costs_only_what_needs_it(gone: str) -> None:
    results = {**RESULTS, RunId("p", gone): {"status": "failed", "cause": "no"}}
    rows = table(results)
    assert rows["hybrid"].accuracy is not None and rows["hybrid"].against_baseline is not None
    assert rows["hybrid"].gap_closed is None and rows[gone].accuracy is None
    assert (rows["hybrid"].against_untrained is None) == (gone == "untrained")
    assert (rows["hybrid"].equal_tokens is None) == (gone == "untrained")


def test_pairs_are_tables_of_their_own_and_nothing_is_no_error() -> None:
    twin = [RunId("q", cell.method, cell.seed) for cell in CELLS]
    rows = results_table([*CELLS, *twin], METHODS, RESULTS, metrics)
    assert [row.pair for row in rows] == ["p"] * 5 + ["q"] * 5
    alone = results_table(CELLS, METHODS, RESULTS, metrics)
    assert rows[:5] == alone
    assert all(row.accuracy is None for row in rows[5:])
    assert results_table([], METHODS, {}, metrics) == []


def test_unpaired_agrees_with_paired_where_nothing_is_shared() -> None:
    """Independent matrices: drawing problems together or apart gives the same mean, and a wider
    interval where a shared difficulty does not cancel."""
    rng = np.random.default_rng(1)
    hard = rng.random(300)
    a = (rng.random((3, 300)) + 0.1 > hard).astype(float)
    b = (rng.random((4, 300)) > hard).astype(float)
    together = stats.unpaired(a, b, same_problems=True)
    apart = stats.unpaired(a, b, same_problems=False)
    assert together.mean == apart.mean == pytest.approx(a.mean() - b.mean())
    assert together.low < together.mean < together.high
    assert together.high - together.low < apart.high - apart.low


def test_unpaired_of_equal_matrices_is_nothing() -> None:
    same = np.tile(np.random.default_rng(0).random(50) > 0.5, (1, 1)).astype(float)
    found = stats.unpaired(same, same, same_problems=True)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_unpaired_needs_two_problems() -> None:
    found = stats.unpaired(np.ones((2, 1)), np.zeros((2, 1)), same_problems=True)
    assert found.mean == 1.0 and np.isnan(found.low) and np.isnan(found.p) and not found.clear
