"""Rollouts: which problems a step has, who continues what, and with which limits and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import linear
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.training import rollout
from potstill.training.rollout import check_prefix, collect, draw, student_prompts
from potstill.types import Ids, Limits, Role, Sample

LIMITS = Limits(9, 0.7, 1.3)
EOS = next(iter(FakeEngine.eos))


def problems(count: int) -> list[Problem]:
    return [Problem(str(i), f"a{i}", "") for i in range(count)]


@dataclass
class Call:
    """One call of `sample`: who, after which tokens, with which limits and random numbers."""

    role: Role
    problems: list[str]
    begun: list[Ids]
    limits: list[int]
    temperature: float
    number: float


class Scripted(FakeEngine):
    """Samples count up from 10 times the number of the call; problem 1 ends at once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def sample(self, role, prompts, max_tokens, temperature, rng, truncation=None):  # type: ignore[no-untyped-def]
        names = [prompt.problem for prompt in prompts]
        begun, limits = [prompt.begun for prompt in prompts], list(max_tokens)
        self.calls.append(Call(role, names, begun, limits, temperature, rng.random()))
        first = 10 * len(self.calls)
        return [
            self._scored((EOS,) if name == "1" and limit else tuple(range(first, first + limit)))
            for name, limit in zip(names, limits, strict=True)
        ]

    @staticmethod
    def _scored(tokens: Ids) -> Sample:
        scores = np.array(tokens, np.float32)
        return Sample(tokens, -scores, -2 * scores)


@pytest.mark.parametrize("count", [1, 3, 7, 10])
def test_steps_take_whole_shuffled_epochs_in_turn(count: int) -> None:
    known = problems(7)
    steps = [draw(known, count, 0, step) for step in range(21)]
    assert all(len(step) == count for step in steps)
    names = [problem.id for step in steps for problem in step]
    epochs = [tuple(names[i : i + 7]) for i in range(0, len(names), 7)]
    assert all(sorted(epoch) == [p.id for p in known] for epoch in epochs if len(epoch) == 7)
    assert len(set(epochs)) == len(epochs)  # each has an order of its own
    again = [draw(known, count, 0, step) for step in (20, 3, 20)]  # whatever was drawn before
    assert again == [steps[20], steps[3], steps[20]]
    other = [p.id for step in range(21) for p in draw(known, count, 1, step)]
    assert other != names


def test_the_order_depends_on_the_number_of_problems() -> None:
    assert [p.id for p in draw(problems(7), 7, 0, 0)] != [p.id for p in draw(problems(8), 7, 0, 0)]
    assert sorted(p.id for p in draw(problems(3), 3, 0, 0)) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("prefix", "longest"), [(0, 0), (8, 8), (linear(20, 0, until=0.5), 20), (linear(0, 3), 3)]
)
def test_a_prefix_leaves_the_student_a_token(prefix: Any, longest: int) -> None:
    recipe = Recipe(name="mine", prefix=prefix)
    check_prefix(recipe, longest + 1)
    with pytest.raises(PotstillError, match=f"mine seeds up to {longest} tokens") as refused:
        check_prefix(recipe, longest)
    assert f"above {longest}" in refused.value.hint


