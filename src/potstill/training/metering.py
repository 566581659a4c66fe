"""Counts the work that an engine does: tokens and operations by kind, seconds by activity.

A wrapper around any engine, so that neither the loop nor an engine counts. One `Usage` is shared by
two of them: what trains is the budget that methods are compared at; evaluations and probes are
booked apart. Tokens are completion tokens; prompt tokens are counted apart. Operations count what
each model reads, a context included.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from potstill.algorithms.losses import LOSSES
from potstill.engines.flops import Size
from potstill.engines.protocol import Engine, Wrapper, bare
from potstill.types import (
    KINDS,
    Datum,
    Floats,
    Outlook,
    Prompt,
    Reading,
    Role,
    Sample,
    StepStats,
    is_teacher,
)

Scope = Literal["training", "evaluation"]
Lengths = Iterable[tuple[int, int]]  # tokens of prompts and completions


# Kinds that a record has even where they are 0; the student's own scoring is rare.
ALWAYS = (*(kind for kind in KINDS if kind != "student_scored"), "prompt")


class Usage:
    """Tokens, operations and seconds of one run.

    `tokens` holds completion tokens by kind, prompt tokens as "prompt", and those of evaluations
    under kinds that begin with "graded_"; `seconds` wall time by activity.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = bare(engine)
        self._sizes: dict[Role, Size | None] = {}
        self.tokens: Counter[str] = Counter(dict.fromkeys(ALWAYS, 0))
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: Counter[str] = Counter()
        self.sized = True  # whether every model's size is known so far
        self._settled = time.perf_counter(), 0.0

    @property
    def spent(self) -> int:
        """Completion tokens of all kinds: the budget that methods are compared at."""
        return sum(self.tokens[kind] for kind in KINDS)

    @property
    def flops(self) -> dict[str, float]:
        """Operations by kind; empty where a model's size is unknown, as of a service."""
        return dict(self.operations) if self.sized else {}

    def state(self) -> dict[str, dict[str, float]]:
        """Everything that a checkpoint keeps."""
        self._settle()
        tokens, seconds = dict[str, float](self.tokens), dict(self.seconds)
        return {"tokens": tokens, "seconds": seconds, "flops": self.flops}

    def recall(self, state: dict[str, dict[str, float]] | None) -> None:
        """Continue from a checkpoint: its tokens, and its seconds added to those since."""
        if not state:
            return
        self.tokens.clear()
        self.tokens.update({kind: int(n) for kind, n in state["tokens"].items()})
        flops = state.get("flops")  # None: of a version that did not count them
        self.sized = flops is not None
        self.operations.clear()
        self.operations.update({kind: int(n) for kind, n in (flops or {}).items()})
        self._settle()
        for activity, seconds in state["seconds"].items():
            self.seconds[activity] += seconds
        self._settled = time.perf_counter(), sum(self.seconds.values())

    def _settle(self) -> None:
        """Book as "other" the time that no clock has counted since the last call."""
        (then, counted), now = self._settled, time.perf_counter()
        self.seconds["other"] += max(0.0, now - then - (sum(self.seconds.values()) - counted))
        self._settled = now, sum(self.seconds.values())

    @contextmanager
    def clock(self, activity: str) -> Iterator[None]:
        """Add the time inside to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def work(self, kind: str, role: Role, rows: Lengths, *, trained: bool = False) -> None:
        """Count the operations of rows that a model read or wrote."""
        if role not in self._sizes:
            self._sizes[role] = self._engine.size(role)
        size = self._sizes[role]
        if size is None:
            self.sized = False
        else:
            self.operations[kind] += int(size.training(rows) if trained else size.forward(rows))


class Metered(Wrapper):
    """An engine that counts.

    Args:
        engine: computes.
        usage: where it is booked.
        scope: "training" counts towards the budget that methods are compared at.
    """

    def __init__(self, engine: Engine, usage: Usage, scope: Scope = "training") -> None:
        super().__init__(engine)
        self.usage, self.scope = usage, scope

    @contextmanager
    def _clock(self, activity: str) -> Iterator[None]:
        """In an evaluation a clock around all of it runs already."""
        if self.scope == "evaluation":
            yield
        else:
            with self.usage.clock(activity):
                yield

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        with self._clock(f"{role} sampling"):
            samples = self.engine.sample(role, prompts, max_tokens, temperature, rng)
        lengths = [len(prompt.read_by(role)) for prompt in prompts]
        training = self.scope == "training"
        book = self.usage.tokens
        book[f"{role}_sampled" if training else f"graded_{role}_sampled"] += sum(
            len(sample.tokens) for sample in samples
        )
        book["prompt" if training else "graded_prompt"] += sum(lengths)
        rows = [(n, len(sample.tokens)) for n, sample in zip(lengths, samples, strict=True)]
        self.usage.work(f"{role}_sampled" if training else "graded", role, rows)
        return samples

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        with self._clock("scoring"):
            scores = self.engine.score(role, rows)
        self._scored(role, rows)
        return scores

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Outlook]:
        with self._clock("scoring"):
            looks = self.engine.inspect(role, rows)
        self._scored(role, rows)
        return looks

    def _scored(self, role: Role, rows: Sequence[Reading]) -> None:
        lengths = [(len(prompt.read_by(role)), len(completion)) for prompt, completion in rows]
        model = "teacher" if is_teacher(role) else "student"
        training = self.scope == "training"
        kind = f"{model}_scored" if training else "graded_scored"
        self.usage.tokens[kind] += sum(n for _, n in lengths)
        self.usage.work(kind if training else "graded", role, lengths)

    def measure(self, data: Sequence[Datum]) -> StepStats:
        stats = self.engine.measure(data)
        self._scored("student", [(datum.prompt, datum.completion) for datum in data])
        for role, rows in targets(data).items():
            self.usage.work("graded" if self.scope == "evaluation" else "trained", role, rows)
        return stats

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        start, book = time.perf_counter(), self.usage
        stats = self.engine.step(data, learning_rate)
        book.seconds["optimizer"] += stats.optimizer
        book.seconds["forward and backward"] += time.perf_counter() - start - stats.optimizer
        book.work("trained", "student", _read(data, "student"), trained=True)
        for role, rows in targets(data).items():
            book.work("teacher_scored" if is_teacher(role) else "trained", role, rows)
        for datum in data:
            book.tokens["trained"] += int(np.count_nonzero(datum.terms[0].weights))
            if any(t.loss.to == "teacher" and LOSSES[t.loss.name] == "row" for t in datum.terms):
                book.tokens["teacher_scored"] += len(datum.completion)
        return stats


def _read(data: Sequence[Datum], role: Role) -> list[tuple[int, int]]:
    readings = [datum.read_by(role) for datum in data]
    return [(len(prompt), len(completion)) for prompt, completion in readings]


def targets(data: Sequence[Datum]) -> dict[Role, list[tuple[int, int]]]:
    """Tokens (prompt, completion) that each model reads for losses over its full vocabulary."""
    found: dict[Role, list[tuple[int, int]]] = defaultdict(list)
    for datum in data:
        for role in {t.loss.to for t in datum.terms if LOSSES[t.loss.name] == "row"}:
            found[role] += _read([datum], role)
    return dict(found)
