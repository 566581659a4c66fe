"""Worker processes: their cores, their deaths, and an end for those that cannot work at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import tomli_w

from conftest import toy_table
from launching import Gate
from potstill.errors import PotstillError
from potstill.study.executors import local
from potstill.study.executors.local import LocalScheduler, worker_cores
from potstill.study.loading import read_study
from potstill.study.storage import RunId, StudyFolder
from test_cli import call


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no core affinity here")
def test_workers_have_cores_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(tmp_path, monkeypatch)
    gate.close(1)
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0, 1])
    study, folder = read_study(table), StudyFolder(tmp_path / "out")
    folder.open(study)
    runs = [folder.cell(RunId("toy", "on_policy_gkd", seed)) for seed in (0, 1)]
    cores: list[set[int]] = []

    def read_affinity() -> None:
        marks = [run.running for run in runs]
        if not cores and all(marks) and all(run.steps == 1 for run in runs):
            cores.extend(os.sched_getaffinity(mark["pid"]) for mark in marks if mark)
            gate.open()

    results = LocalScheduler(study, folder, 2).run(read_affinity, every=0.02)
    assert [record["status"] for record in results.values()] == ["done"] * 4
    available = sorted(os.sched_getaffinity(0))
    assert {frozenset(one) for one in cores} == {worker_cores(i, 2, available) for i in (0, 1)}


def test_more_workers_than_cores_share_them_all() -> None:
    assert worker_cores(0, 3, [4, 7]) == worker_cores(2, 3, [4, 7]) == {4, 7}
    assert worker_cores(0, 1, [4, 7]) == {4, 7} and worker_cores(0, 2, []) == frozenset()
    shares = [worker_cores(i, 3, range(8)) for i in range(3)]
    assert frozenset.union(*shares) == set(range(8)) and sum(map(len, shares)) == 8


def test_a_worker_that_dies_costs_its_run_only_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path, monkeypatch)
    gate.close(5)
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0, 1])
    study = read_study(table)
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    run = folder.cell(RunId("toy", "on_policy_gkd", 0))
    killed: list[int] = []

    def kill_seed_0() -> None:
        mark = run.running
        if mark and run.steps == 5 and mark["pid"] not in killed and len(killed) < 2:
            killed.append(mark["pid"])
            os.kill(mark["pid"], signal.SIGKILL)
            if len(killed) == 2:
                gate.open()

    results = LocalScheduler(study, folder, 1).run(kill_seed_0, every=0.02)
    by_seed = {key.seed: record for key, record in results.items() if key.seed is not None}
    assert len(killed) == 2
    assert by_seed[0]["status"] == "failed" and "died 2 times" in by_seed[0]["cause"]
    assert by_seed[1]["status"] == "done"


def die(*_: object) -> None:
    """A worker that cannot start."""
    os._exit(9)


def test_workers_that_die_before_they_take_a_run_end_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0]))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    monkeypatch.setattr(local, "_worker", die)
    with pytest.raises(PotstillError, match="exit with code 9 before they start a run"):
        LocalScheduler(study, folder, 1).run(lambda: None, every=0.02)


def test_a_spent_budget_ends_every_command_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0], budget={"tokens": 1})
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(table))
    for words in (["study", "--no-figures"], ["run"]):
        out = tmp_path / words[0]
        assert call(*words, file, "--no-preflight", "--out", out) == 1
        stderr = capsys.readouterr().err
        assert "stopped: the budget is spent" in stderr and "hint: raise it" in stderr
        assert (out / "report.html").exists() == (words[0] == "study")
