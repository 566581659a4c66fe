"""The results table from the records of runs: rows, comparisons, edge cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from potstill.report.results import Row, curve, family, level_at
from potstill.report.results import table as results_table
from potstill.study.storage import RunId


def test_curves_skip_steps_without_a_grading() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 10},
        {"step": 2, "tokens": 20, "eval/accuracy": None},
        {"step": 3, "tokens": 30, "eval/accuracy": 0.0},
        {"step": 4, "tokens": 40, "eval/accuracy": 0.8},
    ]
    assert curve(rows, 0.5) == [(0.0, 0.5), (30, 0.0), (40, 0.8)]
    assert curve([], 0.5) == [(0.0, 0.5)]


def test_level_at_equal_tokens_is_read_between_gradings() -> None:
    points = [(0, 0.4), (100, 0.6), (200, 0.5)]
    assert [level_at(x, points) for x in (0, 25, 100, 150)] == [0.4, 0.45, 0.6, 0.55]
    assert level_at(10**9, points) == 0.5  # spent less than that: its last accuracy


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
    assert hybrid.level is not None and hybrid.level.mean == 0.8
    assert hybrid.others["flexible"].mean == 1.0
    assert (off_policy.seeds, off_policy.failed, off_policy.missing) == ((), (), 2)
    for name in ("level", "against_baseline", "against_untrained", "gap_closed", "equal_tokens"):
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


def test_every_finished_seed_enters_a_difference() -> None:
    results = {**RESULTS, RunId("p", "on_policy_gkd", 1): record(0.1, tokens=190)}
    rows = table(results)
    against = rows["hybrid"].against_baseline
    assert against is not None and against.mean == pytest.approx(0.8 - (0.7 + 0.1) / 2)
    untrained = rows["on_policy_gkd"].against_untrained
    assert untrained is not None and untrained.mean == pytest.approx((0.7 + 0.1) / 2 - 0.5)
    del results[RunId("p", "on_policy_gkd", 0)]
    left = table(results)["hybrid"].against_baseline  # seed 0 of one, seed 1 of the other
    assert left is not None and left.mean == pytest.approx(0.8 - 0.1)


def seeds(*shares: float) -> dict[int | None, dict[str, Any]]:
    """Records of one method with these accuracies."""
    return {seed: record(share) for seed, share in enumerate(shares)}


def test_one_comparison_has_one_p_in_the_whole_family() -> None:
    known = {"untrained": {None: record(0.5)}, "teacher": {None: record(0.9)}}
    methods = {"a": seeds(0.7, 0.75, 0.7), "b": seeds(0.55, 0.5, 0.6), "c": seeds(0.6, 0.6, 0.65)}
    of_all = family(known | methods)
    assert of_all["a", "b"].p == of_all["b", "a"].p
    assert of_all["a", "b"].mean == -of_all["b", "a"].mean
    for pair in (("a", "untrained"), ("a", "b"), ("b", "c")):
        assert of_all[pair].p >= of_all.alone(*pair).p
    assert len(of_all.tested) == 6  # pairs of three methods and the untrained student
    assert of_all["a", "untrained"].seeds == 3


def test_the_teacher_is_in_no_comparison() -> None:
    of_all = family({"teacher": {None: record(0.9)}, "a": seeds(0.7, 0.7, 0.6)})
    assert of_all.tested == () and of_all.interval("teacher").high < 1


def test_repeated_problems_are_one_cluster() -> None:
    """Doubling every problem changes no interval: it is no new evidence."""

    def runs(repeats: int) -> dict[str, dict[int | None, dict[str, Any]]]:
        rng = np.random.default_rng(0)
        skills = {name: rng.random(30) for name in ("a", "b")}  # each solves problems of its own
        return {
            name: {
                seed: {
                    "outcomes": {
                        "strict": "".join(str(int(x)) for x in skill > rng.normal(0.5, 0.1, 30))
                        * repeats
                    },
                    "clusters": [*range(30)] * repeats,
                }
                for seed in range(3)
            }
            for name, skill in skills.items()
        }

    once, twice = family(runs(1)), family(runs(2))
    for one, two in ((once.interval("a"), twice.interval("a")), (once["a", "b"], twice["a", "b"])):
        assert (one.low, one.high) == pytest.approx((two.low, two.high))
    blind = {m: {s: {**r, "clusters": None} for s, r in x.items()} for m, x in runs(2).items()}
    assert family(blind)["a", "b"].se < 0.9 * twice["a", "b"].se


def test_runs_on_other_problems_are_left_out() -> None:
    of_all = family({"a": seeds(0.7, 0.6), "b": {0: record(0.5), 1: record(0.5, problems=7)}})
    assert of_all.samples["b"].seeds == 1 and of_all.samples["a"].seeds == 2


@pytest.mark.parametrize("gone", ["teacher", "untrained"])
def test_a_reference_row_that_failed_costs_only_what_needs_it(gone: str) -> None:
    results = {**RESULTS, RunId("p", gone): {"status": "failed", "cause": "no"}}
    rows = table(results)
    assert rows["hybrid"].level is not None and rows["hybrid"].against_baseline is not None
    assert rows["hybrid"].gap_closed is None and rows[gone].level is None
    assert (rows["hybrid"].against_untrained is None) == (gone == "untrained")
    assert (rows["hybrid"].equal_tokens is None) == (gone == "untrained")


def test_pairs_are_tables_of_their_own_and_nothing_is_no_error() -> None:
    twin = [RunId("q", cell.method, cell.seed) for cell in CELLS]
    rows = results_table([*CELLS, *twin], METHODS, RESULTS, metrics)
    assert [row.pair for row in rows] == ["p"] * 5 + ["q"] * 5
    alone = results_table(CELLS, METHODS, RESULTS, metrics)
    assert rows[:5] == alone
    assert all(row.level is None for row in rows[5:])
    assert results_table([], METHODS, {}, metrics) == []
