"""Faults: off by default, each does what its name says and nothing else, faulty runs resume too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import monitored, toy_table, write_toy
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS, PUBLISHED, DataFault, apply
from potstill.engines.fake import EOS, FakeEngine
from potstill.engines.protocol import Wrapper, bare
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.report import as_markdown, write_report
from potstill.report.audit import FULL
from potstill.settings import Eval, Train
from potstill.study.executors.local import LocalScheduler
from potstill.study.loading import load_study, read_study
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.tasks import load_task
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.training.run import RunSpec
from potstill.types import Datum, Limits, StepStats

STUDIES = Path(__file__).parents[1] / "studies"


class Stage(FakeEngine):
    """The fake engine, remembering what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Datum]] = []
        self.rates: list[float] = []

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        self.seen.append(list(data))
        self.rates.append(learning_rate)
        return super().step(data, learning_rate)


def step(fault: str, recipe: Recipe, tmp_path: Path) -> tuple[list[list[Datum]], list[Datum]]:
    """What reaches the engine with the fault on, and what would without it."""
    stage = Stage()
    run = apply(
        [fault] if fault else [], RunSpec(recipe, stage, load_task(**write_toy(tmp_path)), 0)
    )
    problems = [Problem(str(i), f"ab{i}", "") for i in range(10)]
    batch = collect(recipe, stage, problems, 0.0, 0, 0, Limits(24, 1.0, 1.0))
    clean = build(recipe, batch, stage)
    run.engine.step(build(run.recipe, batch, run.engine), 0.1)
    return stage.seen, clean


def arrays(datum: Datum) -> tuple:
    terms = [(str(t.loss), t.loss.to, t.weights.tolist()) for t in datum.terms]
    return datum.prompt, datum.completion, datum.targets, terms, dict(datum.views)


def test_the_published_eight_and_six_more() -> None:
    assert len(FAULTS) == 14
    assert PUBLISHED == (
        "unshifted_targets",
        "prompt_dropped",
        "stale_sampler",
        "prefix_trained",
        "anchor_absent",
        "mixture_unblended",
        "eval_on_train",
        "seeds_ignored",
    )
    assert all(fault.what and fault.where and fault.remedy for fault in FAULTS.values())


def test_without_faults_nothing_is_wrapped(tmp_path: Path) -> None:
    run = RunSpec(METHODS["mixture"], FakeEngine(), load_task(**write_toy(tmp_path)), 3)
    assert apply([], run) == run and not isinstance(run.engine, Wrapper)
    assert read_study(toy_table(tmp_path)).faults == ()


def test_unshifted_targets_ask_for_the_token_that_was_read(tmp_path: Path) -> None:
    (seen,), clean = step("unshifted_targets", METHODS["mixture"], tmp_path)
    for got, want in zip(seen, clean, strict=True):
        if want.source == "student":
            assert arrays(got) == arrays(want)
            continue
        prompt, completion = got.read_by("student")
        read = (prompt + completion)[len(prompt) - 1 :][: len(got.targets)]
        assert read == got.targets == want.targets  # the input at each position is its target


def test_prompt_dropped_leaves_the_completion_alone(tmp_path: Path) -> None:
    (seen,), clean = step("prompt_dropped", METHODS["on_policy_gkd"], tmp_path)
    long = [(got, want) for got, want in zip(seen, clean, strict=True) if len(want.completion) > 1]
    assert long
    for got, want in long:
        assert sum(got.read_by("student"), ()) == want.completion
        assert len(got.targets) == len(got.terms[0].weights) == len(want.targets) - 1
        prompt, completion = got.read_by("teacher")
        assert prompt + completion == want.prompt.teacher + want.completion


def test_prefix_trained_pushes_the_teachers_tokens_down(tmp_path: Path) -> None:
    (seen,), clean = step("prefix_trained", Recipe(name="x", prefix=1), tmp_path)
    for got, want in zip(seen, clean, strict=True):
        main, extra = got.terms
        assert np.array_equal(main.weights, want.terms[0].weights)
        assert extra.loss.name == "reverse_kl_sampled"
        assert extra.weights[0] > 0 and not extra.weights[1:].any()
        assert got.logprobs[0] == 0


