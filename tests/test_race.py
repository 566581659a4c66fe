"""Races: the decision on tables by hand and with known truth, and their course from records.

On a Ray cluster a race is in `test_cluster.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from benchmarks import race as benchmark

from potstill.stats.mean_squares import Matrix
from potstill.study.race import Course, Decision, Rules
from potstill.study.race.course import Record, course
from potstill.study.race.decision import Entry, careful, decide, levels
from potstill.study.storage import RunId

SCREENED = {"seeds": 1, "level": 0.01, "within": 0.01, "last": False}
COMPARED = {"seeds": 3, "level": 0.01, "within": 0.01, "last": False}


def table(accuracy: float, seeds: int = 1, problems: int = 200, seed: int = 0) -> Matrix:
    """Outcomes of this accuracy: exactly with one seed, in expectation with several."""
    rng = np.random.default_rng([seed, int(1000 * accuracy)])
    if seeds > 1:
        return (rng.random((seeds, problems)) < accuracy).astype(float)
    return rng.permutation((np.arange(problems) < accuracy * problems).astype(float))[None]


UNTRAINED = table(0.45, seed=9)[0]


def test_one_seed_drops_no_method_that_is_only_behind_the_leader() -> None:
    entries = {"good": Entry(table(0.9)), "poor": Entry(table(0.44)), "low": Entry(table(0.35))}
    look = decide(entries, UNTRAINED, **SCREENED)
    assert look.survivors == ("good", "poor", "low") and look.leader == "good" and not look.ended


def test_one_seed_drops_what_is_far_below_the_untrained_student() -> None:
    look = decide({"a": Entry(table(0.6)), "b": Entry(table(0.05))}, UNTRAINED, **SCREENED)
    (drop,) = look.dropped.values()
    assert look.survivors == ("a",) and look.ended == "one left"
    assert (drop.reason, drop.against) == ("below untrained", "untrained")
    assert drop.difference == pytest.approx(-0.4) and -0.4 < drop.upper < 0


def test_a_collapse_counts_where_the_method_solves_no_more_than_the_untrained_student() -> None:
    entries = {
        "false alarm": Entry(table(0.6), collapsed=1),
        "collapsed": Entry(table(0.4), collapsed=1),
        "weak": Entry(table(0.4)),
    }
    look = decide(entries, UNTRAINED, **SCREENED)
    assert {m: drop.reason for m, drop in look.dropped.items()} == {"collapsed": "collapsed"}
    nothing = np.zeros(200)  # an untrained student that solves nothing
    entries = {"a": Entry(np.zeros((1, 200)), collapsed=1), "b": Entry(np.zeros((1, 200)))}
    assert decide(entries, nothing, **SCREENED).survivors == ("b",)


def test_more_seeds_drop_a_collapse_of_half_of_the_runs() -> None:
    one, two = (Entry(table(0.4, 3), collapsed=n) for n in (1, 2))
    steady = Entry(table(0.42, 3))
    dropped = decide({"one": one, "two": two, "steady": steady}, UNTRAINED, **COMPARED).dropped
    assert dropped["two"].reason == "collapsed"
    assert "one" not in dropped or dropped["one"].reason != "collapsed"


def test_three_seeds_drop_what_is_below_the_leader_by_its_bound() -> None:
    from scipy.stats import t

    outcomes = {"best": table(0.8, 3), "near": table(0.78, 3), "far": table(0.5, 3)}
    look = decide({m: Entry(o) for m, o in outcomes.items()}, UNTRAINED, **COMPARED)
    assert look.leader == "best" and list(look.dropped) == ["far"] and not look.ended
    drop, d = look.dropped["far"], careful(outcomes).alone("far", "best")
    assert (drop.reason, drop.against) == ("below leader", "best")
    assert drop.difference == pytest.approx(outcomes["far"].mean() - outcomes["best"].mean())
    # one comparison with each of two rivals
    assert drop.upper == pytest.approx(d.mean + t.ppf(1 - 0.01 / 2, d.df) * d.se) and drop.upper < 0
    near = careful(outcomes).alone("near", "best")
    assert near.mean + t.ppf(1 - 0.01 / 2, near.df) * near.se > 0
    assert look.apart == pytest.approx(-near.mean + t.ppf(1 - 0.01, near.df) * near.se)


def test_a_noisy_method_does_not_borrow_a_small_variance() -> None:
    rng = np.random.default_rng(2)
    steady = {m: (rng.random((3, 200)) < 0.6).astype(float) for m in "abcdef"}
    noisy = np.array([table(p, 1, seed=i)[0] for i, p in enumerate((0.5, 0.65, 0.8))])
    variances = careful({**steady, "noisy": noisy}).variances
    assert variances["noisy"].square == pytest.approx(200 * np.var([0.5, 0.65, 0.8], ddof=1))
    assert variances["noisy"].df == 2.0
    own = {m: 200 * x.mean(1).var(ddof=1) for m, x in steady.items()}
    assert all(variances[m].square >= own[m] - 1e-12 for m in own)


def test_a_race_ends_when_survivors_are_within_the_limit() -> None:
    entries = {m: Entry(table(0.7, 5, 2000, seed=i)) for i, m in enumerate("abc")}
    terms: dict[str, Any] = {**COMPARED, "seeds": 5}
    look = decide(entries, table(0.45, 1, 2000)[0], **{**terms, "within": 0.1})
    assert look.ended == "within" and look.survivors == ("a", "b", "c") and 0 < look.apart <= 0.1
    tight = decide(entries, table(0.45, 1, 2000)[0], **{**terms, "within": look.apart * 0.99})
    assert tight.ended == "" and tight.apart == look.apart
    last = decide(entries, table(0.45, 1, 2000)[0], **{**terms, "within": 1e-9, "last": True})
    assert last.ended == "last look"


def test_the_order_of_methods_changes_nothing() -> None:
    entries = {
        "low": Entry(table(0.7, 3)),
        "high": Entry(table(0.72, 3)),
        "c": Entry(table(0.71, 3)),
    }
    one = decide(entries, UNTRAINED, **COMPARED)
    other = decide(dict(reversed(entries.items())), UNTRAINED, **COMPARED)
    assert one.apart == pytest.approx(other.apart) and one.leader == other.leader
    assert one.apart > max(one.means.values()) - min(one.means.values())


@pytest.mark.parametrize("terms", [SCREENED, COMPARED])
def test_one_problem_drops_nothing(terms: dict[str, Any]) -> None:
    right, wrong = np.ones((terms["seeds"], 1)), np.zeros((terms["seeds"], 1))
    look = decide({"a": Entry(right), "b": Entry(wrong)}, np.ones(1), **terms)
    assert look.survivors == ("a", "b") and not look.ended


def test_equal_outcomes_drop_nothing_and_failed_methods_leave() -> None:
    same = table(0.7, 3)
    entries = {"a": Entry(same), "b": Entry(same), "c": Entry(np.zeros((0, 0)), failed="seed 1: x")}
    look = decide(entries, UNTRAINED, **COMPARED)
    assert look.survivors == ("a", "b") and look.dropped["c"].cause == "seed 1: x"
    broken = {"a": Entry(np.zeros((0, 0)), failed="x")}
    assert decide(broken, np.zeros(0), **COMPARED).ended == "none left"


def test_levels_spend_alpha_and_no_more() -> None:
    for looks in ([1, 3], [3], [1, 3, 5, 10], [1, 4, 6, 20]):
        spent = levels(0.05, looks)
        assert len(spent) == len(looks) and min(spent) > 0 and sum(spent) == pytest.approx(0.05)
    assert sum(Rules(screen=True).levels) < sum(Rules().levels)


@pytest.mark.parametrize("sd", [0.03, 0.06])
@pytest.mark.parametrize(
    "scenario",
    ["all equal", "all equal to the untrained student", "5 of 8 collapse", "one clear best"],
)
def test_with_known_truth_the_best_method_stays(scenario: str, sd: float) -> None:
    """A few races, next to a grid of three seeds; `python -m benchmarks.race` has hundreds."""
    rules = [Rules(looks=(1, 3, 5)), Rules(looks=(1, 3))]
    grids, results = benchmark.trial(scenario, sd, rules, races=16, seed=3)
    for outcomes in results:
        assert len(outcomes) == 16 and sum(one.best_dropped for one in outcomes) <= 2
    short = results[1]
    assert np.mean([one.close for one in short]) >= grids[3] - 0.1
    if scenario == "5 of 8 collapse":
        assert np.mean([one.runs for one in short]) <= 0.7 * 24


def test_a_race_that_compares_at_one_seed_would_lose_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The simulation notices a rule that has no room for the variance between seeds."""
    monkeypatch.setattr("potstill.study.race.decision.SEED_SD", 0.0)
    scenario = "all equal to the untrained student"
    _, (outcomes,) = benchmark.trial(scenario, 0.06, [Rules(looks=(1, 3))], races=40, seed=3)
    assert sum(one.best_dropped for one in outcomes) > 2


