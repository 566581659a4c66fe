"""The engine's contract on the card: the tests that every engine passes, in two dtypes.

Each engine of `tests/test_engine_contract.py` is a process of pytest with the device and the dtype
in its environment; `tests/closeness.py` states and argues the tolerances.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import gpu_packages as packages
from benchmarks.gpu_section import Section

ROOT = Path(__file__).parents[1]
TESTS = "tests/test_engine_contract.py"
ENGINES = ("torch-qwen", "torch-llama", "torch-lora", "torch-cross")
DTYPES = ("float32", "bfloat16")
QUICK = "torch-qwen and (score_of or not_a_number)"  # in a test of the command
OPTIONS = ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", "-o", "addopts="]


def run(section: Section) -> None:
    if packages.missing(["pytest"]):
        section.skip("the section", "pytest is not installed")
        return
    section.text(
        f"`{TESTS}` on four engines: Qwen3, Llama, LoRA adapters, and a teacher with another "
        "tokenizer. In float32 (TF32 off) the tolerances of the CPU are widened by 20, as kernels "
        "add in another order; in bfloat16 log-probs may differ by 0.1 nats and sums by a "
        "twentieth (`tests/closeness.py`)."
    )
    rows = section.table("", ["dtype", "engine", "passed", "failed", "skipped", "s"])
    jobs = [(dtype, engine) for dtype in DTYPES for engine in ENGINES]
    selected = {job: QUICK if section.tiny else job[1] for job in jobs}
    slots = max(1, min(8, (os.cpu_count() or 2) - 2))
    waiting = jobs[:: len(ENGINES)] if section.tiny else list(jobs)
    running: dict[tuple[str, str], tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        while waiting and len(running) < slots:
            job = waiting.pop(0)
            running[job] = start(section, job, selected[job]), time.monotonic()
        for job, (process, begin) in list(running.items()):
            if process.poll() is not None or section.left() < 3:
                process.kill()
                process.wait()
                report(section, rows, job, process.returncode, time.monotonic() - begin)
                del running[job]
        if section.left() < 3:
            break
        time.sleep(0.1)
    for dtype, engine in waiting:
        section.skip(f"{engine}, {dtype}", "no time was left")
    distances(section)


def files(section: Section, job: tuple[str, str]) -> tuple[Path, Path]:
    """The results of a process, and the distances that it measured."""
    stem = section.scratch / f"contract-{job[0]}-{job[1]}"
    return stem.with_suffix(".xml"), stem.with_suffix(".txt")


def start(section: Section, job: tuple[str, str], selected: str) -> subprocess.Popen[bytes]:
    """A process of pytest."""
    xml, measured = files(section, job)
    words = [sys.executable, "-m", "pytest", TESTS, "-k", selected, *OPTIONS]
    words += [f"--junitxml={xml}", "--basetemp", str(xml.with_suffix(""))]
    env = {
        **os.environ,
        "POTSTILL_TEST_DEVICE": section.device,
        "POTSTILL_TEST_DTYPE": job[0],
        "POTSTILL_TEST_DISTANCES": str(measured),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(words, cwd=ROOT, env=env)


def report(section: Section, rows: Any, job: tuple[str, str], code: int, seconds: float) -> None:
    """Add an engine's row and its failures."""
    dtype, engine = job
    outcomes: Counter[str] = Counter()
    try:
        cases = list(ElementTree.parse(files(section, job)[0]).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    for case in cases:
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is not None:
            outcomes["failed"] += 1
            why = (wrong.get("message") or wrong.text or "").strip()
            section.fail(f"{case.get('name')}, {dtype}", why)
        else:
            outcomes["skipped" if case.find("skipped") is not None else "passed"] += 1
    if not cases or code not in (0, 1):
        section.fail(f"{engine}, {dtype}", f"pytest ended with exit code {code}")
    counts = [outcomes[key] for key in ("passed", "failed", "skipped")]
    rows.row(dtype, engine, *counts, round(seconds, 1))


def distances(section: Section) -> None:
    """The largest distance of each test, as a share of what is allowed, over all engines."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for dtype in DTYPES:
        places = section.scratch.glob(f"contract-{dtype}-*.txt")
        for line in [line for place in places for line in place.read_text().splitlines()]:
            name, *numbers = line.split()
            distance, allowed = map(float, numbers)
            old = found.setdefault(name, {}).get(dtype, (-1.0, 1.0))
            if distance / (allowed or 1.0) > old[0] / (old[1] or 1.0):
                found[name][dtype] = distance, allowed
    heads = [f"{dtype}{word}" for dtype in DTYPES for word in ("", ", allowed")]
    rows = section.table("Largest distances.", ["test", *heads])
    for name, by_dtype in found.items():
        cells = [x for dtype in DTYPES for x in by_dtype.get(dtype, ("", ""))]
        rows.row(name.removeprefix("test_").replace("_", " "), *cells)
