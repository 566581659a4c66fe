"""Trackers: what they write is what metrics.jsonl holds, killed or not, and none fails a cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import trackers as readers
from conftest import free_port, toy_table
from launching import Gate, command, run_study, wait_for
from potstill.cli import app
from potstill.errors import PotstillError
from potstill.study.file_schemas import metrics_error
from potstill.study.files import JsonlTail
from potstill.study.loading import load_study, read_study
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.study.tracking.exporter import following
from potstill.study.tracking.follower import Follower, troubles
from potstill.study.tracking.protocol import numbers, run_opener
from potstill.study.tracking.registry import TRACKERS
from potstill.urls import without_secrets
from test_cli import call

KEY = "0123456789abcdef" * 2 + "deadbeef"
NAMES = ["wandb", "tensorboard", "trackio", "mlflow"]


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user offline has it: a key is there, and must not be written anywhere."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def curves(name: str, out: Path, key: RunId) -> readers.Curves:
    if name == "tensorboard":
        return readers.tensorboard(out / "track", str(key))
    return getattr(readers, name)(out / "track", "toy", str(key))


def note(out: Path, key: RunId, tracker: str) -> dict:
    """What a run's folder records of a tracker; empty before it does."""
    file = StudyFolder(out).cell(key).path / "tracking" / f"{tracker}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def check_all(out: Path, study: Study) -> None:
    """Every tracker has of every run the rows of metrics.jsonl, and its result."""
    keys = [key for key in runs_of(study) if key.seed is not None]
    assert keys and study.track
    for key in keys:
        place = StudyFolder(out).cell(key)
        assert place.result is not None and place.result["status"] == "done"
        for name in study.track:
            steps = curves(name, out, key)
            readers.same(steps, place.metrics)
            values = {k: v for row in steps.values() for k, v in row.items()}
            wanted = pytest.approx(place.result["accuracy"])
            assert name == "wandb" or values["result/accuracy"] == wanted, name
            state = note(out, key, name)
            assert state["ended"] and not state["trouble"], state


