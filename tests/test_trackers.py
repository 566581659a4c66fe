"""Trackers: what they write is what metrics.jsonl holds, killed or not, and none fails a cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

import trackers as readers
from conftest import free_port, toy_table
from potstill.cli import app
from potstill.errors import PotstillError
from potstill.study.files import JsonlTail
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder, cells_of
from potstill.study.tracking.exporter import following
from potstill.study.tracking.follower import Follower, troubles
from potstill.study.tracking.protocol import numbers, run_opener
from potstill.study.tracking.redact import without_secrets
from potstill.study.tracking.registry import TRACKERS

KEY = "0123456789abcdef" * 2 + "deadbeef"
NAMES = ["wandb", "tensorboard", "trackio", "mlflow"]


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user offline has it: a key is there, and must not be written anywhere."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def command(table: dict, tmp_path: Path, out: Path) -> list[str]:
    file = tmp_path / "toy.toml"
    file.write_text(tomli_w.dumps(table))
    words = ["study", str(file), "--out", str(out), "--no-figures", "--no-preflight"]
    return [sys.executable, "-m", "potstill", *words]


def run(
    words: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=False, capture_output=True, text=True, env=environment)


def curves(name: str, out: Path, cell: Cell) -> readers.Curves:
    if name == "tensorboard":
        return readers.tensorboard(out / "track", str(cell))
    return getattr(readers, name)(out / "track", "toy", str(cell))


def check_all(out: Path, study: Study) -> None:
    for cell in cells_of(study):
        if cell.seed is not None:
            place = StudyFolder(out).cell(cell)
            assert place.result is not None and place.result["status"] == "done"
            for name in study.track:
                found = curves(name, out, cell)
                readers.same(found, place.metrics)
                told = {k: v for values in found.values() for k, v in values.items()}
                wanted = pytest.approx(place.result["accuracy"])
                assert name == "wandb" or told["result/accuracy"] == wanted, name
                note = json.loads((place.path / "tracking" / f"{name}.json").read_text())
                assert note["ended"] and not note["trouble"], note


def test_what_trackers_have_is_what_the_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    table = toy_table(tmp_path, methods=["on_policy_gkd", "hybrid"], track=NAMES)
    out = tmp_path / "out"
    done = run(command(table, tmp_path, out))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr and "Trackio" not in done.stdout
    check_all(out, read_study(table))
    names = set().union(*map(set, curves("mlflow", out, Cell("toy", "hybrid", 0)).values()))
    published = ("loss", "score", "kl_divergence", "phase", "on_policy_loss", "off_policy_loss")
    published += ("seed_tokens", "buffer_size")
    assert {f"train/{name}" for name in published} | {"eval/avg_score"} <= names
    for file in out.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_killed_and_resumed_no_step_is_missing_or_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    table = toy_table(
        tmp_path,
        methods=["on_policy_gkd"],
        seeds=[0],
        track=NAMES,
        train={"steps": 2000, "checkpoint_every": 300},
        eval={"every": 200, "probe_every": 20},
    )
    out, cell = tmp_path / "out", Cell("toy", "on_policy_gkd", 0)
    place = StudyFolder(out).cell(cell)

    def sent(name: str) -> int:
        note = place.path / "tracking" / f"{name}.json"
        return json.loads(note.read_text())["sent"] if note.exists() else -1

    process = subprocess.Popen(
        command(table, tmp_path, out), start_new_session=True, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not all(sent(name) > 0 for name in NAMES):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {
        name: json.loads((place.path / "tracking" / f"{name}.json").read_text())["id"]
        for name in NAMES
    }
    subprocess.run(command(table, tmp_path, out), check=True, capture_output=True)
    check_all(out, read_study(table))
    for name, was in before.items():
        note = json.loads((place.path / "tracking" / f"{name}.json").read_text())
        assert note["id"] == was


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


def test_a_tracker_out_of_reach_fails_no_cell_and_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    address = f"http://me:hunter2@127.0.0.1:{free_port()}"  # nobody listens there
    table = toy_table(tmp_path, methods=["on_policy_gkd"], track=["mlflow", "tensorboard"])
    out, study = tmp_path / "out", read_study(table)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address}
    words = command(table, tmp_path, out)
    done = run(words, environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning tracker mlflow") == 1
    assert "tensorboard" not in done.stderr
    folder = StudyFolder(out)
    assert troubles(folder, cells_of(study)).keys() == {"mlflow"}
    for file in out.rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes(), file
    again = CliRunner().invoke(app, ["track", str(out)])
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines() == ["mlflow: complete", "tensorboard: complete"]
    check_all(out, study)


def test_a_finished_study_is_sent_to_another_tracker(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["hybrid"], seeds=[0])
    out = tmp_path / "out"
    subprocess.run(command(table, tmp_path, out), check=True, capture_output=True)
    with pytest.raises(PotstillError, match="names no tracker"):
        CliRunner().invoke(app, ["track", str(out)], catch_exceptions=False)
    done = CliRunner().invoke(app, ["track", str(out), "--to", "tensorboard"])
    assert done.exit_code == 0, done.output
    place = StudyFolder(out).cell(Cell("toy", "hybrid", 0))
    readers.same(readers.tensorboard(out / "track", "toy/hybrid/0"), place.metrics)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_no_number_is_a_gap(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    study = read_study(toy_table(tmp_path, methods=["hybrid"], seeds=[0]))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    cell = Cell("toy", "hybrid", 0)
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
    lines = JsonlTail(file)
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
    folder, cell, calls = StudyFolder(tmp_path / "out"), Cell("toy", "hybrid", 0), []
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
