"""Intervals and comparisons against closed forms, other libraries and simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import brentq

from potstill.stats import multiple
from potstill.stats.comparisons import (
    Comparisons,
    Difference,
    compare,
    corrected,
    difference,
    direction,
    exact,
    interval,
    residual_part,
)
from potstill.stats.mean_squares import MeanSquares, clustered, mean_squares
from potstill.stats.multiple import critical, max_t
from potstill.stats.seeds import POOLING_LEVEL, SeedVariance, alike, larger, seed_variances

RNG = np.random.default_rng(0)


def effects(count: int, sd: float) -> np.ndarray:
    """Drawn effects with exactly this mean (0) and standard deviation (n - 1)."""
    drawn = np.random.default_rng(count).normal(size=count)
    return sd * (drawn - drawn.mean()) / drawn.std(ddof=1)


def binary(share: float, seeds: int, problems: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, problems)) < share).astype(float)


# --- mean squares


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    x = RNG.normal(size=(4, 30)) + RNG.normal(size=(4, 1)) + RNG.normal(size=30)
    one = mean_squares(x)
    seeds, problems = x.mean(1), x.mean(0)
    total = ((x - x.mean()) ** 2).sum()
    by_seed, by_problem = (
        30 * ((seeds - x.mean()) ** 2).sum(),
        4 * ((problems - x.mean()) ** 2).sum(),
    )
    assert one.seed_square == pytest.approx(by_seed / 3)
    assert one.residual == pytest.approx((total - by_seed - by_problem) / (3 * 29))
    assert one.columns == pytest.approx(problems)


@pytest.mark.parametrize(
    ("outcomes", "seeds", "square", "residual", "shares"),
    [
        ([0.5], 1, math.nan, 0.0, False),  # a number a seed, no problems: never a share
        ([0.5, 0.9], 2, 0.08, 0.0, False),
        ([[0.2], [0.6]], 2, 0.08, 0.0, True),  # one problem: nothing is left for a residual
        ([[0.0, 1.0], [1.0, 0.0]], 2, 0.0, 1.0, True),  # means of 0.5, and 0.5 off each of them
        ([[0.0, 1.0], [1.0, -0.5]], 2, 0.0625, 1.5625, False),
        ([[0.0, 1.5], [0.5, 1.0]], 2, 0.0, 0.25, False),
        ([[0.0, 1.0, 1.0]], 1, math.nan, math.nan, True),
    ],
)
def test_mean_squares_by_hand(
    outcomes: list, seeds: int, square: float, residual: float, shares: bool
) -> None:
    one = mean_squares(outcomes)
    columns = (
        [float(np.mean(column)) for column in zip(*outcomes, strict=True)]
        if (isinstance(outcomes[0], list))
        else []
    )
    assert (one.seeds, one.shares, one.effective) == (seeds, shares, len(columns))
    assert one.columns.tolist() == pytest.approx(columns) and one.mean == np.mean(outcomes)
    found = (one.seed_square, one.residual)
    assert found == pytest.approx((square, residual), nan_ok=True)


def test_clusters_by_hand() -> None:
    """Four problems, the first and the third alike: deviations from the row's mean times 3 / 4."""
    names = ["a", "b", "a", "c"]
    assert clustered(np.array([1.0, 0.0, 1.0, 1.0]), names).tolist() == [1.125, 0.1875, 0.9375]
    rows = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    want = [[1.125, 0.1875, 0.9375], [0.5, 0.125, 0.875]]
    assert clustered(rows, names).tolist() == want
    assert mean_squares(rows, clusters=names).columns.tolist() == np.mean(want, 0).tolist()
    assert clustered(rows, [0, 1, 2, 3]).tolist() == rows.tolist()


