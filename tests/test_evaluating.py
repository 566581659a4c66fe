"""Evaluations: without a grader, with drawn completions, on a drawn share of the problems."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conftest import monitored, toy_table
from potstill import tasks
from potstill.algorithms.methods import METHODS
from potstill.diagnostics import faults
from potstill.diagnostics.diagnosis import alarms
from potstill.diagnostics.monitor import Monitor
from potstill.engines.fake import FakeEngine
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError
from potstill.problems import Grade, Problem, pass_at_k
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import prepare, run_cell
from potstill.study.storage import RunId, StudyFolder, settings_digest
from potstill.tasks import load_task
from potstill.training.completing import RowGenerator, held_out
from potstill.training.evaluation import evaluate
from potstill.training.loop import train
from potstill.training.recorder import Memory
from potstill.training.run import RunSpec
from potstill.training.ungraded import EXACT, divergences


def problems(split: str, count: int) -> list[Problem]:
    return [Problem(f"{split}-{i}", f"{split[-1]}{i}{i % 10}", "") for i in range(count)]


@dataclass
class Prompts:
    """Prompts without a grader."""

    name: str = "prompts"
    train: Sequence[Problem] = field(default_factory=lambda: problems("train", 40))
    test: Sequence[Problem] = field(default_factory=lambda: problems("test", 12))
    graded: bool = False

    def grade(self, problem: Problem, text: str) -> Grade:
        raise AssertionError("a task without a grader grades nothing")


@dataclass
class Letters(Prompts):
    """The first letter of a completion is right if it is before n."""

    graded: bool = True

    def grade(self, problem: Problem, text: str) -> Grade:
        right = text[:1] < "n"
        return Grade(right, right)


DRAWN = Eval(samples=4, temperature=0.8, pass_at=(1, 2, 4), problems=6)


# --- a task without a grader ---


def test_the_three_distances_of_the_student_by_hand() -> None:
    engine, task = FakeEngine(), Prompts()
    found = evaluate(engine, "student", task, task.test, 8)
    assert not found.graded and found.estimator == "full vocabulary"
    assert [*found.losses] == ["kl", "teacher_loss", "student_loss"]
    teacher = evaluate(engine, "teacher", task, task.test, 8)
    for i, problem in enumerate(task.test):
        own, theirs = found.rows[i].ids, teacher.rows[i].ids
        logp, logq = (
            engine.rows(role, engine.prompt(problem), own) for role in ("student", "teacher")
        )
        kl = (np.exp(logp) * (logp - logq)).sum(1).mean()
        at = np.arange(len(own)), list(own)
        assert found.losses["kl"][i] == pytest.approx(kl)
        assert found.losses["teacher_loss"][i] == pytest.approx(-logq[at].mean())
        read = engine.rows("student", engine.prompt(problem), theirs)
        loss = -read[np.arange(len(theirs)), list(theirs)].mean()
        assert found.losses["student_loss"][i] == pytest.approx(loss)
    assert found.outcomes["kl"] == found.losses["kl"].tolist()


def test_of_the_teacher_kl_is_0_and_both_losses_are_its_own() -> None:
    engine, task = FakeEngine(), Prompts()
    found = evaluate(engine, "teacher", task, task.test, 8)
    assert found.losses["kl"].tolist() == [0.0] * 12
    assert found.losses["teacher_loss"].tolist() == found.losses["student_loss"].tolist()
    assert found.losses["teacher_loss"].mean() > 0


def test_a_student_that_is_the_teacher_has_the_teachers_row() -> None:
    engine, task = FakeEngine(), Prompts()
    engine._tables["student"] = engine._tables["teacher"].copy()
    student, teacher = (evaluate(engine, r, task, task.test, 8) for r in ("student", "teacher"))
    for name, values in teacher.losses.items():
        assert student.losses[name] == pytest.approx(values, abs=1e-6), name


class Scores(FakeEngine):
    """An engine without full-vocabulary log-probs."""

    losses = frozenset({"cross_entropy", "reverse_kl_sampled"})


def test_without_full_log_probs_the_estimator_is_named_and_agrees_on_average() -> None:
    task = Prompts(test=problems("test", 2))
    settings = Eval(samples=3000, temperature=1.0)
    sampled = evaluate(Scores(), "student", task, task.test, 1, settings)
    exact = evaluate(FakeEngine(), "student", task, task.test, 1, settings)
    assert (sampled.estimator, exact.estimator) == ("sampled tokens", "full vocabulary")
    assert sampled.losses["teacher_loss"] == pytest.approx(exact.losses["teacher_loss"])
    assert sampled.losses["kl"] == pytest.approx(exact.losses["kl"], rel=0.1)


def test_kl_of_a_torch_pair_is_that_of_its_own_forward_pass(models: Path) -> None:
    folder = models / "qwen"
    pair = (str(folder / "student"), str(folder / "teacher"))
    engine = open_engine("torch", *[_pair(*pair)], seed=0)
    task = Prompts(test=[Problem(f"t{i}", "Add " + "2 " * i, "") for i in range(3)])
    found = evaluate(engine, "student", task, task.test, 6, Eval(samples=2, temperature=1.0))
    values = []
    for row in found.rows:
        logp, logq = (
            engine.rows(role, engine.prompt(row.problem), row.ids)
            for role in ("student", "teacher")
        )
        values.append((np.exp(logp) * (logp - logq)).sum(1).mean())
    assert found.losses["kl"] == pytest.approx(np.reshape(values, (3, 2)).mean(1), rel=1e-3)


def _pair(student: str, teacher: str) -> Any:
    from potstill.settings import Pair

    return Pair(student=student, teacher=teacher)


def test_a_run_records_the_curves_and_is_paired() -> None:
    engine, task = FakeEngine(), Prompts()
    settings = Train(steps=8, batch_size=8, max_tokens=8, learning_rate=0.3)
    memory = Memory()
    trained = monitored(
        METHODS["on_policy_gkd"],
        engine,
        task,
        settings,
        Eval(every=4, problems=12, probe=4),
        recorder=memory,
    )
    assert trained.accuracy is None
    looked = [row for row in memory.metrics if "eval/kl" in row]
    assert [row["step"] for row in looked] == [4, 8]
    assert looked[-1]["eval/kl"] == pytest.approx(trained.evaluation.losses["kl"].mean())
    assert {"eval/teacher_loss", "eval/student_loss", "eval/avg_score"} <= looked[0].keys()
    assert "eval/accuracy" not in looked[0]
    start = evaluate(FakeEngine(), "student", task, task.test, 8)
    assert trained.evaluation.losses["kl"].mean() < start.losses["kl"].mean()
    probes = [row for row in memory.metrics if row.get("signal/length") is not None]
    assert probes and all(row["train/accuracy"] is None for row in probes)
    assert "signal/teacher_accuracy" not in memory.metrics[0]


# --- drawn completions ---


def test_each_problem_draws_its_own_numbers() -> None:
    engine, task = FakeEngine(), Letters()
    whole = evaluate(engine, "student", task, task.test, 8, DRAWN)
    for chosen in ([5, 2], [2], [11, 3, 2, 0]):
        some = evaluate(engine, "student", task, [task.test[i] for i in chosen], 8, DRAWN)
        place = chosen.index(2)
        assert some.rows[4 * place : 4 * place + 4] == whole.rows[8:12], chosen
    assert whole == evaluate(engine, "student", task, task.test, 8, DRAWN)
    other = evaluate(engine, "student", task, task.test, 8, DRAWN.changed({"seed": 1}))
    assert [row.text for row in other.rows] != [row.text for row in whole.rows]
    of_one = [row.text for row in whole.rows[:4]]
    assert len(set(of_one)) > 1


def test_outcomes_are_means_over_the_samples() -> None:
    engine, task = FakeEngine(), Letters()
    found = evaluate(engine, "student", task, task.test, 8, DRAWN)
    right = np.array([row.grade.strict for row in found.rows], float).reshape(-1, 4)  # type: ignore[union-attr]
    assert found.by_problem["strict"].tolist() == right.mean(1).tolist()
    assert found.strict == right.mean() and found.problems == 12
    assert [*found.outcomes] == ["strict", "flexible", "pass@1", "pass@2", "pass@4"]
    assert found.outcomes["pass@1"] == found.outcomes["strict"]
    assert found.by_problem["pass@4"].tolist() == right.max(1).tolist()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (4, 3), (4, 4), (7, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, k: int) -> None:
    for c in range(n + 1):
        flags = [i < c for i in range(n)]
        subsets = [any(chosen) for chosen in combinations(flags, k)]
        assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(np.mean(subsets)), (n, c, k)


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not() -> None:
    rng, n, k, runs = np.random.default_rng(0), 8, 4, 40_000
    for p in (0.05, 0.2, 0.6):
        c, truth = rng.binomial(n, p, runs), 1 - (1 - p) ** k
        error = pass_at_k(c, n, k).std() / math.sqrt(runs)
        assert abs(pass_at_k(c, n, k).mean() - truth) < 4 * error, p
        assert abs((1 - (1 - c / n) ** k).mean() - truth) > 4 * error, p


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    c = np.array([0, 1, 5000, 10_000])
    assert pass_at_k(c, 10_000, 5000).tolist() == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_rows_of_random_numbers_survive_a_pickle() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0)]
    rng = RowGenerator(keys, 3)
    again = pickle.loads(pickle.dumps(rng))
    first, second = rng.random((3, 5), dtype=np.float32), again.random((3, 5), dtype=np.float32)
    assert first.dtype == np.float32 and (first == second).all()
    longer = RowGenerator(keys[::-1], 3).random((3, 9), dtype=np.float32)
    assert (longer[::-1, :5] == first).all()
    drawn = RowGenerator(keys, 3).integers(0, 2**31 - 1, 3)
    assert drawn.tolist() == RowGenerator(keys[::-1], 3).integers(0, 2**31 - 1, 3)[::-1].tolist()
    assert len(set(drawn.tolist())) == 3
    assert rng.random((2, 4)).shape == (2, 4)  # of some rows: from one generator


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"samples": 4}, "eval: samples = 4 draws completions, and temperature is 0"),
        ({"top_p": 0.9}, "eval: top_p = 0.9 draws"),
        ({"top_k": 5}, "eval: top_k = 5 draws"),
        ({"min_p": 0.1}, "eval: min_p = 0.1 draws"),
        ({"samples": 4, "temperature": 1, "pass_at": [8]}, "pass_at has 8, samples is 4"),
        ({"temperature": 1e-5}, "temperature is 0 (greedy) or at least"),
        ({"samples": 0}, "eval.samples"),
        ({"temperature": -1}, "eval.temperature"),
        ({"top_p": 0}, "eval.top_p"),
        ({"min_p": 1}, "eval.min_p"),
        ({"pass_at": [0]}, "eval.pass_at"),
        ({"seed": -1}, "eval.seed"),
        ({"seed": True}, "seed is a number, got True"),
    ],
)
def test_settings_that_draw_nothing_are_refused(
    tmp_path: Path, table: dict[str, Any], words: str
) -> None:
    with pytest.raises(PotstillError) as error:
        read_study(toy_table(tmp_path, eval=table))
    assert words in f"{error.value} {error.value.hint}"


def test_a_service_has_no_min_p() -> None:
    table = {"engine": "tinker", "pair": {"p": {"student": "a/b", "teacher": "a/b"}}}
    table |= {"train": {"learning_rate": 1e-4}, "methods": ["off_policy"]}
    with pytest.raises(PotstillError, match=r"top_k and top_p alone, got eval\.min_p = 0\.1"):
        read_study({**table, "eval": {"temperature": 1.0, "min_p": 0.1}})


# --- the share of the problems ---


def test_a_share_of_the_problems_is_drawn_by_seed() -> None:
    task = Prompts(test=problems("test", 100))
    first = held_out(task, Eval(problems=10))
    assert list(first) == list(task.test[:10])
    drawn = held_out(task, Eval(problems=10, seed=0))
    assert len({p.id for p in drawn}) == 10 and list(drawn) != list(first)
    order = [task.test.index(p) for p in drawn]
    assert order == sorted(order)
    assert list(drawn) == list(held_out(task, Eval(problems=10, seed=0)))
    assert list(drawn) != list(held_out(task, Eval(problems=10, seed=1)))
    more = held_out(task, Eval(problems=30, seed=0))
    assert {p.id for p in drawn} <= {p.id for p in more}
    assert len(held_out(task, Eval(problems=500, seed=0))) == 100


def test_a_study_uses_one_selection_everywhere(tmp_path: Path) -> None:
    study = read_study(toy_table(tmp_path, eval={"problems": 7, "seed": 3, "examples": 7}))
    task = prepare(study)
    chosen = [p.id for p in held_out(task, study.eval)]
    assert chosen != [p.id for p in task.test[:7]]
    folder = StudyFolder(tmp_path / "study")
    folder.open(study)
    for method, seed in (("untrained", None), ("teacher", None), ("on_policy_gkd", 0)):
        record = run_cell(study, folder, RunId("toy", method, seed), task)
        assert (record["status"], record["problems"]) == ("done", 7), record
        texts = folder.cell(RunId("toy", method, seed)).texts
        assert [row["problem"] for row in texts[:7]] == chosen


def test_new_settings_leave_the_digests_of_earlier_studies(tmp_path: Path) -> None:
    key = RunId("toy", "hybrid", 0)
    plain = settings_digest(read_study(toy_table(tmp_path)), key)
    same = {"samples": 1, "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "pass_at": []}
    assert settings_digest(read_study(toy_table(tmp_path, eval=same)), key) == plain
    for change in ({"seed": 0}, {"temperature": 1.0}, {"samples": 2, "temperature": 1.0}):
        assert settings_digest(read_study(toy_table(tmp_path, eval=change)), key) != plain


# --- the diagnosis without a grader ---


@dataclass
class Sums(Prompts):
    """The embedded pairs' problems without their grader."""

    def __post_init__(self) -> None:
        whole = load_task("arithmetic")
        self.train, self.test = whole.train[:400], whole.test[:16]


