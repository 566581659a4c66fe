"""Schedules: values over progress, TOML in and out, refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import (
    Schedule,
    constant,
    cosine,
    linear,
    schedule,
    switch,
    whole,
)
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Train
from potstill.training.rollout import collect, generator, student_prompts
from potstill.types import Limits

ALL = [constant(0.7), linear(20, 0, until=0.5), cosine(1, 0.1), switch(0, 1, at=0.5)]


@pytest.mark.parametrize("value", ALL, ids=str)
def test_schedules_survive_toml(value: Schedule) -> None:
    assert schedule(value.to_toml()) == value


@pytest.mark.parametrize("value", ALL, ids=str)
def test_schedules_stay_in_their_range_and_reach_their_end(value: Schedule) -> None:
    low, high = value.range
    assert all(low <= value(i / 100) <= high for i in range(101))
    assert value(0.0) == value.start
    assert value(1.0) == value.end


@pytest.mark.parametrize(
    ("make", "text", "table", "values"),
    [
        (lambda: constant(3), "3", 3.0, [3, 3, 3, 3]),
        (lambda: linear(4, 0), "4 -> 0 linear", {"linear": [4, 0], "until": 1}, [4, 3, 2, 0]),
        (
            lambda: linear(4, 1, until=0.5),
            "4 -> 1 linear until 0.5",
            {"linear": [4, 1], "until": 0.5},
            [4, 2.5, 1, 1],
        ),
        (
            lambda: cosine(2, 0),
            "2 -> 0 cosine",
            {"cosine": [2, 0], "until": 1},
            [2, 1 + math.sqrt(0.5), 1, 0],
        ),
        (
            lambda: cosine(2, 1, until=0.5),
            "2 -> 1 cosine until 0.5",
            {"cosine": [2, 1], "until": 0.5},
            [2, 1.5, 1, 1],
        ),
        (
            lambda: switch(0, 2, at=0.5),
            "0 -> 2 at 0.5",
            {"switch": [0, 2], "at": 0.5},
            [0, 0, 2, 2],
        ),
    ],
)
def test_schedules_by_hand(
    make: Callable[[], Schedule], text: str, table: object, values: list[float]
) -> None:
    """Made in the test, as mutation testing changes nothing that is made on import."""
    value = make()
    assert (str(value), value.to_toml()) == (text, table)
    assert [value(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(values)
    assert schedule(table) == schedule(value) == value
    assert {type(value.start), type(value.end)} == {float}
    assert value.range == (min(values), max(values))


@pytest.mark.parametrize(
    "fields",
    [
        *(("linear", 0.0, 1.0, 0.0), ("linear", 0.0, 1.0, 1.1), ("linear", math.inf, 1.0)),
        *(("linear", 0.0, -math.inf), ("steps", 0.0, 1.0)),
    ],
)
def test_a_schedule_that_makes_no_sense_is_never_made(fields: tuple) -> None:
    with pytest.raises(PotstillError) as refused:
        Schedule(*fields)
    assert refused.value.hint
    assert Schedule("linear", 0.0, 1.0, 1.0)(0.5) == 0.5


def test_switch_holds_until_its_step() -> None:
    phases = [switch(1, 0, at=0.7)(step / 10) for step in range(10)]
    assert phases == [1] * 7 + [0] * 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x", "a number or a table"),
        (True, "a number or a table"),
        ({"linaer": [1, 0]}, "unknown schedule"),
        ({"linear": [1]}, "takes"),
        ({"linear": ["a", 0]}, "takes"),
        ({"linear": [[1], 0]}, "takes"),
        ({"linear": [1, 0], "until": "noon"}, "progress"),
        ({"linear": [10**400, 0]}, "takes"),
        (10**400, "a number or a table"),
        ({"linear": [1, 0], "until": float("nan")}, "progress"),
        ({"linear": [1, 0], "until": 0}, "progress"),
        ({"linear": [1, 0], "switch": [0, 1]}, "one kind"),
        (float("nan"), "finite"),
    ],
)
def test_wrong_schedules_are_refused(value: object, says: str) -> None:
    with pytest.raises(PotstillError, match=says):
        schedule(value)


@pytest.mark.parametrize("total", [10, 40, 97, 100, 200, 1000])
def test_a_prefix_counts_whole_tokens_whatever_floats_lose(total: int) -> None:
    """20 -> 0 until half time, against fractions at every step of the run."""
    prefix = linear(20, 0, until=0.5)
    for step in range(total):
        exact = max(Fraction(0), 20 * (1 - Fraction(step, total) / Fraction(1, 2)))
        assert prefix.count(step / total) == math.floor(exact), step


def test_whole_numbers_are_rounded_down_but_for_what_a_float_lost() -> None:
    assert [whole(x) for x in (0.29 * 100, 29.0, 28.999, -0.0, 0.999999, 3 * 0.1 * 10)] == [
        *(29, 29, 28, 0, 0, 3)
    ]
    assert [-whole(-x) for x in (0.07 * 100, 6.5)] == [7, 7]  # up
    # a billionth of the number, and of 1 below 1
    assert [whole(x) for x in (1e6 - 5e-4, 1e6 - 5e-3, 1 - 5e-10, 1 - 1.5e-9)] == [
        *(1_000_000, 999_999, 1, 0),
    ]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, 0.8, 0.999, 1.0])
def test_a_share_holds_over_the_steps_at_any_batch_size(share: float, batch: int) -> None:
    """Every step has the whole part or one more, and any stretch of steps the share."""
    for seed in range(5):
        counts = np.array([student_prompts(share, batch, step, seed) for step in range(300)])
        low = whole(share * batch)
        assert set(counts) <= {low, min(batch, low + 1)}
        for start, length in product((0, 37, 150), (20, 100, 150)):
            error = counts[start : start + length].sum() - share * batch * length
            assert abs(error) < 3, (seed, start, length)


def test_the_seed_deals_the_remainder_and_whole_shares_have_none() -> None:
    dealt = {tuple(student_prompts(0.7, 1, step, seed) for step in range(20)) for seed in range(20)}
    assert len(dealt) > 10
    first = np.mean([student_prompts(0.7, 1, 0, seed) for seed in range(1000)])
    assert first == pytest.approx(0.7, abs=0.05)
    for share, batch in ((0.7, 10), (0.29, 100), (0.58, 50), (0.0, 3), (1.0, 3)):
        counts = {student_prompts(share, batch, step, 0) for step in range(200)}
        assert counts == {round(share * batch)}


def test_a_mixture_of_single_prompts_has_both_sources() -> None:
    engine, recipe = FakeEngine(), Recipe(name="x", on_policy=0.7)
    problem = [Problem("0", "a3", "k")]
    sources = Counter(
        t.source
        for step in range(100)
        for t in collect(recipe, engine, problem, step / 100, step, 0, Limits(4, 1.0, 1.0))
    )
    assert sources["student"] in (69, 70, 71) and sources.total() == 100


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        (Recipe(name="x"), slice(None)),
        (Recipe(name="x", on_policy=0.0), slice(None)),
        (Recipe(name="x", prefix=3), slice(0, 3)),
        (Recipe(name="x", interleave=1), slice(None)),  # the teacher puts nearly every token
    ],
    ids=["student", "teacher", "prefix", "interleaved"],
)
def test_each_step_draws_other_tokens_for_the_same_prompts(recipe: Recipe, part: slice) -> None:
    """With weights that do not change: the same numbers at every step would go unnoticed."""
    engine, limits = FakeEngine(), Limits(6, 1.0, 8.0)
    problems = [Problem(str(i), f"a{i % 10}", "") for i in range(20)]
    texts = [
        [t.completion[part] for t in collect(recipe, engine, problems, 0.0, step, 0, limits)]
        for step in (0, 1, 2, 0)
    ]
    assert texts[0] == texts[3]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_random_numbers_depend_on_seed_step_and_purpose() -> None:
    keys = list(product(range(3), range(3), ("student", "teacher", "replay", "order")))
    assert len({generator(*key).random() for key in keys}) == len(keys)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_rate_rises_over_the_warm_up_and_is_whole_after_it(warmup: int) -> None:
    """Steps 0 to warmup - 1 are below the rate, in equal stairs; step `warmup` has it."""
    settings = Train(learning_rate=2.0, warmup=warmup)
    rates = [settings.rate(step, 1.0, 10) for step in range(warmup + 3)]
    assert rates == pytest.approx([2.0 * (i + 1) / (warmup + 1) for i in range(warmup)] + [2.0] * 3)
    assert warmup == sum(rate < 2.0 for rate in rates)


def test_a_share_of_the_steps_is_rounded() -> None:
    steps = [Recipe(name="x", budget=budget).total_steps(10) for budget in (0.26, 0.34, 0.99, 1.97)]
    assert steps == [3, 3, 10, 20]