def test_a_trained_prefix_has_the_advantage_log_q(tmp_path: Path) -> None:
    """The published step's: -p(y) log q(y), relative to a log-probability of 0 and not to p."""
    engine = FakeEngine()
    fault = FAULTS["prefix_trained"]
    assert isinstance(fault, DataFault)
    recipe = Recipe(name="x", prefix=2, student_loss="reverse_kl_sampled")
    problems = [Problem("0", "a3", ""), Problem("1", "b", "")]
    batch = collect(recipe, engine, problems, 0.0, 0, 0, Limits(8, 0.7, 8.0))
    trained = 0
    for datum in fault.rewrite(build(recipe, batch, engine), engine):
        prefix = datum.terms[-1].weights != 0
        if not prefix.any() or len(datum.terms) < 2:
            continue
        p, q = (
            engine.score(role, [(datum.prompt, datum.completion)])[0]
            for role in ("student", "teacher")
        )
        want = float((datum.terms[-1].weights * -np.exp(p) * q)[prefix].sum())
        alone = replace(datum, terms=datum.terms[-1:])
        assert engine.measure([alone]).loss == pytest.approx(want, rel=1e-5)
        trained += 1
    assert trained


def test_anchor_absent_and_unblended(tmp_path: Path) -> None:
    (seen,), _ = step("anchor_absent", METHODS["kl_anchored"], tmp_path)
    assert all(len(datum.terms) == 1 for datum in seen)
    steps, _ = step("mixture_unblended", METHODS["mixture"], tmp_path)
    assert len(steps) == 2
    for data in steps:
        assert sum(float(d.terms[0].weights.sum()) for d in data) == pytest.approx(1, abs=1e-5)
    alone, _ = step("mixture_unblended", METHODS["on_policy_gkd"], tmp_path)
    assert len(alone) == 1


def test_a_fault_takes_a_loss_with_its_limits(tmp_path: Path) -> None:
    fields = {"student_loss": "reverse_kl_sampled", "clip_ratio": 3.0, "clip_advantage": 1.0}
    sampled = Recipe(name="x", **fields)
    anchored = Recipe(name="y", anchor=0.1, anchor_loss="reverse_kl_sampled", clip_ratio=3.0)
    for fault, recipe in (("top_k_without_tail", sampled), ("anchor_absent", anchored)):
        run = apply([fault], RunSpec(recipe, FakeEngine(), load_task(**write_toy(tmp_path)), 0))
        assert run.recipe != recipe


def test_eos_untrained_and_views(tmp_path: Path) -> None:
    (seen,), _ = step("eos_untrained", METHODS["off_policy"], tmp_path)
    for datum in seen:
        assert [w == 0 for w in datum.terms[0].weights] == [y == EOS for y in datum.targets]
    for fault in ("teacher_shifted", "template_mismatch"):
        (seen,), clean = step(fault, METHODS["on_policy_gkd"], tmp_path)
        for got, want in zip(seen, clean, strict=True):
            prompt, completion = got.read_by("teacher")
            assert len(completion) == len(want.completion)
            if fault == "teacher_shifted":
                assert (prompt, completion[:-1]) == (
                    want.prompt.teacher + want.completion[:1],
                    want.completion[1:],
                )
            assert (got.prompt, got.completion) == (want.prompt, want.completion)


def run_toy(
    faults: list[str], tmp_path: Path, steps: int = 30, **settings: object
) -> tuple[Stage, Memory]:
    stage, memory = Stage(), Memory()
    task = load_task(**write_toy(tmp_path))
    run = apply(faults, RunSpec(METHODS["on_policy_gkd"], stage, task, 0))
    rates = Train(steps=steps, batch_size=10, max_tokens=24, learning_rate=0.1, warmup=0)
    grading = Eval(every=steps, problems=20, probe=8)
    monitored(run.recipe, run.engine, run.task, rates, grading, seed=run.seed, recorder=memory)
    return stage, memory


def test_stale_sampler_samples_with_old_weights(tmp_path: Path) -> None:
    stage, _ = run_toy(["stale_sampler"], tmp_path)
    probe, drift = FakeEngine(), []
    for data in stage.seen:
        rows = [(datum.prompt, datum.completion) for datum in data]
        fresh = np.concatenate(probe.score("student", rows))
        drift.append(float(np.abs(fresh - np.concatenate([d.logprobs for d in data])).max()))
        probe.step(data, 0.1)
    assert drift[0] < 1e-5 and drift[20] < 1e-5  # refreshed
    assert min(drift[1:20]) > 1e-3 and min(drift[21:]) > 1e-3


def test_learning_rate_spike_and_ignored_seeds(tmp_path: Path) -> None:
    stage, _ = run_toy(["learning_rate_spike"], tmp_path, steps=50)
    assert [i for i, rate in enumerate(stage.rates) if rate > 1] == [40, 41, 42]
    runs = [run_toy(["seeds_ignored"], tmp_path)[1].metrics for _ in range(2)]
    assert runs[0] != runs[1]