@pytest.mark.slow
def test_trackers_have_what_the_folder_holds_also_of_a_run_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run is killed in its midst, the second runs undisturbed: no step of either is
    missing or there twice."""
    offline(monkeypatch)
    gate = Gate(tmp_path, monkeypatch)
    gate.close(6)
    table = toy_table(tmp_path, methods=["on_policy_gkd", "hybrid"], seeds=[0], track=NAMES)
    out, killed = tmp_path / "out", RunId("toy", "on_policy_gkd", 0)
    words = command(table, tmp_path / "toy.toml", out)[3:]
    process = subprocess.Popen(
        [sys.executable, __file__, words[1], str(out)], start_new_session=True
    )
    wait_for(lambda: all(note(out, killed, name).get("sent") == 6 for name in NAMES))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {name: note(out, killed, name)["id"] for name in NAMES}
    gate.open()
    assert call(*words) == 0
    stdout, stderr = capsys.readouterr()
    assert "warning" not in stderr and "Trackio" not in stdout
    check_all(out, read_study(table))
    assert {name: note(out, killed, name)["id"] for name in NAMES} == before
    names = set().union(*map(set, curves("mlflow", out, RunId("toy", "hybrid", 0)).values()))
    published = ("loss", "score", "kl_divergence", "phase", "on_policy_loss", "off_policy_loss")
    published += ("seed_tokens", "buffer_size")
    assert {f"train/{name}" for name in published} | {"eval/avg_score"} <= names
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files and not [file for file in files if KEY.encode() in file.read_bytes()]


def test_an_unknown_tracker_or_one_that_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PotstillError, match='unknown tracker "wandbb"') as refused:
        read_study(toy_table(tmp_path, track="wandbb"))
    assert 'did you mean "wandb"' in refused.value.hint
    with pytest.raises(PotstillError, match="one of them twice"):
        read_study(toy_table(tmp_path, track=["mlflow", "mlflow"]))
    without = TRACKERS["mlflow"].needs
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n: None if n in without else found(n))
    with pytest.raises(PotstillError, match='tracker "mlflow" needs mlflow') as refused:
        read_study(toy_table(tmp_path), ["track=mlflow"])
    assert "pip install 'potstill[mlflow]'" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_a_tracker_out_of_reach_fails_no_run_and_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    address = f"http://me:hunter2@127.0.0.1:{free_port()}"  # nobody listens there
    table = toy_table(tmp_path, methods=["on_policy_gkd"], track=["mlflow", "tensorboard"])
    out, study = tmp_path / "out", read_study(table)
    words = command(table, tmp_path / "toy.toml", out)[3:]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        assert call(*words) == 0
    stderr = capsys.readouterr().err
    assert stderr.count("warning tracker mlflow") == 1
    assert "tensorboard" not in stderr
    folder = StudyFolder(out)
    assert troubles(folder, runs_of(study)).keys() == {"mlflow"}
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files and not [file for file in files if b"hunter2" in file.read_bytes()]
    again = CliRunner().invoke(app, ["track", str(out)])
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines() == ["mlflow: complete", "tensorboard: complete"]
    check_all(out, study)


def test_a_finished_study_is_sent_to_another_tracker(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["hybrid"], seeds=[0])
    out = tmp_path / "out"
    run_study(read_study(table), out, workers=0)
    with pytest.raises(PotstillError, match="names no tracker"):
        CliRunner().invoke(app, ["track", str(out)], catch_exceptions=False)
    done = CliRunner().invoke(app, ["track", str(out), "--to", "tensorboard"])
    assert done.exit_code == 0, done.output
    place = StudyFolder(out).cell(RunId("toy", "hybrid", 0))
    readers.same(readers.tensorboard(out / "track", "toy/hybrid/0"), place.metrics)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_no_number_is_a_gap(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    study = read_study(toy_table(tmp_path, methods=["hybrid"], seeds=[0]))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    cell = RunId("toy", "hybrid", 0)
    place = folder.cell(cell)
    place.path.mkdir(parents=True)
    for step in range(4):
        loss = float("nan") if step == 2 else 0.5 + step
        place.record({"step": step, "train/loss": loss, "tokens": step, "x": None}, None)
    place.finish({"status": "done", "accuracy": 0.5, "steps": 3, "tokens": {}})
    follower = Follower(study, folder, name)
    follower.update()
    assert not troubles(folder, [cell]), troubles(folder, [cell])
    found = curves(name, folder.path, cell)
    assert [step for step in found if "train/loss" in found[step]] == [0, 1, 3]
    readers.same(found, place.metrics)


def test_a_growing_file_is_read_once_and_a_new_one_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = JsonlTail(file, "remove it", metrics_error)
    assert lines.new_rows() == []
    file.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [row["step"] for row in lines.new_rows()] == [0, 1]
    with file.open("a") as more:
        more.write('ep": 2}\n')
    assert [row["step"] for row in lines.new_rows()] == [2] and lines.new_rows() == []
    other = tmp_path / "other"
    other.write_text('{"step": 0}\n')
    other.replace(file)
    assert [row["step"] for row in lines.new_rows()] == [0]


def test_a_failing_tracker_is_noted_and_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.study.tracking import follower as module

    study = read_study(toy_table(tmp_path, methods=["hybrid"], seeds=[0]))
    folder, cell, calls = StudyFolder(tmp_path / "out"), RunId("toy", "hybrid", 0), []
    folder.open(study)
    place = folder.cell(cell)
    place.path.mkdir(parents=True)
    place.record({"step": 0, "tokens": 0}, None)

    def broken(sheet: object) -> object:
        calls.append(1)
        raise OSError(f"no route to https://me:{KEY}@host")

    monkeypatch.setattr(module, "run_opener", lambda name: broken)
    follower = Follower(study, folder, "tensorboard")
    follower.update()
    follower.update()
    assert len(calls) == 1
    assert troubles(folder, [cell]) == {"tensorboard": "toy/hybrid/0: no route to https://...@host"}
    monkeypatch.setattr(module, "run_opener", run_opener)
    place.finish({"status": "failed", "cause": "boom", "steps": 0})
    follower.update(now=True)
    assert not troubles(folder, [cell]) and follower.note(cell).ended


def test_secrets_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    assert without_secrets(f"bad key {KEY}") == "bad key ..."
    assert numbers({"step": 1, "a": float("inf"), "b": 2}) == {"b": 2.0}


def test_trackers_change_no_setting_of_a_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "out")
    folder.open(read_study(toy_table(tmp_path)))
    folder.check(read_study(toy_table(tmp_path, track=["tensorboard"])))


def test_following_nothing_starts_nothing(tmp_path: Path) -> None:
    with following(StudyFolder(tmp_path), []):
        pass
    assert not list(tmp_path.iterdir())


def main(file: str, out: str) -> None:
    """A study and its exporters, to be killed together."""
    study = load_study(file)
    StudyFolder(Path(out)).open(study)
    with following(StudyFolder(Path(out)), study.track):
        run_study(study, Path(out), workers=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
