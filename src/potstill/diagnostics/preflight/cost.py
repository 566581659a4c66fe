"""The check of time and memory, on steps of the study's batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from potstill.diagnostics.preflight.check import Check
from potstill.diagnostics.preflight.estimate import estimate
from potstill.diagnostics.preflight.rehearsal import Rehearsal

TIGHT = 0.9  # share of the memory above which longer completions may not fit
SMALLER = "lower engine.batch_tokens and engine.sample_tokens"


def affordable(rehearsal: Rehearsal) -> list[Check]:
    """Check that a step fits in memory, estimate the runs, and set the budget of other checks."""
    task, name = rehearsal.any_run().task, "time and memory"
    try:
        estimated = estimate(
            rehearsal.engine,
            rehearsal.recipes,
            task,
            rehearsal.settings,
            rehearsal.evaluation,
            rehearsal.budget,
            rehearsal.seeds,
        )
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        hint = f"{SMALLER} or train.batch_size, or set gradient_checkpointing = true"
        return [Check(name, "refused", f"one step runs out of memory: {error}", hint)]
    study = f"the study about {estimated.study(rehearsal.seeds):.3g} s"
    evidence = "; ".join(filter(None, (estimated.summary, estimated.note, study)))
    runs = {method: asdict(spent) for method, spent in estimated.runs.items()}
    evaluations = {role: asdict(spent) for role, spent in estimated.evaluations.items()}
    numbers = {"runs": runs, "gradings": evaluations, "peak": estimated.peak}
    numbers |= {"evaluated": estimated.evaluated, "per problem": estimated.per_problem}
    numbers["study"] = estimated.study(rehearsal.seeds)
    numbers["step of each kind"] = sum(step.spent.seconds for step in estimated.steps.values())
    if estimated.peak > TIGHT * estimated.memory:
        hint = f"{SMALLER}, or set gradient_checkpointing = true"
        return [Check(name, "warning", evidence, hint, numbers=numbers)]
    return [Check(name, "passed", evidence, numbers=numbers)]


def recall(rehearsal: Rehearsal, checks: Sequence[Check]) -> None:
    """Use the times that were measured, now or earlier: the budget, and the evaluations."""
    measured = rehearsal.measured
    for check in checks:
        if numbers := check.numbers:
            rehearsal.budget.predict(numbers["study"], numbers["step of each kind"])
            measured.evaluated, measured.per_problem = numbers["evaluated"], numbers["per problem"]
