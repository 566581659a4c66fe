"""Texts that student and teacher write together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conftest import monitored, toy_table, write_toy
from potstill.algorithms.recipe import Recipe
from potstill.engines.fake import FakeEngine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.tasks import load_task
from potstill.training.recorder import Memory
from potstill.training.rollout import collect, generator
from potstill.types import Limits

LIMITS = Limits(10, 1.0, 1.0)
PROBLEMS = [Problem(str(i), f"Tom has {i} apples", "0") for i in range(8)]


def open_pair(models: Path) -> TorchEngine:
    folder = models / "qwen"
    return TorchEngine(str(folder / "student"), str(folder / "teacher"), threads=1)


@pytest.mark.parametrize("top", [1, 20])
def test_every_token_is_the_students_or_one_that_the_teacher_put(models: Path, top: int) -> None:
    """Up to the first token that is not the teacher's own choice the text is the student's; what
    the teacher lets stand is among its likeliest; and scores are the student's throughout."""
    engine = open_pair(models)
    recipe = Recipe(name="x", prefix=2, interleave=top)
    mixed = collect(recipe, engine, PROBLEMS, 0.0, 0, 0, LIMITS)
    alone = collect(Recipe(name="x", prefix=2), engine, PROBLEMS, 0.0, 0, 0, LIMITS)
    looks = engine.inspect("teacher", [(t.prompt, t.completion) for t in alone])
    own = engine.score("student", [(t.prompt, t.completion) for t in mixed])
    changed = 0
    for a, b, look, score in zip(alone, mixed, looks, own, strict=True):
        assert b.source == "student" and b.prefix == a.prefix <= len(b.completion) <= 10
        outside = np.flatnonzero(look.rank[a.prefix :] >= top)
        first = a.prefix + int(outside[0]) if len(outside) else len(a.completion)
        assert b.completion[:first] == a.completion[:first]
        assert (b.completion == a.completion) == (not len(outside)) or len(outside)
        np.testing.assert_allclose(b.logprobs[b.prefix :], score[b.prefix :], atol=1e-4)
        assert not set(b.completion[:-1]) & engine.eos  # nothing follows an end
        changed += b.completion != a.completion
    assert changed > 0


def test_a_generous_teacher_changes_nothing(models: Path) -> None:
    engine = open_pair(models)
    mixed = collect(Recipe(name="x", interleave=10**4), engine, PROBLEMS, 0, 0, 0, LIMITS)
    alone = collect(Recipe(name="x"), engine, PROBLEMS, 0, 0, 0, LIMITS)
    assert [t.completion for t in mixed] == [t.completion for t in alone]
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(mixed, alone, strict=True))


def test_with_a_strict_and_sure_teacher_the_text_is_the_teachers() -> None:
    """The fake teacher answers a digit with its letter and ends: top 1 leaves nothing else."""
    engine = FakeEngine()
    problems = [Problem(str(i), f"a{i}", "") for i in range(10)]
    limits = Limits(6, 1.0, 0.1)
    mixed = collect(Recipe(name="x", interleave=1), engine, problems, 0.0, 0, 0, limits)
    teacher = collect(Recipe(name="x", on_policy=0.0), engine, problems, 0.0, 0, 0, limits)
    assert [t.completion for t in mixed] == [t.completion for t in teacher]


def test_it_is_the_same_again_and_trains(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    settings = Train(steps=12, batch_size=10, max_tokens=8, learning_rate=0.3)
    grading = Eval(every=6, problems=20, probe=8, probe_every=2)
    runs = []
    for _ in range(2):
        memory = Memory()
        recipe = Recipe(name="x", interleave=2)
        monitored(recipe, FakeEngine(), task, settings, grading, recorder=memory)
        runs.append(memory.metrics)
    assert runs[0] == runs[1] and runs[0][-1]["eval/accuracy"] > 0.5
    checked = [c for row in runs[0][1:] for c in row.get("checks", ())]
    assert not checked and "check/sampler" in runs[0][2]
    assert partial(generator, 0, 1)("a").random() != partial(generator, 0, 1)("b").random()


def test_preflight_passes_it_and_an_engine_without_ranks_is_refused(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["mine"], recipe={"mine": {"interleave": 2}})
    assert not [c for c in preflight_pair(read_study(table), "toy") if c.status == "refused"]
    far = {"engine": "tinker", "train": {"lora_rank": 4, "learning_rate": 1e-3, "max_tokens": 8}}
    with pytest.raises(PotstillError, match="does not know"):
        read_study({**table, **far})
