"""Checks before step 0: does this run train what its recipe says?

A run is set up exactly as it will be trained and rehearses single steps that change nothing. The
data that reach the engine are compared with a reference computed from logits (`reference`); where
they differ, with the known mistakes, so that the finding has a name and a remedy. It leaves out
what only training shows: that is the monitor's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from potstill.diagnostics.preflight import pair
from potstill.diagnostics.preflight.cost import affordable
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal
from potstill.diagnostics.preflight.steps import trained_as_written

__all__ = ["CHECKS", "Check", "Rehearsal", "preflight"]

# Every check but time and memory, by the name that `preflight(..., only=...)` takes.
CHECKS: dict[str, Callable[[Rehearsal], Iterable[Check]]] = {
    "pair": lambda rehearsal: [Check("pair", "passed", note) for note in rehearsal.engine.notes],
    "tokenizers": pair.tokenizers,
    "train and test": pair.disjoint,
    "seed": pair.seeded,
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
    """Run the checks; the engine's weights are as before afterwards.

    Args:
        rehearsal: the run as it will be trained.
        only: names of checks; default: all.
    """
    start = time.perf_counter()
    if impossible := list(pair.computable(rehearsal)):
        return impossible
    chosen = only or (*CHECKS, COST)
    findings = [
        finding for name, check in CHECKS.items() if name in chosen for finding in check(rehearsal)
    ]
    return [*findings, *(affordable(rehearsal, start) if COST in chosen else ())]
