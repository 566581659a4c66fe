"""A fault: a named, deliberate deviation from the semantics, applied from outside loop and engine.

A fault changes the value that a run is about to be trained with: the recipe, the task, the seed,
the teacher's folder, or the engine, wrapped in something that spoils the data that pass through.
Loop and engines contain none of this.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine, Wrapper
from potstill.training.run import RunSpec
from potstill.types import Datum, Floats, Reading, Role, Source, StepStats


class Fault:
    """One deviation. A subclass overrides what it changes: `apply` or `teacher`."""

    name: ClassVar[str]
    what: ClassVar[str]  # the deviation, in a sentence
    where: ClassVar[str]  # its place in the published code, or how the field comes by it
    remedy: ClassVar[str]
    published: ClassVar[bool] = False  # one of the published study's code
    outermost: ClassVar[bool] = False  # counts the loop's steps, which other faults may split

    def touches(self, recipe: Recipe) -> bool:
        """Does the fault change a run of this recipe at all?"""
        return True

    def apply(self, run: RunSpec) -> RunSpec:
        """The run with the fault switched on."""
        return run

    def teacher(self, teacher: str, folder: Path) -> str:
        """The teacher's folder with the fault switched on; a changed copy goes to `folder`."""
        return teacher


class DataFault(Fault):
    """A wrong pipeline: it rewrites the data of a step, because a datum holds all that is read,
    predicted and weighed. Pre-flight and the monitor try it to explain a step."""

    would_be: ClassVar[str]  # the mistake as evidence: "... gives 10.63"
    together: ClassVar[tuple[str, ...]] = ()  # faults that come in its company
    sources: tuple[Source, ...] = ("student", "teacher")  # whose tokens it spoils

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, engine=Spoiled(run.engine, self))

    def rewrite(self, data: Sequence[Datum], engine: Engine) -> list[Datum]:
        """The data of a step as the faulty pipeline would have made them."""
        return [self.spoil(d, engine) if d.source in self.sources else d for d in data]

    def everywhere(self) -> DataFault:
        """The same mistake on tokens of either source, to explain a pipeline that is not ours."""
        fault = copy.copy(self)
        fault.sources = ("student", "teacher")
        return fault

    def spoil(self, datum: Datum, engine: Engine) -> Datum:
        """One datum as the faulty pipeline would have made it."""
        return datum

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        """Log-probabilities (T,) as the faulty pipeline would have them."""
        return engine.score(role, rows)


class Spoiled(Wrapper):
    """An engine behind a faulty pipeline; it does not know which engine is inside."""

    def __init__(self, engine: Engine, fault: DataFault) -> None:
        super().__init__(engine)
        self.fault = fault

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        return self.fault.scores(self.engine, role, rows)

    def rewrite(self, data: Sequence[Datum]) -> list[Datum]:
        """The data of a step, spoiled."""
        return self.fault.rewrite(data, self.engine)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self.rewrite(data), learning_rate)
