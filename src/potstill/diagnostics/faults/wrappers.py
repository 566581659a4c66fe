"""Engine wrappers that spoil what passes through them, one a fault.

Most rewrite the data of a step: because a datum says what is read, asked and weighed, a wrong
pipeline is a wrong datum. None knows which engine is inside. Wrappers with a memory save it
beside the engine's state, so that faulty runs resume like sound ones.
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

from potstill.algorithms.losses import REVERSE_KL_SAMPLED
from potstill.engines.protocol import Engine, Wrapper
from potstill.types import Datum, Floats, Ids, Prompt, Reading, Role, Sample, StepStats, Term


class Spoiler(Wrapper):
    """Rewrites each datum of a step."""

    def spoil(self, datum: Datum) -> Datum:
        """The datum as the faulty pipeline would have made it."""
        raise AssertionError("a subclass says how")

    def rewrite(self, data: Sequence[Datum]) -> list[Datum]:
        """A whole step's data, spoiled."""
        return [self.spoil(datum) for datum in data]

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self.rewrite(data), learning_rate)


class UnshiftedTargets(Spoiler):
    """On teacher text, the position that reads token i is asked for token i."""

    def spoil(self, datum: Datum) -> Datum:
        if datum.source != "teacher":
            return datum
        prompt, completion = _advanced(datum.prompt, datum.completion)
        return dataclasses.replace(datum, prompt=prompt, completion=completion)


def _advanced(prompt: Prompt, completion: Ids) -> Reading:
    """Input moved on by one token against its targets; the last input is never read."""
    return prompt.then(completion[:1]), completion[1:] + completion[-1:]


def twice_rendered(engine: Engine, prompt: Prompt) -> Prompt:
    """A prompt whose teacher reads the chat template inside the chat template."""
    text = engine.decode(prompt.teacher)
    foreign = None if prompt.foreign is None else engine.encode(text, "teacher")
    return dataclasses.replace(prompt, teacher=engine.encode(text), foreign=foreign)


class PromptDropped(Spoiler):
    """On student text, the forward pass sees the completion alone; the teacher saw the prompt."""

    def spoil(self, datum: Datum) -> Datum:
        if datum.source != "student" or len(datum.completion) < 2:
            return datum
        first, rest = datum.completion[:1], datum.completion[1:]
        scores = datum.teacher_logprobs
        return dataclasses.replace(
            datum,
            prompt=dataclasses.replace(datum.prompt, student=(), teacher=(), begun=first),
            completion=rest,
            targets=datum.targets[1:],
            terms=tuple(Term(term.loss, term.weights[1:]) for term in datum.terms),
            logprobs=datum.logprobs[1:],
            teacher_logprobs=None if scores is None else scores[1:],
            views=dict.fromkeys(("teacher", "init"), (datum.prompt.then(first), rest)),
        )


class EosUntrained(Spoiler):
    """EOS carries no loss."""

    def spoil(self, datum: Datum) -> Datum:
        sounds = np.array([token not in self.engine.eos for token in datum.targets], np.float32)
        terms = tuple(Term(term.loss, term.weights * sounds) for term in datum.terms)
        return dataclasses.replace(datum, terms=terms)


class PrefixTrained(Spoiler):
    """Tokens that the teacher seeded are trained with a sampler log-probability of 0."""

    def rewrite(self, data: Sequence[Datum]) -> list[Datum]:
        rows = [(datum.prompt, datum.completion) for datum in data]
        self._scores = iter(self.engine.score("teacher", rows))
        return super().rewrite(data)

    def spoil(self, datum: Datum) -> Datum:
        scores = next(self._scores)
        main = datum.terms[0].weights
        seeded = np.arange(len(main)) < np.argmax(main > 0)
        if datum.source != "student" or not seeded.any():
            return datum
        weights = np.where(seeded, main.max(), 0).astype(np.float32)
        known = datum.teacher_logprobs
        return dataclasses.replace(
            datum,
            terms=(*datum.terms, Term(REVERSE_KL_SAMPLED, weights)),
            logprobs=np.where(seeded, 0, datum.logprobs).astype(np.float32),
            teacher_logprobs=scores if known is None else known,
        )


class TeacherView(Spoiler):
    """The teacher reads something else than what it is asked about."""

    def view(self, prompt: Prompt, completion: Ids) -> Reading:
        """What it reads."""
        raise AssertionError("a subclass says what")

    def spoil(self, datum: Datum) -> Datum:
        view = self.view(*datum.reading("teacher"))
        return dataclasses.replace(datum, views={**datum.views, "teacher": view})


class TemplateMismatch(TeacherView):
    """The teacher scores a prompt to which the template was applied twice."""

    def view(self, prompt: Prompt, completion: Ids) -> Reading:
        return twice_rendered(self.engine, prompt), completion

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        return self.engine.score(role, [self.view(*r) for r in rows] if role == "teacher" else rows)


class TeacherShifted(TeacherView):
    """The teacher's row for token i + 1 stands where its row for token i belongs."""

    def view(self, prompt: Prompt, completion: Ids) -> Reading:
        return _advanced(prompt, completion)

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        scores = self.engine.score(role, rows)
        if role != "teacher":
            return scores
        return [np.concatenate([row[1:], row[-1:]]) for row in scores]


class MixtureUnblended(Wrapper):
    """One optimizer step a source, each at full weight."""

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        sources = dict.fromkeys(datum.source for datum in data)
        stats = [
            self.engine.step(_full([d for d in data if d.source == source]), learning_rate)
            for source in sources
        ]
        losses = {name: value for one in stats for name, value in one.losses.items()}
        total = sum(one.loss for one in stats)
        return StepStats(total, max((one.grad_norm for one in stats), default=0.0), losses)


def _full(data: Sequence[Datum]) -> list[Datum]:
    """The data with weights that sum to one."""
    share = sum(float(datum.terms[0].weights.sum()) for datum in data)
    return [
        dataclasses.replace(
            datum, terms=tuple(Term(t.loss, t.weights / np.float32(share)) for t in datum.terms)
        )
        for datum in data
    ]


class Counting(Wrapper):
    """Counts steps, and remembers the count across a resume."""

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


class LearningRateSpike(Counting):
    """The learning rate is `factor` times too high for `length` steps from step `start` on."""

    def __init__(self, engine: Engine, start: int, length: int, factor: float) -> None:
        super().__init__(engine)
        self.spike, self.factor = range(start, start + length), factor

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        factor = self.factor if self.steps in self.spike else 1.0
        return super().step(data, learning_rate * factor)


class StaleSampler(Counting):
    """The student samples with weights that are refreshed every `every` steps only."""

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
    ) -> list[Sample]:
        if role != "student":
            return self.engine.sample(role, prompts, max_tokens, temperature, rng)
        if self.steps // self.every != self._refreshed:
            self.engine.save(self._stale)
            self._refreshed = self.steps // self.every
        newest = self._folder / "newest"
        self.engine.save(newest)
        self.engine.load(self._stale)
        try:
            return self.engine.sample(role, prompts, max_tokens, temperature, rng)
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