def test_the_teacher_begins_the_student_goes_on_and_the_teacher_has_the_rest() -> None:
    engine, recipe = Scripted(), Recipe(name="x", on_policy=0.6, prefix=4)
    batch = collect(recipe, engine, problems(5), 0.0, 17, 3, LIMITS)
    seeds, student, teacher = engine.calls
    assert (seeds.role, student.role, teacher.role) == ("teacher", "student", "teacher")
    assert seeds.problems == student.problems == ["0", "1", "2"]
    assert teacher.problems == ["3", "4"]
    head, rest, whole = (10, 11, 12, 13), (20, 21, 22, 23, 24), tuple(range(30, 39))
    assert seeds.begun == [()] * 3 and seeds.limits == [4] * 3
    assert student.begun == [head, (EOS,), head] and student.limits == [5, 0, 5]
    assert teacher.begun == [()] * 2 and teacher.limits == [9] * 2
    temperatures = [call.temperature for call in engine.calls]
    assert temperatures == [1.3, 0.7, 1.3]
    assert len({call.number for call in engine.calls}) == 3  # no two use the same numbers
    assert [(t.problem, t.completion, t.source, t.prefix, t.version) for t in batch] == [
        ("0", head + rest, "student", 4, 17),
        ("1", (EOS,), "student", 1, 17),
        ("2", head + rest, "student", 4, 17),
        ("3", whole, "teacher", 0, 17),
        ("4", whole, "teacher", 0, 17),
    ]
    for t in batch:
        assert t.prompt == engine.prompt(problems(5)[int(t.problem)])
        assert t.logprobs.tolist() == [-token for token in t.completion]
        assert t.behavior_logprobs.tolist() == [-2 * token for token in t.completion]
        assert t.logprobs.dtype == t.behavior_logprobs.dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "t", "success", "roles", "heads"),
    [
        ({}, 0.0, None, ["student"], 0),
        ({"on_policy": 0.0}, 0.0, None, ["teacher"], 0),
        ({"on_policy": linear(0, 1)}, 0.5, None, ["student", "teacher"], 0),
        ({"prefix": linear(8, 0)}, 0.5, None, ["teacher", "student"], 4),
        ({"prefix": linear(8, 0)}, 0.5, 0.25, ["teacher", "student"], 6),
        ({"prefix": linear(8, 0)}, 0.5, 0.0, ["teacher", "student"], 8),
        ({"prefix": linear(8, 0)}, 0.0, 1.0, ["student"], 0),
    ],
)
def test_nobody_is_called_for_nothing(
    fields: dict, t: float, success: float | None, roles: list[str], heads: int
) -> None:
    engine = Scripted()
    batch = collect(Recipe(name="x", **fields), engine, problems(1) * 4, t, 0, 0, LIMITS, success)
    assert [call.role for call in engine.calls] == roles and len(batch) == 4
    assert {row.prefix for row in batch if row.source == "student"} <= {heads}


def test_random_numbers_are_those_of_the_seed_and_the_step() -> None:
    numbers = {}
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        engine = Scripted()
        collect(Recipe(name="x", on_policy=0.5), engine, problems(4), 0.0, step, seed, LIMITS)
        found = tuple(call.number for call in engine.calls)
        assert numbers.setdefault((seed, step), found) == found
    assert len({number for found in numbers.values() for number in found}) == 6


@pytest.mark.parametrize(
    ("anchor_loss", "rescored"), [("reverse_kl", False), ("reverse_kl_sampled", True)]
)
def test_interleaved_tokens_are_scored_again_for_losses_that_need_it(
    anchor_loss: str, rescored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, Limits]] = []

    def interleave(engine: Any, batch: Any, top: int, limits: Limits, random: Any) -> Any:
        calls.append(("interleave", top, limits))
        assert random("draft").random() == rollout.generator(3, 17, "draft").random()
        return batch[::-1]

    def with_behavior(engine: Any, batch: Any, top: int, limits: Limits) -> Any:
        calls.append(("behavior", top, limits))
        return batch

    monkeypatch.setattr(rollout, "interleave", interleave)
    monkeypatch.setattr(rollout, "with_behavior", with_behavior)
    recipe = Recipe(name="x", interleave=5, anchor=0.1, anchor_loss=anchor_loss, on_policy=0.5)
    batch = collect(recipe, Scripted(), problems(4), 0.0, 17, 3, LIMITS)
    assert [t.problem for t in batch] == ["1", "0", "2", "3"]
    want = [("interleave", 5, LIMITS), ("behavior", 5, LIMITS)]
    assert calls == want[: 1 + rescored]


@pytest.mark.parametrize(
    ("share", "batch", "first"),
    [
        (0.7, 1, [1, 1, 1, 0, 1, 1, 0, 1, 0, 1]),
        (0.5, 3, [2, 1, 2, 1, 2, 2, 1, 2, 1, 1]),
        (0.25, 8, [2] * 10),
        (1.0, 3, [3] * 10),
        (0.0, 3, [0] * 10),
    ],
)
def test_shares_of_a_batch_that_are_no_whole_number(
    share: float, batch: int, first: list[int]
) -> None:
    assert [student_prompts(share, batch, step, seed=0) for step in range(10)] == first
    dealt = [student_prompts(share, batch, step, seed=1) for step in range(400)]
    assert sum(dealt) == pytest.approx(400 * share * batch, abs=2)
