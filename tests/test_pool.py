"""Worker processes: their cores, their deaths, and an end for those that cannot work at all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from conftest import toy_table
from potstill.errors import PotstillError
from potstill.study.executors import local
from potstill.study.executors.local import LocalScheduler, worker_cores
from potstill.study.loading import read_study
from potstill.study.storage import Cell, StudyFolder


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no core affinity here")
def test_workers_have_cores_of_their_own(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0, 1], train={"steps": 300})
    study, folder = read_study(table), StudyFolder(tmp_path / "out")
    folder.open(study)
    seen: set[frozenset[int]] = set()

    def look() -> None:
        for seed in (0, 1):
            if running := folder.cell(Cell("toy", "on_policy_gkd", seed)).running:
                with contextlib.suppress(ProcessLookupError):
                    seen.add(frozenset(os.sched_getaffinity(running["pid"])))

    LocalScheduler(study, folder, 2).run(look, every=0.02)
    allowed = sorted(os.sched_getaffinity(0))
    assert seen == {worker_cores(0, 2, allowed), worker_cores(1, 2, allowed)}


def test_more_workers_than_cores_share_them_all() -> None:
    assert worker_cores(0, 3, [4, 7]) == worker_cores(2, 3, [4, 7]) == {4, 7}
    assert worker_cores(0, 1, [4, 7]) == {4, 7} and worker_cores(0, 2, []) == frozenset()
    shares = [worker_cores(i, 3, range(8)) for i in range(3)]
    assert frozenset.union(*shares) == set(range(8)) and sum(map(len, shares)) == 8


def test_a_worker_that_dies_costs_its_cell_only_the_second_time(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0, 1], train={"steps": 800})
    study = read_study(table)
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    killed: list[int] = []

    def kill_seed_0() -> None:
        place = folder.cell(Cell("toy", "on_policy_gkd", 0))
        running = place.running
        if running and place.steps > 4 and running["pid"] not in killed and len(killed) < 2:
            killed.append(running["pid"])
            os.kill(running["pid"], signal.SIGKILL)

    results = LocalScheduler(study, folder, 1).run(kill_seed_0, every=0.02)
    by_seed = {cell.seed: record for cell, record in results.items() if cell.seed is not None}
    assert len(killed) == 2
    assert by_seed[0]["status"] == "failed" and "died 2 times" in by_seed[0]["cause"]
    assert by_seed[1]["status"] == "done"


def die(*_: object) -> None:
    """What a worker does that cannot start."""
    os._exit(9)


def test_workers_that_die_before_they_take_a_cell_end_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0]))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    monkeypatch.setattr(local, "_worker", die)
    with pytest.raises(PotstillError, match="exit with code 9 before they start a run"):
        LocalScheduler(study, folder, 1).run(lambda: None, every=0.02)


def test_a_spent_budget_ends_every_command_with_1(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0], budget={"tokens": 1})
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(table))
    for words in (["study", "--no-figures"], ["run"]):
        out = tmp_path / words[0]
        command = [sys.executable, "-m", "potstill", *words, str(file), "--no-preflight"]
        done = subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "stopped: the budget is spent" in done.stderr and "hint: raise it" in done.stderr
        assert (out / "report.html").exists() == (words[0] == "study")