def watched(names: Sequence[str], method: str, tmp_path: Path, steps: int = 20) -> Any:
    """Findings of a run of the embedded pair with some faults."""
    from potstill.engines import zoo

    pair = _pair(*(zoo.folder("tiny-qwen", role) for role in ("student", "teacher")))
    teacher = faults.teacher_for(names, pair.teacher, tmp_path)
    engine = open_engine("torch", pair.model_copy(update={"teacher": teacher}), seed=0)
    task, settings = Sums(), Train(steps=steps, batch_size=8, max_tokens=32, learning_rate=1e-3)
    looks = Eval(problems=16, every=steps, probe=8, probe_every=5)
    intended = RunSpec(METHODS[method], engine, task, 0)
    actual = faults.apply(names, intended)
    memory = Memory()
    train(
        actual.recipe,
        actual.engine,
        actual.task,
        settings,
        looks,
        seed=actual.seed,
        recorder=memory,
        monitor=partial(Monitor, intended, settings, looks),
    )
    return memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("unshifted_targets", "off_policy"),
        ("prompt_dropped", "on_policy_gkd"),
        ("eos_untrained", "off_policy"),
        ("vocab_permuted", "on_policy_gkd"),
        ("anchor_absent", "kl_anchored"),
        ("mixture_unblended", "mixture"),
        ("seeds_ignored", "on_policy_gkd"),
        ("eval_on_train", "on_policy_gkd"),
        ("stale_sampler", "on_policy_gkd"),
        ("learning_rate_spike", "on_policy_gkd"),
        ("teacher_shifted", "on_policy_gkd"),
    ],
)
def test_faults_are_found_without_a_grader(name: str, method: str, tmp_path: Path) -> None:
    steps = 60 if name == "learning_rate_spike" else 20  # it comes in the second half
    found = alarms(watched([name], method, tmp_path, steps).findings)
    assert name in [finding.cause for finding in found]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["on_policy_gkd", "off_policy", "mixture", "teacher_seeded"])
