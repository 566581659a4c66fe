"""Explanation of a wrong step: the data that it would have with a known mistake in the pipeline.

If a step trains something other than the recipe, pre-flight and the monitor try the known mistakes
in turn. The first one that gives the step's loss is the explanation. Comparing is left to them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import REWRITING
from potstill.diagnostics.faults.base import DataFault, FaultyPipeline
from potstill.engines.protocol import Engine
from potstill.training import objective
from potstill.types import Datum, Trajectory

Mistakes = tuple[DataFault, ...]  # one fault, or several at once


def candidates(losses: Collection[str]) -> dict[str, Mistakes]:
    """The mistakes that can be tried on an engine, by name; "A+B" is two faults at once.

    Args:
        losses: names of the losses that the engine can compute.
    """
    singles: dict[str, Mistakes] = {name: (fault,) for name, fault in REWRITING.items()}
    pairs: dict[str, Mistakes] = {
        f"{name}+{other}": (fault, REWRITING[other])
        for name, fault in REWRITING.items()
        for other in fault.together
    }
    known = {**singles, **pairs}
    if "reverse_kl_sampled" not in losses:  # needed to train the prefix
        known = {name: mistakes for name, mistakes in known.items() if "prefix" not in name}
    return known


def as_if(
    mistakes: Mistakes, recipe: Recipe, batch: Sequence[Trajectory], engine: Engine
) -> list[Datum]:
    """The data of a batch with the mistakes in the pipeline, the first one innermost."""
    faulty = engine
    for fault in mistakes:
        faulty = FaultyPipeline(faulty, fault)  # type: ignore[assignment]
    data = objective.build(recipe, batch, faulty)
    while isinstance(faulty, FaultyPipeline) and faulty is not engine:
        data, faulty = faulty.rewrite(data), faulty.engine
    return data
