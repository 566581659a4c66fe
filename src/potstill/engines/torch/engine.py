"""The torch engine: any `AutoModelForCausalLM` pair by hub name or folder.

It runs in one process on the devices of this machine, or in several processes (`distributed`). The
head runs on completion positions only, in sampling, scoring and training. Batches are dealt to
processes and split into micro-batches of rows of similar length (`batching`). `sampling` contains
the sampler, `stepping` the optimizer step, and `models` the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from potstill.algorithms.losses import CROSSING, LOSSES, token_logprobs
from potstill.engines.flops import Machine, Size
from potstill.engines.prompts import Prompting, by_reader
from potstill.engines.protocol import PredictedMemory
from potstill.engines.torch.distributed import SINGLE, World
from potstill.engines.torch.footprint import footprint, free_memory
from potstill.engines.torch.forward import logits_at
from potstill.engines.torch.lm_head import States
from potstill.engines.torch.loading import ModelPair
from potstill.engines.torch.loss_terms import expectation, flat
from potstill.engines.torch.models import Models, check_one_device_each
from potstill.engines.torch.roofline import least_decoding, measure, size_of
from potstill.engines.torch.sampling import generate
from potstill.engines.torch.stepping import Stepper, read_states
from potstill.engines.torch.thoughts import decoder_of
from potstill.problems import Messages
from potstill.settings import Adam, Lora, TorchSettings
from potstill.types import (
    WHOLE,
    Datum,
    Expectation,
    Floats,
    Ids,
    Loss,
    ModelSpec,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
    Truncation,
)

Result = TypeVar("Result")
transformers.utils.logging.disable_progress_bar()

EMPTY = Sample((), np.zeros(0, np.float32))
IDLE: tuple[Ids, Ids] = (0,), (0,)  # the row that a process without rows reads


class TorchEngine(Prompting):
    """A student and one or more teachers, or this process's shards of them.

    Args:
        student: hub name or folder of the model to train.
        teacher: hub name or folder of the model to learn from.
        teachers: additional teachers by name; each has the role "teacher:NAME".
        seed: seed of the LoRA adapters' initial weights.
        lora_rank: rank of the adapters; 0 trains all weights.
        lora: the adapters' other settings; default: on all linear layers.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off.
        adam: betas and weight decay.
        settings: devices, dtypes and memory; default: those of a study, with torch's default
            number of CPU threads.
        world: the processes of this engine.
        changes: single fields of the settings, such as `threads=1`.
    """

    losses = frozenset(LOSSES) - CROSSING
    cross = False  # whether the teacher may have its own tokenizer, see `cross_tokenizer`

    def __init__(
        self,
        student: str,
        teacher: str,
        *,
        teachers: Mapping[str, str] | None = None,
        seed: int = 0,
        lora_rank: int = 0,
        lora: Lora | None = None,
        max_grad_norm: float = 1.0,
        adam: Adam | None = None,
        settings: TorchSettings | None = None,
        world: World = SINGLE,
        **changes: Any,
    ) -> None:
        self.settings = settings = (settings or TorchSettings(threads=0)).changed(changes)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if not world.single:
            check_one_device_each(settings.student, settings.teacher)
        pair = ModelPair.open(student, teacher, settings.student, settings.teacher, self.cross)
        self.pair, self.has_teacher = pair.with_teachers(teachers or {}), not pair.alone
        self.tokenizer, self.eos = self.pair.tokenizer, self.pair.eos
        self._decode, self.student_spec = decoder_of(self.tokenizer), self.pair.student_spec
        self.vocabulary, self.world = self.pair.vocabulary, world
        self.two_renderings, self.windows = self.pair.two_renderings, self.pair.windows_by_role
        adapters = (lora or Lora()).changed({"rank": lora_rank})
        self.models = Models(self.pair, world, settings, lora=adapters, adam=adam, seed=seed)
        self.coverage = self.models.coverage  # of LoRA: share of weights, experts
        self._notes = self.pair.notes
        self._stepper = Stepper(self.pair, self.models, world, settings.batch_tokens, max_grad_norm)

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions made while opening the pair and its models."""
        return (*self._notes, *self.models.notes)

    @notes.setter
    def notes(self, notes: tuple[str, ...]) -> None:
        self._notes = tuple(note for note in notes if note not in self.models.notes)

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        return self.pair.encode(text, role)

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
        def call(reader: Role, rows: list[int]) -> list[Sample]:
            ids, limits = [prompts[i].read_by(reader) for i in rows], [max_tokens[i] for i in rows]
            return self._sample(reader, ids, limits, temperature, rng, truncation)

        return by_reader(role, prompts, call)

    def _sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation,
    ) -> list[Sample]:
        self.pair.check_lengths(role, prompts, max_tokens)
        longest = max(max_tokens, default=0)
        noise = rng.random((len(prompts), longest), dtype=np.float32)
        results = dict.fromkeys(range(len(prompts)) if self.world.leads else (), EMPTY)
        nonempty = [i for i, limit in enumerate(max_tokens) if limit > 0]
        sizes = [len(prompts[i]) + longest for i in nonempty]  # width of the cache
        limit = self.settings.sample_tokens  # also the overhead: a group costs all its steps
        sharing = self.models.sharing(role)
        kinds = [sharing.kind_sampled(len(prompts[i]), max_tokens[i]) for i in nonempty]
        with self.models.no_grad(), self.models.for_sampling(role) as (model, together):
            for chunk in self.world.chunks(
                sizes, limit, overhead=limit, together=together, kinds=kinds
            ):
                rows = [nonempty[i] for i in chunk]
                samples = generate(
                    model,
                    [prompts[i] for i in rows] or [(0,)],
                    [max_tokens[i] for i in rows] or [1],
                    temperature,
                    noise[rows] if rows else np.zeros((1, 1), np.float32),
                    eos=self.pair.eos_of(role),
                    vocabulary=self.pair.vocabulary_of(role),
                    any_process=self.world.any if together else None,
                    padded=sharing.padded,
                    cached=sharing.cached,
                    truncation=truncation,
                )
                results.update(zip(rows, samples, strict=False))
        return self.world.merge(results)

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        def work(states: States, _: Sequence[Ids], completions: Sequence[Ids]) -> list[Floats]:
            tokens = flat(completions, states.hidden.device)
            scores = [token_logprobs(states.log_probs(at), tokens[at]) for at in states.slices()]
            parts = torch.cat(scores).split(states.lengths) if scores else ()
            return [part.float().cpu().numpy() for part in parts]

        return self._map_rows(role, rows, work, np.zeros(0, np.float32))

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        role = prompt.reader(role)
        ids = torch.tensor([prompt.read_by(role) + completion])
        with self.models.no_grad(), self.models.use(role) as model:
            device = model.get_input_embeddings().weight.device
            columns = torch.arange(ids.shape[1] - len(completion) - 1, ids.shape[1] - 1)
            logits = logits_at(model, ids.to(device), columns)[0]
        used = logits[:, : self.pair.vocabulary_of(role)].double()
        return np.asarray(used.log_softmax(-1).cpu().numpy())

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        eos_ids = sorted(self.pair.eos_of(role))

        def work(
            states: States, prompts: Sequence[Ids], completions: Sequence[Ids]
        ) -> list[Expectation]:
            pairs = zip(prompts, completions, strict=True)
            inputs = [p[-1:] + c[:-1] if c else () for p, c in pairs]
            tokens, previous = (flat(x, states.hidden.device) for x in (completions, inputs))
            values = [
                expectation(states.log_probs(at), tokens[at], previous[at], eos_ids)
                for at in states.slices()
            ]
            parts = torch.cat(values, 1).split(states.lengths, 1) if values else ()
            return [Expectation(*part.cpu().numpy()) for part in parts]

        return self._map_rows(role, rows, work, Expectation())

    def _map_rows(
        self,
        role: Role,
        rows: Sequence[Reading],
        work: Callable[[States, Sequence[Ids], Sequence[Ids]], list[Result]],
        empty: Result,
    ) -> list[Result]:
        """Apply `work` to rows, each read by the model that its prompt selects for the role."""

        def call(reader: Role, indices: list[int]) -> list[Result]:
            ids = [(rows[i][0].read_by(reader), rows[i][1]) for i in indices]
            return self._map_batched(reader, ids, work, empty)

        return by_reader(role, [prompt for prompt, _ in rows], call)

    def _map_batched(
        self,
        role: Role,
        rows: Sequence[tuple[Ids, Ids]],
        work: Callable[[States, Sequence[Ids], Sequence[Ids]], list[Result]],
        empty: Result,
    ) -> list[Result]:
        """Apply `work` to (prompt, completion) rows, micro-batch by micro-batch."""
        results = dict.fromkeys(range(len(rows)) if self.world.leads else (), empty)
        sizes = [len(prompt) + len(completion) for prompt, completion in rows]
        together, sharing = self.models.together(role), self.models.sharing(role)
        kinds = [sharing.kind_read(size) for size in sizes]
        with self.models.no_grad(), self.models.use(role) as model:
            for chunk in self.world.chunks(
                sizes, self.settings.batch_tokens, together=together, kinds=kinds
            ):
                prompts, completions = zip(*([rows[i] for i in chunk] or [IDLE]), strict=True)
                states = read_states(self.pair, self.models, role, model, prompts, completions)
                results.update(zip(chunk, work(states, prompts, completions), strict=False))
        return self.world.merge(results)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self._stepper.step(data, learning_rate)

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        return self._stepper.measure(data, dropout=dropout)

    def machines(self) -> dict[Role, Machine]:
        """Measure the peak rates of each model's device in its dtype."""
        measured: dict[tuple[torch.device, str], Machine] = {}
        machines: dict[Role, Machine] = {}
        for role, spec in self._specs():
            with self.models.use(role) as model:
                key = model.get_input_embeddings().weight.device, spec.dtype
            if key not in measured:
                measured[key] = measure(key[0], getattr(torch, spec.dtype))
            machines[role] = measured[key]
        return machines

    def bounds(
        self, machines: dict[Role, Machine], rows: Sequence[tuple[int, int]], targets: set[Role]
    ) -> dict[str, float]:
        """Return the minimum seconds of each activity, see `protocol.Bounded`."""
        sizes = {role: self.size(role) for role, _ in self._specs()}
        student, machine = sizes["student"], machines["student"]
        forward = {r: machines[r].seconds(size.forward(rows)) for r, size in sizes.items()}
        others = sum(forward["teacher" if role == "teacher" else "student"] for role in targets)
        return {
            "student sampling": least_decoding(student, machine, rows),
            "scoring": forward.get("teacher", 0.0),
            "forward and backward": machine.seconds(student.training(rows)) + others,
        }

    def _specs(self) -> tuple[tuple[Role, ModelSpec], ...]:
        student, teacher = ("student", self.pair.student_spec), ("teacher", self.pair.teacher_spec)
        return (student, teacher) if self.has_teacher else (student,)

    def size(self, role: Role) -> Size:
        return size_of(self.models.ensure(role), getattr(torch, self.models.spec(role).dtype))

    @property
    def devices(self) -> int:
        return self.world.size * self.models.devices

    def memory(self) -> tuple[int, int]:
        return self.models.memory()

    def predict_memory(
        self, prompt: Prompt, max_tokens: int, batch: int, losses: Sequence[Loss]
    ) -> PredictedMemory | None:
        if not self.world.single or self.models.devices > 1:
            return None
        made = footprint(self, prompt, max_tokens, batch, losses)
        device = self.models.held["student"].get_input_embeddings().weight.device
        return PredictedMemory(made.peak - made.weights, free_memory(device), made.parts)

    def save(self, folder: Path) -> None:
        self.models.save(folder)

    def load(self, folder: Path) -> None:
        self.models.load(folder)

    def export(self, folder: Path) -> None:
        self.models.export(folder)

    def close(self) -> None:
        self.models.close()