def test_the_variance_of_a_mean_is_that_of_its_effects() -> None:
    """A mean of seed effects plus problem effects has the variances of both, over S and P."""
    matrix = 0.5 + effects(6, 0.05)[:, None] + effects(50, 0.4)
    found = difference(
        mean_squares(matrix),
        SeedVariance(50 * 0.05**2, 5),
        mean_squares(0 * matrix),
        SeedVariance(0.0, 5),
    )
    assert found.se == pytest.approx(math.sqrt(0.05**2 / 6 + 0.4**2 / 50))


def test_a_difference_without_problem_variance_is_a_t_test_of_seed_means() -> None:
    a, b = np.array([0.5, 0.6, 0.55]), np.array([0.7, 0.72, 0.65])
    known = compare({"a": a, "b": b})
    test = scipy_stats.ttest_ind(b, a)
    found = known["b", "a"]
    assert alike(np.array([a.var(ddof=1), b.var(ddof=1)]), np.array([2.0, 2.0]))
    assert (found.p, found.df) == pytest.approx((test.pvalue, test.df))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))


def test_a_difference_without_seeds_is_a_paired_t_test_over_problems() -> None:
    a, b = binary(0.6, 1, 80), binary(0.5, 1, 80, seed=1)
    one, other = mean_squares(a, seeded=False), mean_squares(b, seeded=False)
    none = SeedVariance(0.0, 0.0)
    found, test = difference(one, none, other, none), scipy_stats.ttest_rel(a[0], b[0])
    assert (found.p, found.low) == pytest.approx((test.pvalue, test.confidence_interval().low))
    apart = difference(one, none, other, none, paired=False)
    assert apart.se == pytest.approx(math.hypot(*(x[0].std(ddof=1) / 80**0.5 for x in (a, b))))


# --- seeds


def test_alike_seed_variances_are_pooled() -> None:
    samples = [mean_squares(binary(0.5, 3, 100, seed)) for seed in range(6)]
    squares = [s.seed_square for s in samples]
    assert alike(np.array(squares), np.full(6, 2.0)) == (
        scipy_stats.bartlett(*[sample_means(s) for s in range(6)]).pvalue >= POOLING_LEVEL
    )

    samples = [mean_squares(0.5 + effects(3, sd)[:, None] + np.zeros(50)) for sd in (0.1, 0.11)]
    pooled = 50 * (0.1**2 + 0.11**2) / 2
    for variance in seed_variances(samples):
        assert (variance.square, variance.df) == (pytest.approx(pooled), 4)


def sample_means(seed: int) -> np.ndarray:
    return np.asarray(binary(0.5, 3, 100, seed).mean(1))


@pytest.mark.parametrize("seed", range(20))
def test_bartletts_test_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.normal(0, sd, n) for sd, n in ((1.0, 3), (1.2, 5), (rng.uniform(0.5, 2), 4))]
    squares = np.array([g.var(ddof=1) for g in groups])
    df = np.array([len(g) - 1.0 for g in groups])
    assert alike(squares, df) == (scipy_stats.bartlett(*groups).pvalue >= POOLING_LEVEL)


@pytest.mark.parametrize("sizes", [(3, 4), (3, 3, 5)])
def test_pooling_changes_where_bartletts_p_crosses_its_level(sizes: tuple[int, ...]) -> None:
    groups = [0.5 + effects(n, 0.1) for n in sizes[:-1]]

    def of(ratio: float) -> list[np.ndarray]:
        return [*groups, 0.5 + effects(sizes[-1], 0.1 * ratio)]

    level = brentq(lambda r: scipy_stats.bartlett(*of(r)).pvalue - POOLING_LEVEL, 1.0, 20.0)
    for ratio, equal in ((0.999 * level, True), (1.001 * level, False)):
        squares = np.array([group.var(ddof=1) for group in of(ratio)])
        assert alike(squares, np.array([n - 1.0 for n in sizes])) is equal
        used = {v.square for v in seed_variances([mean_squares(g) for g in of(ratio)])}
        assert len(used) == (1 if equal else 2)


