"""SIGKILL at random moments to any process of a study: start, pre-flight, grading, steps, report.

`Killed` runs the command of a small study, kills its main process or one that it started after a
random time, runs it again, and so on; at the end it runs undisturbed. The numbers must be those of
a study that was never killed, and no process may be left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w
from damage import recorded

from conftest import toy_table

GONE = 15.0  # seconds within which the processes of a killed one have to be gone
LONGEST = 120.0


@dataclass
class Killed:
    """A study that is killed again and again.

    Args:
        place: an empty folder.
        seed: of the moments.
        train: settings of training.
    """

    place: Path
    seed: int = 0
    train: Mapping[str, Any] = field(default_factory=lambda: {"on_collapse": "rollback"})
    counts: Counter[str] = field(default_factory=Counter)  # kills by the process that died
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        train = {"steps": 12, "checkpoint_every": 3, **self.train}
        methods = ["replay_buffer", "hybrid"]
        table = toy_table(self.place, methods=methods, seeds=[0], train=train)
        self.file = self.place / "toy.toml"
        self.file.write_text(tomli_w.dumps(table))
        begin = time.monotonic()
        self._finish(self.place / "whole")
        self.usual = time.monotonic() - begin
        self.right = recorded(self.place / "whole")

    def _start(self, out: Path, *more: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "potstill", "study", self.file, "--out", out]
        return subprocess.Popen(
            [*map(str, words), "--no-figures", *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _finish(self, out: Path) -> None:
        process = self._start(out)
        _, err = process.communicate(timeout=LONGEST)
        if process.returncode != 0 or b"Traceback" in err:
            self.faults.append(f"exit code {process.returncode}: {err.decode()[-800:]}")

    def attempt(self, kills: int) -> None:
        """A new study: so many kills of its processes, then an undisturbed end."""
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(kills):
            self._kill(out)
        self._finish(out)
        if (now := recorded(out)) != self.right:
            names = sorted(n for n in now | self.right if now.get(n) != self.right.get(n))
            self.faults.append(f"seed {self.seed}: other numbers in {names}")
        for left in [*out.rglob(".*.[0-9]*"), *out.rglob("partial-*"), *out.rglob(".running")]:
            self.faults.append(f"left behind: {left}")

    def _kill(self, out: Path) -> None:
        workers, preflight = self.rng.choice("12"), self.rng.random() < 0.5
        process = self._start(
            out, "--workers", workers, "--preflight" if preflight else "--no-preflight"
        )
        time.sleep(self.rng.uniform(0.0, self.usual))
        try:
            main = psutil.Process(process.pid)
            children = [c for c in main.children(recursive=True) if "spawn_main" in _words(c)]
        except psutil.NoSuchProcess:
            children = []
        if process.poll() is None:
            # a worker once, so that no run fails for good; then the main process in any case
            if children and self.rng.random() < 0.3 and not self.counts["worker of this study"]:
                self._end(self.rng.choice(children).pid, "worker")
                self.counts["worker of this study"] += 1
                time.sleep(self.rng.uniform(0.0, 0.5 * self.usual))
            if process.poll() is None:
                self._end(process.pid, "main process")
        process.communicate(timeout=LONGEST)
        end = time.monotonic() + GONE
        while alive := [child for child in children if child.is_running() and _is_alive(child)]:
            if time.monotonic() > end:
                self.faults.append(f"still there: {[_words(child) for child in alive]}")
                break
            time.sleep(0.05)

    def _end(self, pid: int, name: str) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
            self.counts[name] += 1
        except ProcessLookupError:
            pass


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def killed(
    place: Path, kills: int, seed: int = 0, each: int = 3, train: Mapping[str, Any] | None = None
) -> Killed:
    """So many kills in all, in studies that are killed `each` times."""
    study = Killed(place, seed, train) if train else Killed(place, seed)
    while study.counts["worker"] + study.counts["main process"] < kills:
        study.counts["worker of this study"] = 0
        study.attempt(each)
    del study.counts["worker of this study"]
    return study
