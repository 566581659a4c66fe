"""The live view: what it prints without a terminal, a snapshot, and when it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from conftest import toy_table
from potstill.cli import app
from potstill.config import Study, read_study
from potstill.pool import Pool
from potstill.store import Cell, StudyFolder, cells_of
from potstill.view import View, running


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyFolder]:
    root = tmp_path_factory.mktemp("watched")
    study = read_study(toy_table(root, methods=["on_policy_gkd", "hybrid"]))
    folder = StudyFolder(root / "out")
    folder.open(study)
    Pool(study, folder, 1).run(lambda: None, every=0.02)
    return study, folder


def test_a_finished_study_is_shown_and_left(done: tuple[Study, StudyFolder]) -> None:
    study, folder = done
    shown = CliRunner().invoke(app, ["watch", str(folder.path)])
    assert shown.exit_code == 0, shown.output
    assert "on_policy_gkd" in shown.stdout and "hybrid" in shown.stdout
    assert f"{study.name}: {len(cells_of(study))} done" in shown.stdout


def test_a_snapshot_tells_what_runs(done: tuple[Study, StudyFolder], tmp_path: Path) -> None:
    study, folder = done
    cell = Cell("toy", "hybrid", 1)
    half = StudyFolder(tmp_path / "half")
    half.open(study)
    place, source = half.cell(cell), folder.cell(cell)
    place.mark_running(True)
    lines = (source.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place.path / "metrics.jsonl").write_text("".join(lines[:6]))
    (row,) = running(study, half, cells_of(study))
    assert row["running"] == "toy/hybrid/1" and row["step"] == "5 of 12"
    accuracy = [
        r["eval/accuracy"] for r in source.metrics[:6] if r.get("eval/accuracy") is not None
    ]
    assert row["accuracy"].endswith(f"{accuracy[-1]:.0%}") and row["accuracy"][0] in "▁▂▃▄▅▆▇█"
    shown = CliRunner().invoke(app, ["watch", str(half.path), "--once"])
    assert "toy/hybrid/1" in shown.stdout and "5 of 12" in shown.stdout
    with View(study, half, cells_of(study)) as view:
        view.tick()
        assert not view.whole


def test_another_process_is_watched_to_its_end(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0, 1], train={"steps": 200})
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    words = [sys.executable, "-m", "potstill", "study", str(tmp_path / "study.toml")]
    words += ["--out", str(tmp_path / "out"), "--no-preflight", "--no-figures"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "out" / "study.toml").exists():
            assert process.poll() is None
            time.sleep(0.02)
        shown = CliRunner().invoke(app, ["watch", str(tmp_path / "out"), "--every", "0.1"])
        process.communicate()
    assert shown.exit_code == 0, shown.output
    assert "4/4" in shown.stderr and "toy: 4 done" in shown.stdout


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    from potstill.errors import PotstillError

    with pytest.raises(PotstillError, match="holds no study"):
        CliRunner().invoke(app, ["watch", str(tmp_path)], catch_exceptions=False)
