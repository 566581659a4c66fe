"""Every recipe x every promise: what the nine methods are, checked on what they make the engine
do."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from potstill.algorithms.losses import JSD
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe, Replay, recipe_from_toml
from potstill.algorithms.schedules import linear
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError, PotstillErrors
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.storage import runs_of
from potstill.tasks import load_task
from potstill.training import checkpoint
from potstill.training.loop import train
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.replay import Buffer
from potstill.training.rollout import collect
from potstill.types import Datum, Limits

STEPS, BATCH, TOKENS = 20, 10, 24
LIMITS = Limits(TOKENS, 1.0, 1.0)
ALL = list(METHODS.values())


@dataclass
class Spy(FakeEngine):
    """The fake engine, remembering the data of every step."""

    steps: list[list[Datum]] = field(default_factory=list)

    def __post_init__(self) -> None:
        FakeEngine.__init__(self)

    def step(self, data, learning_rate):  # type: ignore[no-untyped-def]
        self.steps.append(list(data))
        return super().step(data, learning_rate)


def run(recipe: Recipe, tmp_path: Path, seed: int = 0) -> tuple[Spy, Memory]:
    from conftest import monitored, write_toy

    engine, memory = Spy(), Memory()
    settings = Train(steps=STEPS, batch_size=BATCH, max_tokens=TOKENS, learning_rate=0.3)
    grading = Eval(every=10, problems=20, probe=8, probe_every=5)
    task = load_task(**write_toy(tmp_path))
    monitored(recipe, engine, task, settings, grading, seed=seed, recorder=memory)
    return engine, memory


def test_the_nine_are_the_published_eight_and_off_policy() -> None:
    assert list(METHODS) == [
        "on_policy_gkd",
        "extended_on_policy",
        "teacher_seeded",
        "mixture",
        "replay_buffer",
        "kl_anchored",
        "hybrid",
        "reverse_curriculum",
        "off_policy",
    ]


def test_the_table_of_the_nine() -> None:
    """Share of student prompts and prefix at five moments, anchor, replay, budget."""
    moments = (0.0, 0.25, 0.5, 0.7, 0.95)
    table = {
        "on_policy_gkd": ([1] * 5, [0] * 5, 0, 0, 1),
        "extended_on_policy": ([1] * 5, [0] * 5, 0, 0, 2),
        "teacher_seeded": ([1] * 5, [20, 10, 0, 0, 0], 0, 0, 1),
        "mixture": ([0.7] * 5, [0] * 5, 0, 0, 1),
        "replay_buffer": ([0.8] * 5, [0] * 5, 0, 50, 1),
        "kl_anchored": ([0] * 5, [0] * 5, 0.1, 0, 1),
        "hybrid": ([0, 0, 1, 1, 1], [0] * 5, 0, 0, 1),
        "reverse_curriculum": ([1, 1, 1, 0, 0], [0] * 5, 0, 0, 1),
        "off_policy": ([0] * 5, [0] * 5, 0, 0, 1),
    }
    assert table.keys() == METHODS.keys()
    for name, (share, prefix, anchor, capacity, budget) in table.items():
        recipe = METHODS[name]
        assert [recipe.on_policy(t) for t in moments] == share
        assert [recipe.prefix(t) for t in moments] == prefix
        assert (recipe.anchor, recipe.budget) == (anchor, budget)
        assert (recipe.replay.capacity if recipe.replay else 0) == capacity


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: r.name)
class TestPromises:
    def test_one_optimizer_step_per_step(self, recipe: Recipe, tmp_path: Path) -> None:
        engine, memory = run(recipe, tmp_path)
        assert len(engine.steps) == len(memory.metrics[1:]) == STEPS * recipe.budget
        assert engine._steps == STEPS * recipe.budget

    def test_the_share_is_of_prompts(self, recipe: Recipe, tmp_path: Path) -> None:
        _, memory = run(recipe, tmp_path)
        for i, row in enumerate(memory.metrics[1:]):
            t = i / len(memory.metrics[1:])
            assert row["train/phase"] == round(recipe.on_policy(t) * BATCH) / BATCH

    def test_weights_are_shares_and_sum_to_one(self, recipe: Recipe, tmp_path: Path) -> None:
        engine, memory = run(recipe, tmp_path)
        for data, row in zip(engine.steps, memory.metrics[1:], strict=True):
            by_source = {
                source: sum(float(d.terms[0].weights.sum()) for d in data if d.source == source)
                for source in ("student", "teacher")
            }
            if not data:  # the teacher's prefixes ended every text: nothing to train on
                assert recipe.prefix(0.0) > 0
                continue
            assert sum(by_source.values()) == pytest.approx(1.0, abs=1e-5)
            if not recipe.replay:
                assert by_source["student"] == pytest.approx(row["train/phase"], abs=1e-5)
            for datum in data:  # every trained token of a source weighs the same
                positive = datum.terms[0].weights[datum.terms[0].weights > 0]
                assert len(positive) == 0 or np.ptp(positive) < 1e-7

    def test_the_prefix_is_context_and_eos_is_trained(self, recipe: Recipe, tmp_path: Path) -> None:
        engine, _ = run(recipe, tmp_path)
        for i, data in enumerate(engine.steps):
            prefix = recipe.prefix.count(i / len(engine.steps))
            for datum in data:
                weights = datum.terms[0].weights
                untrained = prefix if datum.source == "student" else 0
                assert not weights[:untrained].any() and (weights[untrained:] > 0).all()
                assert len(datum.completion) <= TOKENS
                assert len(datum.prompt.student) > 0 and datum.targets == datum.completion

    def test_losses_by_source(self, recipe: Recipe, tmp_path: Path) -> None:
        engine, _ = run(recipe, tmp_path)
        for datum in (d for data in engine.steps for d in data):
            main, *rest = datum.terms
            want = "reverse_kl" if datum.source == "student" else "cross_entropy"
            assert (main.loss.name, main.loss.to) == (want, "teacher")
            assert bool(rest) == (recipe.anchor > 0)
            for term in rest:
                assert (term.loss.name, term.loss.to) == ("reverse_kl", "init")
                np.testing.assert_allclose(term.weights, recipe.anchor * main.weights)

    def test_same_seed_same_numbers(self, recipe: Recipe, tmp_path: Path) -> None:
        first, again, other = (run(recipe, tmp_path, seed)[1].metrics for seed in (1, 1, 2))
        assert first == again and first != other

    def test_it_learns(self, recipe: Recipe, tmp_path: Path) -> None:
        _, memory = run(recipe, tmp_path)
        assert memory.metrics[1:][-1]["eval/accuracy"] > 0.5

    def test_it_survives_toml(self, recipe: Recipe, tmp_path: Path) -> None:
        again = recipe_from_toml(recipe.name, recipe.to_toml(), METHODS)
        assert again == recipe

    def test_it_says_what_it_is(self, recipe: Recipe, tmp_path: Path) -> None:
        assert recipe.hypothesis and recipe.rule and recipe.source


def test_replay_trains_on_older_work_with_its_old_scores(tmp_path: Path) -> None:
    engine, memory = run(Recipe(name="again", replay=Replay(capacity=3)), tmp_path)
    assert [row["train/buffer_size"] for row in memory.metrics[1:][:5]] == [10, 20, 30, 30, 30]
    assert max(row["train/age"] for row in memory.metrics[1:]) > 0.3
    assert all(len(data) <= BATCH for data in engine.steps)


def test_the_share_of_clipped_ratios_is_a_metric_where_there_are_ratios(tmp_path: Path) -> None:
    fields = {"student_loss": "reverse_kl_sampled", "replay": Replay(capacity=20)}
    _, replayed = run(Recipe(name="x", **fields, clip_ratio=1.2), tmp_path)
    shares = [row["train/clipped"] for row in replayed.metrics[1:]]
    assert shares[0] == 0.0 < max(shares) < 1.0
    _, free = run(Recipe(name="x", **fields, clip_ratio=0.0), tmp_path)
    _, exact = run(METHODS["replay_buffer"], tmp_path)
    assert not [row for row in free.metrics + exact.metrics if "train/clipped" in row]
    limited, unlimited = (m.metrics[-1]["train/loss"] for m in (replayed, free))
    assert limited != unlimited


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_checkpoint_keeps_what_tokens_were_drawn_from(tmp_path: Path, temperature: float) -> None:
    engine, recipe = FakeEngine(), Recipe(name="x", prefix=2, on_policy=0.5)
    problems = [Problem(str(i), f"a{i}", "") for i in range(4)]
    entries = collect(recipe, engine, problems, 0.0, 3, 0, Limits(8, temperature, 1.3))
    different = [not np.array_equal(t.logprobs, t.behavior_logprobs) for t in entries]
    assert all(different[2:]) and (temperature == 1 or all(different))
    checkpoint.save(tmp_path, 4, engine, entries, {})
    restored = checkpoint.load(tmp_path, engine, problems)
    assert restored is not None
    for before, after in zip(entries, restored[1], strict=True):
        assert before.__dict__.keys() == after.__dict__.keys()
        np.testing.assert_array_equal(before.logprobs, after.logprobs)
        np.testing.assert_array_equal(before.behavior_logprobs, after.behavior_logprobs)
        assert after.logprobs.dtype == after.behavior_logprobs.dtype == np.float32
    file = tmp_path / "step-00000004" / "state.json"
    state = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("digest", "files")}
    for entry in state["buffer"]:
        del entry["behavior_logprobs"]  # as an earlier version wrote it
    file.write_text(json.dumps(state))
    older = checkpoint.load(tmp_path, engine, problems)
    assert older is not None
    assert all(np.array_equal(t.logprobs, t.behavior_logprobs) for t in older[1])


def test_a_probability_that_an_engine_does_not_report_is_never_made_up() -> None:
    """A service that reports log-probabilities at temperature 1 alone."""
    engine = FakeEngine()
    recipe = Recipe(name="x", student_loss="reverse_kl_sampled", prefix=1)
    batch = collect(recipe, engine, [Problem("0", "a3", "")], 0.0, 0, 0, Limits(8, 0.7, 1.0))
    unknown = [replace(t, behavior_logprobs=t.logprobs * np.nan) for t in batch]
    with pytest.raises(PotstillError, match="with which each token was drawn") as refused:
        build(recipe, unknown, engine)
    assert refused.value.hint == "set train.temperature to 1"
    assert build(Recipe(name="x"), unknown, engine)  # a loss that does not ask for it
    prefix = np.where(np.arange(len(batch[0].completion)) < 1, np.nan, batch[0].behavior_logprobs)
    known = replace(batch[0], behavior_logprobs=prefix.astype(np.float32))
    found = [engine.measure(build(recipe, [t], engine)).loss for t in (known, batch[0])]
    assert found[0] == found[1]


def test_replay_prefers_recent_work() -> None:
    """Draw weights 1 + added / step, counted over many draws."""
    engine = FakeEngine()
    problems = [Problem(str(i), "a3", "k") for i in range(2)]
    counts: dict[int, int] = {}
    for seed in range(400):
        buffer = Buffer(20)
        for step in range(10):
            fresh = collect(Recipe(name="x"), engine, problems, 0, step, 0, Limits(2, 1, 1))
            drawn = buffer.exchange(fresh, step, seed)
        for entry in drawn:
            counts[entry.version] = counts.get(entry.version, 0) + 1
    old, new = sum(counts.get(v, 0) for v in range(3)), sum(counts.get(v, 0) for v in range(7, 10))
    assert 1.2 < new / old < 2.6  # 1.89 / 1.11 = 1.7 expected


def test_a_prefix_that_ends_the_text_leaves_nothing_to_train() -> None:
    engine = FakeEngine()
    problems = [Problem(str(i), f"a{i}", "") for i in range(8)]
    recipe = Recipe(name="x", prefix=23)
    batch = collect(recipe, engine, problems, 0.0, 0, 0, LIMITS)
    assert all(t.completion[-1] in engine.eos for t in batch if t.trained == 0)
    assert any(t.trained == 0 for t in batch)
    data = build(recipe, batch, engine)
    assert all(datum.terms[0].weights.any() for datum in data)


def test_a_recipe_in_toml_and_in_python_is_the_same_value(tmp_path: Path) -> None:
    from conftest import toy_table

    table = toy_table(
        tmp_path,
        methods=["mine"],
        recipe={"mine": {"from": "teacher_seeded", "prefix": {"linear": [10, 0], "until": 0.4}}},
    )
    mine = Recipe(name="mine", prefix=linear(10, 0, until=0.4))
    study = read_study(table)
    assert study.recipes == {"mine": mine}
    assert [cell.method for cell in runs_of(study)][2:] == ["mine", "mine"]
    _, memory = run(mine, tmp_path)
    assert memory.metrics[1:][0]["train/seed_tokens"] > 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"on_policy": 1.5}, "share in"),
        ({"prefix": -1}, "counts tokens"),
        ({"prefix": 5, "on_policy": 0.0}, "needs student prompts"),
        ({"anchor": -0.1}, "weight >= 0"),
        ({"anchor_loss": "forward_kl"}, "an anchor is KL"),
        ({"budget": 0}, "above 0"),
        ({"teacher_loss": "reverse_kl_sampled"}, "student sampled"),
        ({"name": "two words"}, "letters"),
        ({"replay": {"capacity": 0}}, "at least one step"),
        ({"student_loss": "jsdd"}, "unknown loss"),
    ],
)
def test_wrong_recipes_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(PotstillError, match=says):
        Recipe(**{"name": "x", **fields})


@pytest.mark.parametrize(
    ("table", "says", "hint"),
    [
        ({"from": "teacher_seded"}, "unknown method", "teacher_seeded"),
        ({"prefx": 3}, "unknown key", "prefix"),
        ({"replay": {"capcity": 3}}, 'unknown key "replay.capcity"', "capacity"),
        ({"replay": 3}, "replay is a table", "capacity"),
        ({"form": "mixture"}, 'unknown key "form"', "from"),
        ({"name": "yours"}, 'unknown key "name"', "[recipe.NAME]"),
        ({"anchor": "strong"}, "anchor is a weight", "0.1 is usual"),
        ({"anchor": True}, "anchor is a weight", "0.1 is usual"),
        ({"hypothesis": 3}, "hypothesis is text", "leave it out"),
    ],
)
def test_wrong_recipe_tables_are_refused(table: dict, says: str, hint: str) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        recipe_from_toml("mine", table, METHODS)
    assert hint in caught.value.hint


def test_all_errors_of_a_recipe_are_reported_together() -> None:
    table = {"anchor": -1, "budget": 0, "prefx": 3, "replay": {"capacity": 0}, "kl_cap": "x"}
    with pytest.raises(PotstillErrors, match=r"^5 errors\n") as caught:
        recipe_from_toml("mine", {**table, "from": "mixture"}, METHODS)
    rules = [str(error) for error in caught.value.errors]
    for key in ("anchor", "budget", "prefx", "replay.capacity", "kl_cap"):
        (rule,) = (rule for rule in rules if key in rule)
        assert rule.startswith('recipe "mine": ') and rule in str(caught.value)
    assert all(error.hint and error.hint in caught.value.hint for error in caught.value.errors)
    with pytest.raises(PotstillErrors, match=r"^2 errors\n"):  # rules of several fields
        Recipe(name="x", on_policy=0.0, prefix=3, interleave=2)


def test_recipes_are_values() -> None:
    """What a recipe is said to be does not make it another one; a copy is checked again."""
    one, other = Recipe(name="x", anchor=1, hypothesis="a"), Recipe(name="x", anchor=1.0, rule="b")
    assert one == other and hash(one) == hash(other)
    assert replace(one, anchor=0.5) != one
    with pytest.raises(PotstillError, match="anchor is a weight"):
        replace(one, anchor=-1)
    with pytest.raises(FrozenInstanceError):
        one.anchor = 2.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(METHODS["replay_buffer"])) == METHODS["replay_buffer"]


def test_a_budget_is_a_multiple_of_the_steps() -> None:
    steps = {
        budget: Recipe(name="x", budget=budget).total_steps(25) for budget in (0.01, 0.5, 1, 2)
    }
    assert steps == {0.01: 1, 0.5: 12, 1: 25, 2: 50}


def test_whole_row_losses_work_on_teacher_tokens_too() -> None:
    assert Recipe(name="x", on_policy=0.5, teacher_loss="forward_kl", student_loss=JSD(0.5)).losses


def test_a_prefix_as_long_as_a_completion_is_rejected() -> None:
    recipe, settings = METHODS["teacher_seeded"], Train(steps=2, batch_size=2, max_tokens=20)
    with pytest.raises(PotstillError, match="max_tokens counts the prefix"):
        train(recipe, FakeEngine(), load_task("arithmetic"), settings, Eval(problems=2))
