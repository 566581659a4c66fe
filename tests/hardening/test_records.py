"""One test for each way in which a study's folder used to lie, or a command used to break on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from damage import say

from conftest import toy_table
from launching import run_study
from potstill.digests import sealed, unsealed
from potstill.engines.fake import FakeEngine
from potstill.study.files import DamagedFile
from potstill.study.loading import read_study
from potstill.study.processes import is_alive, started_at
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, StudyFolder, settings_digest

CELL = RunId("toy", "hybrid", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of one run, done."""
    place = tmp_path_factory.mktemp("whole")
    table = toy_table(place, methods=["hybrid"], seeds=[0], train={"steps": 3})
    (place / "toy.toml").write_text(tomli_w.dumps(table))
    study = read_study(table)
    return study, run_study(study, place / "out", workers=0).path


@pytest.fixture
def study(whole: tuple[Study, Path]) -> Study:
    return whole[0]


@pytest.fixture
def out(whole: tuple[Study, Path], tmp_path: Path) -> Path:
    for name in ("copy", "second"):
        shutil.copytree(whole[1].parent, tmp_path / name)
    return tmp_path / "copy" / "out"


def refused(out: Path, text: str, *commands: str) -> None:
    toy = out.parent / "toy.toml"
    words: dict[str, list[object]] = {
        "report": ["report", out],
        "watch": ["watch", out, "--once"],
        "compare": ["compare", out, out.parents[1] / "second" / "out"],
        "diagnose": ["diagnose", out],
        "study": ["study", toy, "--out", out, "--no-preflight", "--no-figures"],
    }
    for command in commands or words:
        said = say(*words[command])
        assert said.code == 2 and text in said.err, (command, said)
        assert "\nhint: " in said.err and "Traceback" not in said.err


def test_accuracies_of_900_percent_are_refused(out: Path, study: Study) -> None:
    run = StudyFolder(out).cell(CELL)
    file = run.path / "result.json"
    text = file.read_text()
    record = unsealed(text.rstrip("\n"))
    file.write_text(text.replace('"accuracy": 0.', '"accuracy": 9.', 1))
    refused(out, "result.json", "report", "watch", "compare", "study")
    # an older version wrote no digest: its fields are checked, and so is their agreement
    for change in (
        {"accuracy": 9.0},
        {"accuracy": 0.123},
        {"outcomes": {"strict": "2" * 20, "flexible": "0" * 20}},
        {"problems": 19},
        {"tokens": {"trained": -1}},
        {"of_another_version": 1},
        {"seed": True},
        {"findings": [{"kind": "unheard"}]},
    ):
        file.write_text(json.dumps({**record, **change}))
        refused(out, "result.json", "report", "study")
    file.write_text(json.dumps(record))
    assert say("report", out).code == 0


def test_a_record_of_another_run_is_refused(out: Path) -> None:
    cells = out / "cells/toy"
    shutil.copy(cells / "untrained/all/result.json", cells / "hybrid/0/result.json")
    refused(out, "it is the record of toy/untrained/all", "report", "study")


def test_metrics_that_were_cut_or_changed_are_refused(out: Path) -> None:
    file = StudyFolder(out).cell(CELL).path / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for changed in (b"".join(lines[:-1]), b"", whole.replace(b'"tokens": ', b'"tokens": 1')):
        file.write_bytes(changed)
        refused(out, "metrics.jsonl", "report", "watch", "compare", "diagnose", "study")
    file.write_bytes(whole)
    assert say("report", out).code == 0


def test_completions_may_be_removed_and_not_be_changed(out: Path) -> None:
    file = StudyFolder(out).cell(CELL).path / "examples.jsonl"
    file.write_text(file.read_text().replace("answer", "Answer", 1))
    refused(out, "examples.jsonl", "report")
    file.unlink()
    assert say("report", out).code == 0


def test_a_teachers_row_that_is_missing_is_named_before_a_run_begins(
    out: Path, study: Study
) -> None:
    """Its way out works: the baseline is repeated, and the run is executed."""
    teacher = StudyFolder(out).cell(RunId("toy", "teacher"))
    file = teacher.path / "examples.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(StudyFolder(out).cell(CELL).path)
    refused(out, f'remove the folder "{teacher.path}"', "study")
    shutil.rmtree(teacher.path)
    toy = out.parent / "toy.toml"
    assert say("study", toy, "--out", out, "--no-preflight", "--no-figures").code == 0
    assert (StudyFolder(out).cell(CELL).result or {})["status"] == "done"


def test_a_study_file_that_was_edited_is_refused(out: Path) -> None:
    file = out / "study.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.3", "learning_rate = 0.1"))
    refused(out, "it has changed since potstill wrote it", "report", "watch", "compare")
    refused(out, "train.learning_rate: 0.1 -> 0.3", "study")