def test_a_sound_run_without_a_grader_has_no_alarm(method: str, tmp_path: Path) -> None:
    memory = watched([], method, tmp_path)
    assert alarms(memory.findings) == []
    assert [r["step"] for r in memory.metrics if "eval/kl" in r] == [20]


# --- potstill eval ---


def test_eval_draws_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.cli.eval import evaluate_model

    drawn = {"samples": 3, "temperature": 0.7, "top_p": 0.9, "pass_at": [1, 3]}
    found = evaluate_model("tiny-qwen/student", "arithmetic", [], 6, 32, None, table=drawn)
    assert found["problems"] == 6 and found["samples"] == 3
    assert found["strict"] == pytest.approx(found["pass@1"]) and found["pass@1"] <= found["pass@3"]
    low, high = found["interval"]
    assert low <= found["strict"] <= high
    assert found == evaluate_model("tiny-qwen/student", "arithmetic", [], 6, 32, None, table=drawn)
    monkeypatch.setitem(tasks.TASKS, "sums", ("test_evaluating", "Sums", ""))
    texts = tmp_path / "texts.jsonl"
    with pytest.raises(PotstillError, match="neither") as error:
        evaluate_model("tiny-qwen/student", "sums", [], None, 8, None)
    assert "--teacher MODEL" in error.value.hint
    found = evaluate_model(
        "tiny-qwen/student", "sums", [], None, 8, texts, teacher="tiny-qwen/teacher"
    )
    assert found["problems"] == 16 and found["estimator"] == "full vocabulary"
    for name in ("kl", "teacher_loss", "student_loss"):
        low, high = found["intervals"][name]
        assert 0 <= low < found[name] < high
    assert '"strict": null' in texts.read_text()


