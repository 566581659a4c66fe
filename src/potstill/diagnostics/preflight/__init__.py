"""Pre-flight: checks before step 0 that a run will train what its recipe specifies.

A run is set up exactly as it will be trained, and single steps of it are rehearsed without changing
the student. The data that reach the engine are compared with a reference computed from logits
(`reference`). If they differ, known mistakes are tried, so that the result has a name and a remedy.
Problems that only appear during training are left to the monitor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from potstill.diagnostics.preflight import pair
from potstill.diagnostics.preflight.cost import affordable
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal
from potstill.diagnostics.preflight.steps import trained_as_written

__all__ = ["CHECKS", "Check", "Rehearsal", "preflight"]

# Every check except time and memory, by its name in `preflight(..., only=...)`.
CHECKS: dict[str, Callable[[Rehearsal], Iterable[Check]]] = {
    "pair": lambda rehearsal: [Check("pair", "passed", note) for note in rehearsal.engine.notes],
    "tokenizers": pair.tokenizers,
    "train and test": pair.disjoint,
    "seed": pair.seeded,
    "forward pass": pair.forward_pass,
    "sampler": pair.sampler_scores,
    "identity": pair.self_divergence,
    "fresh sampler": pair.fresh_sampler,
    "capability gap": pair.capability_gap,
    "steps": lambda rehearsal: [
        check for recipe in rehearsal.recipes for check in trained_as_written(rehearsal, recipe)
    ],
}
COST = "time and memory"


def preflight(rehearsal: Rehearsal, only: Collection[str] = ()) -> Sequence[Check]:
    """Run the checks and leave the engine's weights unchanged.

    Args:
        rehearsal: the run as it will be trained.
        only: names of checks; default: all.
    """
    start = time.perf_counter()
    if impossible := list(pair.computable(rehearsal)):
        return impossible
    chosen = only or (*CHECKS, COST)
    results = [
        result for name, check in CHECKS.items() if name in chosen for result in check(rehearsal)
    ]
    return [*results, *(affordable(rehearsal, start) if COST in chosen else ())]
