"""Ctrl-C, which a terminal sends to all processes of a command, at any moment."""

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

from conftest import toy_table

MOMENTS = (0.1, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0)


def interrupted(words: list[str], seconds: float, cache: Path) -> tuple[int, str, list[str]]:
    """Exit code, stderr, and the processes that are left, of a command that is interrupted."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "POTSTILL_CACHE": str(cache)},
    )
    time.sleep(seconds)
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
    except (psutil.NoSuchProcess, ProcessLookupError):
        family = []
    _, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=10)
    return process.returncode, err, [" ".join(left.cmdline()) for left in alive]


@pytest.mark.slow
@pytest.mark.parametrize("preflight", ["--preflight", "--no-preflight"])
def test_an_interrupt_is_one_line_and_leaves_no_process(tmp_path: Path, preflight: str) -> None:
    table = toy_table(tmp_path, seeds=[0, 1, 2, 3], train={"steps": 400, "checkpoint_every": 50})
    (tmp_path / "toy.toml").write_text(tomli_w.dumps(table))
    words = [sys.executable, "-m", "potstill", "study", str(tmp_path / "toy.toml"), preflight]
    codes = []
    for number, seconds in enumerate(MOMENTS):
        out = ["--out", str(tmp_path / f"out{number}"), "--no-figures", "--workers", "2"]
        code, err, left = interrupted([*words, *out], seconds, tmp_path / "cache")
        assert "Traceback" not in err and 'File "' not in err, (seconds, err)
        assert left == [], (seconds, err)
        assert code in (130, -signal.SIGINT), (seconds, code, err)  # before Python handles signals
        codes.append(code)
    assert codes.count(130) > len(MOMENTS) / 2