def test_truncation_reaches_the_sampler() -> None:
    engine, task = FakeEngine(), Letters()
    greedy = evaluate(engine, "student", task, task.test, 8)
    hot = Eval(temperature=2.0, samples=2)
    free = evaluate(engine, "student", task, task.test, 8, hot)
    for changes in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.9999}):
        found = evaluate(engine, "student", task, task.test, 8, hot.changed(changes))
        texts = [row.text for row in found.rows]
        assert texts == [row.text for row in greedy.rows for _ in range(2)], changes
        assert texts != [row.text for row in free.rows]


@pytest.mark.parametrize(
    ("cause", "short"),
    [
        ("truncated", "2 with completions that are cut off or rejected"),
        ("all_rejected", "2 with completions that are cut off or rejected"),
        ("still_improving", "Nothing"),
    ],
)
def test_cut_off_completions_are_named_among_what_broke(
    cause: str, short: str, tmp_path: Path
) -> None:
    from potstill.diagnostics.diagnosis import advice
    from potstill.report.data import load
    from potstill.report.findings import grouped
    from potstill.report.sentences import answers
    from potstill.report.summary import summarize
    from studies import small_study, write_study

    note = {"kind": "note", "cause": cause, "step": 0, "found": 20, "evidence": "seen"}
    note["advice"] = advice(cause)
    write_study(
        tmp_path,
        small_study(),
        lambda run: {"findings": [note]} if run.method == "hybrid" else {},
    )
    data = load(tmp_path)
    found = {
        question: (text, lines)
        for question, _, text, lines in answers(summarize(data, grouped(data)))
    }
    text, lines = found["Did anything break?"]
    assert text == short
    assert (cause in " ".join(lines)) is (short != "Nothing")


