"""What a run has spent: tokens by kind, and every second of the wall clock by activity."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from conftest import prompt_of
from potstill import METHODS, open_engine
from potstill.study.schema import Study
from potstill.tasks import load_task
from potstill.training.metering import Metered, Usage
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
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
