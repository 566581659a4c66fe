"""One on-policy step on the card, potstill's and TRL's in turns, where TRL is installed.

The same children as `benchmarks.steps`, which explains what is compared.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import gpu_models as models
from benchmarks.beside import ROOT, Child, spread
from benchmarks.gpu_section import Section
from benchmarks.shapes import make_smol
from benchmarks.steps import AGREE, OWN, TRL, WARM, first_batch

REPEATS = 3
HEADS = ["dtype", "", "s a step", "tokens a step", "peak GB", "loss of step 0", "its time : ours"]


def run(section: Section) -> None:
    python = interpreter()
    if not python:
        section.skip("the section", "TRL is not installed (trl and datasets)")
        return
    section.text(
        "SmolLM2-135M's shape as teacher and half its layers as student, random weights; all "
        "weights are trained on the exact reverse KL of what the student has just sampled. In "
        "bfloat16 both compute under autocast, and TRL keeps its teacher in float32."
    )
    job = job_of(section)
    rows = section.table("", HEADS)
    for dtype in ("float32", "bfloat16"):
        with section.part(dtype, 0 if section.tiny else 20) as go:
            if go:
                compared(section, python, {**job, "dtype": dtype}, rows)


def interpreter() -> str:
    """A Python that has TRL; empty if there is none."""
    own = ROOT / "runs" / "trl"
    if (own / "ready").exists():
        return str(own / "bin" / "python")
    found = all(importlib.util.find_spec(name) for name in ("trl", "datasets"))
    return sys.executable if found else ""


def job_of(section: Section) -> dict[str, Any]:
    """What every side is given."""
    batch, added, layers = (2, 4, (1, 2)) if section.tiny else (16, 64, (15, 30))
    questions = models.questions(batch * (REPEATS + WARM + 1))
    device = "cuda:0" if section.device == "cuda" else "cpu"
    job: dict[str, Any] = {"threads": os.cpu_count(), "learning_rate": 1e-4, "device": device}
    job |= {"batch_tokens": 16_384, "batch": batch, "max_tokens": added, "questions": questions}
    job |= make_smol(Path(section.scratch) / "smol", questions, layers)
    job["prompts"], job["completions"] = first_batch(job)
    models.clear()
    return job


def compared(section: Section, python: str, job: dict[str, Any], rows: Any) -> None:
    """Take turns, and add a row for each side."""
    sides = {OWN: Child(sys.executable, "benchmarks.own_steps", job)}
    for name, checkpointing in TRL.items():
        other = {**job, "gradient_checkpointing": checkpointing}
        sides[name] = Child(python, "benchmarks.peers.trl_steps", other)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    try:
        for _ in range(REPEATS + WARM):
            for name, child in sides.items():
                found[name].append(child.ask())
    finally:
        for child in sides.values():
            child.close()
    for name, steps in found.items():
        timed, ours = steps[WARM:], found[OWN][WARM:]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(timed, ours, strict=True)]
        rows.row(
            job["dtype"],
            name,
            spread([step["seconds"] for step in timed], ".3f"),
            statistics.mean(step["tokens"] for step in timed),
            steps[-1]["memory"] / 1e9,
            f"{steps[0]['loss']:.5f}",
            "" if name == OWN else spread(ratios),
        )
    losses = [steps[0]["loss"] for steps in found.values()]
    allowed = AGREE if job["dtype"] == "float32" else 20 * AGREE
    if not max(losses) - min(losses) <= allowed:
        section.fail(f"loss of step 0, {job['dtype']}", f"{losses} differ by more than {allowed}")
