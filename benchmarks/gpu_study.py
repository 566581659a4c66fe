"""A short study of an embedded pair through the command line, to its report and verdict."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_section import Section

PAIR = "tiny-llama"
METHODS, SEEDS = ("on_policy_gkd", "off_policy"), (0, 1, 2)  # a verdict needs three
RUN = ("--no-figures", "--no-preflight", "--json", "--workers", "1")  # `check` is pre-flight
# In place of vl-convert where it is missing: the report is written without its charts.
STUB = "def javascript_bundle(code):\n    return ''\n"


def run(section: Section) -> None:
    words = settings(section)
    folder = section.scratch / "study"
    section.text(f"The embedded pair `{PAIR}`, one run at a time. Settings: `{' '.join(words)}`.")
    rows = section.table("", ["", "seconds", "exit code"])
    predicted = None
    with section.part("potstill check"):
        code, seconds, out = potstill(section, ["check", *words, "--json"])
        rows.row("potstill check", seconds, code)
        if code:
            section.fail("potstill check", out[-400:])
        else:
            predicted = checks(section, json.loads(out))
    code, seconds, out = potstill(
        section,
        ["study", *words, "--out", str(folder), *RUN],
    )
    rows.row("potstill study", seconds, code)
    if code:
        section.fail("potstill study", out[-400:])
    with section.part("the results"):
        results(section, folder, predicted)


def settings(section: Section) -> list[str]:
    """Overrides of the quick study."""
    device = f"{section.device}:0" if section.device == "cuda" else "cpu"
    steps, problems = (3, 8) if section.tiny else (15, 100)
    methods, seeds = (METHODS[:1], SEEDS[:1]) if section.tiny else (METHODS, SEEDS)
    return [
        f'pairs=["{PAIR}"]',
        f"methods={json.dumps(methods)}",
        f"seeds={json.dumps(seeds)}",
        f'engine.student.device="{device}"',
        f'engine.teacher.device="{device}"',
        'engine.student.dtype="bfloat16"',
        'engine.teacher.dtype="bfloat16"',
        f"train.steps={steps}",
        f"eval.every={steps}",
        f"eval.problems={problems}",
        *(["train.batch_size=4", "train.max_tokens=8", "eval.probe=4"] if section.tiny else []),
    ]


def potstill(section: Section, words: list[str]) -> tuple[int, float, str]:
    """Run a command; its exit code, seconds, and output (with errors if it failed)."""
    env = {**os.environ}
    if importlib.util.find_spec("vl_convert") is None:
        stub = section.scratch / "stub"
        stub.mkdir(exist_ok=True)
        (stub / "vl_convert.py").write_text(STUB, encoding="utf-8")
        env["PYTHONPATH"] = os.pathsep.join([env.get("PYTHONPATH", ""), str(stub)])
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "potstill", *words],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=max(1.0, section.left() - 1),
    )
    print(done.stderr, flush=True)
    out = done.stdout if not done.returncode else f"{done.stdout[-200:]} {done.stderr}"
    return done.returncode, time.perf_counter() - start, out


def checks(section: Section, found: dict[str, Any]) -> float | None:
    """Show pre-flight's results; returns the seconds that it predicts for the runs."""
    counts: dict[str, int] = {}
    for check in found["checks"]:
        counts[check["status"]] = counts.get(check["status"], 0) + 1
        if check["status"] == "refused":
            section.fail(f"pre-flight, {check['name']}", check["evidence"])
        if check["status"] == "warning" or check["name"] == "time and memory":
            section.text(f"Pre-flight, {check['name']}: {check['evidence']}")
    section.text("Pre-flight: " + ", ".join(f"{n} {status}" for status, n in counts.items()) + ".")
    hours = [row["hours that cells compute"] for row in found["prediction"]]
    return float(hours[-1]) * 3600 if hours else None


def results(section: Section, folder: Path, predicted: float | None) -> None:
    """Show the runs, their seconds against the prediction, and the verdict."""
    runs = section.table("", ["run", "status", "steps", "seconds", "accuracy", "peak GB"])
    records = [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]
    for found in records:
        name = f"{found.get('method')} {'' if found.get('seed') is None else found['seed']}"
        peak = (found.get("peak_bytes") or 0) / 1e9
        cells = [found.get(key) for key in ("status", "steps", "seconds", "accuracy")]
        runs.row(name, *cells, peak)
        if found.get("status") != "done":
            section.fail(name, str(found.get("error") or found.get("reason") or found)[:400])
    seconds = sum(found.get("seconds") or 0 for found in records)
    if predicted:
        section.text(
            f"Pre-flight predicted {predicted:.0f} s for all runs; they took {seconds:.0f} s, "
            f"{seconds / predicted:.2f} times as long."
        )
    if not (folder / "report.html").exists():
        section.fail("the report", "report.html was not written")
    verdict = json.loads((folder / "results.json").read_text())["verdict"]
    for pair, record in verdict.items():
        section.text(f"Verdict, {pair}: {record['head']}")