# --- without a teacher ---


def given(split: str, count: int) -> list[Problem]:
    return [
        Problem(p.id, p.question, "", completions=(f"c{i % 7}", "d") if i % 2 else ("e",))
        for i, p in enumerate(problems(split, count))
    ]


def test_without_a_teacher_the_loss_is_that_on_the_datas_completions() -> None:
    engine, task = FakeEngine(), Prompts(train=given("train", 40), test=given("test", 12))
    engine.has_teacher = False
    found = evaluate(engine, "student", task, task.test, 8)
    assert [*found.losses] == ["student_loss"] and found.estimator == ""
    for i, problem in enumerate(task.test):
        prompt, losses = engine.prompt(problem), []
        for text in problem.completions:
            ids = engine.encode_completion(prompt, text)
            rows = engine.rows("student", prompt, ids)
            losses.append(-rows[np.arange(len(ids)), list(ids)].mean())
        assert found.losses["student_loss"][i] == pytest.approx(np.mean(losses), rel=1e-6)
    memory = Memory()
    trained = monitored(
        METHODS["off_policy"],
        engine,
        task,
        Train(steps=10, batch_size=8, max_tokens=8, learning_rate=0.3),
        Eval(every=5, problems=12, probe=4, probe_every=2),
        recorder=memory,
    )
    assert trained.evaluation.losses["student_loss"].mean() < found.losses["student_loss"].mean()
    start = memory.metrics[0]
    assert start["signal/reading_loss"] > 0 and start["signal/length"] > 0
    assert {start[f"signal/{n}"] for n in ("teacher_loss", "teacher_entropy")} == {None}
    assert start["train/kl_divergence"] is None
    assert alarms(memory.findings) == []


