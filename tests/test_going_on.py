"""What is kept of a run: the best student, students of some steps, a state to go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file
from typer.testing import CliRunner

from conftest import toy_table
from launching import run_study
from potstill.cli import app
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.report import write_report
from potstill.settings import Train
from potstill.study.extending import begin, extended, finished
from potstill.study.files import write_record
from potstill.study.loading import read_study
from potstill.study.run import prepare
from potstill.study.settling import check_validation, task_of
from potstill.study.storage import RunId, StudyFolder, identity
from potstill.study.trained import model_of
from potstill.tasks import Resplit, load_task
from potstill.tasks.overlap import question_key
from potstill.training import validating
from potstill.training.checkpoint import points, step_of
from potstill.training.loop import train
from potstill.training.rollout import draw
from potstill.training.validating import Validator, check_measure, held_back

CELL = RunId("toy", "on_policy_gkd", 0)


def table_of(folder: Path, **train: Any) -> dict[str, Any]:
    table = toy_table(folder, seeds=[0], methods=["on_policy_gkd"])
    table["train"] |= train
    return table


def done(folder: Path, out: str = "out", **train: Any) -> StudyFolder:
    """A whole study of one run, made in this process."""
    return run_study(read_study(table_of(folder, **train)), folder / out, 0)


def weights(folder: Path) -> Any:
    return load_file(folder / "table.safetensors")


def same(a: Path, b: Path) -> bool:
    return all(np.array_equal(value, weights(b)[name]) for name, value in weights(a).items())


# Validation problems.


def test_validation_problems_are_never_trained_on_and_never_graded(tmp_path: Path) -> None:
    study = read_study(table_of(tmp_path, validation=7))
    task = task_of(study)
    kept = {question_key(problem.question) for problem in task.validation}  # type: ignore[attr-defined]
    assert len(kept) == 7 and len(task.train) == 33
    trained = [p for step in range(40) for p in draw(task.train, 10, 0, step)]
    for problem in [*trained, *task.test, *task.train[:8]]:
        assert question_key(problem.question) not in kept
    assert held_back(task, 7) is task and task.name == "jsonl"
    again = task_of(read_study(table_of(tmp_path, validation=3)))
    few = {question_key(problem.question) for problem in again.validation}  # type: ignore[attr-defined]
    assert few < kept


def test_the_same_question_is_not_trained_on_under_another_name() -> None:
    problems = [Problem(str(n), " " * (n % 2) + f"question {n % 5}", "1") for n in range(20)]
    task = held_back(Resplit(None, problems, ()), 2)  # type: ignore[arg-type]
    assert len(task.train) == 12 and len(task.validation) == 2  # type: ignore[attr-defined]
    kept = {question_key(problem.question) for problem in task.validation}  # type: ignore[attr-defined]
    assert not kept & {question_key(problem.question) for problem in task.train}
    assert [p.id for p in task.train[2:4]] == [p.id for p in list(task.train)[2:4]]


@pytest.mark.parametrize("count", [40, 41, 1000])
def test_more_validation_problems_than_there_are_is_refused(tmp_path: Path, count: int) -> None:
    study = read_study(table_of(tmp_path, validation=count))
    with pytest.raises(PotstillError, match=f"keeps {count} problems out of training, and the"):
        task_of(study)


def test_the_loss_is_on_the_teachers_completions(tmp_path: Path) -> None:
    folder = done(tmp_path, validation=5, validate_every=4)
    rows = folder.cell(CELL).metrics
    measured = {r["step"]: r for r in rows if "validation/loss" in r}
    assert [*measured] == [4, 8, 12]
    task, engine = task_of(folder.study), FakeEngine()
    (engine._tables["student"],) = weights(folder.cell(CELL).path / "student").values()
    prompts = [engine.prompt(problem) for problem in task.validation]  # type: ignore[attr-defined]
    texts = engine.sample("teacher", prompts, [24] * 5, 0.0, np.random.default_rng(0))
    pairs = [(p, s.tokens) for p, s in zip(prompts, texts, strict=True)]
    scores = np.concatenate(engine.score("student", pairs))
    assert measured[12]["validation/loss"] == pytest.approx(-scores.mean(), rel=1e-4)
    solved = engine.sample("student", prompts, [24] * 5, 0.0, np.random.default_rng(0))
    right = [
        task.grade(problem, engine.decode(s.tokens)).correct
        for problem, s in zip(task.validation, solved, strict=True)  # type: ignore[attr-defined]
    ]
    assert measured[12]["validation/accuracy"] == pytest.approx(np.mean(right))


def test_accuracy_needs_a_grader_and_a_loss_completions(tmp_path: Path) -> None:
    study = read_study(table_of(tmp_path, validation=4, best_by="accuracy"))
    prepare(study)
    ungraded: Any = SimpleNamespace(graded=False)
    with pytest.raises(PotstillError, match="needs a task with a grader"):
        check_measure(study.train, ungraded)
    alone: Any = SimpleNamespace(train=study.train, models={"toy": SimpleNamespace(teacher="")})
    with pytest.raises(PotstillError, match='pair "toy" has no teacher and its validation'):
        check_validation(alone, task_of(study))
    alone.models["toy"].teacher = "b"
    check_validation(alone, task_of(study))


def test_the_loop_alone_takes_epochs_and_validation(tmp_path: Path) -> None:
    study = read_study(table_of(tmp_path))
    settings = Train(epochs=2, batch_size=10, max_tokens=8, learning_rate=0.1, validation=10)
    task = load_task(**study.task)
    trained = train(study.recipes["on_policy_gkd"], FakeEngine(), task, settings, study.eval)
    assert trained.steps == 6 and trained.kept is None
    assert [r["step"] for r in trained.recorder.metrics if "validation/loss" in r] == [6]


# The best checkpoint.


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Validation losses by step, in place of the measured ones."""
    losses = {3: 2.0, 6: 1.0, 9: 1.0, 12: 3.0}

    def measure(self: Validator, step: int, *, last: bool) -> dict[str, float]:
        if not self.problems or (not last and step % self.settings.validate_every):
            return {}
        metrics = {"validation/loss": losses[step], "validation/accuracy": losses[step] / 10}
        self._history.append({"step": step, **metrics})
        return metrics

    monkeypatch.setattr(validating.Validator, "measure_if_due", measure)
    return losses


