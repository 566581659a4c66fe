"""Kills at random moments change no number and leave no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tomli_w
from kills import killed

from conftest import toy_table
from launching import wait_for
from potstill.study.loading import read_study
from potstill.study.storage import RunFolder, StudyFolder


@pytest.mark.slow
def test_a_study_that_is_killed_reaches_the_same_numbers(tmp_path: Path) -> None:
    study = killed(tmp_path, kills=2, each=2)
    assert study.faults == []


@pytest.mark.slow
def test_a_killed_study_keeps_the_same_best_students(tmp_path: Path) -> None:
    train = {"keep": "best", "validation": 5, "validate_every": 2, "save_every": 4}
    study = killed(tmp_path, kills=2, each=2, seed=3, train={**train, "keep_state": True})
    assert study.faults == []


@pytest.mark.slow
def test_forty_kills(tmp_path: Path) -> None:
    study = killed(tmp_path, kills=40, seed=1)
    assert study.faults == [] and study.counts["main process"] >= 20, study.counts


def test_preflight_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    pair = {"name": "slow", "pairs": ["tiny-llama"], "methods": ["hybrid"]}
    (tmp_path / "s.toml").write_text(tomli_w.dumps(pair))
    environment = {**os.environ, "POTSTILL_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "potstill", "check", str(tmp_path / "s.toml")]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def started() -> list[psutil.Process]:
        family = psutil.Process(process.pid).children(recursive=True)
        return [child for child in family if "spawn_main" in " ".join(child.cmdline())]

    wait_for(started)
    (child,) = started()
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)


def test_two_studies_that_start_at_once_do_not_mix(tmp_path: Path) -> None:
    """One of them is refused; every run has the settings of the other."""
    table = toy_table(tmp_path, methods=["hybrid"], seeds=[0, 1], train={"steps": 4})
    words = [sys.executable, "-m", "potstill", "study", "--out", str(tmp_path / "out")]
    words += ["--no-preflight", "--no-figures", "--workers", "1"]
    starts = []
    for rate in (0.3, 0.1):
        file = tmp_path / f"{rate}.toml"
        file.write_text(tomli_w.dumps({**table, "train": {"steps": 4, "learning_rate": rate}}))
        starts.append(subprocess.Popen([*words, str(file)], stderr=subprocess.PIPE, text=True))
    ends = [process.communicate(timeout=120)[1] for process in starts]
    assert sorted(process.returncode for process in starts) == [0, 2], ends
    (refused,) = (err for err, process in zip(ends, starts, strict=True) if process.returncode)
    assert "holds a study with other settings (train.learning_rate" in refused
    folder = StudyFolder(tmp_path / "out")
    rates = {
        row["train/learning_rate"]
        for run in map(RunFolder, folder.path.glob("cells/*/hybrid/*"))
        for row in run.metrics
        if row["step"] == 1
    }
    first = folder.study.train.learning_rate
    assert first and len(rates) == 1 and rates.pop() < first


def test_runs_of_other_settings_are_refused_by_the_report(tmp_path: Path) -> None:
    from damage import say

    table = toy_table(tmp_path, methods=["hybrid"], seeds=[0], train={"steps": 2})
    outs = []
    for name, rate in (("a", 0.3), ("b", 0.1)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "s.toml"
        file.write_text(tomli_w.dumps({**table, "train": {"steps": 2, "learning_rate": rate}}))
        outs.append(tmp_path / name / "out")
        words = ["study", file, "--out", outs[-1], "--no-preflight", "--no-figures"]
        assert say(*words).code == 0
    assert read_study(table).name
    run = "cells/toy/hybrid/0"
    for name in ("result.json", "metrics.jsonl", "examples.jsonl"):
        (outs[0] / run / name).write_bytes((outs[1] / run / name).read_bytes())
    for words in (["report", outs[0]], ["compare", outs[1], outs[0]], ["watch", outs[0], "--once"]):
        ended = say(*words)
        assert ended.code == 2 and "with other settings than its study.toml" in ended.err, ended
        assert "remove the folder" in ended.err and run in ended.err
