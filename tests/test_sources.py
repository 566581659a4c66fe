"""Rejected teacher texts, caps, and a prefix that success moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import monitored, toy_table, write_toy
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe, recipe_from_toml
from potstill.algorithms.schedules import linear
from potstill.diagnostics.preflight.reference import observed, reference
from potstill.engines.fake import FakeEngine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.tasks import load_task
from potstill.training.filtering import MEMORY, RolloutFilter
from potstill.training.objective import build, losses_for
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Limits, Prompt, Trajectory

SETTINGS = Train(steps=8, batch_size=10, max_tokens=24, learning_rate=0.3, checkpoint_every=3)
GRADING = Eval(every=4, problems=20, probe=8, probe_every=2)


def text(problem: Problem, answer: str, source: str = "teacher") -> Trajectory:
    ids = FakeEngine().encode(answer)
    return Trajectory(Prompt((1,), (1,), problem.id), ids, np.zeros(len(ids), np.float32), source)


def test_wrong_teacher_texts_are_left_out_and_students_never(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    first, second, *_ = task.train
    texts = [
        text(first, first.answer),
        text(second, "wrong"),
        text(second, "wrong", "student"),
    ]
    rollout_filter = RolloutFilter(
        Recipe(name="x", on_policy=0.5, reject_wrong=True), FakeEngine(), task, []
    )
    assert rollout_filter.keep(texts) == [texts[0], texts[2]]
    assert rollout_filter.metrics == {"train/rejected": 1.0, "train/kept": 1.0}
    plain = RolloutFilter(Recipe(name="x", on_policy=0.5), FakeEngine(), task, [])
    assert plain.keep(texts) == texts and not plain.metrics and plain.success is None


@pytest.mark.parametrize("replay", [None, {"capacity": 2}])
def test_a_run_that_rejects_every_text_is_refused(tmp_path: Path, replay: dict | None) -> None:
    write_toy(tmp_path)
    lines = (tmp_path / "train.jsonl").read_text().replace('"answer": "', '"answer": "no ')
    (tmp_path / "train.jsonl").write_text(lines)
    task = load_task(
        "jsonl", train_path=f"{tmp_path}/train.jsonl", test_path=f"{tmp_path}/test.jsonl"
    )
    recipe = Recipe(name="x", on_policy=0.0, reject_wrong=True, replay=replay)
    engine, memory = FakeEngine(), Memory()
    before = engine.rows("student", Prompt.of((3,)), (4,))
    with pytest.raises(PotstillError, match="all of the first 70 teacher completions are wrong"):
        monitored(recipe, engine, task, SETTINGS, GRADING, recorder=memory)
    assert all(row["train/rejected"] == 10 and row["train/loss"] == 0 for row in memory.metrics[1:])
    assert [row["train/kept"] for row in memory.metrics[1:]] == [0.0] * 6
    counted = RolloutFilter(recipe, engine, task, memory.metrics)  # as after an interruption
    with pytest.raises(PotstillError, match="all of the first 64"):
        counted.keep([text(task.train[0], "wrong")] * 4)
    assert np.array_equal(
        engine.rows("student", Prompt.of((3,)), (4,)), before
    )  # nothing was trained


def test_the_prefix_shrinks_with_success_and_a_resumed_run_knows_it(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    recipe = Recipe(name="x", prefix=linear(8, 0, until=0.6), prefix_over="success")
    settings = SETTINGS.model_copy(update={"steps": 12})
    whole = Memory(checkpoints=tmp_path / "whole")
    monitored(recipe, FakeEngine(), task, settings, GRADING, recorder=whole)
    rows, known = whole.metrics[1:], 0.0
    for row in rows:
        longest = int(recipe.prefix(known))
        assert row["train/seed_tokens"] <= longest
        assert MEMORY * known <= row["train/success"] <= MEMORY * known + 1 - MEMORY
        known = row["train/success"]
    assert known > 0.2 and rows[-1]["train/seed_tokens"] < rows[0]["train/seed_tokens"]
    rest = Memory(list(whole.metrics), checkpoints=tmp_path / "whole")
    monitored(recipe, FakeEngine(), task, settings, GRADING, recorder=rest)  # from step 9 on
    assert rest.metrics == whole.metrics


def batch_of(engine: TorchEngine, recipe: Recipe) -> list[Trajectory]:
    problems = [Problem(str(i), f"Tom has {i} apples", "0") for i in range(6)]
    return collect(recipe, engine, problems, 0.0, 0, 0, Limits(9, 1.0, 1.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_advantage": 0.5, "student_loss": "reverse_kl_sampled"},
        {"kl_cap": 0.3},
        {"kl_cap": 0.1, "student_loss": {"jsd": 0.5}, "teacher_loss": "forward_kl"},
    ],
)
def test_caps_give_the_loss_that_the_reference_gives(models: Path, fields: dict) -> None:
    folder = models / "qwen"
    engine = TorchEngine(str(folder / "student"), str(folder / "teacher"), threads=1)
    free, capped = Recipe(name="x", on_policy=0.5), Recipe(name="x", on_policy=0.5, **fields)
    free = replace(capped, clip_advantage=0.0, kl_cap=0.0)
    batch = batch_of(engine, capped)
    for source in ("student", "teacher"):
        written = [t for t in batch if t.source == source]
        data = [d for d in build(capped, batch, engine) if d.source == source]
        trained = sum(observed(engine, d) for d in data) / 0.5
        wanted = reference(engine, written, losses_for(capped, source))
        np.testing.assert_allclose(trained, wanted, rtol=1e-4)
    assert engine.measure(build(capped, batch, engine)).loss != pytest.approx(
        engine.measure(build(free, batch, engine)).loss, rel=1e-2
    )


def test_a_capped_token_is_not_trained(models: Path) -> None:
    """A cap below every divergence leaves no gradient; one above them changes nothing."""
    folder, norms = models / "qwen", []
    for cap in (0.0, 1e3, 1e-6):
        engine = TorchEngine(str(folder / "student"), str(folder / "teacher"), threads=1)
        recipe = Recipe(name="x", kl_cap=cap)
        norms.append(engine.step(build(recipe, batch_of(engine, recipe), engine), 0.0).grad_norm)
    assert norms[0] == norms[1] > 0 and norms[2] == 0.0
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kl_cap": -1}, "in nats and >= 0"),
        ({"clip_advantage": 2.0}, "about advantages"),
        ({"kl_cap": 2.0, "student_loss": "reverse_kl_sampled"}, "full-vocabulary divergences"),
        ({"clip_ratio": 3.0}, "about importance ratios"),
        ({"clip_ratio": -1.0}, "a ratio >= 0"),
        ({"clip_ratio": 0.5, "student_loss": "reverse_kl_sampled"}, "1 for new samples"),
        ({"reject_wrong": True}, "about teacher completions"),
        ({"reject_wrong": "yes", "on_policy": 0}, "true or false"),
        ({"prefix_over": "luck"}, "time or success"),
        ({"prefix_over": "success", "prefix": 4}, "schedule to run over"),
        ({"interleave": -2}, "a count of ids"),
        ({"interleave": 2.5}, "a count of ids"),
        ({"interleave": 3, "on_policy": 0}, "needs student prompts"),
        ({"interleave": 3, "student_loss": "reverse_kl_sampled"}, "a full-vocabulary loss"),
    ],
)
def test_fields_without_what_they_are_about_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(PotstillError, match=says):
        Recipe(**{"name": "x", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"on_policy": 0.5, "reject_wrong": True},
        {"kl_cap": 1.0},
        {"student_loss": "reverse_kl_sampled", "clip_advantage": 2.0, "clip_ratio": 0.0},
        {"on_policy": 0.5, "anchor": 0.1, "anchor_loss": "reverse_kl_sampled", "interleave": 2},
        {"prefix": {"linear": [6, 0], "until": 0.8}, "prefix_over": "success"},
    ],
)
def test_recipes_with_them_pass_preflight_and_survive_toml(fields: dict, tmp_path: Path) -> None:
    study = read_study(toy_table(tmp_path, methods=["mine"], recipe={"mine": fields}))
    recipe = study.recipes["mine"]
    assert recipe_from_toml("mine", recipe.to_toml(), METHODS) == recipe
    assert not [check for check in preflight_pair(study, "toy") if check.status == "refused"]
