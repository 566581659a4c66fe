"""The Tinker engine: a LoRA student on a training service, hosted or one's own.

Whole rows never cross the API, so it computes what needs single tokens' log-probabilities:
cross-entropy and the sampled reverse KL. What servers do differently is measured when the engine
opens (`conformance`), and adapted to or refused. Steps since the last saved state are kept: when a
server is lost, or an answer that would tell whether a step was taken, the saved state is taken up
again and they are replayed, so that no step is ever made twice. It leaves out whole-row losses,
gradient clipping where the SDK cannot ask for it, and files: a trained student stays on the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from potstill.engines.host import host_memory
from potstill.engines.prompts import Prompting
from potstill.engines.registry import ENGINES
from potstill.engines.tinker.client import Row, Sampler, Service, Trainer
from potstill.engines.tinker.conformance import facts_of, sampler_facts_of
from potstill.engines.torch.loading import Pair
from potstill.errors import NonFinite, PotstillError
from potstill.settings import TinkerSettings
from potstill.tasks.rendering import Messages, render
from potstill.types import (
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
    Term,
)

TRIES = 4  # times that an operation is begun on a fresh session before it fails
SAVED = 20  # steps after which the state is saved on the server, so that a replay stays short

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Part:
    """One term of one datum: sum of weights x -advantages x p(target) / p_sampler(target)."""

    datum: Datum
    term: Term
    advantages: Floats | None  # (T,) of sampled losses; cross-entropy has none

    @property
    def coefficients(self) -> Floats:
        """(T,) what the server multiplies a token's ratio with."""
        weights = self.term.weights.astype(np.float32)
        return weights if self.advantages is None else weights * self.advantages


@dataclass(frozen=True, eq=False)
class Update:
    """What one optimizer step sends."""

    rows: list[Row]
    loss: str
    learning_rate: float


