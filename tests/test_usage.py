"""Tokens and operations of each kind of work, on an engine whose models have known sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potstill.algorithms.losses import CROSS_ENTROPY, REVERSE_KL, REVERSE_KL_SAMPLED
from potstill.engines.fake import FakeEngine
from potstill.engines.flops import Machine, Size
from potstill.settings import Budget, Price
from potstill.training import metering
from potstill.training.metering import Metered, Scope, Usage, targets
from potstill.training.spending import PAID, Spent, excess, total
from potstill.types import KINDS, Datum, Floats, Loss, Prompt, Sample, StepStats, Term

SIZES = {
    "student": Size(body=10, head=3, width=4, keys=0, mixing=2),
    "init": Size(body=20, head=5, width=4, keys=0, mixing=4),
    "teacher": Size(body=100, head=7, width=4, keys=0, mixing=6),
}
PROMPTS = [Prompt((1, 2), (1, 2, 3)), Prompt((4,), (4, 5, 6, 7))]
READINGS = [(PROMPTS[0], (5, 6, 7)), (PROMPTS[1], (8,))]
SHAPES = {"student": [(2, 3), (1, 1)], "init": [(2, 3), (1, 1)], "teacher": [(3, 3), (4, 1)]}
WROTE, PROMPT = 3 + 1, {"student": 2 + 1, "teacher": 3 + 4}


class Sized(FakeEngine):
    """The fake engine with sizes, a cache's seconds, and completions of a known length."""

    saved = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def size(self, role: str) -> Size | None:  # type: ignore[override]
        self.asked.append(role)
        return SIZES.get(role)

    def sample(
        self, role: str, prompts: Any, limits: Any, temperature: Any, rng: Any, *cut: Any
    ) -> Any:
        self.saved += 2.5
        self.words = role, prompts, limits, temperature, rng
        return [
            Sample(tuple(range(n)), np.zeros(n, np.float32))
            for n, _ in zip((3, 1), prompts, strict=True)
        ]


def metered(scope: Scope = "training") -> tuple[Metered, Usage]:
    engine = Sized()
    usage = Usage(engine)
    return Metered(engine, usage, scope), usage


def counted(usage: Usage) -> dict[str, int]:
    return {kind: n for kind, n in usage.tokens.items() if n}


def datum(losses: Sequence[Loss], row: int, weights: Sequence[float] = ()) -> Datum:
    prompt, completion = READINGS[row]
    own: Floats = np.zeros(len(completion), np.float32)
    single = np.float32(weights or [1.0] * len(completion))
    terms = tuple(Term(loss, single) for loss in losses)
    return Datum(prompt, completion, completion, terms, "student", own - 1, own - 2)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_sampling_is_counted_by_who_writes_and_why(role: str) -> None:
    rng = np.random.default_rng(0)
    work = SIZES[role].forward(SHAPES[role])
    meter, usage = metered()
    meter.sample(role, PROMPTS, [3, 3], 0.7, rng)
    assert meter.engine.words == (role, PROMPTS, [3, 3], 0.7, rng)  # type: ignore[attr-defined]
    assert counted(usage) == {f"{role}_sampled": WROTE, "prompt": PROMPT[role]}
    assert usage.flops == {f"{role}_sampled": work} and usage.spent == WROTE
    meter.sample(role, PROMPTS, [3, 3], 1.0, rng)
    assert counted(usage) == {f"{role}_sampled": 2 * WROTE, "prompt": 2 * PROMPT[role]}
    assert usage.flops == {f"{role}_sampled": 2 * work}
    aside = Metered(meter.engine, usage, "evaluation")
    aside.sample(role, PROMPTS, [3, 3], 1.0, rng), aside.sample(role, PROMPTS, [3, 3], 1.0, rng)
    more = {f"graded_{role}_sampled": 2 * WROTE, "graded_prompt": 2 * PROMPT[role]}
    assert counted(usage) == {f"{role}_sampled": 2 * WROTE, "prompt": 2 * PROMPT[role]} | more
    assert usage.flops["graded"] == 2 * work and usage.spent == 2 * WROTE


