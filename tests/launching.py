"""Running studies in tests: in this process, in worker processes, or by the command line.

A `Gate` stops the runs of the fake engine after a given step, in every process. Tests that kill or
inspect a run in progress therefore wait for an event and not for a clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from potstill.engines.fake import GATE
from potstill.study.executors.local import LocalScheduler
from potstill.study.run import prepare, run_cell
from potstill.study.schema import Study
from potstill.study.storage import StudyFolder, runs_of


def run_study(study: Study, path: Path, workers: int = 2) -> StudyFolder:
    """Execute a study's runs in worker processes; 0 workers: in this process."""
    folder = StudyFolder(path)
    task = prepare(study)
    folder.open(study)
    if workers:
        LocalScheduler(study, folder, workers).run(lambda: None, every=0.05)
        return folder
    ledger = folder.ledger(study)
    for key in runs_of(study):
        if folder.cell(key).result is None:
            run_cell(study, folder, key, task, ledger)
    return folder


def command(table: dict, file: Path, out: Path, *more: object) -> list[str]:
    """The command that runs a study, without pre-flight and figures."""
    file.write_text(tomli_w.dumps(table))
    return [
        *(sys.executable, "-m", "potstill", "study", str(file), "--out", str(out)),
        *("--no-figures", "--no-preflight", *map(str, more)),
    ]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; it has to in bounded time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class Gate:
    """Limits the steps of all runs of the fake engine, in this process and those it starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = folder / "gate"
        monkeypatch.setenv(GATE, str(self._file))

    def close(self, steps: int) -> None:
        """Let every run make at most so many steps, until the gate is opened."""
        partial = self._file.with_suffix(".partial")
        partial.write_text(str(steps))
        partial.replace(self._file)

    def open(self) -> None:
        """Let the runs go on."""
        self._file.unlink(missing_ok=True)
