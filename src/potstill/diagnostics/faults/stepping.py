"""Faults in the optimizer steps: several per step, a wrong learning rate, a stale sampler.

The wrappers save their counters with the engine's state, so that faulty runs can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults.base import Fault
from potstill.engines.protocol import Engine, Wrapper
from potstill.training.run import RunSpec
from potstill.types import WHOLE, Datum, Prompt, Role, Sample, StepStats, Term, Truncation


class MixtureUnblended(Fault):
    """One optimizer step per source, each at full weight."""

    name = "mixture_unblended"
    what = "student and teacher tokens have one optimizer step each, both at full weight"
    where = "run_mixture_distillation"
    remedy = "weigh the sources by their shares and add them up in one step"
    published = True

    def touches(self, recipe: Recipe) -> bool:
        """True if a step of the recipe has both sources."""
        return recipe.on_policy.kind != "switch" and recipe.uses_student and recipe.uses_teacher

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, engine=StepPerSource(run.engine))


class StepPerSource(Wrapper):
    """One optimizer step per source, each at full weight."""

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        sources = dict.fromkeys(datum.source for datum in data)
        steps = [
            self.engine.step(_normalised([d for d in data if d.source == source]), learning_rate)
            for source in sources
        ]
        losses = {name: value for stats in steps for name, value in stats.losses.items()}
        total = sum(stats.loss for stats in steps)
        clipped = next((stats.clipped for stats in steps if stats.clipped is not None), None)
        norm = max((stats.grad_norm for stats in steps), default=0.0)
        return StepStats(total, norm, losses, clipped)


def _normalised(data: Sequence[Datum]) -> list[Datum]:
    """The data, with weights that sum to one."""
    share = sum(float(datum.terms[0].weights.sum()) for datum in data)
    return [
        dataclasses.replace(
            datum, terms=tuple(Term(t.loss, t.weights / np.float32(share)) for t in datum.terms)
        )
        for datum in data
    ]


class Counting(Wrapper):
    """Counts steps; the count is saved with the engine's state."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps = 0

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        stats = self.engine.step(data, learning_rate)
        self.steps += 1
        return stats

    def save(self, folder: Path) -> None:
        self.engine.save(folder)
        (folder / f"{type(self).__name__}.json").write_text(json.dumps(self.steps))

    def load(self, folder: Path) -> None:
        self.engine.load(folder)
        self.steps = json.loads((folder / f"{type(self).__name__}.json").read_text())


class LearningRateSpike(Fault):
    """The learning rate is much too high for a few steps."""

    name = "learning_rate_spike"
    what = "the learning rate is 100 times too high for 3 steps from step 40 on"
    where = "a restarted schedule, a wrong unit"
    remedy = "check the learning rate schedule; clip gradients; resume from an earlier checkpoint"
    outermost = True

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, engine=Spiking(run.engine, range(40, 43), 100.0))


class Spiking(Counting):
    """Multiplies the learning rate of some steps.

    Args:
        engine: the engine that trains.
        spike: indices of the steps.
        factor: factor on the learning rate.
    """

    def __init__(self, engine: Engine, spike: range, factor: float) -> None:
        super().__init__(engine)
        self.spike, self.factor = spike, factor

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        factor = self.factor if self.steps in self.spike else 1.0
        return super().step(data, learning_rate * factor)


class StaleSampler(Fault):
    """The student samples with weights that are refreshed only every 20 steps."""

    name = "stale_sampler"
    what = "the student samples with weights that are refreshed only every 20 steps"
    where = "refresh_student_every"
    remedy = "refresh the sampler after every optimizer step"
    published = True
    outermost = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.uses_student

    def apply(self, run: RunSpec) -> RunSpec:
        return dataclasses.replace(run, engine=Stale(run.engine, 20))


class Stale(Counting):
    """The student samples with weights that are refreshed only every `every` steps."""

    def __init__(self, engine: Engine, every: int) -> None:
        super().__init__(engine)
        self.every, self._refreshed = every, -1
        self._folder = Path(tempfile.mkdtemp(prefix="potstill-stale-"))
        self._stale = self._folder / "stale"
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        if role != "student":
            return self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
        if self.steps // self.every != self._refreshed:
            self.engine.save(self._stale)
            self._refreshed = self.steps // self.every
        newest = self._folder / "newest"
        self.engine.save(newest)
        self.engine.load(self._stale)
        try:
            return self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
        finally:
            self.engine.load(newest)

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self._refreshed >= 0:
            shutil.copytree(self._stale, folder / "stale", dirs_exist_ok=True)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if (folder / "stale").exists():
            shutil.copytree(folder / "stale", self._stale, dirs_exist_ok=True)
            self._refreshed = (self.steps - 1) // self.every