@pytest.mark.parametrize("how", ["rows", "score", "inspect"])
@pytest.mark.parametrize("role", ["student", "init", "teacher"])
def test_scoring_is_counted_by_who_reads_and_why(role: str, how: str) -> None:
    model = "teacher" if role == "teacher" else "student"
    for scope in ("training", "evaluation"):
        meter, usage = metered(scope)  # type: ignore[arg-type]
        if how == "rows":
            found: list[Any] = [meter.rows(role, *reading) for reading in READINGS]
            want: list[Any] = [meter.engine.rows(role, *reading) for reading in READINGS]
            assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
        elif how == "score":
            found, want = meter.score(role, READINGS), meter.engine.score(role, READINGS)
            assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
        else:
            assert len(meter.inspect(role, READINGS)) == 2
        graded = {"teacher": "graded_scored", "student": "graded_student_scored"}[model]
        kind = f"{model}_scored" if scope == "training" else graded
        assert counted(usage) == {kind: WROTE}
        work = SIZES[role].forward(SHAPES[role])
        assert usage.flops == {kind if scope == "training" else "graded": work}


def test_a_step_counts_what_it_trained_and_what_other_models_read() -> None:
    meter, usage = metered()
    data = [
        datum([REVERSE_KL, replace(REVERSE_KL, to="init")], 0, [0.0, 0.5, 0.5]),
        datum([CROSS_ENTROPY, REVERSE_KL_SAMPLED], 1),
    ]
    assert targets(data) == {"teacher": [(3, 3)], "init": [(2, 3)]}
    meter.step(data, 0.0)
    assert counted(usage) == {"trained": 2 + 1, "teacher_scored": 3}
    student = SIZES["student"].training(SHAPES["student"]) + SIZES["init"].forward([(2, 3)])
    assert usage.flops == {
        "trained": student,
        "teacher_scored": SIZES["teacher"].forward([(3, 3)]),
    }
    meter.step(data, 0.0)
    assert counted(usage) == {"trained": 6, "teacher_scored": 6}
    assert sorted(meter.engine.asked) == ["init", "student", "teacher"]  # type: ignore[attr-defined]


def test_a_step_books_the_teachers_reading_once_a_row() -> None:
    meter, usage = metered()
    data = [datum([REVERSE_KL], 0), datum([REVERSE_KL], 1)]
    assert targets(data) == {"teacher": SHAPES["teacher"]}
    meter.step(data, 0.0)
    assert counted(usage) == {"trained": WROTE, "teacher_scored": WROTE}
    other, anchored = metered()
    other.step([datum([replace(REVERSE_KL, to="init")], 0)], 0.0)
    assert counted(anchored) == {"trained": 3}
    assert Metered(meter.engine, usage).scope == "training"


@pytest.mark.parametrize("scope", ["training", "evaluation"])
def test_a_measured_step_is_the_students_reading(scope: Scope) -> None:
    meter, usage = metered(scope)
    data = [datum([REVERSE_KL], 0), datum([CROSS_ENTROPY], 1)]
    assert meter.measure(data) == meter.engine.measure(data)
    student = SIZES["student"].forward(SHAPES["student"])
    teacher = SIZES["teacher"].forward([(3, 3)])
    if scope == "training":
        assert counted(usage) == {"student_scored": WROTE}
        assert usage.flops == {"student_scored": student, "trained": teacher}
    else:
        assert counted(usage) == {"graded_student_scored": WROTE}
        assert usage.flops == {"graded": student + teacher}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(metering, "time", found)
    return found


def test_each_activity_has_its_seconds_and_the_rest_is_other(clock: Clock) -> None:
    class Slow(Sized):
        def sample(self, *words: Any) -> Any:
            clock.now += 1.0
            return super().sample(*words)

        def rows(self, *words: Any) -> Any:
            clock.now += 2.0
            return super().rows(*words)

        def score(self, *words: Any) -> Any:
            clock.now += 4.0
            return super().score(*words)

        def inspect(self, *words: Any) -> Any:
            clock.now += 8.0
            return super().inspect(*words)

        def step(self, *words: Any) -> StepStats:
            clock.now += 16.0
            return replace(super().step(*words), optimizer=5.0)

    engine = Slow()
    usage = Usage(engine)
    meter = Metered(engine, usage)
    rng = np.random.default_rng(0)
    for _ in range(2):
        meter.sample("student", PROMPTS, [3, 3], 1.0, rng)
        meter.sample("teacher", PROMPTS, [3, 3], 1.0, rng)
        meter.rows("teacher", *READINGS[0])
        meter.score("teacher", READINGS)
        meter.inspect("student", READINGS)
        meter.step([datum([CROSS_ENTROPY], 0)], 0.0)
        clock.now += 32.0
    known = {
        "student sampling": 2.0,
        "teacher sampling": 2.0,
        "scoring": 28.0,
        "optimizer": 10.0,
        "forward and backward": 22.0,
    }
    assert usage.state()["seconds"] == known | {"other": 64.0}
    clock.now += 1.5
    aside = Metered(engine, usage, "evaluation")
    with usage.clock("evaluation"):
        aside.score("teacher", READINGS)
        aside.sample("student", PROMPTS, [3, 3], 1.0, rng)
    assert usage.state()["seconds"] == known | {"other": 65.5, "evaluation": 5.0}
    with pytest.raises(ZeroDivisionError), usage.clock("evaluation"):
        clock.now += 1.0
        raise ZeroDivisionError
    assert usage.state()["seconds"] == known | {"other": 65.5, "evaluation": 6.0}


