"""The check of time and memory, on steps of the study's batch size."""

from __future__ import annotations

import time
from dataclasses import asdict

from potstill.diagnostics.preflight.estimate import estimate
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal

TIGHT = 0.9  # share of the memory above which longer completions may not fit
SMALLER = "lower engine.batch_tokens and engine.sample_tokens"


def affordable(rehearsal: Rehearsal, start: float) -> list[Check]:
    """Check that a step fits in memory, and estimate the runs.

    Args:
        rehearsal: the run as it will be trained.
        start: when pre-flight started, for the time that it took.
    """
    task, name = rehearsal.any_run().task, "time and memory"
    try:
        estimated = estimate(
            rehearsal.engine, rehearsal.recipes, task, rehearsal.settings, rehearsal.evaluation
        )
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        hint = f"{SMALLER} or train.batch_size, or set gradient_checkpointing = true"
        return [Check(name, "refused", f"one step runs out of memory: {error}", hint)]
    evidence = f"{estimated.summary}; these checks took {time.perf_counter() - start:.2g} s"
    runs = {method: asdict(spent) for method, spent in estimated.runs.items()}
    evaluations = {role: asdict(spent) for role, spent in estimated.evaluations.items()}
    numbers = {"runs": runs, "gradings": evaluations, "peak": estimated.peak}
    if estimated.peak > TIGHT * estimated.memory:
        hint = f"{SMALLER}, or set gradient_checkpointing = true"
        return [Check(name, "warning", evidence, hint, numbers=numbers)]
    return [Check(name, "passed", evidence, numbers=numbers)]