def test_prompts_without_teacher_grader_and_completions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tasks.TASKS, "prompts", ("test_evaluating", "Prompts", ""))
    table = toy_table(tmp_path, pair={"toy": {"student": "a", "teacher": "b"}})
    table |= {"task": "prompts", "eval": {"problems": 12, "probe": 4}}
    for changes, words in (
        ({"eval": {"problems": 12, "temperature": 0.7}}, "drawn at temperature 1 from all tokens"),
        ({"eval": {"problems": 12, "temperature": 1.0, "top_k": 3}}, "top_k = 3"),
        ({"eval": {"problems": 12, "temperature": 1.0, "pass_at": [1]}}, "eval.pass_at counts"),
        (
            {"recipe": {"r": {"from": "off_policy", "reject_wrong": True}}, "methods": ["r"]},
            "r has reject_wrong = true, which needs grades",
        ),
    ):
        with pytest.raises(PotstillError) as error:
            prepare(read_study({**table, **changes}))
        assert words in str(error.value) and error.value.hint
    assert prepare(read_study({**table, "methods": ["off_policy"]}))


def test_a_single_value_is_short_for_a_list() -> None:
    table = {"samples": 4, "temperature": 1.0, "pass_at": 2}
    assert Eval.model_validate(table).pass_at == (2,)
    for wrong in (0, "x", True, 5):
        with pytest.raises((PotstillError, ValidationError)):
            Eval.model_validate({**table, "pass_at": wrong})


def test_a_divergence_of_single_completions_is_never_negative() -> None:
    """One completion's log-ratio may be: pre-flight has time for few of them."""
    engine = FakeEngine()
    prompts = [engine.prompt(Problem("digit", "3", ""))] * 500  # some end as the teacher would
    limits, rng = [1] * len(prompts), np.random.default_rng(0)
    samples = engine.sample("student", prompts, limits, 1.0, rng)
    readings = [(prompt, sample.tokens) for prompt, sample in zip(prompts, samples, strict=True)]
    drawn, scores = [s.logprobs for s in samples], engine.score("teacher", readings)
    values, estimator = divergences(engine, readings, drawn, scores)
    ratios = [float((p - q).mean()) for p, q in zip(drawn, scores, strict=True)]
    assert estimator == EXACT and (values >= 0).all() and len(values) == len(prompts)
    assert min(ratios) < 0
