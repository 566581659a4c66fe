"""The smallest difference that a study can show, against simulation and closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.coverage import Scenario, outcomes, rates, shipped
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import PotstillError
from potstill.report import sentences
from potstill.stats import multiple
from potstill.stats.comparisons import Comparisons
from potstill.stats.mean_squares import MeanSquares, mean_squares
from potstill.stats.power import TYPICAL, Components, Power, all_pairs, components, power
from studies import small_study, write_study

SOME = Components(seed=0.02**2, problem=0.05, residual=0.1)


def test_parts_add_up_to_the_variance_of_a_difference() -> None:
    assert SOME.parts(4, 100) == pytest.approx((2 * 0.0004 / 4, 0.05 / 100, 2 * 0.1 / 400))


def test_components_are_those_of_the_effects() -> None:
    """Two methods with seed effects, problem effects of their own, and noise of known variances."""
    rng = np.random.default_rng(0)
    drawn = {
        name: rng.normal(0, 0.1, (60, 1)) + rng.normal(0, 0.3, 400) + rng.normal(0, 0.5, (60, 400))
        for name in "abcd"
    }
    found = components(shipped(drawn))
    assert found is not None
    assert found.seed == pytest.approx(0.01, rel=0.2)
    assert found.problem == pytest.approx(2 * 0.09, rel=0.1)
    assert found.residual == pytest.approx(0.25, rel=0.02)


def table(mean: float, seeds: list[float], problems: list[float], noise: float) -> MeanSquares:
    """Outcomes with exactly these effects; the noise of seed s on problem p is 1 or -1 times it."""
    signs = np.outer([(-1) ** s for s in range(len(seeds))], [(-1) ** p for p in range(4)])
    return mean_squares(mean + np.array(seeds)[:, None] + problems + noise * signs)


def test_components_by_hand() -> None:
    """Orthogonal effects. Seeds of -d and d have the variance 2 d ** 2, or 4/3 d ** 2 as two pairs,
    and noise of -e and e on four problems the mean square 4 e ** 2 / 3 a seed, over S - 1."""
    seeds, fewer = [-0.2, -0.2, 0.2, 0.2], [-0.1, 0.1]
    a = table(0.5, seeds, [0.1, 0.1, -0.1, -0.1], 0.06)
    b = table(0.4, fewer, [-0.2, -0.2, 0.2, 0.2], 0.03)
    residual = [4 * 4 * 0.06**2 / 9, 4 * 2 * 0.03**2 / 3]
    assert (a.residual, b.residual) == pytest.approx(tuple(residual))
    level, once = mean_squares(np.ones((3, 4))), mean_squares(np.array([[0.0, 1.0, 1.0, 0.0]]))
    found = components(Comparisons({"a": a, "level": level, "once": once, "b": b}))
    assert found is not None
    squares = [4 * (4 / 3) * 0.2**2, 4 * 2 * 0.1**2]
    between = (4 * squares[0] + 2 * squares[1]) / 6  # weighted by the number of seeds
    assert found.residual == pytest.approx(np.mean(residual))
    assert found.seed == pytest.approx((between - np.mean(residual)) / 4)
    # effects of problems differ by 0.3 or -0.3
    assert found.problem == pytest.approx(4 / 3 * 0.3**2 - residual[0] / 4 - residual[1] / 2)


def test_components_are_never_below_zero_and_need_two_seeds_of_two_problems() -> None:
    noisy = table(0.5, [0.0, 0.0], [0.0] * 4, 0.3)
    alone = components(Comparisons({"a": noisy}))
    assert alone == Components(0.0, TYPICAL.problem, noisy.residual)
    both = components(Comparisons({"a": noisy, "b": noisy}))
    assert both == Components(0.0, 0.0, noisy.residual)
    for shape, enough in (((2, 2), True), ((1, 9), False), ((9, 1), False)):
        drawn = np.random.default_rng(0).random(shape)
        assert (components(shipped({"a": drawn})) is not None) == enough
    study = power(Comparisons({"a": noisy}), methods=2, seeds=3, problems=50)
    assert study.measured is True and study.components == alone
    assert power(Comparisons({}), methods=2, seeds=3, problems=50).measured is False


@pytest.mark.parametrize(
    ("enough", "planned"),
    [
        *((10, 10), (11, 11), (99, 99), (100, 100), (105, 110), (980, 980), (991, 1000)),
        *((1010, 1100), (98_500, 99_000), (99_001, 100_000), (100_000, 100_000)),
        (100_001, None),
    ],
)
def test_planned_problems_have_two_digits(enough: int, planned: int | None) -> None:
    some = Components(seed=0.0, problem=0.04, residual=0.0)
    assert some.problems_for(some.smallest(3, 3, enough), methods=3, seeds=3) == planned


@pytest.mark.parametrize(("enough", "planned"), [(3, 3), (4, 4), (100, 100), (101, None)])
def test_planned_seeds_are_at_most_100(enough: int, planned: int | None) -> None:
    assert SOME.seeds_for(SOME.smallest(3, enough, 200), methods=3, problems=200) == planned


@pytest.mark.parametrize("methods", [1, 2, 5])
def test_the_smallest_difference_has_satterthwaites_degrees_of_freedom(methods: int) -> None:
    """Seeds' share has those of all methods but the untrained student, problems' P - 1."""
    seeds, problems = 4, 50
    by_seed, by_problem, residual = SOME.parts(seeds, problems)
    total, trained = by_seed + by_problem + residual, max(methods - 1, 1)
    df = total**2 / (
        (by_seed + residual) ** 2 / (trained * (seeds - 1))
        + (by_problem + residual) ** 2 / (problems - 1)
    )
    level = scipy_stats.norm.cdf(-all_pairs(methods))
    quantiles = scipy_stats.t.ppf(0.8, df) - scipy_stats.t.ppf(level, df)
    found = SOME.smallest(methods, seeds, problems)
    assert found == pytest.approx(math.sqrt(total) * quantiles)
    assert Components(0.0, 0.0, 0.0).smallest(methods, seeds, problems) == 0.0
    assert 0 < SOME.smallest(methods, 3, 2) < math.inf  # the fewest of both


@pytest.mark.parametrize("methods", [1, 2, 3, 6])
def test_all_pairs_is_the_studentised_range(methods: int) -> None:
    want = scipy_stats.studentized_range.ppf(0.95, max(methods, 2), 1e6) / math.sqrt(2)
    assert all_pairs(methods) == pytest.approx(want, abs=0.05)


def test_many_seeds_and_problems_need_only_normal_quantiles() -> None:
    seeds, problems = 10_000, 10_000
    se = math.sqrt(sum(SOME.parts(seeds, problems)))
    quantiles = all_pairs(2) + scipy_stats.norm.ppf(0.8)
    assert all_pairs(2) == pytest.approx(1.96, abs=0.05)
    assert SOME.smallest(2, seeds, problems) == pytest.approx(se * quantiles, rel=1e-3)


def test_more_of_anything_shows_smaller_differences_and_more_methods_larger_ones() -> None:
    known = [SOME.smallest(*case) for case in ((5, 3, 500), (5, 5, 500), (5, 5, 2000))]
    assert known == sorted(known, reverse=True)
    assert SOME.smallest(9, 5, 500) > SOME.smallest(3, 5, 500)


@pytest.mark.parametrize(("seeds", "problems"), [(1, 500), (2, 500), (3, 1)])
def test_a_study_without_a_verdict_shows_nothing(seeds: int, problems: int) -> None:
    assert SOME.smallest(4, seeds, problems) == math.inf


def test_plans_are_the_fewest_that_do() -> None:
    study = power(Comparisons({}), methods=4, seeds=3, problems=200)
    assert study.components == TYPICAL and not study.measured
    for plan in study.plans:
        if plan.seeds:
            assert TYPICAL.smallest(4, plan.seeds, 200) <= plan.effect
            assert plan.seeds == 3 or TYPICAL.smallest(4, plan.seeds - 1, 200) > plan.effect
        if plan.problems:
            assert TYPICAL.smallest(4, 3, plan.problems) <= plan.effect
            assert TYPICAL.smallest(4, 3, int(0.9 * plan.problems)) > plan.effect
    assert {plan.effect for plan in study.plans} == {0.04, 0.02, 0.01}
    assert not power(Comparisons({}), methods=2, seeds=500, problems=10**6).plans


def test_a_plan_is_more_seeds_or_more_problems() -> None:
    some = Components(seed=1e-6, problem=0.05, residual=0.1)
    for seeds, enough in ((1, 3), (3, 3), (4, 4)):  # below three seeds it plans with three
        plan = Power(some, 4, seeds, 500, True).plans[0]
        further = some.seeds_for(plan.effect, 4, 500), some.problems_for(plan.effect, 4, enough)
        assert (plan.seeds, plan.problems) == further and None not in further


def test_the_stated_difference_has_the_stated_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated method that is better by it is found in about four of five studies."""
    monkeypatch.setattr(multiple, "DRAWS", 2_000)
    rng, calm = np.random.default_rng(0), Scenario(5, 1.0, problems=300, methods=4)
    known = [components(shipped(outcomes(calm, rng))) for _ in range(30)]
    mean = Components(
        *(
            float(np.mean([getattr(one, key) for one in known]))
            for key in ("seed", "problem", "residual")
        )
    )
    gain = mean.smallest(4, 5, 300)
    found = rates(Scenario(5, 1.0, problems=300, methods=4, gain=100 * gain), shipped, 150)
    assert 0.68 <= found.page_power <= 0.92


