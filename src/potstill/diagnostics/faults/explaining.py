"""The data of a step as they would be with a known mistake in the pipeline.

Where a step trains something else than the recipe, pre-flight and the monitor try the mistakes one
after the other; the one that gives the number of the step is its explanation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import REWRITING
from potstill.diagnostics.faults.base import DataFault, Spoiled
from potstill.engines.protocol import Engine
from potstill.training import objective
from potstill.types import Datum, Trajectory

Mistakes = tuple[DataFault, ...]  # one, or some in company


def candidates(losses: Collection[str]) -> dict[str, Mistakes]:
    """The mistakes that can be tried on an engine, by name; "A+B" are two in company.

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
    if "reverse_kl_sampled" not in losses:  # the prefix is trained with it
        known = {name: mistakes for name, mistakes in known.items() if "prefix" not in name}
    return known


def as_if(
    mistakes: Mistakes, recipe: Recipe, batch: Sequence[Trajectory], engine: Engine
) -> list[Datum]:
    """The data that a batch gives with some mistakes in the pipeline, the first one innermost."""
    outer = engine
    for fault in mistakes:
        outer = Spoiled(outer, fault)  # type: ignore[assignment]
    data = objective.build(recipe, batch, outer)
    while isinstance(outer, Spoiled) and outer is not engine:
        data, outer = outer.rewrite(data), outer.engine
    return data