# --- the course of a race, from records


def record(method: str, seed: int | None, outcomes: Matrix, **more: Any) -> Record:
    strict = "".join(str(int(value)) for value in outcomes)
    key = {"pair": "p", "method": method, "seed": seed, "status": "done", "seconds": 2.0}
    return key | {"accuracy": float(outcomes.mean()), "outcomes": {"strict": strict}} | more


def records_of(accuracy: Mapping[str, float], seeds: int = 8, **more: Any) -> dict[RunId, Record]:
    """Records of a whole grid, with its baselines."""
    records = {RunId("p", m): record(m, None, UNTRAINED) for m in ("untrained", "teacher")}
    for method, level in accuracy.items():
        for seed in range(seeds):
            outcomes = table(level, 2, 200, seed)[0]
            records[RunId("p", method, seed)] = record(method, seed, outcomes, **more)
    return records


LEVELS = {"best": 0.8, "near": 0.79, "far": 0.55, "bad": 0.02}
RULES = Rules(looks=(1, 3, 5), fresh=3)


def follow(records: Mapping[RunId, Record], rules: Rules = RULES, **more: Any) -> Course:
    options = {"screened": {}, "stored": {}, **more}
    return course("p", list(LEVELS), tuple(range(8)), rules, records, **options)


def test_a_course_asks_for_the_runs_of_the_next_look_only() -> None:
    whole = records_of(LEVELS)
    none = follow({})
    assert len(none.planned) == 2 + 4 and not none.looks and not none.ended
    first = follow({k: r for k, r in whole.items() if not k.seed})
    assert [look.survivors for look in first.looks] == [("best", "near", "far")]
    assert [k for k in first.planned if k.seed] == [
        RunId("p", m, seed) for seed in (1, 2) for m in ("best", "near", "far")
    ]
    ended = follow(whole)
    assert ended.ended == "last look" and ended.finalists == ("best", "near")
    assert ended.fresh == (5, 6, 7) and set(ended.dropped) == {"bad", "far"}
    fresh = [k for k in ended.planned if k.seed in ended.fresh]
    assert len(fresh) == 6 and RunId("p", "far", 3) not in ended.planned


