"""Every family of models on the card, several processes at a time.

Each family is a process of its own (`gpu_family`), because an error on a card can spoil all that
the process computes after it. The families that users train most come first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_family import FLOAT32, GRADIENT, HALF, LOSS, TESTS
from benchmarks.gpu_section import Section, Table

FIRST = ("llama", "qwen3", "qwen2", "gemma3_text", "mistral", "qwen3_moe", "mamba2", "qwen3_5_text")
QUICK = ("llama", "mamba2")
LIMIT = 120.0  # seconds of a family
COLUMNS = ["float32 : CPU", "float32, batch", "scores", "samples", "greedy, gap"]
COLUMNS += [
    f"{name}: {figure}"
    for name in ("all weights", "LoRA")
    for figure in ("loss", "gradient", "after 4 steps", "export")
]


def run(section: Section) -> None:
    names = ordered(section)
    slots = max(1, min(12, (os.cpu_count() or 2) - 2))
    section.text(
        f"{len(names)} families of two layers with random weights, {slots} processes at a time. "
        f"Log-probs in nats: float32 on this device against the CPU and rows in a batch against "
        f"rows alone (largest distance, at most {FLOAT32}); the same in bfloat16 (median over "
        f"rows, at most {HALF}); how far a greedy token is below the likeliest one of the row "
        f"alone (at most {2 * HALF}). A bfloat16 step against a float32 step on the CPU: relative "
        f"distance of the loss (at most {LOSS}) and the gradient norm (at most {GRADIENT}), the "
        "loss after four steps as a share of the first (below 1), and scores of the exported "
        f"student opened by transformers in float32 (at most {HALF})."
    )
    rows = section.table("", ["family", *COLUMNS, "s"])
    for name, found, reason in results(section, names, slots):
        report(section, rows, name, found, reason)


def ordered(section: Section) -> list[str]:
    """All families, the important ones first; few of them in a test of the command."""
    if section.tiny:
        return list(QUICK)
    sys.path.insert(0, str(TESTS))
    from families import FAMILIES  # type: ignore[import-not-found]

    return [*FIRST, *(name for name in FAMILIES if name not in FIRST)]


def results(
    section: Section, names: list[str], slots: int
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each family's figures as its process ends, and why it ended early if it did."""
    waiting, running = list(names), dict[str, tuple[subprocess.Popen[bytes], float]]()
    while waiting or running:
        while waiting and len(running) < slots and section.left() > 10:
            name = waiting.pop(0)
            running[name] = start(section, name), time.monotonic()
        for name, (process, begin) in list(running.items()):
            late = time.monotonic() - begin > LIMIT or section.left() < 3
            if process.poll() is None and late:
                process.kill()
                process.wait()
                yield name, read(path(section, name)), "it took too long, and was ended"
                del running[name]
            elif process.poll() is not None:
                code = process.returncode
                reason = f"its process ended with exit code {code}" if code else ""
                yield name, read(path(section, name)), reason
                del running[name]
        if waiting and not running and section.left() <= 10:
            section.skip(", ".join(waiting), "no time was left")
            return
        time.sleep(0.1)


def start(section: Section, name: str) -> subprocess.Popen[bytes]:
    """The process of a family; with many processes, each has one thread on the CPU."""
    words = [sys.executable, "-m", "benchmarks.gpu_family", name, "--device", section.device]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*words, "--result", str(path(section, name))], env=env)


def path(section: Section, name: str) -> Path:
    """The file of a family's figures."""
    return section.scratch / f"family-{name}.json"


def read(file: Path) -> dict[str, Any]:
    """A family's figures, as far as they were computed."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"figures": {}, "errors": {}, "seconds": 0.0}
    return found


def report(section: Section, rows: Table, name: str, found: dict[str, Any], reason: str) -> None:
    """Add a family's row, and its failures."""
    cells = []
    for column in COLUMNS:
        value, most = found["figures"].get(column, (None, None))
        right = value is not None and (value < most if most == 1.0 else value <= most)
        cells.append("-" if value is None else f"{value:.2g}" if right else f"**{value:.2g}**")
        if value is not None and not right:
            section.fail(f"{name}, {column}", f"{value:.3g}, at most {most}")
    for check, error in found["errors"].items():
        section.fail(f"{name}, {check}", error)
    if reason:
        section.fail(name, reason)
    rows.row(name, *cells, round(found["seconds"], 1))