def test_methods_of_one_seed_have_no_seed_variance_or_that_of_the_others() -> None:
    once, twice = mean_squares(binary(0.5, 1, 50)), mean_squares(binary(0.5, 2, 50, 1))
    for found in seed_variances([once, once]):
        assert math.isnan(found.square) and found.df == 0.0
    assert seed_variances([once, twice]) == [SeedVariance(twice.seed_square, 1.0)] * 2
    wild = replace(twice, seed_square=1e6)
    calm = [replace(twice, seeds=3, seed_square=square) for square in (1.0, 1.1, 1.2)]
    assert seed_variances([*calm, wild, once])[-2] == SeedVariance(1e6, 1.0)


def test_a_wild_method_borrows_no_small_variance() -> None:
    calm = [mean_squares(np.full((3, 50), 0.5) + effects(3, 0.01)[:, None]) for _ in range(5)]
    wild = mean_squares(np.full((3, 50), 0.5) + effects(3, 0.2)[:, None])
    *others, own = seed_variances([*calm, wild])
    assert own == SeedVariance(wild.seed_square, 2.0)
    pooled = (5 * 50 * 0.01**2 + 50 * 0.2**2) / 6
    assert all(v.square == pytest.approx(pooled) and v.df == 12 for v in others)


def test_from_five_seeds_on_a_wild_method_leaves_the_pool() -> None:
    sds = (0.01, 0.011, 0.012)
    calm = [mean_squares(0.5 + effects(5, sd)[:, None] + np.zeros(50)) for sd in sds]
    level = mean_squares(np.tile(binary(0.5, 1, 50, 0), (5, 1)))  # no seed differs, by coincidence
    wild = [mean_squares(0.5 + effects(5, sd)[:, None] + np.zeros(50)) for sd in (0.2, 0.3)]
    shared = SeedVariance(pytest.approx(50 * sum(sd**2 for sd in sds) / 3), 12.0)
    assert level.seed_square == 0 and not level.constant
    assert seed_variances([*calm, wild[0], level, wild[1]]) == [
        *([shared] * 2),
        SeedVariance(pytest.approx(50 * 0.012**2), 4.0),  # its own is larger than the pool's
        SeedVariance(wild[0].seed_square, 4.0),
        shared,
        SeedVariance(wild[1].seed_square, 4.0),
    ]
    assert seed_variances([*calm, wild[0]])[0] == shared
    pair = seed_variances([calm[0], wild[0]])  # one method is no pool
    assert pair[0].square == pytest.approx(50 * (0.01**2 + 0.2**2) / 2) and pair[0].df == 8.0
    fewer = mean_squares(0.5 + effects(4, 0.01)[:, None] + np.zeros(50))
    assert seed_variances([*calm, wild[0], fewer])[0].square > 50 * calm[0].seed_square


def test_equal_squares_are_pooled_whatever_the_rounding() -> None:
    shared = SeedVariance(1.0, 12.0)
    one = mean_squares(0.5 + effects(3, 0.1)[:, None] + np.zeros(50))
    assert larger(replace(one, seed_square=1.0 + 1e-12), shared) == shared
    assert larger(replace(one, seed_square=1.01), shared) == SeedVariance(1.01, 2.0)


def test_a_collapsed_method_neither_shares_nor_narrows() -> None:
    """Outcomes that are all 0 say nothing of the variance of seeds that work."""
    calm = [mean_squares(binary(0.5, 3, 200, seed)) for seed in range(4)]
    dead = mean_squares(np.zeros((3, 200)))
    assert dead.constant
    assert seed_variances([*calm, dead])[:4] == seed_variances(calm)
    known = Comparisons({"dead": dead, **{str(i): s for i, s in enumerate(calm)}})
    assert known.interval("dead").low == 0 and 0.01 < known.interval("dead").high < 0.03
    assert direction(known["dead", "0"]) == -1


# --- few seeds


