"""Pre-flight within a tenth of the predicted study: counted positions instead of a clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import toy_table
from potstill.diagnostics.faults import FAULTS
from potstill.diagnostics.preflight import COST, Check, Progress, TimeBudget
from potstill.diagnostics.preflight.budget import SHARE, CheckSize
from potstill.diagnostics.preflight.memo import Memo
from potstill.engines.fake import FakeEngine
from potstill.engines.protocol import Engine, Wrapper
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.schema import Study
from potstill.types import Prompt, StepStats
from test_preflight import LATER, SEEN_BY, causes, embedded


class Counted(Wrapper):
    """An engine whose time is the number of positions that its models have read."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.positions = 0.0
        self.calls: list[tuple[str, int]] = []  # name and rows

    def clock(self) -> float:
        return self.positions

    def _count(self, name: str, rows: Sequence[tuple[Prompt, Sequence[int]]], factor: int) -> None:
        self.calls.append((name, len(rows)))
        self.positions += factor * sum(len(p.student) + len(tokens) for p, tokens in rows)

    def sample(self, role: Any, prompts: Any, *rest: Any) -> Any:
        samples = self.engine.sample(role, prompts, *rest)
        rows = [(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
        self._count("sample", rows, 1)
        return samples

    def score(self, role: Any, rows: Any) -> Any:
        self._count("score", rows, 1)
        return self.engine.score(role, rows)

    def inspect(self, role: Any, rows: Any) -> Any:
        self._count("inspect", rows, 1)
        return self.engine.inspect(role, rows)

    def rows(self, role: Any, prompt: Any, completion: Any) -> Any:
        self._count("rows", [(prompt, completion)], 1)
        return self.engine.rows(role, prompt, completion)

    def measure(self, data: Any, *, dropout: bool = False) -> Any:
        self._count("measure", [(d.prompt, d.completion) for d in data], 2)
        return self.engine.measure(data, dropout=dropout)

    def step(self, data: Any, rate: float) -> Any:
        self._count("step", [(d.prompt, d.completion) for d in data], 4)
        return self.engine.step(data, rate)


def counted(
    study: Study, monkeypatch: pytest.MonkeyPatch, limit: float | None = 0.0, **options: Any
) -> tuple[list[Check], Counted]:
    """Pre-flight by the clock of a counting engine."""
    engine = Counted(FakeEngine())
    clock = SimpleNamespace(perf_counter=engine.clock)
    for module in ("potstill.diagnostics.preflight.timing", "potstill.training.metering"):
        monkeypatch.setattr(f"{module}.time", clock)
    monkeypatch.setattr("potstill.study.run.open_study_engine", lambda *_: engine)
    budget = TimeBudget(limit, engine.clock)
    return preflight_pair(study, "toy", budget=budget, **options), engine


def cost_of(checks: Sequence[Check]) -> Check:
    return next(check for check in checks if check.name == COST)


@pytest.mark.parametrize("steps", [12, 100, 300])
def test_the_checks_take_a_tenth_of_the_predicted_study(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["on_policy_gkd", "off_policy", "hybrid"]
    changes: dict[str, Any] = {"steps": steps, "batch_size": 4, "max_tokens": 48}
    study = read_study(toy_table(tmp_path, methods=methods, train=changes, seeds=[0]))
    checks, engine = counted(study, monkeypatch)
    numbers = cost_of(checks).numbers
    limit = max(SHARE * numbers["study"], numbers["step of each kind"])
    assert not causes(checks) and not any(check.status == "refused" for check in checks)
    monkeypatch.setattr(TimeBudget, "predict", lambda *_: None)
    least = counted(study, monkeypatch)[1].positions  # every check at its smallest size
    assert engine.positions <= max(limit, least)
    assert engine.positions >= least
    reduced = [check for check in checks if "to stay within 10% of the study" in check.evidence]
    assert bool(reduced) == (steps < 100)
    if steps == 300:
        monkeypatch.undo()
        whole = counted(study, monkeypatch, None, only=["sampler", "steps", "forward pass"])
        full = {check.name: check.evidence for check in whole[0]}
        assert {c.name: c.evidence for c in checks if c.name in full} == full


def test_what_was_reduced_is_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimeBudget, "predict", lambda *_: None)
    checks, _ = counted(read_study(toy_table(tmp_path, methods=["mixture"])), monkeypatch)
    found = {check.name: check.evidence for check in checks}
    reduced = "to stay within 10% of the study"
    step = f"; on 2 of 12 problems, completions of 16 tokens, {reduced}"
    assert found["mixture: student tokens"].endswith(step)
    assert found["mixture: teacher tokens"].endswith(step)  # one problem of each source
    assert found["fresh sampler"].endswith(step)
    for name in ("forward pass", "sampler"):
        assert found[name].endswith(f"; on 2 of 8 problems, {reduced}")
    assert found["identity"].endswith(f"; on 2 of 4 problems, {reduced}")
    assert (
        f"timed on one step of each kind, 4 of 20 problems, a part of a probe, {reduced}"
        in (found[COST])
    )
    assert re.search(r"these checks took [\d.e+-]+ s$", found[COST])


def test_without_a_limit_every_check_has_its_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(toy_table(tmp_path, methods=["off_policy"]))
    checks, engine = counted(study, monkeypatch, None, only=["steps", "capability gap"])
    assert not [check for check in checks if "stay within" in check.evidence]
    assert ("sample", 12) in engine.calls and ("sample", 40) in engine.calls  # all that it has


def test_progress_has_the_start_and_the_end_of_each_check(tmp_path: Path) -> None:
    study, events = read_study(toy_table(tmp_path, methods=["hybrid"])), list[Progress]()
    checks = preflight_pair(study, "toy", watch=events.append)
    started = [event.name for event in events if event.results is None]
    ended = [event for event in events if event.results is not None]
    assert started == [event.name for event in ended]  # in turn
    assert started[0] == "models" and started[-2:] == ["steps of hybrid", "fresh sampler"]
    assert started.index(COST) < started.index("forward pass")  # it sets the budget
    names = [check.name for event in ended[1:] for check in event.results or ()]
    assert sorted(names) == sorted(check.name for check in checks)
    assert checks[-1].name == COST
    assert {event.status for event in ended} == {"passed", "nothing to check"}
    assert all(event.seconds >= 0 for event in ended)


def test_budget_repeats_a_check_at_the_size_that_it_pays_for() -> None:
    now, made = [0.0], list[int]()

    def work(size: CheckSize) -> list[Check]:
        made.append(size.problems)
        now[0] += size.work
        return [Check("x", "passed", "fine")]

    sizes = (CheckSize(1, 10), CheckSize(2, 10), CheckSize(8, 10))
    for limit, expected in ((0.0, [1]), (29.0, [1]), (30.0, [1, 2]), (90.0, [1, 8]), (None, [8])):
        now[0], made = 0.0, []
        budget = TimeBudget(limit, lambda: now[0])
        size, (check,) = budget.scaled(sizes, work)
        assert made == expected and size.problems == expected[-1]
        assert limit is None or now[0] <= max(limit, 10)
        assert ("of 8 problems" in check.evidence) == (expected[-1] < 8)
    budget, now[0], made = TimeBudget(60.0, lambda: now[0], parts=2), 0.0, []
    budget.start = 0.0
    assert [budget.scaled(sizes, work)[0].problems for _ in range(2)] == [2, 2]


def test_a_check_that_fails_is_not_repeated() -> None:
    made = list[CheckSize]()

    def work(size: CheckSize) -> list[Check]:
        made.append(size)
        return [Check("x", "refused", "broken")]

    TimeBudget(1e9).scaled((CheckSize(1, 1), CheckSize(9, 9)), work)
    assert made == [CheckSize(1, 1)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_by_the_smallest_checks(fault: str) -> None:
    check, method = SEEN_BY[fault]
    study = embedded("tiny-llama", faults=[fault], methods=[method])
    checks = preflight_pair(study, "tiny-llama", only=[check], budget=TimeBudget(0.0))
    assert checks and causes(checks) == ({fault} if fault not in LATER else set())


@pytest.mark.parametrize("fault", ["", "stale_sampler"])
def test_adapters_are_moved_far_enough_to_see_a_stale_sampler(fault: str) -> None:
    """At the usual rates, a few steps on adapters change nothing that a sample could show."""
    changes = {"faults": [fault] if fault else [], "train": {"lora_rank": 4}}
    study = embedded("tiny-llama", methods=["on_policy_gkd"], **changes)
    only = ["fresh sampler"]
    (check,) = preflight_pair(study, "tiny-llama", only=only, budget=TimeBudget(0.0))
    assert check.cause == fault
    assert re.search(r"[2-6] steps", check.evidence)


def test_a_student_that_does_not_move_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "step", lambda *_: StepStats(0.0, 0.0))
    study = read_study(toy_table(tmp_path, methods=["off_policy"]))
    (check,) = preflight_pair(study, "toy", only=["fresh sampler"])
    assert check.status == "warning"
    assert check.evidence.startswith("6 steps move the student by 0 nats only")


def test_few_problems_are_enough_to_suspect_other_ids() -> None:
    """The gap is measured on all problems if the teacher misreads the student's completions."""
    study = embedded("tiny-llama", methods=["off_policy"], faults=["vocab_permuted"])
    only = [COST, "forward pass", "capability gap"]
    smallest = TimeBudget(0.0)
    smallest.predict = lambda *_: None  # type: ignore[method-assign]
    checks = preflight_pair(study, "tiny-llama", only=only, budget=smallest)
    assert causes(checks) == {"vocab_permuted"}
    sound = preflight_pair(embedded("tiny-llama", methods=["off_policy"]), "tiny-llama", only=only)
    assert not causes(sound)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["tiny-qwen", "tiny-llama", "tiny-cross"])
def test_sound_runs_pass_the_smallest_checks(pair: str) -> None:
    changes = {"student_loss": {"gold": 0.5}} if pair == "tiny-cross" else {}
    study = embedded(pair, **changes)
    only = ["forward pass", "sampler", "identity", "fresh sampler", "capability gap", "steps"]
    checks = preflight_pair(study, pair, only=only, budget=TimeBudget(0.0))
    assert checks and {check.status for check in checks} == {"passed"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_smallest_checks_of_any_method_name_no_other_fault(fault: str) -> None:
    only = ["forward pass", "sampler", "identity", "fresh sampler", "capability gap", "steps"]
    only += ["train and test", "seed"]
    study = embedded("tiny-llama", faults=[fault])
    checks = preflight_pair(study, "tiny-llama", only=only, budget=TimeBudget(0.0))
    assert causes(checks) == ({fault} if fault not in LATER else set())


def test_what_is_known_is_computed_once_until_the_student_changes(tmp_path: Path) -> None:
    counting = Counted(FakeEngine())
    memo = Memo(counting)  # type: ignore[arg-type]
    prompts = [Prompt.of(counting.encode("7")), Prompt.of(counting.encode("8"))]

    def sample(role: Any, seed: int = 0) -> list[Any]:
        return memo.sample(role, prompts, [4, 4], 1.0, np.random.default_rng(seed))

    first = {role: sample(role) for role in ("student", "teacher")}
    assert len(counting.calls) == 2
    assert all(sample(role)[0].tokens == first[role][0].tokens for role in first)
    assert len(counting.calls) == 2
    sample("student", seed=1)
    assert len(counting.calls) == 3  # another random state is another sample
    with memo.recomputing():
        sample("teacher")
    assert len(counting.calls) == 4
    rows = memo.rows("student", prompts[0], (5, 6))
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 0.0
    assert memo.rows("student", prompts[0], (5, 6)) is rows
    memo.score("teacher", [(prompts[0], (5, 6))])
    memo.save(tmp_path)
    before = len(counting.calls)
    memo.load(tmp_path)  # the student may be another one
    sample("teacher")
    memo.score("teacher", [(prompts[0], (5, 6))])
    assert len(counting.calls) == before
    assert memo.rows("student", prompts[0], (5, 6)) is not rows
    sample("student")
    assert len(counting.calls) == before + 2
