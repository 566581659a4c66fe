"""Base classes of faults: deliberate deviations that are applied outside the loop and the engines.

A fault replaces a part of a run's specification before training: the recipe, the task, the seed,
the teacher's folder, or the engine, which it wraps to corrupt the data of every step. The loop and
the engines contain no fault.
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
    what: ClassVar[str]  # the deviation in one sentence
    where: ClassVar[str]  # its place in the published code, or its usual origin
    remedy: ClassVar[str]  # an instruction
    published: ClassVar[bool] = False  # true for the faults of the published study's code
    outermost: ClassVar[bool] = False  # applied last: counts the steps that other faults may split

    def touches(self, recipe: Recipe) -> bool:
        """True if the fault changes runs of this recipe."""
        return True

    def apply(self, run: RunSpec) -> RunSpec:
        """The run with the fault applied."""
        return run

    def teacher(self, teacher: str, folder: Path) -> str:
        """The teacher's folder with the fault applied; a changed copy is written to `folder`."""
        return teacher


class DataFault(Fault):
    """A fault in the data pipeline: it rewrites the data of a step.

    A datum contains everything that is read, predicted and weighed, so rewriting it is enough.
    Pre-flight and the monitor try these faults to explain the loss of a step.
    """

    explanation: ClassVar[str]  # subject of the evidence: "... gives 10.63"
    together: ClassVar[tuple[str, ...]] = ()  # faults that often occur with it
    sources: tuple[Source, ...] = ("student", "teacher")  # sources whose tokens it affects

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, engine=FaultyPipeline(run.engine, self))

    def rewrite(self, data: Sequence[Datum], engine: Engine) -> list[Datum]:
        """The data of a step as the faulty pipeline creates them."""
        return [self.corrupt(d, engine) if d.source in self.sources else d for d in data]

    def everywhere(self) -> DataFault:
        """The same fault on both sources, as an unknown pipeline may have it."""
        fault = copy.copy(self)
        fault.sources = ("student", "teacher")
        return fault

    def corrupt(self, datum: Datum, engine: Engine) -> Datum:
        """One datum as the faulty pipeline creates it."""
        return datum

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        """Log-probabilities (T,) of each row as the faulty pipeline computes them."""
        return engine.score(role, rows)


class FaultyPipeline(Wrapper):
    """An engine whose data pass through a faulty pipeline first."""

    def __init__(self, engine: Engine, fault: DataFault) -> None:
        super().__init__(engine)
        self.fault = fault

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        return self.fault.scores(self.engine, role, rows)

    def rewrite(self, data: Sequence[Datum]) -> list[Datum]:
        """The data of a step as they reach the engine."""
        return self.fault.rewrite(data, self.engine)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self.rewrite(data), learning_rate)