def test_one_seed_gives_an_interval_for_this_seed_and_no_p() -> None:
    known = compare({"a": binary(0.9, 1, 200), "b": binary(0.1, 1, 200, seed=1)})
    assert known.interval("a").seeds == known["a", "b"].seeds == 1
    assert math.isnan(known["a", "b"].p) and known["a", "b"].clear
    assert direction(known["a", "b"]) == 0 and known.tested == ()


def test_two_seeds_give_an_interval_and_no_verdict() -> None:
    known = compare({"a": binary(0.9, 2, 200), "b": binary(0.1, 2, 200, seed=1)})
    assert known["a", "b"].clear and direction(known["a", "b"]) == 0
    three = compare({"a": binary(0.9, 3, 200), "b": binary(0.1, 3, 200, seed=1)})
    assert direction(three["a", "b"]) == 1


def _half(one: MeanSquares) -> float:
    """Half a t interval of a mean."""
    seeds, p = one.seeds, len(one.columns)
    by_seed, residual = one.seed_square / (seeds * p), one.residual / (seeds * p)
    problems = one.columns.var(ddof=1) / p
    variance = by_seed + max(problems - residual, 0.0)
    df = variance**2 / (by_seed**2 / (seeds - 1) + problems**2 / (p - 1))
    return float(scipy_stats.t.ppf(0.975, df) * math.sqrt(variance))


@pytest.mark.parametrize("seeds", [2, 3])
def test_an_interval_has_the_variance_of_a_two_way_table(seeds: int) -> None:
    """(A + B - E) / (S P) with B / S = var_p(means), as the module states it."""
    noise = np.random.default_rng(seeds).normal(0, 0.05, (seeds, 40))
    x = 0.5 + effects(seeds, 0.05)[:, None] + 0.1 * np.cos(np.arange(40)) + noise
    one, p = mean_squares(x), 40
    problems = x.mean(0).var(ddof=1) / p
    by_seed, residual = one.seed_square / (seeds * p), one.residual / (seeds * p)
    variance = by_seed + problems - residual
    df = variance**2 / (by_seed**2 / (seeds - 1) + problems**2 / (p - 1))
    t = scipy_stats.t.ppf(0.975, df)
    answers = x.mean() * (1 - x.mean()) / variance * (scipy_stats.norm.ppf(0.975) / t) ** 2
    found = interval(one, SeedVariance(one.seed_square, seeds - 1.0))
    assert one.shares and not one.binary
    assert (found.low, found.high) == pytest.approx(exact(x.mean(), answers))
    right = mean_squares((x > 0.52).astype(float))  # 0 and 1: the t interval
    found = interval(right, SeedVariance(right.seed_square, seeds - 1.0))
    half = _half(right)
    want = max(found.mean - half, 0.0), min(found.mean + half, 1.0)
    assert (found.low, found.high) == pytest.approx(want)


def test_numbers_that_are_no_shares_have_the_t_interval_over_problems() -> None:
    row = [2.0, 3.0, 4.0, 5.0, 6.0]  # symmetric: no skewness to correct
    found = interval(mean_squares([row]), SeedVariance(math.nan, 0.0))
    want = scipy_stats.ttest_1samp(row, 0).confidence_interval()
    assert (found.low, found.high, found.seeds) == pytest.approx((want.low, want.high, 1))


