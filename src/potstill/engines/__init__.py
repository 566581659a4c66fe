"""The narrow waist: what an engine promises, and how one is opened by name.

An engine holds the weights of a pair and does four things with them: sample, score, step, save.
It knows no recipe. Its shape is that of the narrowest real service (Tinker's API), so whole rows
of the teacher never cross it: a loss that needs them is computed inside `step`.
`tests/test_engine_contract.py` states the promises as tests, and every engine passes the same
ones.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from potstill import zoo
from potstill.algorithms.losses import LOSSES
from potstill.errors import PotstillError, did_you_mean
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


@dataclass(frozen=True)
class EngineInfo:
    """What can be known of an engine without importing it."""

    module: str
    summary: str
    losses: frozenset[str]


ENGINES: dict[str, EngineInfo] = {
    "torch": EngineInfo(
        "potstill.engines.cross",
        "any Hugging Face pair on this machine: CPU or GPU",
        frozenset(LOSSES),
    ),
    "tinker": EngineInfo(
        "potstill.engines.tinker",
        "LoRA on a training service: hosted Tinker, or a server of your own",
        frozenset({"cross_entropy", "reverse_kl_sampled"}),
    ),
    "fake": EngineInfo(
        "potstill.engines.fake",
        "a bigram table in numpy, for tests of everything else",
        frozenset({"cross_entropy", "reverse_kl", "reverse_kl_sampled"}),
    ),
}


def one_of_several() -> bool:
    """Whether torchrun started this process, as one of those that are one engine together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def host_memory() -> tuple[int, int]:
    """Peak resident bytes of this process, and bytes of memory that the machine has."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def open_engine(
    name: str, pair: Any, *, seed: int = 0, task: Any = None, **settings: Any
) -> Engine:
    """Open an engine by name on a pair.

    Args:
        name: one of `ENGINES`.
        pair: an embedded pair's name, or what has `.student` and `.teacher`: hub names or folders.
        seed: for weights that are made at random (LoRA adapters).
        task: whose problems a pair's context is about; needed where the pair has one.
        settings: the engine's own settings, see its class.
    """
    if name not in ENGINES:
        raise PotstillError(f'unknown engine "{name}"', did_you_mean(name, ENGINES, "engines"))
    more: dict[str, Any] = {}
    if isinstance(pair, str):
        if pair not in zoo.PAIRS:
            raise PotstillError(f'unknown pair "{pair}"', did_you_mean(pair, zoo.PAIRS, "pairs"))
        models = (zoo.folder(pair, "student"), zoo.folder(pair, "teacher"))
        context, route = zoo.CONTEXTS.get(pair), ""
    else:
        models = (pair.student, pair.teacher)
        context, route = getattr(pair, "context", None), getattr(pair, "route", "")
        more = {"teachers": pair.teachers} if getattr(pair, "teachers", None) else {}
    if (context or route) and task is None:
        raise PotstillError(
            "what the teacher of this pair reads depends on a task's problems",
            'write open_engine(..., task=load_task("arithmetic"))',
        )
    engine: Callable[..., Engine] = importlib.import_module(ENGINES[name].module).ENGINE
    return inform(engine(*models, seed=seed, **more, **settings), context, task, route)


def inform(engine: Engine, context: Any, task: Any, route: str = "") -> Engine:
    """The engine with a pair's context, and its choice of teachers, in front of what teachers read.

    Args:
        engine: the pair without them.
        context: a `context.Context`, the table of one, or nothing.
        task: whose problems they are about.
        route: the key of the data that chooses the teacher; empty: there is one.
    """
    from potstill.engines.informed import Informed
    from potstill.engines.routed import Routed
    from potstill.tasks.context import Context, read_context
    from potstill.tasks.context.builder import Briefing

    if context:
        known = context if isinstance(context, Context) else read_context(context)
        engine = Informed(engine, Briefing(known, task))
    return Routed(engine, route, task) if route else engine
