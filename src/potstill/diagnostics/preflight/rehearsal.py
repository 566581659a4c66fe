"""A run as pre-flight rehearses it, and the result of a check."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS
from potstill.diagnostics.preflight.reference import forward_gap
from potstill.engines.protocol import CrossTokenizer, Engine, Wrapper
from potstill.errors import writing
from potstill.settings import Eval, Train
from potstill.training.rollout import generator
from potstill.training.run import RunSpec
from potstill.types import Datum, Limits, Role, StepStats

Status = Literal["passed", "warning", "refused"]
BATCH = 12  # prompts of a rehearsed step
OWN_PASS = (
    "the engine does not compute this model's own numbers: choose another checkpoint or dtype, and "
    "report the model's class as a bug of potstill"
)
LONGEST = 64  # tokens of a rehearsed completion


@dataclass(frozen=True)
class Check:
    """Result of one check; `cause` is the fault that the evidence points to, if any."""

    name: str
    status: Status
    evidence: str
    hint: str = ""
    cause: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)  # the evidence for programs


def refusal(name: str, evidence: str, cause: str) -> Check:
    """A failed check, with the remedy of its cause."""
    return Check(name, "refused", evidence, FAULTS[cause].remedy, cause)


class DryRun(Wrapper):
    """The innermost engine of a rehearsed run: it records the data of steps and trains nothing."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps: list[list[Datum]] = []

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        self.steps.append(list(data))
        return StepStats(0.0, 0.0)


@dataclass(frozen=True)
class Rehearsal:
    """A run set up as it will be trained, for steps that do not change the student.

    Args:
        wire: sets up a run around an engine as training does, faults included.
        engine: the engine without faults.
        recipes: the study's recipes, without faults.
        seed: the study's seed, without faults.
        settings: batch and limits.
        evaluation: number of problems and interval of evaluations.
    """

    wire: Callable[[Engine, Recipe], RunSpec]
    engine: Engine
    recipes: Sequence[Recipe]
    seed: int
    settings: Train
    evaluation: Eval

    @property
    def limits(self) -> Limits:
        """Limits of a rehearsed completion."""
        s = self.settings
        return Limits(min(s.max_tokens, LONGEST), s.temperature, s.teacher_temperature)

    def any_run(self) -> RunSpec:
        """A run of the first recipe, for checks that do not depend on the recipe."""
        return self.wire(self.engine, self.recipes[0])

    @cached_property
    def rounding(self) -> float:
        """Mean distance in nats between the engine's scores and the models' own forward passes."""
        prompts = [self.engine.prompt(problem) for problem in self.any_run().task.train[:8]]
        roles: tuple[Role, ...] = ("student",) if self.crossing else ("student", "teacher")
        gaps = []
        for role in roles:
            numbers = generator(0, 0, f"preflight:{role}")
            samples = self.engine.sample(role, prompts, [16] * len(prompts), 1.0, numbers)
            readings = [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]
            gaps.append(forward_gap(self.engine, role, readings))
        return max(gaps)

    @property
    def crossing(self) -> CrossTokenizer | None:
        """The engine if its teacher has a tokenizer of its own, else None."""
        return self.engine if isinstance(self.engine, CrossTokenizer) else None


@contextmanager
def restored(engine: Engine) -> Iterator[None]:
    """Restore the engine's state after the block."""
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as folder:
        with writing(Path(folder)):
            engine.save(Path(folder))
        try:
            yield
        finally:
            engine.load(Path(folder))