@pytest.mark.parametrize("spread", [0.2, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_numbers_have_the_wider_end_of_two_intervals(sign: int, spread: float) -> None:
    """Hall's transformation of the t statistic, solved by bisection here."""
    x = 50 + sign * np.exp(spread * np.random.default_rng(3).normal(size=40))
    found = interval(mean_squares(x[None], seeded=False, shares=False), SeedVariance(0.0, 0.0))
    mean, se, t = x.mean(), x.std(ddof=1) / math.sqrt(40), scipy_stats.t.ppf(0.975, 39)
    skewness = ((x - mean) ** 3).mean() / 40**2 / se**3

    def transformed(z: float) -> float:
        a = skewness / 3
        return z + a * z**2 + a**2 / 3 * z**3 + skewness / 6

    def solved(target: float) -> float:
        low, high = -1e4, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if transformed(middle) < target else (low, middle)
        return low

    ends = [mean - solved(t) * se, mean - solved(-t) * se]
    furthest = mean - 2 * t * se, mean + 2 * t * se
    low, high = min(mean - t * se, ends[0]), max(mean + t * se, ends[1])
    assert (low < furthest[0] or high > furthest[1]) == (spread > 1)
    assert (found.low, found.high) == pytest.approx((max(low, furthest[0]), min(high, furthest[1])))
    assert (found.high - mean > t * se * 1.01) == (sign > 0)


def test_a_difference_of_skewed_numbers_is_skewed_too() -> None:
    rng = np.random.default_rng(4)
    a, b = np.exp(rng.normal(size=(2, 1, 50)))
    one, other = (mean_squares(x, seeded=False, shares=False) for x in (3 * a, b))
    none = SeedVariance(0.0, 0.0)
    found = difference(one, none, other, none)
    alone = interval(mean_squares(3 * a - b, seeded=False, shares=False), none)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    apart = difference(one, none, other, none, paired=False)
    assert apart.low < apart.mean < apart.high and apart.high - apart.mean > apart.mean - apart.low
    shares = [mean_squares(x / x.max(), seeded=False) for x in (a, b)]
    even = difference(shares[0], none, shares[1], none)
    assert even.high - even.mean == pytest.approx(even.mean - even.low)


def test_equal_numbers_without_bounds_have_no_interval() -> None:
    one = mean_squares(np.zeros((1, 30)), seeded=False, shares=False)
    found = interval(one, SeedVariance(0.0, 0.0))
    assert found.mean == 0.0 and math.isnan(found.low) and math.isnan(found.high)
    same = difference(one, SeedVariance(0.0, 0.0), one, SeedVariance(0.0, 0.0))
    assert (same.mean, same.p) == (0.0, 1.0) and not same.clear


def test_means_of_several_answers_have_an_exact_interval_at_their_own_variance() -> None:
    """Korn and Graubard: as many answers as would have the variance of the mean."""
    row = np.random.default_rng(5).binomial(4, 0.9, (1, 60)) / 4
    found = interval(mean_squares(row, seeded=False), SeedVariance(0.0, 0.0))
    mean = row.mean()
    answers = mean * (1 - mean) / (row.var(ddof=1) / 60)
    answers *= (scipy_stats.norm.ppf(0.975) / scipy_stats.t.ppf(0.975, 59)) ** 2
    assert answers > 120 and (found.low, found.high) == pytest.approx(exact(mean, answers))
    level = interval(mean_squares(np.full((1, 60), 0.5), seeded=False), SeedVariance(0.0, 0.0))
    assert (level.low, level.high) == pytest.approx(exact(0.5, 60))


@pytest.mark.parametrize(("right", "problems"), [(0, 40), (1, 3), (17, 100), (40, 40)])
def test_baselines_have_the_exact_binomial_interval(right: int, problems: int) -> None:
    row = (np.arange(problems) < right).astype(float)[None]
    found = interval(mean_squares(row, seeded=False), SeedVariance(0.0, 0.0))
    want = scipy_stats.binomtest(right, problems).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((want.low, want.high))
    assert exact(right / problems, problems) == pytest.approx((want.low, want.high))


@pytest.mark.parametrize("shape", [(1, 1), (4, 1)])
def test_one_problem_has_a_mean_and_no_difference(shape: tuple[int, int]) -> None:
    known = compare({"a": np.ones(shape), "b": np.zeros(shape)})
    assert known["a", "b"].mean == 1.0 and math.isnan(known["a", "b"].low)
    assert not known["a", "b"].clear and direction(known["a", "b"]) == 0


def test_equal_outcomes_do_not_differ() -> None:
    known = compare({name: np.ones((3, 50)) for name in "ab"})
    assert known["a", "b"].p == 1 and known["a", "b"].low < 0 < known["a", "b"].high
    opposite = compare({"a": np.ones((3, 50)), "b": np.zeros((3, 50))})
    assert direction(opposite["a", "b"]) == 1


def test_intervals_of_shares_end_at_0_and_1() -> None:
    rows = binary(0.99, 3, 60)
    assert rows.mean() < 1
    found = compare({"a": rows}).interval("a")
    assert found.high <= 1 and found.low < rows.mean()


def test_nats_are_not_cut_at_1() -> None:
    for values in ([0.7, 1.2, 1.4], [0.7, 1.2]):
        found = compare({"a": np.array(values)}).interval("a")
        test = scipy_stats.ttest_1samp(values, 0).confidence_interval()
        assert (found.low, found.high) == pytest.approx((test.low, test.high))


def test_clusters_of_unequal_sizes_add_no_variance_of_their_own() -> None:
    clusters = [0, 0, 0, *range(1, 28)]
    one = mean_squares(np.ones((3, 30)), clusters=clusters)
    assert one.constant and one.mean == 1.0
    assert compare({"a": np.ones((3, 30))}).interval("a").low > 0.85
    assert Comparisons({"a": one}).interval("a").high == 1.0
    assert one.effective == pytest.approx(30**2 / (9 + 27))


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_intervals_over_repeated_problems_cover_the_truth(seeds: int) -> None:
    """60 questions, 12 of them four times: neither too narrow nor, by their sizes, too wide."""
    rng, covered = np.random.default_rng(seeds), []
    sizes = np.where(np.arange(60) < 12, 4, 1)
    names = np.repeat(np.arange(60), sizes).tolist()
    for _ in range(400):
        right = rng.random(60) < 2 / 3
        rows = np.repeat(np.tile(right.astype(float), (max(seeds, 1), 1)), sizes, axis=1)
        one = mean_squares(rows, seeded=seeds > 0, clusters=names)
        found = Comparisons({"a": one}).interval("a")
        covered.append(found.low <= 2 / 3 <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.99


# --- families


def test_max_t_of_independent_comparisons_is_sidaks() -> None:
    p = [0.001, 0.01, 0.2]
    found = max_t(p, np.eye(3))
    assert found == pytest.approx([1 - (1 - 0.001) ** 3, 1 - (1 - 0.01) ** 2, 0.2], abs=0.004)
    assert max_t([0.1, 0.4], np.eye(2)) == pytest.approx([1 - 0.9**2, 0.4], abs=0.01)


def test_max_t_of_all_pairs_is_the_studentised_range() -> None:
    unit = np.eye(5)
    pairs = np.array([unit[i] - unit[j] for i in range(5) for j in range(i)])
    tukey = scipy_stats.studentized_range.ppf(0.95, 5, 1e5) / math.sqrt(2)
    assert critical(pairs, 0.05) == pytest.approx(tukey, abs=0.03)
    p = [2 * scipy_stats.norm.sf(2.5)] + [0.9] * 9
    want = scipy_stats.studentized_range.sf(2.5 * math.sqrt(2), 5, 1e5)
    assert max_t(p, pairs)[0] == pytest.approx(want, abs=0.006)


def test_max_t_is_never_beyond_holm_and_falls_with_rank() -> None:
    p = [1e-12, 0.04, 0.001, 0.04]
    found = max_t(p, RNG.normal(size=(4, 3)))
    assert found[0] <= 4e-12 and found[0] <= found[2] <= found[1]
    assert all(x >= y for x, y in zip(found, p, strict=True))
    assert max_t([0.03], np.eye(1)) == [0.03]


def test_max_t_steps_down_over_the_comparisons_that_are_left() -> None:
    """The first two are one comparison: it is tested with the third, and then the third alone."""
    both = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = max_t([0.03, 0.2, 0.001], both[[0, 2, 1]])
    assert found == pytest.approx([1 - 0.97**2, 0.2, 1 - 0.999**2], abs=0.004)


def test_max_t_counts_the_observed_one_among_the_draws() -> None:
    """20,000 draws, none beyond it: p is 1 / 20,001, which no number of equal tests makes 0."""
    assert max_t([2e-5] * 3, np.ones((3, 1))) == pytest.approx([1 / 20_001] * 3, rel=1e-12)


def test_a_critical_value_is_a_quantile_of_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiple, "BATCH", 10)
    monkeypatch.setattr(multiple, "DRAWS", 30)
    drawn = np.abs(np.random.default_rng(0).standard_normal(30))
    assert critical(np.eye(1), 0.1) == np.quantile(drawn, 0.9)


def test_methods_without_any_difference_stay_without_one_in_a_family() -> None:
    assert max_t([1.0, 1.0], np.zeros((2, 3))) == [1.0, 1.0]


def test_a_family_depends_on_no_units_and_gives_the_same_numbers_again() -> None:
    rows = np.random.default_rng(1).normal(size=(4, 3))
    limit = critical(rows, 0.05)
    assert critical(rows, 0.05) == limit and critical(1e-3 * rows, 0.05) == pytest.approx(limit)
    p = [0.01, 0.02, 0.3, 0.04]
    assert max_t(p, rows) == max_t(p, rows) == pytest.approx(max_t(p, 1e-3 * rows))


def test_a_family_has_the_variances_of_its_differences() -> None:
    """The combinations of errors that max-t draws: each as long as the difference's error."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=200) + rng.normal(0, 0.5, (3, 200)) for _ in range(4)]
    samples = {name: mean_squares(rows) for name, rows in zip("abc", drawn, strict=False)}
    samples["before"] = mean_squares(drawn[3][:1], seeded=False)
    family = Comparisons(samples)
    lengths = np.sqrt((family._effects(family.tested) ** 2).sum(1))
    assert len(family.tested) == 6
    assert lengths == pytest.approx([family.alone(*pair).se for pair in family.tested])
    assert residual_part(mean_squares(binary(0.5, 1, 200))) == 0.0


def test_only_the_compared_methods_are_a_family() -> None:
    samples = {name: mean_squares(binary(0.5, 3, 200, i)) for i, name in enumerate("abc")}
    pair = Comparisons(samples, compared=["a", "c"])
    assert pair.tested == (("a", "c"),) and len(Comparisons(samples).tested) == 3
    assert pair["a", "c"] == pair.alone("a", "c")
    assert pair["a", "b"].p == pair.alone("a", "b").p  # alone, as it is in no family
    back = pair["c", "a"]
    assert (back.mean, back.low, back.high) == (
        -pair["a", "c"].mean,
        -pair["a", "c"].high,
        -pair["a", "c"].low,
    )


def test_holm_against_numbers_by_hand() -> None:
    def of(p: float) -> Difference:
        return Difference(0.1, 0.0, 0.2, p)

    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then the running maximum
    family = corrected([of(0.03), None, of(0.01), of(0.04), of(math.nan), of(0.02)])
    p = [None if one is None else one.p for one in family]
    assert p[1] is None and p[4] is not None and math.isnan(p[4])
    assert [p[i] for i in (2, 5, 0, 3)] == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert corrected([None, None]) == [None, None] and corrected([]) == []
    # 0.9 times 1 is below 0.7 times 2, which is no probability
    assert [one.p for one in corrected([of(0.7), of(0.9)]) if one] == [1.0, 1.0]


def test_the_same_outcomes_give_the_same_numbers() -> None:
    outcomes = {name: binary(0.5, 3, 40, seed) for seed, name in enumerate("abc")}
    assert compare(outcomes)["a", "b"] == compare(outcomes)["a", "b"]