BEST = {"keep": "best", "validation": 5, "validate_every": 3, "save_every": 3}


@pytest.mark.parametrize(("by", "step"), [("loss", 6), ("accuracy", 12)])
def test_the_best_student_is_exported_and_evaluated(
    tmp_path: Path, scripted: dict[int, float], by: str, step: int
) -> None:
    folder = done(tmp_path, **BEST, best_by=by)
    run = folder.cell(CELL)
    record = run.result
    assert record
    value = scripted[step] / (10 if by == "accuracy" else 1)
    assert record["kept"] == {"step": step, "by": by, "value": value}
    assert any(f"that of step {step}, the best one" in note for note in record["notes"])
    assert same(run.path / "student", run.path / "students" / f"step-{step}")
    assert not same(run.path / "student", run.path / "students" / f"step-{18 - step}")
    assert sorted(path.name for path in run.path.glob("students/*")) == [
        *("step-12", "step-3", "step-6", "step-9")
    ]
    shorter = done(tmp_path, "shorter", validation=5, steps=step).cell(CELL).result
    assert shorter and record["outcomes"] == shorter["outcomes"]
    assert record["steps"] == 12 and not (run.path / "checkpoints").exists()
    write_report(folder.path, figures=False)


def test_few_checkpoints_are_on_disk_at_any_time(
    tmp_path: Path, scripted: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    place, step = tmp_path / "out/cells/toy/on_policy_gkd/0/checkpoints", FakeEngine.step

    def watched(self: FakeEngine, *words: Any) -> Any:
        found.append([step_of(path) for path in points(place)])
        return step(self, *words)

    monkeypatch.setattr(FakeEngine, "step", watched)
    done(tmp_path, **BEST, checkpoint_every=2)
    assert found[-1] == [6, 8, 10] and max(map(len, found)) <= 4
    assert all(best in kept for best, kept in zip([3] * 3 + [6] * 6, found[3:], strict=True))


@pytest.mark.parametrize("at", [2, 4, 7, 8, 11])
def test_an_interrupted_run_keeps_the_same_student(
    tmp_path: Path, scripted: dict[int, float], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = done(tmp_path, "whole", **BEST).cell(CELL)
    step, made = FakeEngine.step, [0]

    def dying(self: FakeEngine, *words: Any) -> Any:
        made[0] += 1
        if made[0] == at:
            raise KeyboardInterrupt
        return step(self, *words)

    monkeypatch.setattr(FakeEngine, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        done(tmp_path, **BEST)
    cell = done(tmp_path, **BEST).cell(CELL)
    assert cell.result and whole.result and cell.result["kept"] == whole.result["kept"]
    assert cell.result["outcomes"] == whole.result["outcomes"]
    assert same(cell.path / "student", whole.path / "student")
    losses = [[r.get("train/loss") for r in run.metrics] for run in (cell, whole)]
    assert losses[0] == losses[1]


def test_a_damaged_best_checkpoint_is_no_other_student(
    tmp_path: Path, scripted: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FakeEngine.step

    def damaging(self: FakeEngine, *words: Any) -> Any:
        if self._steps == 11:
            file = tmp_path / "out/cells/toy/on_policy_gkd/0/checkpoints/step-00000006/state.json"
            file.write_text(file.read_text()[:-20])
        return step(self, *words)

    monkeypatch.setattr(FakeEngine, "step", damaging)
    record = done(tmp_path, **BEST).cell(CELL).result
    assert (
        record
        and record["status"] == "failed"
        and "no sound checkpoint of step 6" in record["cause"]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": "best", "validation": 4}, 'keep = "best" needs a folder for checkpoints'),
        ({"save_every": 2}, "save_every = 2 needs a folder for students"),
    ],
)
def test_without_a_folder_nothing_can_be_kept(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    study = read_study(table_of(tmp_path, **settings))
    recipe = study.recipes["on_policy_gkd"]
    with pytest.raises(PotstillError, match=says):
        train(recipe, FakeEngine(), task_of(study), study.train, study.eval)


# Settings that change no number.

NO_NUMBERS: list[tuple[str, str, Any]] = [
    ("train", "save", False),
    ("train", "save_every", 5),
    ("train", "keep_state", True),
    ("eval", "examples", 1),
    ("train", "checkpoint_every", 3),
    ("eval", "every", 3),
    ("eval", "probe_every", 3),
]


@pytest.mark.parametrize(("where", "key", "value"), NO_NUMBERS)
def test_some_settings_change_no_number_and_make_no_new_study(
    tmp_path: Path, where: str, key: str, value: Any
) -> None:
    table = table_of(tmp_path)
    folder = run_study(read_study(table), tmp_path / "out", 0)
    table[where] = {**table[where], key: value}
    other = run_study(read_study(table), tmp_path / "other", 0)
    for a, b in zip(folder.cell(CELL).metrics, other.cell(CELL).metrics, strict=True):
        common = a.keys() & b.keys() - {"digest"}
        assert {k: a[k] for k in common} == {k: b[k] for k in common}
        assert where == "eval" or a == b
    first, second = folder.cell(CELL).result, other.cell(CELL).result
    assert first and second and first["settings"] == second["settings"]
    assert first["outcomes"] == second["outcomes"]
    trained = [{k: v for k, v in r["tokens"].items() if "graded" not in k} for r in (first, second)]
    assert trained[0] == trained[1]
    longer = read_study({**table, "seeds": [0, 1]})
    folder.check(longer)  # the study that was made with the first value goes on
    run_study(longer, folder.path, 0)
    assert len(folder.results([CELL, RunId("toy", "on_policy_gkd", 1)], longer)) == 2
    write_report(folder.path, figures=False)


@pytest.mark.parametrize(("where", "key", "value"), NO_NUMBERS[4:])
def test_a_run_that_acts_on_a_collapse_depends_on_when_it_looks(
    tmp_path: Path, where: str, key: str, value: Any
) -> None:
    table = table_of(tmp_path, on_collapse="rollback", steps=4)
    folder = run_study(read_study(table), tmp_path / "out", 0)
    table[where] = {**table[where], key: value}
    with pytest.raises(PotstillError, match=f"{where}.{key}"):
        folder.check(read_study(table))


def test_records_of_versions_that_told_them_apart_are_read(tmp_path: Path) -> None:
    folder = done(tmp_path, steps=3)
    run = folder.cell(CELL)
    used = folder.study.model_dump(mode="json", exclude_defaults=True)
    old = identity._digest(folder.study, CELL, used, every_field=True)
    assert run.result and run.result["settings"] not in (old, "")
    record = {k: v for k, v in run.result.items() if k != "digest"}
    write_record(run.path / "result.json", {**record, "settings": old})
    assert CELL in folder.results([CELL], folder.study)


# Going on with more steps.


def going_on(source: StudyFolder, out: Path, key: RunId, *words: str) -> StudyFolder:
    """As `potstill run --from` does, in this process."""
    run = finished(source.cell(key).path)
    study = extended(run, words)
    folder = StudyFolder(out)
    folder.open(study)
    begin(run, folder.cell(key))
    return run_study(study, out, 0)


@pytest.mark.parametrize("method", ["on_policy_gkd", "replay_buffer", "mixture", "off_policy"])
def test_a_run_that_goes_on_is_one_longer_run(tmp_path: Path, method: str) -> None:
    table = table_of(tmp_path, keep_state=True, steps=6, weight_decay=0.1)
    table |= {"methods": [method], "eval": {**table["eval"], "every": 5}}
    key = RunId("toy", method, 0)
    short = run_study(read_study(table), tmp_path / "short", 0)
    assert short.cell(key).result["state"] == 5  # type: ignore[index]
    more = going_on(short, tmp_path / "more", key, "train.steps=14")
    table["train"] = {**table["train"], "steps": 14}
    whole = run_study(read_study(table), tmp_path / "whole", 0)
    assert more.cell(key).metrics == whole.cell(key).metrics
    for name in ("outcomes", "tokens", "settings", "steps"):
        assert more.cell(key).result[name] == whole.cell(key).result[name]  # type: ignore[index]
    assert same(more.cell(key).path / "student", whole.cell(key).path / "student")
    again = going_on(more, tmp_path / "again", key, "train.steps=20")
    assert len(again.cell(key).metrics) == 21


def test_the_best_student_is_the_best_of_both_parts(
    tmp_path: Path, scripted: dict[int, float]
) -> None:
    settings = {"keep": "best", "validation": 5, "validate_every": 3, "keep_state": True}
    short = done(tmp_path, "short", steps=9, **settings)
    assert [step_of(p) for p in points(short.cell(CELL).path / "checkpoints")] == [6, 8]
    more = going_on(short, tmp_path / "more", CELL, "train.steps=12").cell(CELL)
    whole = done(tmp_path, "whole", **settings).cell(CELL)
    assert more.result and whole.result and more.result["kept"] == whole.result["kept"]
    assert more.result["kept"]["step"] == 6 and more.metrics == whole.metrics
    assert same(more.path / "student", whole.path / "student")


def test_a_copy_that_was_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = done(tmp_path, "short", steps=6, keep_state=True)
    copyfile = shutil.copyfile

    def dying(a: Any, b: Any, **options: Any) -> Any:
        if "metrics" in str(a):
            raise KeyboardInterrupt
        return copyfile(a, b, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", dying)
        going_on(short, tmp_path / "more", CELL, "train.steps=9")
    more = going_on(short, tmp_path / "more", CELL, "train.steps=9").cell(CELL)
    assert more.metrics == done(tmp_path, "whole", steps=9).cell(CELL).metrics


@pytest.fixture
def source(tmp_path: Path) -> Iterator[StudyFolder]:
    yield done(tmp_path, keep_state=True, steps=6)


def refused(
    folder: StudyFolder, says: str, *words: str, place: str = "toy/on_policy_gkd/0"
) -> None:
    with pytest.raises(PotstillError) as caught:
        extended(finished(folder.path / "cells" / place), words or ("train.steps=12",))
    assert says in str(caught.value) and caught.value.hint


def test_only_more_steps_may_change(source: StudyFolder) -> None:
    refused(source, "has made 6 steps, and goes on to 6", "train.steps=6")
    refused(source, "goes on to 3", "train.steps=3")
    refused(source, "train.learning_rate: 0.3 -> 0.1", "train.steps=9", "train.learning_rate=0.1")
    refused(source, "train.batch_size", "train.batch_size=3", "train.steps=9")
    refused(source, "eval.problems", "eval.problems=10", "train.steps=9")
    refused(source, "train.schedule: constant", "train.schedule=cosine", "train.steps=9")
    run = finished(source.cell(CELL).path)
    assert extended(run, ["train.steps=9", "price.hour=3", "train.save_every=2"]).train.steps == 9
    assert extended(run, ["train.num_train_epochs=5"]).train.steps == 20


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["hybrid"]}, "on_policy (0 -> 1 at 0.5) of toy/hybrid/0 is a function"),
        ({"methods": ["teacher_seeded"]}, "prefix (20 -> 0 linear until 0.5)"),
        ({"train": {"schedule": "cosine"}}, "train.schedule (cosine)"),
        ({"train": {"schedule": {"linear": [1, 0]}}}, "train.schedule ("),
        ({"train": {"warmup": 0.1}}, "train.warmup (0.1 of the run)"),
    ],
)
def test_functions_of_progress_cannot_go_on(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    table = table_of(tmp_path, keep_state=True, steps=6)
    table = {**table, **changes, "train": {**table["train"], **changes.get("train", {})}}
    folder = run_study(read_study(table), tmp_path / "out", 0)
    refused(folder, says, place=f"toy/{table['methods'][0]}/0")


def test_folders_that_cannot_go_on(source: StudyFolder, tmp_path: Path) -> None:
    refused(source, "is not the folder of a run", place="toy/on_policy_gkd/1")
    refused(source, "is not the folder of a run", place="toy")
    refused(source, "is a baseline", place="toy/teacher/all")
    run = source.cell(CELL)
    run.mark_running(True)
    refused(source, "is running: process")
    run.mark_running(False)
    missing = {"checkpoints": "has no checkpoint to go on from", "result.json": "has not ended"}
    for name, says in missing.items():
        shutil.move(run.path / name, tmp_path / name)
        refused(source, says)
        shutil.move(tmp_path / name, run.path / name)
    data = Path(source.study.task["train_path"])
    text = data.read_text()
    data.write_text(text.replace("a0", "a77"))
    refused(source, "other problems or models")
    data.write_text(text)
    file = source.path / "study.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.3", "learning_rate = 0.1"))
    refused(source, "it has changed since potstill wrote it")


