"""Counts what a run asks of its engine: tokens and operations by kind, seconds by activity.

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

from potstill.algorithms.losses import LOSSES
from potstill.engines.flops import Work
from potstill.engines.protocol import Engine, Wrapper, bare, reads
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
        self.work = Work(engine)
        self._settled = time.perf_counter(), 0.0

    def recall(self, counted: dict[str, dict[str, float]] | None) -> None:
        """Go on from what a resume point kept: its tokens, and its seconds beside those since."""
        if counted:
            self.tokens.clear()
            self.tokens.update({k: int(v) for k, v in counted["tokens"].items()})
            self.work.recall(counted.get("flops"))
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
        return Aside(bare(self.engine), self.tokens, self.work)

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps; no operations where a model's size is unknown."""
        self._settle()
        tokens, seconds = dict[str, float](self.tokens), dict(self.seconds)
        return {"tokens": tokens, "seconds": seconds, "flops": self.work.state}

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
        self.work.add(f"{role}_sampled", role, _lengths(prompts, samples))
        return samples

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        with self.clock("scoring"):
            scores = self.engine.score(role, rows)
        self.tokens["teacher_scored"] += sum(map(len, scores))
        self.work.add("teacher_scored", role, [(len(p), len(c)) for p, c in rows])
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
        self._count(data)
        return stats

    def _count(self, data: Sequence[Datum]) -> None:
        """One step's tokens and operations: the student's, and theirs whose rows it is held to."""
        trained = [(len(d.prompt), len(d.completion)) for d in data]
        self.work.add("trained", "student", trained, trained=True)
        for role, rows in targets(data).items():
            self.work.add("teacher_scored" if role == "teacher" else "trained", role, rows)
        for datum in data:
            self.tokens["trained"] += int(np.count_nonzero(datum.terms[0].weights))
            if any(t.loss.to == "teacher" and LOSSES[t.loss.name] == "row" for t in datum.terms):
                self.tokens["teacher_scored"] += len(datum.completion)


def _lengths(prompts: Sequence[Ids], samples: Sequence[Sample]) -> list[tuple[int, int]]:
    return [(len(p), len(s.tokens)) for p, s in zip(prompts, samples, strict=True)]


def targets(data: Sequence[Datum]) -> dict[Role, list[tuple[int, int]]]:
    """What each model reads because a loss needs its whole rows: tokens of prompt, completion."""
    found: dict[Role, list[tuple[int, int]]] = defaultdict(list)
    for datum in data:
        for role in {t.loss.to for t in datum.terms if LOSSES[t.loss.name] == "row"}:
            prompt, completion = datum.seen_by(role)
            found[role].append((len(prompt), len(completion)))
    return dict(found)


class Aside(Wrapper):
    """An engine whose tokens and operations are counted as grading."""

    def __init__(self, engine: Engine, tokens: Counter[str], work: Work | None = None) -> None:
        super().__init__(engine)
        self._tokens, self.work = tokens, work or Work(engine)

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
        self.work.add("graded", role, _lengths(prompts, samples))
        return samples

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        self._scored(role, rows)
        return self.engine.score(role, rows)

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        self._scored(role, rows)
        return self.engine.inspect(role, rows)

    def _scored(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> None:
        self._tokens["graded_scored"] += sum(len(completion) for _, completion in rows)
        self.work.add("graded", role, [(len(p), len(c)) for p, c in rows])

    def measure(self, data: Sequence[Datum]) -> StepStats:
        self._scored("student", [(d.prompt, d.completion) for d in data])
        for role, rows in targets(data).items():
            self.work.add("graded", role, rows)
        return self.engine.measure(data)
