"""Metering by hand: tokens, operations and seconds of each call, with a clock that a test sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potstill.algorithms.losses import CROSS_ENTROPY, REVERSE_KL
from potstill.engines.fake import FakeEngine
from potstill.engines.flops import Size
from potstill.training import metering
from potstill.training.metering import ALWAYS, Metered, Scope, Usage, targets
from potstill.types import Datum, Loss, Prompt, Reading, Role, StepStats, Term

HEAD, TEACHERS = 1000, 100  # operations of the head, and of a teacher for one of the student's
PROMPT = Prompt((5, 6), (5, 6, 7))  # the teacher reads one token more
ROWS: list[Reading] = [(PROMPT, (1, 2, 3)), (PROMPT, (1,))]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Sized(FakeEngine):
    """Reading a token takes 2 operations of the student, and 2 * HEAD where a head runs; each
    call takes a second."""

    saved = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.asked = clock, list[Role]()

    def size(self, role: Role) -> Any:
        self.asked.append(role)
        factor = TEACHERS if role.startswith("teacher") else 1
        return Size(body=factor, head=factor * HEAD, width=4, keys=0, mixing=0)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in ("sample", "score", "inspect", "rows", "measure", "step"):
            return value

        def timed(*args: Any, **options: Any) -> Any:
            self.clock.now += 1.0
            return value(*args, **options)

        return timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metering.time, "perf_counter", clock)
    return clock


def metered(clock: Clock, scope: Scope = "training") -> Metered:
    engine = Sized(clock)
    return Metered(engine, Usage(engine), scope)


def counted(meter: Metered) -> tuple[dict[str, int], dict[str, float], dict[str, float]]:
    usage = meter.usage
    tokens = {kind: n for kind, n in usage.tokens.items() if n}
    return tokens, usage.flops, {name: s for name, s in usage.seconds.items() if s}


def sampled(role: Role) -> Callable[[Metered], Any]:
    def call(meter: Metered) -> None:
        rng = np.random.default_rng(0)
        prompts = [PROMPT, PROMPT.then((6,))]
        found = meter.sample(role, prompts, [1, 1], 0.5, rng)
        assert [len(s.tokens) for s in found] == [1, 1]

    return call


@pytest.mark.parametrize(
    ("call", "scope", "tokens", "operations", "seconds"),
    [
        (
            sampled("student"),
            "training",
            {"student_sampled": 2, "prompt": 5},
            {"student_sampled": 2 * 7 + 2 * HEAD * 2},
            {"student sampling": 1.0},
        ),
        (
            sampled("teacher"),
            "training",
            {"teacher_sampled": 2, "prompt": 7},
            {"teacher_sampled": TEACHERS * (2 * 9 + 2 * HEAD * 2)},
            {"teacher sampling": 1.0},
        ),
        (
            sampled("teacher"),
            "evaluation",
            {"graded_teacher_sampled": 2, "graded_prompt": 7},
            {"graded": TEACHERS * (2 * 9 + 2 * HEAD * 2)},
            {},
        ),
        (
            lambda meter: meter.score("teacher", ROWS),
            "training",
            {"teacher_scored": 4},
            {"teacher_scored": TEACHERS * (2 * 10 + 2 * HEAD * 4)},
            {"scoring": 1.0},
        ),
        (
            lambda meter: meter.inspect("student", ROWS),
            "training",
            {"student_scored": 4},
            {"student_scored": 2 * 8 + 2 * HEAD * 4},
            {"scoring": 1.0},
        ),
        (
            lambda meter: meter.rows("init", *ROWS[0]),
            "training",
            {"student_scored": 3},
            {"student_scored": 2 * 5 + 2 * HEAD * 3},
            {"scoring": 1.0},
        ),
        (
            lambda meter: meter.inspect("student", ROWS),
            "evaluation",
            {"graded_student_scored": 4},
            {"graded": 2 * 8 + 2 * HEAD * 4},
            {},
        ),
        (
            lambda meter: meter.rows("teacher", *ROWS[1]),
            "evaluation",
            {"graded_scored": 1},
            {"graded": TEACHERS * (2 * 4 + 2 * HEAD)},
            {},
        ),
    ],
)
def test_a_call_is_counted(
    clock: Clock, call: Any, scope: Scope, tokens: dict, operations: dict, seconds: dict
) -> None:
    meter = metered(clock, scope)
    call(meter)
    assert counted(meter) == (tokens, operations, seconds)


def datum(completion: tuple[int, ...], *losses: Loss, untrained: int = 0) -> Datum:
    weights = np.where(np.arange(len(completion)) < untrained, 0, 0.1).astype(np.float32)
    terms = tuple(Term(loss, weights) for loss in losses)
    scores = np.zeros(len(completion), np.float32)
    return Datum(PROMPT, completion, completion, terms, "student", scores, scores)


ANCHOR = replace(REVERSE_KL, to="init")
DATA = [
    datum((1, 2, 3), REVERSE_KL, ANCHOR, untrained=1),
    datum((1, 2), CROSS_ENTROPY, ANCHOR),
    datum((4,), REVERSE_KL),
]


def test_each_model_reads_what_its_losses_need() -> None:
    want = {"teacher": [(3, 3), (3, 1)], "init": [(2, 3), (2, 2)]}
    assert targets(DATA) == want and targets(DATA[1:2]) == {"init": [(2, 2)]}
    assert targets([datum((1,), CROSS_ENTROPY)]) == {}


def test_a_step_is_counted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = metered(clock)
    stats = StepStats(1.0, 1.0, optimizer=0.25)
    monkeypatch.setattr(FakeEngine, "step", lambda *args: stats)
    assert meter.step(DATA, 0.1) is stats
    tokens, operations, seconds = counted(meter)
    assert tokens == {"trained": 2 + 2 + 1, "teacher_scored": 3 + 1}
    student = 3 * (2 * 12 + 2 * HEAD * 6)  # three passes, and one of the model of step 0
    assert operations == {
        "trained": student + 2 * 9 + 2 * HEAD * 5,
        "teacher_scored": TEACHERS * (2 * 10 + 2 * HEAD * 4),
    }
    assert seconds == {"optimizer": 0.25, "forward and backward": 0.75}
    assert sorted(meter.engine.asked) == ["init", "student", "teacher"]
    meter.step(DATA, 0.1)
    assert len(meter.engine.asked) == 3 and counted(meter)[0]["trained"] == 10


@pytest.mark.parametrize("scope", ["training", "evaluation"])
def test_a_measurement_reads_what_a_step_reads(
    clock: Clock, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = metered(clock, scope)
    monkeypatch.setattr(FakeEngine, "measure", lambda *args, **options: StepStats(1.0, 1.0))
    assert meter.measure(DATA).loss == 1.0
    assert sorted(meter.engine.asked) == ["init", "student", "teacher"]
    own, others = 2 * 12 + 2 * HEAD * 6, 2 * 9 + 2 * HEAD * 5
    others += TEACHERS * (2 * 10 + 2 * HEAD * 4)
    tokens, operations, _ = counted(meter)
    if scope == "training":
        assert tokens == {"student_scored": 6}
        assert operations == {"student_scored": own, "trained": others}
    else:
        assert tokens == {"graded_student_scored": 6} and operations == {"graded": own + others}


def test_a_model_of_unknown_size_leaves_no_operations(clock: Clock) -> None:
    meter = metered(clock)
    meter.score("student", ROWS)
    assert meter.usage.flops and meter.usage.sized is True
    meter.engine.size = lambda role: None
    meter.score("teacher", ROWS)
    assert meter.usage.flops == {} and meter.usage.tokens["teacher_scored"] == 4


def test_saved_seconds_are_those_of_the_call(clock: Clock) -> None:
    meter = metered(clock)
    meter.engine.saved = 5.0  # before
    sampled("teacher")(meter)
    assert dict(meter.usage.saved) == {}
    real = meter.engine.sample

    def cached(*args: Any) -> Any:
        meter.engine.saved += 3.0
        return real(*args)

    meter.engine.sample = cached
    sampled("teacher")(meter), sampled("teacher")(meter)
    assert dict(meter.usage.saved) == {"teacher sampling": 6.0}
    plain = FakeEngine()
    assert Metered(plain, Usage(plain))._saved == 0.0


def test_time_that_no_clock_measured_is_other(clock: Clock) -> None:
    usage = Usage(FakeEngine())
    clock.now += 2.0
    with pytest.raises(ValueError, match="within"), usage.clock("scoring"):
        clock.now += 3.0
        raise ValueError("within")
    assert usage.state()["seconds"] == {"scoring": 3.0, "other": 2.0}
    clock.now += 0.5
    assert usage.state()["seconds"] == {"scoring": 3.0, "other": 2.5}
    usage.seconds["scoring"] += 9.0  # of work in parallel: more than the wall clock
    assert usage.state()["seconds"] == {"scoring": 12.0, "other": 2.5}


def test_a_resumed_run_goes_on_from_its_counts(clock: Clock) -> None:
    meter = metered(clock)
    sampled("student")(meter)
    meter.usage.saved["teacher sampling"] += 4.0
    clock.now += 5.0
    state = meter.usage.state()
    assert state == {
        "tokens": dict.fromkeys(ALWAYS, 0) | {"student_sampled": 2, "prompt": 5},
        "seconds": {"student sampling": 1.0, "other": 5.0},
        "flops": {"student_sampled": 2 * 7 + 2 * HEAD * 2},
        "saved": {"teacher sampling": 4.0},
        "sources": {},
    }
    resumed = metered(clock)
    resumed.score("student", ROWS)  # pre-flight of the resumed process: its seconds count
    clock.now += 0.5
    resumed.usage.recall(state)
    clock.now += 0.25
    found = resumed.usage.state()
    assert (found["tokens"], found["flops"], found["saved"]) == (
        *(state["tokens"], state["flops"], state["saved"]),
    )
    assert found["seconds"] == {"student sampling": 1.0, "scoring": 1.0, "other": 5.75}
    assert resumed.usage.spent == 2
    resumed.usage.recall(None)
    assert resumed.usage.state() == found
    older = metered(clock)
    older.usage.recall({"tokens": {"trained": 3.0}, "seconds": {}})
    assert older.usage.flops == {} and older.usage.tokens == {"trained": 3}
    assert isinstance(older.usage.tokens["trained"], int) and not older.usage.sized
