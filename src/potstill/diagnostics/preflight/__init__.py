"""Pre-flight: checks before step 0 that a run will train what its recipe specifies.

A run is set up exactly as it will be trained, and single steps of it are rehearsed without changing
the student. The data that reach the engine are compared with a reference computed from logits
(`reference`). If they differ, known mistakes are tried, so that the result has a name and a remedy.
Problems that only appear during training are left to the monitor.

The study's time is predicted first, and the checks then take a tenth of it at most (`budget`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight import pair, prompts
from potstill.diagnostics.preflight.budget import TimeBudget
from potstill.diagnostics.preflight.check import (
    Check,
    Keeper,
    Progress,
    Watch,
    unwatched,
)
from potstill.diagnostics.preflight.completions import completions
from potstill.diagnostics.preflight.cost import affordable, recall
from potstill.diagnostics.preflight.given import data_completions
from potstill.diagnostics.preflight.memo import Memo
from potstill.diagnostics.preflight.memory import fits
from potstill.diagnostics.preflight.rehearsal import Rehearsal
from potstill.diagnostics.preflight.steps import change_points, trained_as_written
from potstill.errors import PotstillError, out_of_memory, shown

__all__ = [
    "CHECKS",
    "COST",
    "MEMORY",
    "TimeBudget",
    "Check",
    "Keeper",
    "Progress",
    "Rehearsal",
    "Watch",
    "from_keeper",
    "names_of",
    "preflight",
    "steps_of",
    "unrunnable",
    "unwatched",
]

COST, STEPS, MEMORY = "time and memory", "steps", "memory"
# Every check by its name in `preflight(..., only=...)`, in the order in which they are made.
CHECKS: dict[str, Callable[[Rehearsal], Iterable[Check]]] = {
    "pair": lambda rehearsal: [Check("pair", "passed", note) for note in rehearsal.engine.notes],
    "tokenizers": pair.tokenizers,
    "train and test": pair.disjoint,
    "seed": pair.seeded,
    "prompts": prompts.special_tokens,
    "context": prompts.context_is_read,
    "length": prompts.lengths,
    "adapters": prompts.adapters,
    MEMORY: fits,  # before a step is taken
    COST: affordable,  # sets the budget of those below
    "forward pass": pair.forward_pass,
    "sampler": pair.sampler_scores,
    "identity": pair.self_divergence,
    "data completions": data_completions,
    "completions": completions,
    "capability gap": pair.capability_gap,
    STEPS: lambda rehearsal: [
        check for recipe in rehearsal.recipes for check in trained_as_written(rehearsal, recipe)
    ],  # made recipe by recipe
    "fresh sampler": pair.fresh_sampler,  # moves the student: what is known of it is forgotten
}
ESSENTIAL = ("context", "length", MEMORY)  # no step is taken after one of them has failed
# Checks that run the models, in addition to the steps.
RUNNING = ("forward pass", "sampler", "identity", "completions", "capability gap", "fresh sampler")

log = logging.getLogger(__name__)


def preflight(
    rehearsal: Rehearsal,
    only: Collection[str] = (),
    watch: Watch = unwatched,
    keeper: Keeper | None = None,
) -> Sequence[Check]:
    """Run the checks and leave the engine's weights unchanged.

    Args:
        rehearsal: the run as it will be trained. With "time and memory", its checks stay within
            the budget; without, each has its full size unless the budget has a limit.
        only: names of checks; default: all.
        watch: called when a check starts and when it ends.
        keeper: has results of earlier checks, and keeps those of the new ones.
    """
    if impossible := list(pair.computable(rehearsal)):
        return impossible
    rehearsal = replace(rehearsal, engine=Memo(rehearsal.engine))
    names, budget = names_of(rehearsal.recipes, only), rehearsal.budget
    if COST in names and budget.limit is None:
        budget.limit = 0.0  # until the study's time is predicted
    results: dict[str, list[Check]] = {}
    for number, name in enumerate(names):
        budget.parts = sum(_parts(rehearsal, later) for later in names[number:])
        results[name] = _watched(rehearsal, name, watch, keeper)
        if name == COST:
            recall(rehearsal, results[name])
        if name in ESSENTIAL and any(check.status == "refused" for check in results[name]):
            break  # the models cannot read such prompts, or a step does not fit
    return _in_order(results, budget.spent)


def names_of(recipes: Sequence[Recipe], only: Collection[str] = ()) -> list[str]:
    """Names of the checks of a study, with one for the steps of each recipe.

    >>> names_of([Recipe(name="hybrid")], ["seed", "steps"])
    ['seed', 'steps of hybrid']
    """
    names: list[str] = []
    for name in CHECKS:
        if name in (only or CHECKS):
            names += [steps_of(recipe) for recipe in recipes] if name == STEPS else [name]
    return names


def steps_of(recipe: Recipe) -> str:
    """Name of the check of a recipe's steps."""
    return f"{STEPS} of {recipe.name}"


def from_keeper(
    recipes: Sequence[Recipe], only: Collection[str], watch: Watch, keeper: Keeper | None
) -> Sequence[Check] | None:
    """The results of all checks if they are kept, else None; needs no engine."""
    results: dict[str, list[Check]] = {}
    for name in names_of(recipes, only):
        kept = keeper.get(name) if keeper else None
        if kept is None:
            return None
        results[name] = kept
    for name, checks in results.items():
        watch(Progress(name, checks, kept=True))
    return _in_order(results, 0.0)


def _in_order(results: dict[str, list[Check]], seconds: float) -> list[Check]:
    """All checks, those of time and memory last, with the time that all of them took."""
    took = f"these checks took {seconds:.3g} s"
    last = [check.noted(took if check.numbers else "") for check in results.pop(COST, [])]
    return [*(check for checks in results.values() for check in checks), *last]


def _watched(rehearsal: Rehearsal, name: str, watch: Watch, keeper: Keeper | None) -> list[Check]:
    """The results of a check, new or kept."""
    kept = keeper.get(name) if keeper else None
    if kept is not None:
        watch(Progress(name, kept, kept=True))
        return kept
    watch(Progress(name))
    start = time.perf_counter()
    checks = _completed(name, partial(_work(rehearsal, name), rehearsal))
    watch(Progress(name, checks, time.perf_counter() - start))
    if keeper:
        keeper.put(name, checks)
    return checks


def _work(rehearsal: Rehearsal, name: str) -> Callable[[Rehearsal], Iterable[Check]]:
    """The check of a name as in `names_of`."""
    recipe = _recipe(rehearsal, name)
    if recipe is None:
        return CHECKS[name]
    return lambda rehearsal: trained_as_written(rehearsal, recipe)


def _parts(rehearsal: Rehearsal, name: str) -> int:
    """The number of equal parts of the budget that a check has."""
    recipe = _recipe(rehearsal, name)
    return int(name in RUNNING) if recipe is None else len(change_points(recipe))


def _recipe(rehearsal: Rehearsal, name: str) -> Recipe | None:
    """The recipe of a check of steps."""
    return next((r for r in rehearsal.recipes if name == steps_of(r)), None)


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
    evidence = shown(f"the models cannot be run: {type(error).__name__}: {lines[0]}")
    hint = "--verbose shows where; compare the versions of torch and transformers"
    if out_of_memory(error):
        hint = "lower engine.batch_tokens and engine.sample_tokens, or use a smaller model"
    return Check(name, "refused", evidence, hint)
