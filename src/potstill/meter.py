"""Counts what a run asks of its engine: tokens by kind, seconds by activity.

A wrapper around any engine, so that neither the loop nor an engine counts. Tokens are completion
tokens; prompt tokens are counted apart. Gradings and probes use the bare engine: they are counted
as such, and are no part of the budget that methods are compared at.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from potstill.engines import Engine, Wrapper, bare, reads
from potstill.losses import LOSSES
from potstill.types import KINDS, Datum, Floats, Ids, Outlook, Role, Sample, StepStats


class Metered(Wrapper):
    """An engine that counts.

    `tokens` holds completion tokens by kind and prompt tokens as "prompt"; `seconds` wall time by
    activity.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.tokens: Counter[str] = Counter(dict.fromkeys((*KINDS, "prompt"), 0))
        self.seconds: dict[str, float] = defaultdict(float)
        self._settled = time.perf_counter(), 0.0

    def recall(self, counted: dict[str, dict[str, float]] | None) -> None:
        """Go on from what a resume point kept: its tokens, and its seconds beside those since."""
        if counted:
            self.tokens.clear()
            self.tokens.update({k: int(v) for k, v in counted["tokens"].items()})
            self._settle()
            for activity, seconds in counted["seconds"].items():
                self.seconds[activity] += seconds
            self._settled = time.perf_counter(), sum(self.seconds.values())

    @property
    def spent(self) -> int:
        """Completion tokens of all kinds: the budget that methods are compared at."""
        return sum(self.tokens[kind] for kind in KINDS)

    @property
    def aside(self) -> Aside:
        """The bare engine, counted as grading."""
        return Aside(bare(self.engine), self.tokens)

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps."""
        self._settle()
        return {"tokens": dict(self.tokens), "seconds": dict(self.seconds)}

    def _settle(self) -> None:
        """Put down as "other" what no clock has counted since the last time."""
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

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        with self.clock(f"{role} sampling"):
            samples = self.engine.sample(role, prompts, max_tokens, temperature, rng)
        self.tokens[f"{role}_sampled"] += sum(len(sample.tokens) for sample in samples)
        self.tokens["prompt"] += sum(len(reads(self.engine, role, p)) for p in prompts)
        return samples

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        with self.clock("scoring"):
            scores = self.engine.score(role, rows)
        self.tokens["teacher_scored"] += sum(map(len, scores))
        return scores

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        with self.clock("scoring"):
            looks = self.engine.inspect(role, rows)
        self.tokens["teacher_scored"] += sum(len(completion) for _, completion in rows)
        return looks

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        start = time.perf_counter()
        stats = self.engine.step(data, learning_rate)
        self.seconds["optimizer"] += stats.optimizer
        self.seconds["forward and backward"] += time.perf_counter() - start - stats.optimizer
        for datum in data:
            self.tokens["trained"] += int(np.count_nonzero(datum.terms[0].weights))
            if any(t.loss.to == "teacher" and LOSSES[t.loss.name] == "row" for t in datum.terms):
                self.tokens["teacher_scored"] += len(datum.completion)
        return stats


class Aside(Wrapper):
    """An engine whose tokens are counted as grading."""

    def __init__(self, engine: Engine, tokens: Counter[str]) -> None:
        super().__init__(engine)
        self._tokens = tokens

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        samples = self.engine.sample(role, prompts, max_tokens, temperature, rng)
        self._tokens[f"graded_{role}_sampled"] += sum(len(sample.tokens) for sample in samples)
        self._tokens["graded_prompt"] += sum(len(reads(self.engine, role, p)) for p in prompts)
        return samples

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        self._tokens["graded_scored"] += sum(len(completion) for _, completion in rows)
        return self.engine.score(role, rows)

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        self._tokens["graded_scored"] += sum(len(completion) for _, completion in rows)
        return self.engine.inspect(role, rows)

    def measure(self, data: Sequence[Datum]) -> StepStats:
        self._tokens["graded_scored"] += sum(len(datum.completion) for datum in data)
        return self.engine.measure(data)