class TinkerEngine(Prompting):
    """A student that is trained on a service, and a teacher that is served.

    Args:
        student: base model of the student, by the name that the server and the hub (or a folder)
            know it by.
        teacher: base model of the teacher.
        seed: for the LoRA adapters' initial weights.
        lora_rank: rank of the adapters.
        max_grad_norm: clip gradients to this norm where the SDK can ask for it.
        settings: servers and the number of requests in flight; default: the hosted service.
        changes: single fields of the settings, such as `base_url="http://127.0.0.1:8000"`.
    """

    losses = ENGINES["tinker"].losses
    devices = None  # unknown for a service

    def __init__(
        self,
        student: str,
        teacher: str,
        *,
        seed: int = 0,
        lora_rank: int = 32,
        max_grad_norm: float = 0.0,
        settings: TinkerSettings | None = None,
        **changes: Any,
    ) -> None:
        settings = (settings or TinkerSettings(name="tinker")).changed(changes)
        if lora_rank < 1:
            raise PotstillError(
                "a training service trains LoRA adapters, got lora_rank 0",
                "set train.lora_rank, 32 is usual",
            )
        pair = Pair.open(student, teacher, None, None)
        self.tokenizer, self.eos, self.vocabulary = pair.tokenizer, pair.eos, pair.vocabulary
        self.seed, self.rank, self.max_grad_norm = seed, lora_rank, max_grad_norm
        student_url, in_flight = settings.base_url, settings.in_flight
        teacher_url = settings.teacher_url or student_url
        here = there = Service(student_url, student, self.vocabulary, in_flight)
        if (teacher_url, teacher) != (student_url, student):
            there = Service(teacher_url, teacher, self.vocabulary, in_flight)
        self._services: dict[Role, Service] = {"student": here, "init": here, "teacher": there}
        self.facts = facts_of(here)
        raw, told = self.facts.raw, [f"{f.question}: {f.answer}" for f in self.facts.table]
        self._raw: dict[Role, bool] = {"student": raw, "init": raw, "teacher": raw}
        if there is not here:
            self._raw["teacher"], fact = sampler_facts_of(there)
            told.append(f"the teacher's server: {fact.question}: {fact.answer}")
        self.notes = (*pair.notes, *told)
        self._saved = ""  # where the state lies on the server; empty: as it was made
        self._since: list[Update] = []  # steps after that state
        self._samplers: dict[Role, Sampler] = {}
        self._trainer: Trainer | None = here.trainer(lora_rank, seed)

    def encode(self, asked: str | Messages, role: Role = "student") -> Ids:
        return render(self.tokenizer, asked)

    def decode(self, tokens: Ids) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        read = [prompt.read_by(role) for prompt in prompts]
        seeds = rng.integers(0, 2**31 - 1, len(prompts)).tolist()
        found = [Sample((), np.zeros(0, np.float32))] * len(prompts)
        asked = [i for i, limit in enumerate(max_tokens) if limit > 0]
        jobs: list[list[Any]] = [[x[i] for i in asked] for x in (read, max_tokens, seeds)]
        stop = sorted(self.eos)

        def draw(sampler: Sampler) -> list[Sample]:
            prompts, limits, numbers = jobs
            drawn = sampler.sample(prompts, limits, temperature, numbers, stop)
            drawn = [self._within(sample) for sample in drawn]
            if temperature in (0.0, 1.0) or self._raw[role]:
                return drawn
            scores = sampler.score([(p, s.tokens) for p, s in zip(prompts, drawn, strict=True)])
            return [Sample(s.tokens, x) for s, x in zip(drawn, scores, strict=True)]

        for i, sample in zip(asked, self._with_sampler(role, draw), strict=True):
            found[i] = sample
        return found

    def _within(self, sample: Sample) -> Sample:
        """A text up to the first id that only one of both heads has: a server may draw those."""
        inside = [token < self.vocabulary for token in sample.tokens]
        if all(inside):
            return sample
        end = inside.index(False)
        return Sample(sample.tokens[:end], sample.logprobs[:end])

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        read = [(prompt.read_by(role), completion) for prompt, completion in rows]
        return self._with_sampler(role, lambda sampler: sampler.score(read))

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        """Rows (T, V) of which the completion's own entries are known, and all others NaN."""
        found = np.full((len(completion), self.vocabulary), np.nan)
        scores = self.score(role, [(prompt, completion)])[0]
        found[np.arange(len(completion)), list(completion)] = scores
        return found

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        return [Expectation(logprobs=scores) for scores in self.score(role, rows)]

    def measure(self, data: Sequence[Datum]) -> StepStats:
        parts = self._parts(data)
        return _stats(parts, self._now(parts), 0.0)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        parts = self._parts(data)
        if not parts:
            return StepStats(0.0, 0.0)  # nothing to send: the server makes no step of it
        update = Update(*self._rows(parts), learning_rate)

        def take(trainer: Trainer) -> tuple[list[Floats], float]:
            return trainer.step(update.rows, update.loss, learning_rate, self.max_grad_norm)

        logprobs, norm = self._with_trainer(take)
        found = [_completion(part, x) for part, x in zip(parts, logprobs, strict=True)]
        stats = _stats(parts, found, norm)
        if not np.isfinite(stats.loss):
            self._take_up()
            raise NonFinite(f"loss {stats.loss}, gradient norm {norm}")
        self._since.append(update)
        self._samplers.pop("student", None)  # its weights are no longer the newest
        if len(self._since) >= SAVED:
            self._save()
        return stats

    def _parts(self, data: Sequence[Datum]) -> list[Part]:
        """Every term of every datum, with the advantages of sampled losses."""
        terms = [(d, term) for d in data if d.completion for term in d.terms]
        anchored = [Part(d, term, None) for d, term in terms if term.loss.to == "init"]
        rows = [(part.datum.prompt, part.datum.completion) for part in anchored]
        start, now = iter(self.score("init", rows)), iter(self._now(anchored))
        found = []
        for datum, term in terms:
            advantages = None
            if term.loss.to == "init":
                advantages = next(start) - next(now)
            elif term.loss.name == "reverse_kl_sampled":
                assert datum.teacher_logprobs is not None
                advantages = datum.teacher_logprobs - datum.logprobs
            found.append(Part(datum, term, advantages))
        if not all(np.isfinite(part.coefficients).all() for part in found):
            raise NonFinite("a weight or an advantage is not a number")
        return found

    def _rows(self, parts: Sequence[Part]) -> tuple[list[Row], str]:
        """The rows of a step and the server's loss, such that the gradient is the one asked for.

        A server that adds up takes cross-entropy's weights as they are. One that averages over
        each sequence and over sequences divides by weights, so everything goes as a ratio times
        an advantage, multiplied by what it will be divided by; cross-entropy's ratio is to the
        student as it is now, which is 1 with the right gradient.
        """
        plain = all(part.advantages is None for part in parts)
        if plain and self.facts.reduction == "sum":
            return [_row(part, part.coefficients, part.coefficients * 0) for part in parts], (
                "cross_entropy"
            )
        asked = [part for part in parts if part.advantages is None]
        now = iter(self._now(asked))
        rows = []
        for part in parts:
            scale = 1.0
            if self.facts.reduction == "sequence mean":
                scale = len(part.datum.completion) * len(parts)
            reference = next(now) if part.advantages is None else part.datum.logprobs
            rows.append(_row(part, part.coefficients * np.float32(scale), reference))
        return rows, "importance_sampling"

    def _now(self, parts: Sequence[Part]) -> list[Floats]:
        """Log-probabilities (T,) of the targets under the student as it is."""
        if not parts:
            return []
        rows = [_row(part, part.coefficients * 0, part.coefficients * 0) for part in parts]
        found = self._with_trainer(lambda trainer: trainer.forward(rows))
        return [_completion(part, values) for part, values in zip(parts, found, strict=True)]

    def _with_trainer(self, work: Callable[[Trainer], T]) -> T:
        return self._surely(lambda: work(self._student()))

    def _with_sampler(self, role: Role, work: Callable[[Sampler], T]) -> T:
        return self._surely(lambda: work(self._sampler(role)))

    def _surely(self, work: Callable[[], T]) -> T:
        """Do something; where a server is lost, on new sessions once more."""
        for attempt in range(TRIES):
            try:
                return work()
            except PotstillError:
                raise
            except Exception as error:
                if attempt + 1 == TRIES or not _lost(error):
                    raise
                self._lose()
        raise AssertionError

    def _student(self) -> Trainer:
        """The student with every step so far, taken up again if it was lost."""
        if self._trainer is None:
            self._take_up()
        assert self._trainer is not None
        return self._trainer

    def _sampler(self, role: Role) -> Sampler:
        """The role's newest weights; making a student's sampler is what puts older ones away."""
        if role not in self._samplers:
            student = role == "student"
            self._samplers[role] = (
                self._student().sampler() if student else self._services[role].base()
            )
        return self._samplers[role]

    def _lose(self) -> None:
        """Forget everything that hung on sessions, and open new ones."""
        self._trainer = None
        self._samplers.clear()
        for service in set(self._services.values()):
            service.reconnect()

    def _take_up(self) -> None:
        """The student as the saved state and the steps since then make it."""
        service = self._services["student"]
        self._samplers.pop("student", None)
        trainer = (
            service.restored(self._saved) if self._saved else service.trainer(self.rank, self.seed)
        )
        for update in self._since:
            trainer.step(update.rows, update.loss, update.learning_rate, self.max_grad_norm)
        self._trainer = trainer

    def _save(self) -> None:
        self._saved = self._with_trainer(lambda trainer: trainer.save())
        self._since.clear()

    def size(self, role: Role) -> None:
        """Unknown for a service."""

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._save()
        service = self._services["student"]
        state = {"path": self._saved, "server": service.url, "model": service.model}
        (folder / "engine.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "engine.json").read_text())
        self._saved, self._since, self._trainer = state["path"], [], None
        try:
            self._with_trainer(lambda trainer: trainer)
        except Exception as error:
            raise PotstillError(
                f"the server has no state {state['path']} any more: {error}",
                "start the cell anew: remove its folder and run the study again",
            ) from error

    def export(self, folder: Path) -> None:
        """Say where the student is: the service keeps the weights."""
        self.save(folder)

    def close(self) -> None:
        for service in set(self._services.values()):
            service.close()
        self._trainer = None
        self._samplers.clear()


def _lost(error: Exception) -> bool:
    """Whether the server, the session or the connection is gone, rather than the request wrong."""
    import tinker

    if isinstance(error, tinker.APIConnectionError | tinker.InternalServerError | OSError):
        return True
    words = str(error).lower()
    return any(sign in words for sign in ("not loaded", "stale", "session", "promise", "timed out"))


def _row(part: Part, advantages: Floats, reference: Floats) -> Row:
    """A part as a sequence: the prompt's positions carry nothing."""
    prompt, completion = part.datum.read_by("student")
    pad = np.zeros(len(prompt) - 1, np.float32)
    ids = (prompt + completion)[:-1]

    def wide(values: Floats) -> Floats:
        return np.concatenate([pad, values.astype(np.float32)])

    counts = wide(np.ones(len(completion), np.float32))
    targets = (*prompt[1:], *part.datum.targets)
    return Row(ids, targets, counts, wide(advantages), wide(reference))


def _completion(part: Part, values: Floats) -> Floats:
    """Of a row's values (N,), those of the completion (T,)."""
    return values[len(part.datum.read_by("student")[0]) - 1 :]


def _stats(parts: Sequence[Part], logprobs: Sequence[Floats], norm: float) -> StepStats:
    """The losses as semantics define them, from the log-probabilities before the step."""
    total, sums, counts = 0.0, dict[str, float](), dict[str, int]()
    for part, logp in zip(parts, logprobs, strict=True):
        if part.advantages is None:
            values = -logp.astype(float)
        else:
            values = -np.exp(logp.astype(float) - part.datum.logprobs) * part.advantages
        total += float((part.term.weights * values).sum())
        mine = part.term.weights != 0
        key = "anchor" if part.term.loss.to == "init" else part.datum.source
        sums[key] = sums.get(key, 0.0) + float(values[mine].sum())
        counts[key] = counts.get(key, 0) + int(mine.sum())
    means = {key: sums[key] / count for key, count in counts.items() if count}
    return StepStats(total, norm, means)


ENGINE = TinkerEngine