def test_the_digest_of_settings_is_of_what_changes_a_number(study: Study) -> None:
    table, digest = study.to_toml(), settings_digest(study, CELL)
    assert settings_digest(read_study(table), CELL) == digest
    same: list[dict[str, Any]] = [
        {"price": {"hour": 3}},
        {"seeds": [0, 1]},
        {"methods": ["hybrid", "mixture"]},
        {"name": "other"},
        {"recipe": {"mine": {"from": "hybrid", "budget": 2}}},
    ]
    for change in same:
        assert settings_digest(read_study({**table, **change}), CELL) == digest, change
    pair = {**table["pair"]["toy"], "student": "another"}
    other: list[dict[str, Any]] = [
        {"train": {**table["train"], "learning_rate": 0.1}},
        {"eval": {**table["eval"], "problems": 19}},
        {"pair": {"toy": pair}},
        {"faults": ["seeds_ignored"]},
        {"student_loss": "reverse_kl_sampled"},
    ]
    for change in other:
        assert settings_digest(read_study({**table, **change}), CELL) != digest, change
    recipes = {"mine": {"from": "hybrid", "budget": 2}, "more": {"from": "mine"}}
    own = RunId("toy", "more", 0)
    derived = read_study({**table, "recipe": recipes, "methods": ["more"]})
    recipes["mine"] = {"from": "hybrid", "budget": 3}
    changed = read_study({**table, "recipe": recipes, "methods": ["more"]})
    assert settings_digest(derived, own) != settings_digest(changed, own)


def test_a_dead_process_is_not_shown_as_running(out: Path) -> None:
    run = StudyFolder(out).cell(CELL)
    (run.path / "result.json").unlink()
    run.mark_running(True)
    assert run.running and run.running["pid"] == os.getpid()
    assert run.running["started"] == started_at(os.getpid())
    assert "hybrid/0" in say("watch", out, "--once").out
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for mark in ({"pid": dead.pid}, {"pid": os.getpid(), "started": "12"}):
        (run.path / ".running").write_text(sealed({"host": os.uname().nodename, **mark}))
        assert run.mark and run.running is None
        assert "hybrid/0" not in say("watch", out, "--once").out
    (run.path / ".running").write_text(json.dumps({"host": "elsewhere", "pid": dead.pid}))
    assert run.running and run.running["host"] == "elsewhere"  # which nobody here can know


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid)
    child.wait()
    assert not is_alive(child.pid) and is_alive(os.getpid()) and is_alive(os.getpid(), "")


def test_what_kills_leave_behind_is_removed_by_the_next_command(out: Path) -> None:
    run = StudyFolder(out).cell(CELL)
    (run.path / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run.path / "checkpoints" / "step-00000003" / "engine.safetensors").write_bytes(b"0" * 999)
    (run.path / ".metrics.jsonl.4711").write_text("a whole copy")
    run.mark_running(True)
    toy = out.parent / "toy.toml"
    assert say("study", toy, "--out", out, "--no-figures").code == 0
    names = {path.name for path in run.path.iterdir()}
    assert names == {"metrics.jsonl", "examples.jsonl", "result.json", "student", ".lock"}


def test_a_kill_before_the_first_checkpoint_changes_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rollback, the checkpoint of step 0 has the cost of step 0."""
    train = {"steps": 4, "checkpoint_every": 3, "on_collapse": "rollback"}
    study = read_study(toy_table(tmp_path, methods=["hybrid"], seeds=[0], train=train))
    counts = []
    for name, kill in (("whole", 0), ("killed", 1)):
        folder = run_study_until(study, tmp_path / name, kill, monkeypatch)
        result = folder.cell(CELL).result or {}
        counts.append((result["tokens"], result["flops"], folder.cell(CELL).metrics))
    assert counts[0] == counts[1] and counts[0][0]["graded_student_scored"]


def run_study_until(
    study: Study, path: Path, kill: int, monkeypatch: pytest.MonkeyPatch
) -> StudyFolder:
    """Run a study that is interrupted once, in the step after `kill` steps."""
    step, folder = FakeEngine.step, StudyFolder(path)
    if kill:

        def killed(self: FakeEngine, *args: Any) -> Any:
            if folder.cell(CELL).steps == kill:
                raise KeyboardInterrupt
            return step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(FakeEngine, "step", killed)
            with pytest.raises(KeyboardInterrupt):
                run_study(study, path, workers=0)
    run_study(study, path, workers=0)
    return folder


def test_a_damaged_file_in_a_worker_stops_the_study_with_its_name(
    tmp_path: Path, study: Study
) -> None:
    folder = run_study(study, tmp_path / "out", workers=0)
    run = folder.cell(CELL)
    (run.path / "result.json").unlink()
    (run.path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(DamagedFile, match="it holds a list, not an object"):
        run_cell(study, folder, CELL)
    assert run.result is None and run.mark is None
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl"):
        run_study(study, tmp_path / "out", workers=1)


def test_a_race_of_digests_between_old_and_new_lines(tmp_path: Path) -> None:
    """Lines without a digest may come first, from an older version, and not later."""
    run = RunFolder(tmp_path)
    plain = [json.dumps({"step": step, "train/loss": 0.5}) for step in range(4)]
    lines = [*plain[:2], sealed({"step": 2}), sealed({"step": 3})]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:3], plain[3], ""]))
    with pytest.raises(DamagedFile, match="line 4: it has no digest"):
        _ = run.metrics
    for row in ({"step": 0.5}, {"step": True}, {"step": 0, "train/loss": "x"}, {"a": 1}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DamagedFile, match="line 1"):
            _ = run.metrics
    for steps in ([0, 2], [0, 1, 1], [2, 3]):
        text = "".join(sealed({"step": step}) + "\n" for step in steps)
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(DamagedFile, match=r"follows|begins"):
            _ = run.metrics