def test_a_run_without_its_state_names_its_student(tmp_path: Path) -> None:
    folder = done(tmp_path, steps=3)
    with pytest.raises(PotstillError) as caught:
        finished(folder.cell(CELL).path)
    assert 'on_policy_gkd/0/student"' in str(caught.value.hint)


def test_the_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = table_of(tmp_path, steps=4)
    Path("s.toml").write_text(tomli_w.dumps(table))

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["run", *words, "--no-preflight"])

    assert run("s.toml", "--out", "a").exit_code == 0
    state = json.loads(Path("a/cells/toy/on_policy_gkd/0/result.json").read_text())["state"]
    assert state == 3
    place = "a/cells/toy/on_policy_gkd/0"
    for _ in range(2):  # the second one finds the run done
        assert run("--from", place, "train.steps=7").exit_code == 0
    rows = Path("runs/toy-toy-on_policy_gkd-0-7-steps/cells/toy/on_policy_gkd/0/metrics.jsonl")
    assert len(rows.read_text().splitlines()) == 8
    for words in (["s.toml"], ["--method", "hybrid"], ["--seed", "0"], ["train.steps=4"]):
        assert run("--from", place, *words).exit_code != 0


# A trained student as the start.


def test_a_runs_folder_names_its_student(tmp_path: Path) -> None:
    run = done(tmp_path, steps=3, save_every=2).cell(CELL)
    assert model_of(str(run.path)) == str(run.path / "student")
    assert model_of(str(run.path / "students/step-2")) == str(run.path / "students/step-2")
    assert model_of("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B" and model_of("a" * 5000) == "a" * 5000
    table = table_of(tmp_path)
    table["pair"] = {"toy": {"student": str(run.path), "teacher": "b"}}
    assert read_study(table).models["toy"].student == str(run.path / "student")
    shutil.rmtree(run.path / "student")
    with pytest.raises(PotstillError, match="a run that kept no student"):
        read_study(table)
    (run.path / "result.json").unlink()
    with pytest.raises(PotstillError, match="a run that has not ended"):
        read_study(table)