def test_decisions_depend_on_the_deciding_runs_alone() -> None:
    """Other seeds, other methods' later runs and the order of records change nothing."""
    whole = records_of(LEVELS)
    needed = {k: whole[k] for k in follow(whole).planned}
    assert follow(dict(reversed(needed.items()))) == follow(whole)
    other = {k: r if k.seed not in (5, 6, 7) else {**r, "outcomes": {"strict": "0" * 200}}
             for k, r in whole.items()}  # fmt: skip
    assert follow(other) == follow(whole)


def test_a_stored_decision_is_kept_until_its_records_change() -> None:
    whole = records_of(LEVELS)
    now = follow(whole)
    kept = Decision(3, 0.5, dict.fromkeys(LEVELS, 0.5), "far", {}, None, "within")
    stored = {now.digests[1]: kept}
    assert follow(whole, stored=stored).looks == (now.looks[0], kept)
    changed = {**whole, RunId("p", "far", 2): record("far", 2, table(0.56)[0])}
    again = follow(changed, stored=stored)
    assert again.digests[1] != now.digests[1] and again.looks[1] != kept
    clustered = {key: {**record, "clusters": [0] * 200} for key, record in whole.items()}
    assert not set(follow(clustered).digests) & set(now.digests)


def test_a_failed_run_drops_its_method_until_it_is_repeated() -> None:
    whole = records_of(LEVELS)
    failed = {**record("best", 2, UNTRAINED), "status": "failed", "cause": "out of memory"}
    look = follow({**whole, RunId("p", "best", 2): failed}).looks[1]
    assert look.dropped["best"].cause == "seed 2: out of memory"
    assert follow(whole).finalists == ("best", "near")
    untrained = {**record("untrained", None, UNTRAINED), "status": "failed", "cause": "x"}
    assert follow({**whole, RunId("p", "untrained"): untrained}).ended == "none left"


def test_a_screen_drops_before_the_first_look() -> None:
    rules, whole = Rules(looks=(1, 3, 5), screen=True), records_of(LEVELS)
    waiting = follow(whole, rules)
    assert not waiting.looks and {k.method for k in waiting.planned} == {"untrained", "teacher"}
    now = follow(whole, rules, screened=whole)
    assert now.screen and list(now.screen.dropped) == ["bad"]
    assert RunId("p", "bad", 0) not in now.planned and len(now.digests) == 1 + len(now.looks)
    low = dict.fromkeys(LEVELS, 0.02)
    none = follow(whole, rules, screened=records_of(low))
    assert none.ended == "none left" and not none.finalists and not none.looks


def test_repeated_problems_are_one_cluster() -> None:
    """A hundred copies of one problem are no hundred problems."""
    rng = np.random.default_rng(0)
    few = {m: Entry((rng.random((3, 10)) < p).astype(float)) for m, p in (("a", 0.9), ("b", 0.5))}
    many = {m: Entry(np.repeat(e.outcomes, 50, axis=1)) for m, e in few.items()}
    base, names = np.tile(UNTRAINED[:10], 1), np.repeat(np.arange(10), 50).tolist()
    one = decide(few, base, **COMPARED)
    same = decide(many, np.repeat(base, 50), clusters=names, **COMPARED)
    without = decide(many, np.repeat(base, 50), **COMPARED)
    assert same.apart == pytest.approx(one.apart) and list(same.dropped) == list(one.dropped)
    assert without.apart < one.apart  # seeds vary as before, problems seem to vary less