def test_grading_uses_the_bare_engine(tmp_path: Path) -> None:
    run = apply(
        ["stale_sampler", "eos_untrained"], RunSpec(METHODS["mixture"], FakeEngine(), None, 0)
    )  # type: ignore[arg-type]
    assert isinstance(run.engine, Wrapper) and type(bare(run.engine)) is FakeEngine


def test_eval_on_train_grades_training_problems(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    run = apply(["eval_on_train"], RunSpec(METHODS["mixture"], FakeEngine(), task, 0))
    assert run.task.test[0] == task.train[0] and run.task.train is task.train


def test_vocab_permuted_moves_rows_and_keeps_specials(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from potstill.diagnostics.faults import teacher_for

    teacher = str(models / "qwen" / "teacher")
    assert teacher_for(["eos_untrained"], teacher, tmp_path) == teacher
    folder = Path(teacher_for(["vocab_permuted"], teacher, tmp_path))
    old, new = (load_file(f / "model.safetensors") for f in (Path(teacher), folder))
    rows = [i for i in range(300) if not np.array_equal(old[KEY][i], new[KEY][i])]
    assert len(rows) > 250 and 0 not in rows and 1 not in rows and 2 not in rows
    assert sorted(map(tuple, old[KEY].tolist())) == sorted(map(tuple, new[KEY].tolist()))
    with pytest.raises(PotstillError, match="local folder"):
        teacher_for(["vocab_permuted"], "Qwen/Qwen3-4B", tmp_path)


KEY = "model.embed_tokens.weight"


def test_a_study_with_faults_says_so_and_resumes(tmp_path: Path) -> None:
    faults = ["stale_sampler", "learning_rate_spike"]
    table = toy_table(tmp_path, methods=["mixture"], faults=faults, train={"steps": 50})
    study = read_study(table)
    folders = []
    for name in ("whole", "cut"):
        folder = StudyFolder(tmp_path / name)
        folder.open(study)
        folders.append(folder)
    cell = RunId("toy", "mixture", 0)

    def cut() -> None:
        place = folders[1].cell(cell)
        running = place.running
        if running and 20 < place.steps < 45 and not killed:
            import os
            import signal

            killed.append(running["pid"])
            os.kill(running["pid"], signal.SIGKILL)

    killed: list[int] = []
    LocalScheduler(study, folders[0], 2).run(lambda: None, every=0.05)
    LocalScheduler(study, folders[1], 1).run(cut, every=0.002)
    assert killed
    metrics = [(f.cell(cell).path / "metrics.jsonl").read_bytes() for f in folders]
    assert metrics[0] == metrics[1]
    report = write_report(tmp_path / "whole")
    assert as_markdown(report).startswith(
        "FAULTS ARE ON IN THIS STUDY: stale_sampler, learning_rate_spike"
    )
    page = report.html.read_text()
    assert "Faults are switched on" in page and FAULTS["stale_sampler"].what in page
    with pytest.raises(PotstillError, match="other settings"):
        folders[0].open(read_study(toy_table(tmp_path, methods=["mixture"], train={"steps": 50})))


def test_unknown_faults_and_known_bad_losses_are_refused(tmp_path: Path) -> None:
    for change, says, hint in (
        ({"faults": ["unshifted"]}, "unknown fault", "unshifted_targets"),
        ({"faults": ["eos_untrained"] * 2}, "twice", "once"),
        (
            {"recipe": {"x": {"student_loss": {"truncated_reverse_kl": 4}}}, "methods": ["x"]},
            "not a divergence",
            "topk_reverse_kl",
        ),
    ):
        with pytest.raises(PotstillError, match=says) as caught:
            read_study({**change})
        assert hint in caught.value.hint


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_the_published_studies_have_all_faults_on(family: str) -> None:
    study = load_study(STUDIES / f"published-{family}.toml")
    assert study.faults == PUBLISHED and len(runs_of(study)) == 2 + 8 * 10
    real = load_study(STUDIES / f"published-{family}.toml", [f"pairs={family}", "task=gsm8k"])
    assert "/" in real.models[family].teacher
    audited = read_study(FULL)
    assert study.recipes == {name: audited.recipes[name] for name in study.methods}
    assert study.train == audited.train.model_copy(update={"steps": 100})


def test_a_split_step_counts_once(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    names = ["mixture_unblended", "stale_sampler"]
    run = apply(names, RunSpec(METHODS["mixture"], Stage(), task, 0))
    recipe, limits = METHODS["mixture"], Limits(24, 1.0, 1.0)
    batch = collect(recipe, run.engine, task.train[:10], 0.0, 0, 0, limits)
    run.engine.step(build(recipe, batch, run.engine), 0.1)
    assert run.engine.steps == 1 and len(run.engine.seen) == 2  # type: ignore[attr-defined]
