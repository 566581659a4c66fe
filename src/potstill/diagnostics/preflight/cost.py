"""The check of time and memory: a step of the study's own size."""

from __future__ import annotations

import time
from dataclasses import asdict

from potstill.diagnostics.preflight.estimate import estimate
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal

TIGHT = 0.9  # of the memory, above which a longer completion may not fit
SMALLER = "lower engine.batch_tokens and engine.sample_tokens"


def affordable(rehearsal: Rehearsal, began: float) -> list[Check]:
    """A step of the study's own size fits, how long the runs take, and what pre-flight took."""
    task, name = rehearsal.any_run().task, "time and memory"
    try:
        found = estimate(
            rehearsal.engine, rehearsal.recipes, task, rehearsal.settings, rehearsal.grading
        )
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        hint = f"{SMALLER} or train.batch_size, or set gradient_checkpointing = true"
        return [Check(name, "refused", f"one step runs out of memory: {error}", hint)]
    words = f"{found.words}; these checks took {time.perf_counter() - began:.2g} s"
    runs = {method: asdict(run) for method, run in found.runs.items()}
    rows = {role: asdict(one) for role, one in found.gradings.items()}
    numbers = {"runs": runs, "gradings": rows, "peak": found.peak}
    if found.peak > TIGHT * found.memory:
        hint = f"{SMALLER}, or set gradient_checkpointing = true"
        return [Check(name, "warning", words, hint, numbers=numbers)]
    return [Check(name, "passed", words, numbers=numbers)]
