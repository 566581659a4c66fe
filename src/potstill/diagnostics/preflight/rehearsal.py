"""The findings of pre-flight, and the run that it looks at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS
from potstill.engines.protocol import CrossTokenizer, Engine, Wrapper
from potstill.errors import writing
from potstill.settings import Eval, Train
from potstill.training.run import RunSpec
from potstill.types import Datum, Limits, StepStats

Status = Literal["passed", "warning", "refused"]
LONGEST = 64  # tokens of a rehearsed completion


@dataclass(frozen=True)
class Check:
    """One finding before the start; `cause` is the fault that the evidence points to, if any."""

    name: str
    status: Status
    evidence: str
    hint: str = ""
    cause: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)  # for programs


def refusal(name: str, evidence: str, cause: str) -> Check:
    """A check that stops the run, with the remedy of its cause."""
    return Check(name, "refused", evidence, FAULTS[cause].remedy, cause)


class DryRun(Wrapper):
    """The innermost engine during pre-flight: steps are remembered and train nothing."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps: list[list[Datum]] = []

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        self.steps.append(list(data))
        return StepStats(0.0, 0.0)


@dataclass(frozen=True)
class Rehearsal:
    """A run set up as it will be trained, of which single steps are tried that change nothing."""

    wire: Callable[[Engine, Recipe], RunSpec]  # sets a run up around an engine, as training will
    engine: Engine  # bare
    recipes: Sequence[Recipe]  # as they were asked for
    seed: int  # as it was asked for
    settings: Train
    grading: Eval

    @property
    def limits(self) -> Limits:
        s = self.settings
        return Limits(min(s.max_tokens, LONGEST), s.temperature, s.teacher_temperature)

    def any_run(self) -> RunSpec:
        return self.wire(self.engine, self.recipes[0])

    @property
    def crossing(self) -> CrossTokenizer | None:
        """The engine, if its teacher has a tokenizer of its own."""
        return self.engine if isinstance(self.engine, CrossTokenizer) else None


@contextmanager
def undone(engine: Engine) -> Iterator[None]:
    """Put the engine's state back as it was."""
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as folder:
        with writing(Path(folder)):
            engine.save(Path(folder))
        try:
            yield
        finally:
            engine.load(Path(folder))
