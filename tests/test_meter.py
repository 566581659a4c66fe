"""What a run has spent: tokens by kind, and every second of the wall clock by activity."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from conftest import prompt_of
from potstill import METHODS, Recipe, open_engine
from potstill.engines.fake import FakeEngine
from potstill.settings import Price
from potstill.study.schema import Study
from potstill.tasks import load_task
from potstill.training.metering import Metered, Usage
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.training.spending import Spent
from potstill.types import ACTIVITIES, Limits


def fake(study: Study) -> Metered:
    engine = open_engine("fake", study.models["toy"])
    return Metered(engine, Usage(engine))


def test_a_step_counts_what_it_wrote_scored_and_trained(toy: Study) -> None:
    meter, task = fake(toy), load_task(**toy.task)
    batch = collect(METHODS["mixture"], meter, task.train[:10], 0.5, 0, 0, Limits(24, 1.0, 1.0))
    meter.step(build(METHODS["mixture"], batch, meter), 0.1)
    wrote = {
        source: sum(len(t.completion) for t in batch if t.source == source)
        for source in ("student", "teacher")
    }
    assert meter.usage.tokens["student_sampled"] == wrote["student"] > 0
    assert meter.usage.tokens["teacher_sampled"] == wrote["teacher"] > 0
    assert meter.usage.tokens["trained"] == sum(wrote.values())
    assert meter.usage.tokens["teacher_scored"] == wrote["student"]
    assert meter.usage.tokens["prompt"] == sum(len(t.prompt.student) for t in batch)


def test_tokens_are_booked_to_the_model_that_scored_them(toy: Study) -> None:
    meter = fake(toy)
    rows = [(prompt_of(meter, "a3"), (5, 6, 7))]
    meter.score("student", rows), meter.inspect("student", rows), meter.score("teacher", rows)
    assert meter.usage.tokens["student_scored"] == 6
    assert meter.usage.tokens["teacher_scored"] == 3
    assert meter.usage.spent == 9
    Metered(meter.engine, meter.usage, "evaluation").score("teacher", rows)
    assert meter.usage.tokens["graded_scored"] == 3 and meter.usage.spent == 9


def test_interleaving_books_each_model_what_it_did(toy: Study) -> None:
    """The teacher ranks drafts and puts tokens; the student writes, and scores its own."""
    calls: list[tuple[str, str, int]] = []

    class Listed(FakeEngine):
        def sample(self, role, prompts, max_tokens, temperature, rng, *cut):  # type: ignore[no-untyped-def]
            found = super().sample(role, prompts, max_tokens, temperature, rng, *cut)
            calls.append(("sampled", role, sum(len(s.tokens) for s in found)))
            return found

        def score(self, role, rows):  # type: ignore[no-untyped-def]
            calls.append(("scored", role, sum(len(completion) for _, completion in rows)))
            return super().score(role, rows)

        def inspect(self, role, rows):  # type: ignore[no-untyped-def]
            calls.append(("scored", role, sum(len(completion) for _, completion in rows)))
            return super().inspect(role, rows)

    engine, task = Listed(), load_task(**toy.task)
    usage = Usage(engine)
    recipe = Recipe(name="x", interleave=1)
    collect(recipe, Metered(engine, usage), task.train[:10], 0.0, 0, 0, Limits(8, 1.0, 1.0))
    assert {call[:2] for call in calls} == set(
        product(("sampled", "scored"), ("student", "teacher"))
    )
    for work, role in product(("sampled", "scored"), ("student", "teacher")):
        want = sum(n for what, who, n in calls if (what, who) == (work, role))
        assert usage.tokens[f"{role}_{work}"] == want > 0


def test_the_students_own_scoring_is_the_students_in_evaluations_too(toy: Study) -> None:
    meter = fake(toy)
    rows = [(prompt_of(meter, "a3"), (5, 6, 7))]
    aside = Metered(meter.engine, meter.usage, "evaluation")
    aside.inspect("student", rows * 2), aside.inspect("teacher", rows)
    assert meter.usage.tokens["graded_student_scored"] == 6
    assert meter.usage.tokens["graded_scored"] == 3 and meter.usage.spent == 0
    price = Price(student_scored=1.0, teacher_scored=100.0)
    assert Spent(0.0, meter.usage.tokens).usd(price) == pytest.approx((6 + 300) / 1e6)


def test_seconds_add_up_to_the_wall_clock(toy: Study) -> None:
    start = time.perf_counter()
    meter = fake(toy)
    begun = time.perf_counter()
    with meter.usage.clock("evaluation"):
        time.sleep(0.02)
    time.sleep(0.03)
    first = meter.usage.state()["seconds"]
    assert first["evaluation"] >= 0.02 and first["other"] >= 0.03
    assert sum(first.values()) <= time.perf_counter() - start
    resumed = Usage(meter.engine)
    resumed.recall(meter.usage.state())
    time.sleep(0.01)
    then = resumed.state()["seconds"]
    assert then["other"] >= first["other"] + 0.01
    assert sum(then.values()) <= time.perf_counter() - begun + 1e-3


def test_the_optimizer_is_clocked_apart(models: Path) -> None:
    from types import SimpleNamespace

    pair = SimpleNamespace(**{r: str(models / "qwen" / r) for r in ("student", "teacher")})
    engine = open_engine("torch", pair)
    meter = Metered(engine, Usage(engine))
    prompts = [prompt_of(meter, "7"), prompt_of(meter, "Tom has 3")]
    samples = meter.sample("student", prompts, [4, 4], 1.0, np.random.default_rng(0))
    assert len(samples) == 2
    task = load_task("arithmetic")
    batch = collect(METHODS["on_policy_gkd"], meter, task.train[:4], 0, 0, 0, Limits(6, 1.0, 1.0))
    meter.step(build(METHODS["on_policy_gkd"], batch, meter), 0.1)
    seconds = meter.usage.state()["seconds"]
    assert seconds["optimizer"] > 0 and seconds["forward and backward"] > seconds["optimizer"]
    assert set(seconds) <= set(ACTIVITIES)


def test_a_run_records_every_activity(toy: Study) -> None:
    from potstill.training.loop import train

    engine, task = open_engine("fake", toy.models["toy"]), load_task(**toy.task)
    trained = train(METHODS["mixture"], engine, task, toy.train, toy.eval, recorder=Memory())
    seconds = trained.spent["seconds"]
    assert set(seconds) <= set(ACTIVITIES)
    assert all(seconds[name] > 0 for name in ("student sampling", "evaluation", "other"))
    assert seconds["optimizer"] == pytest.approx(0.0)
