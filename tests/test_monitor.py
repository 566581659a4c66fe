"""The monitor's arithmetic on an engine whose every number is written down here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from potstill.algorithms.losses import CrossEntropy, TruncatedReverseKL
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics import monitor as module
from potstill.diagnostics.diagnosis import diagnose
from potstill.diagnostics.faults.explaining import candidates
from potstill.diagnostics.monitor import Monitor
from potstill.diagnostics.probe import Probe, loop, mean, repetition
from potstill.problems import Grade, Problem
from potstill.settings import Eval, Train
from potstill.training.evaluation import TeacherCompletions
from potstill.training.rollout import draw, generator
from potstill.training.run import RunSpec
from potstill.types import Expectation, Finding, Ids, Prompt, Sample, StepStats, Trajectory

EOS = 9
WORDS = {5: "five", 6: "six", 7: "seven", 8: "eight", EOS: ""}


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


@dataclass
class Toy:
    """Four problems; a completion that says "five" is right."""

    name: str = "toy"
    train: Sequence[Problem] = field(
        default_factory=lambda: [Problem(str(i), f"q{i}", "five") for i in range(4)]
    )
    test: Sequence[Problem] = ()

    def grade(self, problem: Problem, text: str) -> Grade:
        return Grade(text == problem.answer, problem.answer in text)


class Scripted:
    """An engine whose answers are attributes; it records how it was asked."""

    losses = frozenset({"reverse_kl", "reverse_kl_sampled", "truncated_reverse_kl"})
    eos = frozenset({EOS})

    def __init__(self) -> None:
        self.greedy: list[Ids] = [(5, EOS), (6, EOS), (7, 8)]
        self.drawn: dict[str, list[Ids]] = {
            "student": [(5, EOS), (5, 5, 6), (5, EOS)],
            "teacher": [(6, 6, 6, 6), (5, EOS), (5, EOS)],
        }
        self.expectations: dict[tuple[str, str], list[Expectation]] = {}
        self.reports: dict[str, StepStats] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.marks: dict[tuple[str, str], str] = {}  # (problem, role) -> opened thought
        self.scores: list[Any] = []

    def prompt(self, problem: Problem) -> Prompt:
        return Prompt((int(problem.id),), (int(problem.id),), problem.id)

    def opening(self, prompt: Prompt, role: str) -> str:
        return self.marks.get((prompt.problem, role), "")

    def decode(self, tokens: Ids) -> str:
        return " ".join(WORDS[token] for token in tokens if token != EOS)

    def sample(
        self,
        role: str,
        prompts: Sequence[Prompt],
        limits: list[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        self.calls.append((role, [p.problem for p in prompts], limits, temperature, rng.random()))
        rows = self.drawn[role] if temperature else self.greedy
        return [Sample(tokens, floats(*[-1.0] * len(tokens))) for tokens in rows]

    def inspect(self, role: str, readings: Sequence[Any]) -> list[Expectation]:
        completions = [completion for _, completion in readings]
        return self.expectations[role, "teacher's" if completions == self.greedy else "own"]

    def score(self, role: str, readings: Sequence[Any]) -> list[Any]:
        self.calls.append(("score", role, list(readings)))
        return self.scores

    def measure(self, data: Any, *, dropout: bool = False) -> StepStats:
        assert dropout  # the report of the step itself
        return self.reports[data]


def expectation(logprobs: Sequence[float], **values: Sequence[float]) -> Expectation:
    return Expectation(floats(*logprobs), **{k: floats(*v) for k, v in values.items()})


@pytest.fixture
def engine() -> Scripted:
    engine = Scripted()
    engine.expectations = {
        ("student", "own"): [
            expectation([-1, -2], entropy=[1, 3]),
            expectation([-1, -1, -4], entropy=[0, 0, 2]),
            expectation([-1, -2], entropy=[1, 5]),
        ],
        ("teacher", "own"): [
            expectation([-2, -3], entropy=[2, 2]),
            expectation([-1, -3, -8], entropy=[1, 1, 1]),
            expectation([-2, -2], entropy=[2, 5]),
        ],
        ("student", "teacher's"): [
            expectation([-4, -1], copy=[0.5, 0], end=[0.25, 0.75]),
            expectation([-2, -1], copy=[0.25, 0.5], end=[0.5, 0.25]),
            expectation([-3, -1], copy=[0.25, 0], end=[1, 1]),
        ],
    }
    return engine


def probe(engine: Any, seed: int = 3) -> Probe:
    task: Any = Toy()
    teacher = TeacherCompletions({"0": "five", "1": "six", "2": "seven eight"})
    return Probe(engine, task, task.train[:3], 6, seed, teacher)


def test_the_signals_of_a_probe(engine: Scripted) -> None:
    probed = probe(engine)
    signals = probed.measure()
    scores = [
        probed.teacher.score(p, text)
        for p, text in zip(probed.problems, ["five", "five five six", "five"], strict=True)
    ]
    assert 0 < scores[1] < 1 == scores[0]
    assert signals == pytest.approx(
        {
            "train/score": np.mean(scores),
            "train/kl_divergence": (1 + 1 + 0 + 2 + 4 + 1 + 0) / 7,
            "train/accuracy": 2 / 3,
            "signal/length": 7 / 3,
            "signal/loop": (0 + 1 / 2 + 0) / 3,
            "signal/distinct": 2 / 3,
            "signal/truncated": 1 / 3,
            "signal/repetition": 1 / 6,
            "signal/entropy": 12 / 7,
            "signal/teacher_entropy": 14 / 7,
            "signal/kl_early": (1 + 0 + 1) / 3,
            "signal/kl_late": (1 + 2 + 4 + 0) / 4,
            "signal/teacher_loss": 21 / 7,
            "signal/reading_loss": 12 / 6,
            "signal/copy": 1.5 / 6,
            "signal/end": (0.75 + 0.25) / 2,  # of the two completions that end
        }
    )
    assert probed.outcomes == [True, False, True]
    first, second = engine.calls
    assert first[:4] == ("teacher", ["0", "1", "2"], [6, 6, 6], 0.0)
    assert second[:4] == ("student", ["0", "1", "2"], [6, 6, 6], 1.0)
    assert second[4] == generator(3, 0, "probe").random()


def test_a_probe_asks_for_the_same_random_numbers_each_time(engine: Scripted) -> None:
    probed = probe(engine)
    assert probed.measure() == probed.measure()
    probe(engine, 4).measure()
    drawn = [call[4] for call in engine.calls if call[:1] == ("student",)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_teacher_at_step_0(engine: Scripted) -> None:
    probed = probe(engine)
    probed.outcomes = [False, True, True]
    assert probed.compare_with_teacher() == {
        "signal/teacher_length": 8 / 3,
        "signal/teacher_loop": 1 / 3,
        "signal/teacher_distinct": 2 / 3,
        "signal/teacher_truncated": 1 / 3,
        "signal/teacher_accuracy": 1 / 3,
        "signal/teacher_only": 1,
        "signal/student_only": 2,
    }
    role, _, limits, temperature, drawn = engine.calls[-1]
    assert (role, limits, temperature) == ("teacher", [6, 6, 6], 1.0)
    assert drawn == generator(3, 0, "probe").random()


def test_completions_are_graded_with_the_thought_that_the_prompt_opens(engine: Scripted) -> None:
    engine.marks = {("2", "student"): "<think>"}
    probed = probe(engine)
    assert probed.measure()["train/accuracy"] == 1 / 3
    assert probed.compare_with_teacher()["signal/teacher_accuracy"] == 1 / 3
    engine.marks = {("0", "teacher"): "<think>"}
    probed = probe(engine)
    assert probed.measure()["train/accuracy"] == 2 / 3
    assert probed.compare_with_teacher()["signal/teacher_accuracy"] == 0.0


def test_the_last_token_decides_what_ends(engine: Scripted) -> None:
    engine.greedy = [(5, 6, EOS), (6, EOS, 7), (EOS,)]
    engine.drawn["student"] = [(5, EOS, 6), (5, 5, EOS), (5, EOS)]
    for key in engine.expectations:
        lengths = [3, 3, 1] if key[1] == "teacher's" else [3, 3, 2]
        engine.expectations[key] = [
            expectation([-1.0] * n, entropy=[0.0] * n, copy=[0.0] * n, end=range(n))
            for n in lengths
        ]
    signals = probe(engine).measure()
    assert signals["signal/truncated"] == 1 / 3
    assert signals["signal/end"] == (2 + 0) / 2


def test_problems_that_one_of_the_two_alone_solves(engine: Scripted) -> None:
    probed = probe(engine)
    for student, teacher, alone in (
        ([True, True, False], [(5,), (6,), (5,)], (1, 1)),
        ([False, False, False], [(6,), (6,), (6,)], (0, 0)),
        ([True, False, True], [(5,), (5,), (5,)], (0, 1)),
    ):
        probed.outcomes = student
        probed.teacher_readings = [(p, t) for p, t in zip(probed.prompts, teacher, strict=True)]
        row = probed.compare_with_teacher()
        assert (row["signal/student_only"], row["signal/teacher_only"]) == alone


def test_kl_is_summed_in_double_precision(engine: Scripted) -> None:
    engine.expectations["student", "own"][0] = expectation([1e-4, -2], entropy=[1, 3])
    engine.expectations["teacher", "own"][0] = expectation([-1e4, -3], entropy=[2, 2])
    far = np.float64(np.float32(1e-4)) + 1e4
    kl = probe(engine).measure()["train/kl_divergence"]
    assert kl == (far + 1 + 0 + 2 + 4 + 1 + 0) / 7


def test_signals_that_an_engine_does_not_know_are_none(engine: Scripted) -> None:
    for key, rows in engine.expectations.items():
        engine.expectations[key] = [Expectation(row.logprobs) for row in rows]
    signals = probe(engine).measure()
    unknown = {name for name, value in signals.items() if value is None}
    assert unknown == {f"signal/{n}" for n in ("entropy", "teacher_entropy", "copy", "end")}


def test_an_empty_completion_is_truncated_and_ends_nowhere(engine: Scripted) -> None:
    engine.greedy[0], engine.drawn["student"][0] = (), ()
    for rows in engine.expectations.values():
        rows[0] = expectation([], entropy=[], copy=[], end=[])
    signals = probe(engine).measure()
    assert signals["signal/truncated"] == 2 / 3
    assert signals["signal/end"] == 0.25 and signals["signal/length"] == 5 / 3


@pytest.mark.parametrize(
    ("tokens", "repeated", "looped"),
    [
        ((), 0.0, 0.0),
        ((5,), 0.0, 0.0),
        ((5, 5), 1.0, 1.0),
        ((5, 6, 5), 0.0, 0.5),
        ((5, 5, 6, 6), 2 / 3, 2 / 3),
        (tuple(range(16)) * 2, 0.0, 16 / 31),
        (tuple(range(17)) * 2, 0.0, 0.0),  # a longer period
    ],
)
def test_repetition_and_loops(tokens: Ids, repeated: float, looped: float) -> None:
    assert repetition(tokens) == repeated and loop(tokens) == looped


def test_the_mean_of_no_values_is_none() -> None:
    assert mean([]) is None and mean([floats(), floats()]) is None
    assert mean([floats(1, 2), floats(), floats(6)]) == 3.0
    assert mean([floats(2**24), floats(1), floats(1)]) == (2**24 + 2) / 3  # in double precision


# --- checks of steps ---

RECIPE = Recipe(name="r", on_policy=0.5)


def trajectory(problem: str = "0", source: Any = "student", **changes: Any) -> Trajectory:
    values: dict[str, Any] = {"completion": (5, 6, EOS), "logprobs": floats(-1, -2, -3)}
    values |= {
        "prompt": Prompt((int(problem),), (int(problem),), problem),
        "source": source,
    } | changes
    return Trajectory(**values)


@pytest.fixture
def watched(engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """A monitor; data are named by the mistakes in them, "" for none."""

    def as_if(mistakes: Any, recipe: Recipe, batch: Any, engine: Any) -> str:
        assert recipe is RECIPE and batch == "batch" and isinstance(engine, Scripted)
        return "+".join(fault.name for fault in mistakes)

    monkeypatch.setattr(module, "as_if", as_if)

    def build(recipe: Recipe, batch: Any, engine: Any) -> str:
        assert batch == "batch" and isinstance(engine, Scripted)
        return f"top {recipe.student_loss}"

    monkeypatch.setattr(module.objective, "build", build)
    task: Any = Toy()
    spec = RunSpec(RECIPE, engine, task, 3)  # type: ignore[arg-type]
    teacher = TeacherCompletions({"0": "five", "1": "six", "2": "seven eight"})
    settings = Train(max_tokens=6, batch_size=2)
    return Monitor(spec, settings, Eval(probe=3, probe_every=5), engine, teacher)  # type: ignore[arg-type]


def stats(loss: float, **losses: float) -> StepStats:
    return StepStats(loss, 1.0, losses)


def step(
    watched: Monitor, number: int, trained: StepStats, fresh: Any = (), last: bool = False
) -> dict[str, Any]:
    """One step of a run, with metrics as the loop has them."""
    if not fresh:
        drawn = draw(watched.spec.task.train, 2, 3, number - 1)
        fresh = [trajectory(problem.id, "teacher") for problem in drawn]
    watched.before(number, fresh, "batch")  # type: ignore[arg-type]
    metrics = {"step": number, "tokens": 0, "train/loss": trained.loss, "train/grad_norm": 1.0}
    return watched.after(metrics, trained, fresh, last=last)


def test_steps_are_checked_at_step_1_at_probes_and_where_something_is_suspected(
    watched: Monitor, engine: Scripted
) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    rows = {n: step(watched, n, stats(0.5, student=0.5)) for n in range(1, 7)}
    assert [n for n, row in rows.items() if "checks" in row] == [1, 5]
    assert [n for n, row in rows.items() if "train/kl_divergence" in row] == [5]
    assert rows[1] == {"checks": [], "check/sampler": 0.0, "suspects": []}
    assert rows[5]["suspects"] == [] and rows[5]["checks"] == []
    assert watched.rows[1] == {
        "step": 2,
        "tokens": 0,
        "train/loss": 0.5,
        "train/grad_norm": 1.0,
    }
    assert "train/kl_divergence" in step(watched, 7, stats(0.5, student=0.5), last=True)
    assert watched.probes(10) and not watched.probes(11)


def checks(row: dict[str, Any]) -> list[tuple[str, float | None, float | None, str]]:
    return [(c["what"], c["trained"], c["expected"], c["cause"]) for c in row["checks"]]


@pytest.mark.parametrize(
    ("trained", "expected", "found"),
    [
        (stats(0.5, student=0.5), stats(0.5, student=0.5), []),
        (stats(0.5, student=0.5004), stats(0.5, student=0.5), []),  # a thousandth
        (stats(0.5, student=0.5006), stats(0.5, student=0.5), ["student"]),
        (stats(0.01, student=0.0101), stats(0.01, student=0.01), []),  # 1e-4 of 0.1
        (stats(0.01, student=0.0102), stats(0.01, student=0.01), ["student"]),
        (stats(0.5, student=0.5), stats(0.5, student=0.5, anchor=0.1), ["anchor"]),
        (stats(0.5, student=0.5, teacher=1.0), stats(0.5, student=0.5), ["teacher"]),
        (stats(0.7, student=0.5), stats(0.5, student=0.5), ["loss"]),
        (stats(0.7, student=0.7), stats(0.5, student=0.5), ["student"]),
        (
            stats(0.7, anchor=0.2, teacher=0.9, student=0.9),
            stats(0.5, student=0.5, teacher=0.5, anchor=0.1),
            ["student", "teacher", "anchor"],
        ),
    ],
)
def test_the_parts_of_a_loss_that_differ(
    watched: Monitor, engine: Scripted, trained: StepStats, expected: StepStats, found: list[str]
) -> None:
    engine.reports[""] = expected
    row = step(watched, 1, trained)
    wanted = (
        [(part, trained.losses.get(part), expected.losses.get(part)) for part in found]
        if found != ["loss"]
        else [("loss", trained.loss, expected.loss)]
    )
    causes = ["anchor_absent" if p == "anchor" and t is None else "" for p, t, _ in wanted]
    assert checks(row) == [(*w, c) for w, c in zip(wanted, causes, strict=True)]
    assert row["suspects"] == sorted(w[0] for w, c in zip(wanted, causes, strict=True) if not c)


def mistaken(engine: Scripted, **losses: float) -> None:
    """The report of a step with each known mistake; by default far from everything."""
    for mistakes in candidates(engine.losses).values():
        engine.reports["+".join(fault.name for fault in mistakes)] = stats(9.0, student=9.0)
    for kept in module.KEPT:
        engine.reports[f"top {TruncatedReverseKL(kept)}"] = stats(8.0, student=8.0)
    for name, loss in losses.items():
        engine.reports[name] = stats(loss, student=loss)


def test_two_sources_at_full_weight_are_a_mixture_that_is_not_blended(
    watched: Monitor, engine: Scripted
) -> None:
    engine.reports[""] = stats(0.75, student=0.5, teacher=1.0)
    mistaken(engine)
    row = step(watched, 1, stats(1.5, student=0.52, teacher=1.0))  # another step in between
    assert checks(row) == [("loss", 1.5, 0.75, "mixture_unblended")]
    row = step(watched, 5, stats(1.5, student=0.6, teacher=1.0))
    assert checks(row)[0][0] == "student" and checks(row)[1][3] == "mixture_unblended"
    row = step(watched, 10, stats(0.8, student=0.5, teacher=1.0))
    assert checks(row) == [("loss", 0.8, 0.75, "mixture_unblended")]  # known by now
    watched.causes.clear()
    row = step(watched, 15, stats(0.8, student=0.5, teacher=1.0))
    assert checks(row) == [("loss", 0.8, 0.75, "")]


def test_a_sum_that_is_the_recipes_own_is_blended(watched: Monitor, engine: Scripted) -> None:
    engine.reports[""] = stats(1.5, student=0.5, teacher=1.0)
    assert checks(step(watched, 1, stats(1.5, student=0.5, teacher=1.0))) == []
    near = stats(1.45, student=0.5, teacher=1.0)  # less than a tenth from the recipe's own sum
    assert checks(step(watched, 5, near)) == [("loss", 1.45, 1.5, "")]
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine)
    assert checks(step(watched, 6, stats(0.5, student=0.5))) == []  # one source is its own sum


def test_a_difference_is_explained_at_the_next_step(watched: Monitor, engine: Scripted) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine, prompt_dropped=2.0)
    first = step(watched, 1, stats(2.0, student=2.0))
    assert checks(first) == [("student", 2.0, 0.5, "")] and first["suspects"] == ["student"]
    second = step(watched, 2, stats(2.001, student=2.001))
    assert checks(second) == [("student", 2.001, 0.5, "prompt_dropped")]
    assert second["suspects"] == [] and watched.causes == {"student": "prompt_dropped"}
    third = step(watched, 5, stats(7.0, student=7.0))  # the cause stays
    assert checks(third) == [("student", 7.0, 0.5, "prompt_dropped")]
    assert [f.cause for f in watched.findings] == ["prompt_dropped"]
    assert "checks" not in step(watched, 6, stats(7.0, student=7.0))


def test_a_mistake_explains_a_loss_to_a_thousandth(watched: Monitor, engine: Scripted) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine, prompt_dropped=2.0)
    step(watched, 1, stats(2.0, student=2.0))
    assert checks(step(watched, 2, stats(2.003, student=2.003))) == [("student", 2.003, 0.5, "")]


def test_a_difference_that_nothing_explains_is_given_up(watched: Monitor, engine: Scripted) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine)
    step(watched, 1, stats(2.0, student=2.0))
    row = step(watched, 2, stats(2.0, student=2.0))
    assert checks(row) == [("student", 2.0, 0.5, "")] and row["suspects"] == []
    assert [f.cause for f in watched.findings] == ["another_objective"] and not watched.causes
    assert "checks" not in step(watched, 3, stats(2.0, student=2.0))


def test_a_loss_over_the_likeliest_ids_is_recognised(watched: Monitor, engine: Scripted) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine)
    engine.reports[f"top {TruncatedReverseKL(20)}"] = stats(0.4, student=0.4)
    step(watched, 1, stats(0.4, student=0.4))
    row = step(watched, 2, stats(0.4, student=0.4))
    assert checks(row) == [("student", 0.4, 0.5, "top_k_without_tail")]


@pytest.mark.parametrize("why", ["another loss", "another engine"])
def test_truncation_is_tried_where_it_can_be(
    watched: Monitor, engine: Scripted, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine)
    engine.reports[f"top {TruncatedReverseKL(20)}"] = stats(0.4, student=0.4)
    if why == "another engine":
        monkeypatch.setattr(
            engine, "losses", engine.losses - {"truncated_reverse_kl"}, raising=False
        )
    else:
        object.__setattr__(RECIPE, "student_loss", CrossEntropy())
    try:
        step(watched, 1, stats(0.4, student=0.4))
        row = step(watched, 2, stats(0.4, student=0.4))
    finally:
        object.__setattr__(RECIPE, "student_loss", Recipe(name="r").student_loss)
    assert checks(row) == [("student", 0.4, 0.5, "")]


def test_a_sum_at_full_weight_loosens_the_comparison_with_a_mistake(
    watched: Monitor, engine: Scripted
) -> None:
    """Two steps were taken for one, so the weights of the second have moved."""
    engine.reports[""] = stats(0.75, student=0.5, teacher=1.0)
    mistaken(engine, prompt_dropped=2.0)
    step(watched, 1, stats(3.1, student=2.1, teacher=1.0))
    row = step(watched, 2, stats(3.1, student=2.1, teacher=1.0))
    assert checks(row) == [
        ("student", 2.1, 0.5, "prompt_dropped"),
        ("loss", 3.1, 0.75, "mixture_unblended"),
    ]


def test_the_problems_of_a_step_are_those_that_the_seed_draws(
    watched: Monitor, engine: Scripted
) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    drawn = [p.id for p in draw(watched.spec.task.train, 2, 3, 0)]
    same = [trajectory(name, "teacher") for name in reversed(drawn)]
    assert checks(step(watched, 1, stats(0.5, student=0.5), same)) == []
    assert checks(step(watched, 5, stats(0.5, student=0.5), same)) == (
        [("problems that the seed draws", 0, 2, "seeds_ignored")]
        if sorted(drawn) != sorted(p.id for p in draw(watched.spec.task.train, 2, 3, 4))
        else []
    )
    wrong = [same[0], same[0]]
    row = step(watched, 1, stats(0.5, student=0.5), wrong)
    assert checks(row) == [("problems that the seed draws", 0, 2, "seeds_ignored")]


def test_the_distance_of_the_sampler_from_the_student(
    watched: Monitor, engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    drawn = [p.id for p in draw(watched.spec.task.train, 2, 3, 0)]
    fresh = [
        trajectory(drawn[0], prefix=1),
        trajectory(drawn[1], prefix=3),  # nothing of it is trained
    ]
    engine.scores = [floats(-9, -2, -3)]
    row = step(watched, 1, stats(0.5, student=0.5), fresh)
    assert row["check/sampler"] == 0.0 and checks(row) == []
    assert engine.calls[-1] == ("score", "student", [(fresh[0].prompt, fresh[0].completion)])
    engine.scores = [floats(-9, -2.02, -3)]
    row = step(watched, 1, stats(0.5, student=0.5), fresh)
    assert row["check/sampler"] == pytest.approx(0.01) and checks(row) == []
    engine.scores = [floats(-9, -2 - 2**-5, -3)]  # a mean of 2**-6 nats: below 0.02
    module_gap = 2**-6
    monkeypatch.setattr(module, "SAMPLER_GAP", module_gap)
    row = step(watched, 1, stats(0.5, student=0.5), fresh)
    assert row["check/sampler"] == module_gap and checks(row) == []
    engine.scores = [floats(-9, -2.5, -3)]
    row = step(watched, 1, stats(0.5, student=0.5), fresh)
    gap = ("sampler's distance from the student", 0.25, 0, "stale_sampler")
    assert checks(row) == [gap] and row["check/sampler"] == 0.25


def test_the_signals_of_the_sampled_completions(watched: Monitor, engine: Scripted) -> None:
    fresh = [
        trajectory("0"),
        trajectory("1", completion=(6, 5, 5, 5), logprobs=floats(-9, -1, -1, -3), prefix=1),
        trajectory("2", prefix=3),
        trajectory("3", "teacher", completion=(7, 7), logprobs=floats(-50, -50)),
    ]
    row = watched.after({"step": 2}, stats(0.5), fresh, last=False)
    assert row == {
        "train/truncated": 0.5,
        "train/repetition": (0 + 1) / 2,
        "train/surprise": pytest.approx((1 + 2 + 3 + 1 + 1 + 3) / 6),
    }
    assert watched.after({"step": 3}, stats(0.5), fresh[3:], last=False) == {}
    assert watched.after({"step": 4}, stats(0.5), fresh[1:2], last=False)["train/truncated"] == 1
    assert watched.probe.max_tokens == 6


def test_the_row_of_step_0(watched: Monitor, engine: Scripted) -> None:
    task: Any = Toy(test=[Problem("t", "q1", "five"), Problem("u", "q9", "five")])
    row = watched.start(task.test[:1])
    assert row["step"] == 0 and row["tokens"] == 0
    assert checks(row) == [("graded problems trained on", 1, 0, "eval_on_train")]
    assert row["train/accuracy"] == 2 / 3 and row["signal/teacher_accuracy"] == 1 / 3
    assert watched.rows == [row]
    assert watched.findings == diagnose([row])
    task.test = task.test[1:]
    assert checks(watched.start(task.test[:1])) == []
    task.test = [Problem("u", "q9", "five"), Problem("t", "q1", "five")]
    assert checks(watched.start(task.test[:1])) == []  # what is not evaluated does not matter


def test_a_resumed_run_knows_its_causes_and_suspects(watched: Monitor, engine: Scripted) -> None:
    known = {"what": "teacher", "trained": 2.0, "expected": 1.0, "cause": "prefix_trained"}
    open_ = {"what": "student", "trained": 2.0, "expected": 1.0, "cause": ""}
    rows = [{"step": 0}, {"step": 1, "checks": [known, open_], "suspects": ["student"]}]
    watched.recall(rows)
    assert watched.rows == rows and watched.rows is not rows
    assert watched.causes == {"teacher": "prefix_trained"}
    assert watched.findings == diagnose(rows)
    engine.reports[""] = stats(0.5, student=0.5)
    mistaken(engine)
    assert "checks" in step(watched, 2, stats(0.5, student=0.5))  # a suspect is looked at
    watched.recall([*rows, {"step": 2}])
    assert "checks" not in step(watched, 3, stats(0.5, student=0.5))
    watched.recall([])
    assert watched.rows == [] and watched.findings == []


def test_a_collapse_is_a_finding_of_its_kind(watched: Monitor) -> None:
    assert not watched.collapsed
    watched.findings = [Finding("deviation", "prompt_dropped", 1, 1, "", "")]
    assert not watched.collapsed
    watched.findings.append(Finding("collapse", "prompt_dropped", 1, 1, "", ""))
    assert watched.collapsed


def test_a_finished_run_has_notes_and_an_unfinished_one_has_none(
    watched: Monitor, engine: Scripted
) -> None:
    engine.reports[""] = stats(0.5, student=0.5)
    watched.rows = [watched.start(())]
    for number in range(1, 11):
        step(watched, number, stats(0.5, student=0.5))
    assert watched.findings == [] and watched.healthy_until == 10
    step(watched, 11, stats(0.5, student=0.5), last=True)
    assert [finding.cause for finding in watched.findings] == ["nothing_learned"]
