"""Pre-flight: checks before step 0 that a run will train what its recipe specifies.

A run is set up exactly as it will be trained, and single steps of it are rehearsed without changing
the student. The data that reach the engine are compared with a reference computed from logits
(`reference`). If they differ, known mistakes are tried, so that the result has a name and a remedy.
Problems that only appear during training are left to the monitor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from potstill.diagnostics.preflight import pair, prompts
from potstill.diagnostics.preflight.cost import affordable
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal
from potstill.diagnostics.preflight.steps import trained_as_written
from potstill.errors import PotstillError

__all__ = ["CHECKS", "Check", "Rehearsal", "preflight", "unrunnable"]

# Every check except time and memory, by its name in `preflight(..., only=...)`.
CHECKS: dict[str, Callable[[Rehearsal], Iterable[Check]]] = {
    "pair": lambda rehearsal: [Check("pair", "passed", note) for note in rehearsal.engine.notes],
    "tokenizers": pair.tokenizers,
    "train and test": pair.disjoint,
    "seed": pair.seeded,
    "prompts": prompts.special_tokens,
    "context": prompts.context_is_read,
    "length": prompts.lengths,
    "adapters": prompts.adapters,
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
ESSENTIAL = ("context", "length")  # nothing is run after one of them has failed

log = logging.getLogger(__name__)


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
    results: list[Check] = []
    for name, check in CHECKS.items():
        if name in chosen:
            completed = _completed(name, partial(check, rehearsal))
            results += completed
            if name in ESSENTIAL and any(result.status == "refused" for result in completed):
                return results  # the models cannot read such prompts
    if COST in chosen:
        results += _completed(COST, partial(affordable, rehearsal, start))
    return results


def _completed(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The results of a check; an exception of a model's own code is a failed check."""
    try:
        return list(check())
    except (PotstillError, MemoryError):
        raise
    except Exception as error:
        return [unrunnable(name, error)]


def unrunnable(name: str, error: Exception) -> Check:
    """The failed check of an exception that the models' own code raised."""
    log.info("check %s", name, exc_info=error)
    lines = str(error).strip().splitlines() or [""]
    evidence = f"the models cannot be run: {type(error).__name__}: {lines[0]}"
    hint = "--verbose shows where; compare the versions of torch and transformers"
    if "memory" in evidence.lower():
        hint = "lower engine.batch_tokens and engine.sample_tokens, or use a smaller model"
    return Check(name, "refused", evidence, hint)
