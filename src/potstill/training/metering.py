"""Metering of an engine's work: tokens and operations by kind, seconds by activity.

`Metered` wraps any engine, so that neither the loop nor an engine counts. A run has two of them,
with one `Usage`: the tokens of training are the budget at which methods are compared; those of
evaluations and probes are counted under kinds of their own. Completion and prompt tokens are
separate kinds. Tokens that a cache had are counted like all others; the seconds that it saved are
kept apart, as `Usage.saved`. Operations include every token that a model reads, such as a
privileged context. Prices are left out, see `spending`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from potstill.engines.flops import Size
from potstill.engines.protocol import Cached, Engine, Wrapper, bare
from potstill.types import (
    KINDS,
    WHOLE,
    Datum,
    Expectation,
    Floats,
    Ids,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
    Truncation,
    is_teacher,
)

Scope = Literal["training", "evaluation"]
Lengths = Iterable[tuple[int, int]]  # numbers of prompt and completion tokens

# Kinds that a record lists even if they are 0. The student's own scoring is rare.
ALWAYS = (*(kind for kind in KINDS if kind != "student_scored"), "prompt")


class Usage:
    """Tokens, operations and seconds of one run.

    `tokens` has completion tokens by kind, prompt tokens as "prompt", and tokens of evaluations
    under kinds that begin with "graded_"; `seconds` has wall time by activity, and `saved` what
    an activity would have taken in addition without the completions that another run left behind.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = bare(engine)
        self._sizes: dict[Role, Size | None] = {}
        self.tokens: Counter[str] = Counter(dict.fromkeys(ALWAYS, 0))
        self.seconds: dict[str, float] = defaultdict(float)
        self.saved: dict[str, float] = defaultdict(float)
        self.sources: Counter[str] | None = Counter()  # trained tokens by who wrote them
        self.operations: Counter[str] = Counter()
        self.sized = True  # false once a model of unknown size has worked
        self._settled = time.perf_counter(), 0.0

    @property
    def spent(self) -> int:
        """Completion tokens of all kinds: the budget at which methods are compared."""
        return sum(self.tokens[kind] for kind in KINDS)

    @property
    def flops(self) -> dict[str, float]:
        """Operations by kind; empty if a model's size is unknown, as for a service."""
        return dict(self.operations) if self.sized else {}

    def state(self) -> dict[str, dict[str, float]]:
        """Tokens, seconds and operations so far, as a checkpoint saves them."""
        self._settle()
        tokens, seconds = dict[str, float](self.tokens), dict(self.seconds)
        saved = dict(self.saved)
        counts = {"tokens": tokens, "seconds": seconds, "flops": self.flops, "saved": saved}
        return counts if self.sources is None else {**counts, "sources": dict(self.sources)}

    def recall(self, state: dict[str, dict[str, float]] | None) -> None:
        """Continue from a checkpoint: replace the tokens and operations, add the seconds."""
        if not state:
            return
        self.tokens.clear()
        self.tokens.update({kind: int(n) for kind, n in state["tokens"].items()})
        sources = state.get("sources")  # None: saved by a version that did not count them
        self.sources = None if sources is None else Counter({k: int(n) for k, n in sources.items()})
        flops = state.get("flops")  # None: saved by a version that did not count them
        self.sized = flops is not None
        self.operations.clear()
        self.operations.update({kind: int(n) for kind, n in (flops or {}).items()})
        self._settle()
        for activity, seconds in state["seconds"].items():
            self.seconds[activity] += seconds
        for activity, seconds in state.get("saved", {}).items():
            self.saved[activity] += seconds
        self._settled = time.perf_counter(), sum(self.seconds.values())

    def _settle(self) -> None:
        """Count as "other" the time since the last call that no clock measured."""
        (then, total), now = self._settled, time.perf_counter()
        measured = sum(self.seconds.values()) - total
        self.seconds["other"] += max(0.0, now - then - measured)
        self._settled = now, sum(self.seconds.values())

    @contextmanager
    def clock(self, activity: str) -> Iterator[None]:
        """Add the wall time of the block to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def work(self, kind: str, role: Role, rows: Lengths, *, trained: bool = False) -> None:
        """Count the operations of a model on rows of (prompt, completion) tokens."""
        if role not in self._sizes:
            self._sizes[role] = self._engine.size(role)
        size = self._sizes[role]
        if size is None:
            self.sized = False
        else:
            self.operations[kind] += int(size.training(rows) if trained else size.forward(rows))


class Metered(Wrapper):
    """An engine whose work is counted.

    Args:
        engine: the engine that does the work.
        usage: the counts.
        scope: "training" counts towards the budget at which methods are compared.
    """

    def __init__(self, engine: Engine, usage: Usage, scope: Scope = "training") -> None:
        super().__init__(engine)
        self.usage, self.scope = usage, scope

    @contextmanager
    def _clock(self, activity: str) -> Iterator[None]:
        """Measure an activity; the caller already measures evaluations as a whole."""
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
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        before = self._saved
        with self._clock(f"{role} sampling"):
            samples = self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
        if self._saved > before:
            self.usage.saved[f"{role} sampling"] += self._saved - before
        prompt_lengths = [len(prompt.read_by(role)) for prompt in prompts]
        lengths = [len(sample.tokens) for sample in samples]
        training, tokens = self.scope == "training", self.usage.tokens
        tokens[f"{role}_sampled" if training else f"graded_{role}_sampled"] += sum(lengths)
        tokens["prompt" if training else "graded_prompt"] += sum(prompt_lengths)
        rows = zip(prompt_lengths, lengths, strict=True)
        self.usage.work(f"{role}_sampled" if training else "graded", role, rows)
        return samples

    @property
    def _saved(self) -> float:
        return self.engine.saved if isinstance(self.engine, Cached) else 0.0

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        with self._clock("scoring"):
            rows = self.engine.rows(role, prompt, completion)
        self._scored(role, [(prompt, completion)])
        return rows

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        with self._clock("scoring"):
            scores = self.engine.score(role, rows)
        self._scored(role, rows)
        return scores

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        with self._clock("scoring"):
            looks = self.engine.inspect(role, rows)
        self._scored(role, rows)
        return looks

    def _scored(self, role: Role, rows: Sequence[Reading]) -> None:
        lengths = [(len(prompt.read_by(role)), len(completion)) for prompt, completion in rows]
        model = "teacher" if is_teacher(role) else "student"
        training = self.scope == "training"
        graded = "graded_scored" if model == "teacher" else "graded_student_scored"
        kind = f"{model}_scored" if training else graded
        self.usage.tokens[kind] += sum(n for _, n in lengths)
        self.usage.work(kind if training else "graded", role, lengths)

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        stats = self.engine.measure(data, dropout=dropout)
        self._scored("student", [(datum.prompt, datum.completion) for datum in data])
        for role, rows in targets(data).items():
            self.usage.work("graded" if self.scope == "evaluation" else "trained", role, rows)
        return stats

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        start, usage = time.perf_counter(), self.usage
        stats = self.engine.step(data, learning_rate)
        usage.seconds["optimizer"] += stats.optimizer
        usage.seconds["forward and backward"] += time.perf_counter() - start - stats.optimizer
        usage.work("trained", "student", _read(data, "student"), trained=True)
        for role, rows in targets(data).items():
            usage.work("teacher_scored" if is_teacher(role) else "trained", role, rows)
        for datum in data:
            trained = int(np.count_nonzero(datum.terms[0].weights))
            usage.tokens["trained"] += trained
            if usage.sources is not None:
                usage.sources["file" if datum.origin == "file" else datum.source] += trained
            if any(t.loss.to == "teacher" and t.loss.needs == "full_logprobs" for t in datum.terms):
                usage.tokens["teacher_scored"] += len(datum.completion)
        return stats


def _read(data: Sequence[Datum], role: Role) -> list[tuple[int, int]]:
    readings = [datum.read_by(role) for datum in data]
    return [(len(prompt), len(completion)) for prompt, completion in readings]


def targets(data: Sequence[Datum]) -> dict[Role, list[tuple[int, int]]]:
    """Tokens (prompt, completion) that each model reads for losses on its full vocabulary."""
    lengths: dict[Role, list[tuple[int, int]]] = defaultdict(list)
    for datum in data:
        for role in {t.loss.to for t in datum.terms if t.loss.needs == "full_logprobs"}:
            lengths[role] += _read([datum], role)
    return dict(lengths)
