"""The narrow waist: what an engine promises.

An engine holds the weights of a pair and does four things with them: sample, score, step, save.
It knows no recipe. Its shape is that of the narrowest real service (Tinker's API), so whole rows
of the teacher never cross it: a loss that needs them is computed inside `step`.
`tests/test_engine_contract.py` states the promises as tests, and every engine passes the same
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from potstill.tasks.rendering import Messages
from potstill.types import Datum, Floats, Ids, Outlook, Role, Rows, Sample, StepStats


class Engine(Protocol):
    """What the loop, the evaluation and the study ask of a place where models live."""

    losses: frozenset[str]  # names of the losses that `step` can compute here
    eos: frozenset[int]  # ids that end a completion
    notes: tuple[str, ...]  # what was decided while opening the pair, for the run's record

    def encode(self, asked: str | Messages) -> Ids:
        """Prompt ids (P,) of a question or a conversation, chat template included."""

    def decode(self, tokens: Ids) -> str:
        """Text of completion ids, special tokens left out."""

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        """Continue each prompt by at most max_tokens[i] tokens, EOS included.

        Student samples always come from the newest weights. Log-probabilities are the model's own,
        at temperature 1, whatever temperature the tokens were drawn at; 0 means greedy. The same
        `rng` state gives the same samples.
        """

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        """Log-probability (T,) of each completion token, for (prompt, completion) rows."""

    def rows(self, role: Role, prompt: Ids, completion: Ids) -> Rows:
        """Log-probability rows (T, V) of one completion alone, unpadded: slow, for checks."""

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        """What a model expects at each token of (prompt, completion) rows, in batches.

        An engine without whole rows leaves out all but the log-probabilities.
        """

    def measure(self, data: Sequence[Datum]) -> StepStats:
        """What `step` would report on this data with the weights as they are: trains nothing."""

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        """Exactly one optimizer step on the sum of all weighted terms.

        Raises:
            NonFinite: a loss or gradient is not a number; the weights are then as before.
        """

    # An engine that knows its models also has `size(role) -> flops.Size`, and `devices`, how many
    # processors or accelerators hold them; a service's are nobody's to know.

    def memory(self) -> tuple[int, int]:
        """Bytes at the peak so far, and bytes that there are, where it is tightest."""

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs to go on as if nothing had happened."""

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""

    def export(self, folder: Path) -> None:
        """Write the student as an ordinary model folder."""

    def close(self) -> None:
        """Let go of memory and connections."""


class Wrapper:
    """An engine around an engine: passes everything on; a subclass changes what it must."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def bare(engine: Engine) -> Engine:
    """The engine under any wrappers: what grades a student is never what counts or spoils."""
    return bare(engine.engine) if isinstance(engine, Wrapper) else engine


def reads(engine: Engine, role: Role, prompt: Ids) -> Ids:
    """What a model reads for a prompt of the student's: the pair's context is the teacher's."""
    view = getattr(bare(engine), "view", None)
    return prompt if view is None else view(role, prompt)