def test_sentences_and_results_state_it(tmp_path: Path) -> None:
    study = power(Comparisons({}), methods=9, seeds=1, problems=500)
    assert sentences.ability(study)[0] == "No difference can be shown: 1 seed of at least 3."
    assert sentences.power_record(study)["smallest"] is None
    write_study(tmp_path / "study", small_study(seeds=[0, 1, 2]))
    written = CliRunner().invoke(app, ["report", str(tmp_path / "study"), "--json"])
    assert written.exit_code == 0
    verdict = json.loads((tmp_path / "study" / "results.json").read_text())["verdict"]
    able = verdict["tiny-qwen"]["power"]
    assert able["measured"] and 0 < able["smallest"] < 1
    assert json.loads(written.stdout)["power"][0].startswith("tiny-qwen: Smallest difference")


def test_check_plans_with_a_pilot_or_with_typical_variances(tmp_path: Path) -> None:
    write_study(tmp_path / "pilot", small_study(seeds=[0, 1]))
    words = ["check", "--no-preflight", "--json", "pairs=tiny-qwen", "seeds=0,1,2"]
    plain = json.loads(CliRunner().invoke(app, words).stdout)["power"]["tiny-qwen"]
    pilot = CliRunner().invoke(app, [*words, "--pilot", str(tmp_path / "pilot")])
    assert pilot.exit_code == 0
    measured = json.loads(pilot.stdout)["power"]["tiny-qwen"]
    assert not plain["measured"] and measured["measured"]
    assert measured["smallest"] != plain["smallest"]


def test_a_pilot_of_one_seed_is_rejected(tmp_path: Path) -> None:
    write_study(tmp_path / "pilot", small_study(seeds=[0]))
    run = CliRunner().invoke(app, ["check", "--no-preflight", "--pilot", str(tmp_path / "pilot")])
    assert isinstance(run.exception, PotstillError)
    assert "no method with two seeds" in str(run.exception) and run.exception.hint