def test_a_restart_goes_on_from_the_checkpoint(clock: Clock) -> None:
    """Its tokens and operations are those that were saved, its seconds are added."""
    meter, usage = metered()
    with usage.clock("scoring"):
        clock.now += 3.0
    meter.score("teacher", READINGS)
    usage.saved["teacher sampling"] = 7.0
    clock.now += 2.0
    state = usage.state()
    assert state == {
        "tokens": dict(usage.tokens),
        "seconds": {"scoring": 3.0, "other": 2.0},
        "flops": {"teacher_scored": SIZES["teacher"].forward(SHAPES["teacher"])},
        "saved": {"teacher sampling": 7.0},
        "sources": {},
    }
    assert state["tokens"].keys() == {*KINDS, "prompt"} - {"student_scored"}
    again, later = metered()
    with later.clock("scoring"):
        clock.now += 0.5
    again.score("student", READINGS)  # not saved: it is done again
    later.saved["teacher sampling"] = 1.0
    clock.now += 0.25
    later.recall(state)
    clock.now += 0.125
    found = later.state()
    assert found["tokens"] == state["tokens"] and found["flops"] == state["flops"]
    assert all(type(n) is int for n in (*later.tokens.values(), *later.flops.values()))
    assert found["seconds"] == {"scoring": 3.5, "other": 2.375}
    assert found["saved"] == {"teacher sampling": 8.0}
    assert later.sized
    later.recall({"tokens": {}, "seconds": {}})  # of a version that counted neither
    assert not later.sized and later.flops == {} and not later.operations
    assert later.state()["saved"] == {"teacher sampling": 8.0}
    before = later.state()
    later.recall(None)
    assert later.state() == before


def test_a_model_of_unknown_size_makes_all_operations_unknown() -> None:
    _, usage = metered()
    usage.work("trained", "student", [(2, 3)])
    assert usage.sized and usage.flops == {"trained": SIZES["student"].forward([(2, 3)])}
    usage.work("trained", "teacher:other", [(2, 3)])
    assert usage.sized is False and usage.flops == {}


def test_seconds_that_a_cache_saved_are_kept_apart() -> None:
    from potstill.engines.protocol import Cached

    meter, usage = metered()
    assert isinstance(meter.engine, Cached)
    rng = np.random.default_rng(0)
    meter.sample("teacher", PROMPTS, [3, 3], 1.0, rng)
    meter.sample("teacher", PROMPTS, [3, 3], 1.0, rng)
    assert usage.saved == {"teacher sampling": 5.0}
    plain = FakeEngine()
    other = Usage(plain)
    Metered(plain, other).sample("teacher", PROMPTS, [3, 3], 1.0, rng)
    assert not other.saved


def test_operations_by_hand() -> None:
    """Each token through the body, completions through the head, half the square for attention."""
    size = Size(body=10, head=3, width=4, keys=0, mixing=2)
    rows = [(2, 3), (1, 1)]
    weights, attention = 2 * 10 * 7 + 2 * 3 * 4, 2 * (25 + 4) / 2
    assert size.forward(iter(rows)) == weights + attention
    assert size.training(iter(rows)) == 3 * (weights + attention)
    assert replace(size, frozen=True).training(rows) == 2 * weights + 3 * attention
    machine = Machine(bandwidth=10.0, matmul=100.0)
    assert (machine.seconds(500.0), machine.seconds(500.0, 20.0)) == (5.0, 5.0)
    assert machine.seconds(500.0, 80.0) == 8.0
    assert machine.seconds(0.0) == 0.0


