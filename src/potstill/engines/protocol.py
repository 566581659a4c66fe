"""The narrow waist: what an engine promises.

An engine holds the weights of a pair and does four things with them: sample, score, step, save.
It knows no recipe. Its shape is that of the narrowest real service (Tinker's API), so the teacher's
full-vocabulary log-probs never cross it: a loss that needs them is computed inside `step`.
`tests/test_engine_contract.py` states the promises as tests, and every engine passes the same
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from potstill.engines.cross_tokenizer.alignment import Ints, Span
from potstill.engines.cross_tokenizer.token_bytes import TokenBytes
from potstill.engines.flops import Machine, Size
from potstill.tasks.context.builder import Briefing
from potstill.tasks.rendering import Messages
from potstill.types import (
    Datum,
    Expectation,
    Floats,
    Ids,
    Problem,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
)


class Engine(Protocol):
    """A place where models live, as the loop, the evaluation and the study use it."""

    losses: frozenset[str]  # names of the losses that `step` can compute here
    eos: frozenset[int]  # ids that end a completion
    notes: tuple[str, ...]  # what was decided while opening the pair, for the run's record

    @property
    def devices(self) -> int | None:
        """How many processors or accelerators hold the models; None: unknown, as of a service."""

    def encode(self, asked: str | Messages, role: Role = "student") -> Ids:
        """Prompt ids (P,) of a question or a conversation under a model's chat template.

        They are in the model's own vocabulary.
        """

    def decode(self, tokens: Ids) -> str:
        """Text of the student's ids, special tokens left out."""

    def prompt(self, problem: Problem) -> Prompt:
        """A problem as each model reads it."""

    def inform(self, briefing: Briefing | None, route: str) -> None:
        """Put a context in front of what the teacher reads, or choose among several teachers.

        Args:
            briefing: the context of the pair; None: there is none.
            route: the key of the data that names a problem's teacher; empty: there is one.
        """

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        """Continue each prompt by at most max_tokens[i] tokens, EOS included.

        Student samples always come from the newest weights. Log-probabilities are the model's own,
        at temperature 1, whatever temperature the tokens were drawn at; 0 means greedy. The same
        `rng` state gives the same samples.
        """

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        """Log-probability (T,) of each completion token."""

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        """Full-vocabulary log-probs (T, V) of one completion alone, unpadded: slow, for checks."""

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        """A model's expectations at each completion token, in batches.

        An engine without full-vocabulary log-probs leaves out all but the log-probabilities.
        """

    def measure(self, data: Sequence[Datum]) -> StepStats:
        """The report that `step` would give with the weights as they are: trains nothing."""

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        """Exactly one optimizer step on the sum of all weighted terms.

        Raises:
            NonFinite: a loss or gradient is not a number; the weights are then as before.
        """

    def size(self, role: Role) -> Size | None:
        """The size of a model; None: unknown, as of a service."""

    def memory(self) -> tuple[int, int]:
        """(peak, total) bytes on the most loaded device."""

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs to go on as if nothing had happened."""

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""

    def export(self, folder: Path) -> None:
        """Write the student as an ordinary model folder."""

    def close(self) -> None:
        """Release memory and connections."""


@runtime_checkable
class Bounded(Protocol):
    """An engine whose machine can be measured from here."""

    def machines(self) -> dict[Role, Machine]:
        """Memory bandwidth and matrix throughput of each model's device, in its dtype."""

    def bounds(
        self, machines: dict[Role, Machine], rows: Sequence[tuple[int, int]], targets: set[Role]
    ) -> dict[str, float]:
        """The least seconds of each activity on rows of (prompt, completion) tokens."""


@runtime_checkable
class CrossTokenizer(Engine, Protocol):
    """An engine whose teacher has a tokenizer of its own, see `cross_tokenizer.engine`."""

    student_tokens: TokenBytes
    teacher_tokens: TokenBytes
    shared: Ints  # (K, 2) student and teacher ids of the tokens with equal bytes

    def teacher_reading(
        self, prompt: Prompt, completion: Ids
    ) -> tuple[tuple[Ids, Ids], list[Span]]:
        """Return prompt and completion in the teacher's tokens, and the completion's spans."""

    def teacher_rows(self, prompt: Ids, completion: Ids) -> Rows:
        """Full-vocabulary log-probs (T, W) of the teacher's own tokens."""

    def translate(self, data: Sequence[Datum]) -> list[Datum]:
        """The data of a step as the models read them."""


class Wrapper:
    """An engine around an engine: forwards everything; a subclass changes what it must."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not set yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.engine, name)


def bare(engine: Engine) -> Engine:
    """The pair's own engine, under all that a run puts around it: meters, caches and faults."""
    return bare(engine.engine) if isinstance(engine, Wrapper) else engine
