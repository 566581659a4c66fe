"""The engine protocol: the interface between the training loop and the models.

An engine holds the weights of a pair and has four operations: sample, score, step and save. It does
not know the recipe. The protocol follows the narrowest real service (Tinker's API), so the
teacher's full-vocabulary log-probs never cross it: a loss that needs them is computed inside
`step`. `tests/test_engine_contract.py` tests the protocol, and every engine passes the same tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from potstill.engines.cross_tokenizer.alignment import Ints, Span
from potstill.engines.cross_tokenizer.token_bytes import TokenBytes
from potstill.engines.flops import Machine, Size
from potstill.problems import Messages, Problem
from potstill.tasks.context.builder import PromptBuilder
from potstill.types import (
    WHOLE,
    Datum,
    Expectation,
    Floats,
    Ids,
    Loss,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
    Truncation,
)


class Engine(Protocol):
    """The models of a pair, as the loop, the evaluation and the study use them."""

    losses: frozenset[str]  # names of the losses that `step` can compute
    eos: frozenset[int]  # ids that end a completion
    has_teacher: bool  # false: the pair is a student alone
    notes: tuple[str, ...]  # decisions made while opening the pair, for the run's record

    @property
    def devices(self) -> int | None:
        """Number of processors or accelerators that hold the models; None: unknown (a service)."""

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        """Return prompt ids (P,) of a question or a conversation under a model's chat template.

        They are in the model's own vocabulary.
        """

    def decode(self, tokens: Ids) -> str:
        """Return the text of ids in the student's vocabulary, without special tokens."""

    def encode_completion(self, prompt: Prompt, text: str) -> Ids:
        """Return the ids (T,) of a completion as the student would have written it, EOS included.

        Raises:
            PotstillError: it cannot be written in the student's tokens, or not after this prompt.
        """

    def expect(self, problems: Sequence[Problem]) -> None:
        """Name the problems whose completions `encode_completion` will be asked for."""

    def prompt(self, problem: Problem) -> Prompt:
        """Render a problem as each model reads it."""

    def opening(self, prompt: Prompt, role: Role) -> str:
        """Return the mark of a thought that a prompt has opened; usually ""."""

    def rendered(self, prompt: Prompt, role: Role) -> str:
        """Return the text of a prompt with its special tokens."""

    def inform(self, builder: PromptBuilder | None, route: str) -> None:
        """Set the context that only the teacher reads, and the key that selects a teacher.

        Args:
            builder: builds the teacher's prompt; None: the pair has no context.
            route: key of the problem data that names the teacher; empty: the pair has one teacher.
        """

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        """Continue prompt i by at most max_tokens[i] tokens, EOS included.

        Student samples always come from the newest weights. The log-probabilities are those at
        temperature 1 without truncation, independent of the sampler's settings; temperature 0 is
        greedy. The behavior log-probabilities are those of the truncated, renormalised
        distribution. The same `rng` state gives the same samples.
        """

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        """Return the log-probabilities (T,) of each completion's tokens."""

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        """Return full-vocabulary log-probs (T, V) of one unpadded completion: slow, for checks."""

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        """Return a model's expectations at each completion token.

        An engine without full-vocabulary log-probs fills in the tokens' log-probabilities only.
        """

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        """Return the statistics of a `step` on the current weights, without training.

        Args:
            data: the step's data.
            dropout: drop the adapters' inputs that the coming step will drop; engines without
                dropout ignore it.
        """

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        """Take exactly one optimizer step on the sum of all weighted terms.

        Raises:
            NonFinite: the loss or the gradient is not finite; the weights are unchanged.
        """

    def size(self, role: Role) -> Size | None:
        """Return the size of a model; None: unknown (a service)."""

    def memory(self) -> tuple[int, int]:
        """Return (peak, total) bytes on the most loaded device."""

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs to continue with identical results."""

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""

    def export(self, folder: Path) -> None:
        """Write the student as an ordinary model folder."""

    def close(self) -> None:
        """Release memory and connections."""


@runtime_checkable
class Bounded(Protocol):
    """An engine whose hardware limits can be measured."""

    def machines(self) -> dict[Role, Machine]:
        """Measure memory bandwidth and matrix throughput of each model's device, in its dtype."""

    def bounds(
        self, machines: dict[Role, Machine], rows: Sequence[tuple[int, int]], targets: set[Role]
    ) -> dict[str, float]:
        """Return the minimum seconds of each activity.

        Args:
            machines: the measured hardware limits.
            rows: numbers of (prompt, completion) tokens.
            targets: models whose full-vocabulary log-probs the losses need.
        """


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes that a training step needs in addition to the models, on the fullest device."""

    needed: int  # at its peak
    free: int  # on the device now
    parts: dict[str, int]  # what needs them; not all at the same time


@runtime_checkable
class PredictsMemory(Engine, Protocol):
    """An engine that predicts the memory of a step without taking one."""

    def predict_memory(
        self, prompt: Prompt, max_tokens: int, batch: int, losses: Sequence[Loss]
    ) -> PredictedMemory | None:
        """Predict a step on the longest prompt; None: unknown for this placement.

        Args:
            prompt: the longest of the study.
            max_tokens: of a completion.
            batch: rows of a step.
            losses: of its tokens.
        """


@runtime_checkable
class Cached(Protocol):
    """An engine that reads samples that it made before."""

    saved: float  # seconds that the reading has saved so far: what the samples took when made


@runtime_checkable
class CrossTokenizer(Engine, Protocol):
    """An engine whose teacher has its own tokenizer, see `cross_tokenizer.engine`."""

    student_tokens: TokenBytes
    teacher_tokens: TokenBytes
    shared: Ints  # (K, 2) student and teacher ids of the tokens with equal bytes

    def teacher_reading(
        self, prompt: Prompt, completion: Ids
    ) -> tuple[tuple[Ids, Ids], list[Span]]:
        """Return prompt and completion in the teacher's tokens, and the completion's spans."""

    def teacher_rows(self, prompt: Ids, completion: Ids) -> Rows:
        """Return the teacher's full-vocabulary log-probs (T, W) of its own tokens."""

    def translate(self, data: Sequence[Datum]) -> list[Datum]:
        """Return the data of a step as the models read them."""


class Wrapper:
    """An engine that forwards every call to another one; subclasses override single methods."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not set yet, for example while unpickling
            raise AttributeError(name)
        return getattr(self.engine, name)


def bare(engine: Engine) -> Engine:
    """Remove all wrappers (metering, caches, faults) from an engine."""
    return bare(engine.engine) if isinstance(engine, Wrapper) else engine
