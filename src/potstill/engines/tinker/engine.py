"""The Tinker engine: a LoRA student on a training service, hosted or your own.

Full-vocabulary log-probs never cross the API, so the engine computes losses that need the log-probs
of single tokens only: cross-entropy and the sampled reverse KL. Differences between servers are
measured when the engine opens (`conformance`), and adapted to or rejected. The engine keeps the
steps since the last saved state. If a server is lost, or an answer that would show whether a step
was taken, the engine restores the saved state and replays these steps; no step is applied twice.

Not supported: losses on full-vocabulary log-probs, gradient clipping if the SDK lacks it, and model
folders. A trained student stays on the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from potstill.engines.host import host_memory
from potstill.engines.prompts import Prompting
from potstill.engines.registry import ENGINES
from potstill.engines.tinker.client import Sampler, Service, Trainer, TrainingRow, adam_of
from potstill.engines.tinker.conformance import facts_of, sampler_facts_of
from potstill.engines.tinker.connection import is_lost
from potstill.engines.tinker.parts import (
    WeightedTerm,
    behind,
    check_rank,
    check_truncation,
    completion,
    row,
    stats_of,
    weighted,
    with_behavior,
)
from potstill.engines.torch.loading import ModelPair
from potstill.engines.torch.thoughts import decoder_of
from potstill.errors import NonFinite, PotstillError
from potstill.problems import Messages
from potstill.settings import Adam, TinkerSettings
from potstill.tasks.rendering import render
from potstill.types import (
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
)

TRIES = 4  # number of attempts at an operation, each on a new session
SAVED = 20  # number of steps after which the state is saved on the server, to limit replays

EMPTY = Sample((), np.zeros(0, np.float32))
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Update:
    """The request of one optimizer step."""

    rows: list[TrainingRow]
    loss: str
    learning_rate: float


class TinkerEngine(Prompting):
    """A student and a teacher on a training service.

    Args:
        student: name of the student's base model, both on the server and on the hub (or a folder).
        teacher: name of the teacher's base model.
        seed: seed of the LoRA adapters' initial weights.
        lora_rank: rank of the adapters.
        max_grad_norm: clip gradients to this norm, if the SDK supports it.
        adam: the optimizer's settings.
        settings: servers and maximum number of requests in flight; default: the hosted service.
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
        adam: Adam | None = None,
        settings: TinkerSettings | None = None,
        **changes: Any,
    ) -> None:
        settings = (settings or TinkerSettings(name="tinker")).changed(changes)
        check_rank(lora_rank)
        pair = ModelPair.open(student, teacher, None, None)
        self.tokenizer, self.eos, self.vocabulary = pair.tokenizer, pair.eos, pair.vocabulary
        self.has_teacher, self._decode = not pair.alone, decoder_of(pair.tokenizer)
        self.windows = pair.windows_by_role
        self.seed, self.rank, self.max_grad_norm = seed, lora_rank, max_grad_norm
        student_url, in_flight = settings.base_url, settings.in_flight
        teacher_url = student_url if pair.alone else settings.teacher_url or student_url
        service = teacher_service = Service(student_url, student, self.vocabulary, in_flight)
        if (teacher_url.full, teacher or student) != (student_url.full, student):
            teacher_service = Service(teacher_url, teacher, self.vocabulary, in_flight)
        self._services: dict[Role, Service] = {"student": service, "init": service}
        self._services["teacher"] = teacher_service
        self.facts = facts_of(service)
        service.adam = adam_of(adam or Adam())
        raw, notes = self.facts.raw, [f"{f.question}: {f.answer}" for f in self.facts.table]
        self._raw: dict[Role, bool] = {"student": raw, "init": raw, "teacher": raw}
        if teacher_service is not service:
            self._raw["teacher"], fact = sampler_facts_of(teacher_service)
            notes.append(f"the teacher's server: {fact.question}: {fact.answer}")
        self.notes = (*pair.notes, *notes)
        self._saved = ""  # path of the saved state on the server; empty: the initial state
        self._updates: list[Update] = []  # steps after the saved state
        self._samplers: dict[Role, Sampler] = {}
        self._trainer: Trainer | None = service.trainer(lora_rank, seed)

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        return render(self.tokenizer, text)

    def decode(self, tokens: Ids) -> str:
        return self._decode(tokens)

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        check_truncation(truncation)
        seeds = rng.integers(0, 2**31 - 1, len(prompts)).tolist()
        nonempty = [i for i, limit in enumerate(max_tokens) if limit > 0]
        ids = [prompts[i].read_by(role) for i in nonempty]
        seeds, limits = ([x[i] for i in nonempty] for x in (seeds, max_tokens))

        def draw(sampler: Sampler) -> list[Sample]:
            drawn = sampler.sample(ids, limits, temperature, seeds, sorted(self.eos), truncation)
            drawn = [self._truncated(sample) for sample in drawn]
            score = partial(sampler.score, [(p, s.tokens) for p, s in zip(ids, drawn, strict=True)])
            return with_behavior(drawn, temperature, truncation, None if self._raw[role] else score)

        drawn = dict(zip(nonempty, self._with_sampler(role, draw), strict=True))
        return [drawn.get(i, EMPTY) for i in range(len(prompts))]

    def _truncated(self, sample: Sample) -> Sample:
        """Truncate a sample at the first id that only one of the two heads has."""
        inside = [token < self.vocabulary for token in sample.tokens]
        if all(inside):
            return sample
        end = inside.index(False)
        return Sample(sample.tokens[:end], sample.logprobs[:end])

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        ids = [(prompt.read_by(role), completion) for prompt, completion in rows]
        return self._with_sampler(role, lambda sampler: sampler.score(ids))

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        """Return log-probs (T, V) that are NaN except for the completion's tokens."""
        logp = np.full((len(completion), self.vocabulary), np.nan)
        scores = self.score(role, [(prompt, completion)])[0]
        logp[np.arange(len(completion)), list(completion)] = scores
        return logp

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        return [Expectation(logprobs=scores) for scores in self.score(role, rows)]

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        parts = self._parts(data)
        return stats_of(parts, self._current_scores(parts), 0.0)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        parts = self._parts(data)
        if not parts:
            return StepStats(0.0, 0.0)  # an empty request takes no step on the server
        update = Update(*self._rows(parts), learning_rate)

        def take(trainer: Trainer) -> tuple[list[Floats], float]:
            return trainer.step(update.rows, update.loss, learning_rate, self.max_grad_norm)

        logprobs, norm = self._with_trainer(take)
        scores = [completion(part, values) for part, values in zip(parts, logprobs, strict=True)]
        stats = stats_of(parts, scores, norm)
        if not np.isfinite(stats.loss):
            self._restore()
            raise NonFinite(f"loss {stats.loss}, gradient norm {norm}")
        self._updates.append(update)
        self._samplers.pop("student", None)  # its weights are out of date
        if len(self._updates) >= SAVED:
            self._save_state()
        return stats

    def _parts(self, data: Sequence[Datum]) -> list[WeightedTerm]:
        """Return every term of every datum, with the current estimates of sampled losses.

        They need the current student's log-probabilities, which cost a forward pass. Those of the
        sampler are the same where it had the weights of now.
        """
        terms = [(d, term) for d in data if d.completion for term in d.terms]
        older = [WeightedTerm(datum, datum.terms[0]) for datum in behind(terms)]
        scores = zip(older, self._current_scores(older), strict=True)
        now = {id(part.datum): score for part, score in scores}
        rows = [(d.prompt, d.completion) for d, term in terms if term.loss.to == "init"]
        parts = weighted(terms, now, self.score("init", rows))
        if not all(np.isfinite(part.coefficients).all() for part in parts):
            raise NonFinite("a weight or an advantage is not a number")
        return parts

    def _rows(self, parts: Sequence[WeightedTerm]) -> tuple[list[TrainingRow], str]:
        """Return the rows and the server loss whose gradient is that of the given terms.

        A server that sums takes cross-entropy's weights unchanged. A server that averages over each
        sequence and over sequences divides by weights. Therefore every term is sent as an
        importance ratio times an advantage, multiplied by the server's divisor. The ratio of
        cross-entropy is relative to the current student: its value is 1, and its gradient is that
        of the log-probability.
        """
        plain = all(part.surrogate is None for part in parts)
        if plain and self.facts.reduction == "sum":
            return [row(part, part.coefficients, part.coefficients * 0) for part in parts], (
                "cross_entropy"
            )
        current = iter(self._current_scores([p for p in parts if p.surrogate is None]))
        rows = []
        for part in parts:
            scale = 1.0
            if self.facts.reduction == "sequence mean":
                scale = len(part.datum.completion) * len(parts)
            reference = part.surrogate.reference if part.surrogate else next(current)
            rows.append(row(part, part.coefficients * np.float32(scale), reference))
        return rows, "importance_sampling"

    def _current_scores(self, parts: Sequence[WeightedTerm]) -> list[Floats]:
        """Return log-probabilities (T,) of the targets under the current student."""
        if not parts:
            return []
        rows = [row(part, part.coefficients * 0, part.coefficients * 0) for part in parts]
        logprobs = self._with_trainer(lambda trainer: trainer.forward(rows))
        return [completion(part, values) for part, values in zip(parts, logprobs, strict=True)]

    def _with_trainer(self, work: Callable[[Trainer], T]) -> T:
        return self._retry(lambda: work(self._student()))

    def _with_sampler(self, role: Role, work: Callable[[Sampler], T]) -> T:
        return self._retry(lambda: work(self._sampler(role)))

    def _retry(self, work: Callable[[], T]) -> T:
        """Call `work`, and repeat it on new sessions if a server is lost."""
        for attempt in range(TRIES):
            try:
                return work()
            except PotstillError:
                raise
            except Exception as error:
                if attempt + 1 == TRIES or not is_lost(error):
                    raise
                self._reconnect()
        raise AssertionError

    def _student(self) -> Trainer:
        """Return the student with all steps so far, and restore it if it was lost."""
        if self._trainer is None:
            self._restore()
        assert self._trainer is not None
        return self._trainer

    def _sampler(self, role: Role) -> Sampler:
        """Return a sampler of the role's newest weights; older student samplers become invalid."""
        self.check_role(role)
        if role not in self._samplers:
            make = self._student().sampler if role == "student" else self._services[role].base
            self._samplers[role] = make()
        return self._samplers[role]

    def _reconnect(self) -> None:
        """Drop everything that depends on a session, and open new sessions."""
        self._trainer = None
        self._samplers.clear()
        for service in set(self._services.values()):
            service.reconnect()

    def _restore(self) -> None:
        """Restore the student from the saved state, and replay the steps since then."""
        service = self._services["student"]
        self._samplers.pop("student", None)
        trainer = (
            service.restored(self._saved) if self._saved else service.trainer(self.rank, self.seed)
        )
        for update in self._updates:
            trainer.step(update.rows, update.loss, update.learning_rate, self.max_grad_norm)
        self._trainer = trainer

    def _save_state(self) -> None:
        self._saved = self._with_trainer(lambda trainer: trainer.save())
        self._updates.clear()

    def size(self, role: Role) -> None:
        """Return None: the size of a served model is unknown."""

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._save_state()
        service = self._services["student"]
        state = {"path": self._saved, "server": service.url, "model": service.model}
        (folder / "engine.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "engine.json").read_text())
        self._saved, self._updates, self._trainer = state["path"], [], None
        try:
            self._with_trainer(lambda trainer: trainer)
        except Exception as error:
            raise PotstillError(
                f"the server cannot restore the state {state['path']}: {error}",
                "restart the run: remove its folder and start the study again",
            ) from error

    def export(self, folder: Path) -> None:
        """Write the path of the student on the server, which keeps the weights."""
        self.save(folder)

    def close(self) -> None:
        for service in set(self._services.values()):
            service.close()
        self._trainer = None
        self._samplers.clear()


ENGINE = TinkerEngine