# --- spending


def test_every_kind_of_token_has_its_price() -> None:
    for name, kinds in PAID.items():
        for kind in kinds:
            spent = Spent(0.0, {kind: 3e6})
            assert spent.usd(Price(**{name: 2.0})) == pytest.approx(6.0, rel=1e-12)
            assert spent.usd(Price()) == 0.0
    assert Spent(7200.0).usd(Price(hour=1.5)) == 3.0
    both = Spent(3600.0, {"trained": 1e6, "prompt": 2e6})
    assert both.usd(Price(hour=1.0, trained=10.0, prompt=100.0)) == pytest.approx(211.0, rel=1e-12)


def test_parts_of_spending_add_and_scale_one_by_one() -> None:
    one = Spent(1.0, {"trained": 2.0}, 3.0, 4.0)
    two = Spent(10.0, {"trained": 20.0, "prompt": 5.0}, 30.0, 40.0)
    assert (
        one + two == total([one, two]) == Spent(11.0, {"trained": 22.0, "prompt": 5.0}, 33.0, 44.0)
    )
    assert two + one == one + two and one + Spent() == Spent() + one == one
    assert one * 2.5 == Spent(2.5, {"trained": 5.0}, 7.5, 10.0)
    assert replace(one, flops=None) * 2 == Spent(2.0, {"trained": 4.0}, None, 8.0)
    for a, b in ((one, two), (two, one)):
        assert (a + replace(b, flops=None)).flops is None
    assert one.alone == Spent(5.0, {"trained": 2.0}, 3.0)
    assert total([]) == Spent()
    counts = Spent(0.0, dict.fromkeys((*KINDS, "prompt", "graded_scored"), 1.0))
    assert counts.count() == len(KINDS)


@pytest.mark.parametrize(
    ("record", "want"),
    [
        ({}, Spent()),
        ({"seconds": 2, "tokens": {}}, Spent(2.0)),
        ({"tokens": {"trained": 4}, "flops": 8.0}, Spent(0.0, {"trained": 4}, 8.0)),
        (
            {"tokens": {"trained": 4}, "flops": {"a": 1.0, "b": 2.0}},
            Spent(0.0, {"trained": 4}, 3.0),
        ),
        ({"tokens": {"trained": 4}, "flops": {}}, Spent(0.0, {"trained": 4}, None)),
        ({"tokens": {"trained": 4}}, Spent(0.0, {"trained": 4}, None)),
        ({"saved": {"a": 1.5, "b": 2.0}}, Spent(saved=3.5)),
        ({"saved": 2}, Spent(saved=2.0)),
    ],
    ids=str,
)
def test_a_record_is_read_with_what_it_has(record: dict[str, Any], want: Spent) -> None:
    assert Spent.read(record) == want
    assert isinstance(Spent.read(record).saved, float)


@pytest.mark.parametrize(
    ("limits", "want"),
    [
        ({}, ""),
        ({"usd": 11.01, "hours": 2.001, "tokens": 1_000_001}, ""),
        ({"usd": 11}, "11 USD of budget.usd = 11"),
        ({"hours": 2}, "2 hours of budget.hours = 2"),
        ({"tokens": 1_000_000}, "1e+06 tokens of budget.tokens = 1e+06"),
        ({"hours": 1, "usd": 5}, "11 USD of budget.usd = 5"),
        ({"hours": 1, "tokens": 5}, "2 hours of budget.hours = 1"),
        ({"usd": 12, "tokens": 5}, "1e+06 tokens of budget.tokens = 5"),
    ],
    ids=str,
)
def test_a_limit_is_reached_at_its_value(limits: dict[str, Any], want: str) -> None:
    price = Price(hour=2.0, trained=7.0)
    assert excess(Budget(**limits), price, Spent(7200.0, {"trained": 1e6})) == want


def test_a_clock_is_a_wall_clock() -> None:
    usage = Usage(FakeEngine())
    start = time.perf_counter()
    with usage.clock("scoring"):
        time.sleep(0.002)
    assert 0.002 <= usage.seconds["scoring"] <= time.perf_counter() - start
