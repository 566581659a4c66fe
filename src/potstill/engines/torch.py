"""The torch engine: any `AutoModelForCausalLM` pair by hub name or folder, on the devices of
this machine.

The head runs on completion positions only, in sampling, scoring and training alike. Batches are
cut into micro-batches of rows of similar length; gradients add up to the same sum. The sampler is
`sampling.py`, reading and checking of model folders `loading.py`. It leaves out sharding over
processes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.engines import host_memory
from potstill.engines.heads import States, read
from potstill.engines.limits import Machine, Size, least_decoding, measure, size_of
from potstill.engines.loading import (
    Pair,
    add_lora,
    autocast,
    checkpoint_activations,
    export_student,
    load_model,
)
from potstill.engines.sampling import generate
from potstill.engines.terms import Columns, Tally, flat, needs_rows, outlook, take
from potstill.errors import NonFinite
from potstill.losses import LOSSES, cross_entropy
from potstill.prompts import Messages, render
from potstill.types import (
    Datum,
    Floats,
    Ids,
    Loss,
    ModelSpec,
    Outlook,
    Role,
    Rows,
    Sample,
    StepStats,
)

Row = TypeVar("Row")
transformers.utils.logging.disable_progress_bar()

SPARE = 256  # padded tokens that are worth one more micro-batch
ADAM: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


class TorchEngine:
    """A student and a teacher in this process.

    Args:
        student: hub name or folder of the model to train.
        teacher: hub name or folder of the model to learn from.
        teachers: further ones by name, each with the role "teacher:NAME".
        seed: for the LoRA adapters' initial weights.
        lora_rank: rank of the adapters on all linear layers; 0 trains all weights.
        student_spec: where and in which dtype the student lives.
        teacher_spec: the same for the teacher.
        batch_tokens: most padded tokens of one micro-batch of training and scoring, the knob for
            memory.
        sample_tokens: the same for sampling, which keeps a cache but no activations.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        threads: CPU threads; 0 leaves torch's own choice.
    """

    losses = frozenset(LOSSES)

    def __init__(
        self,
        student: str,
        teacher: str,
        *,
        teachers: Mapping[str, str] | None = None,
        seed: int = 0,
        lora_rank: int = 0,
        student_spec: ModelSpec | None = None,
        teacher_spec: ModelSpec | None = None,
        batch_tokens: int = 16_384,
        sample_tokens: int = 16_384,
        max_grad_norm: float = 1.0,
        gradient_checkpointing: bool = False,
        threads: int = 0,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.pair = Pair.open(student, teacher, student_spec, teacher_spec).join(teachers or {})
        self.tokenizer, self.eos, self.notes = self.pair.tokenizer, self.pair.eos, self.pair.notes
        self.vocabulary = self.pair.vocabulary
        self.batch_tokens, self.sample_tokens = batch_tokens, sample_tokens
        self.max_grad_norm = max_grad_norm
        self.lora, self.checkpointed = lora_rank > 0, gradient_checkpointing
        model = load_model(student, self.pair.student_spec, trained=not self.lora)
        if self.lora:
            torch.manual_seed(seed)
            model = add_lora(model, lora_rank)
        if gradient_checkpointing:
            checkpoint_activations(model)
        self._models: dict[Role, Any] = {"student": model}
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(self._trained.values(), lr=0.0, fused=True, **ADAM)

    def encode(self, asked: str | Messages) -> Ids:
        return render(self.tokenizer, asked)

    def decode(self, tokens: Ids) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @torch.inference_mode()
    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        longest = max(max_tokens, default=0)
        noise = rng.random((len(prompts), longest), dtype=np.float32)
        out: list[Sample | None] = [None] * len(prompts)
        with self._model(role) as model:
            sizes = [len(prompt) + longest for prompt in prompts]  # the cache is that wide
            most = self.sample_tokens  # one more group means all of its steps once more
            for chunk in micro_batches(range(len(prompts)), sizes, most, overhead=most):
                samples = generate(
                    model,
                    [prompts[i] for i in chunk],
                    [max_tokens[i] for i in chunk],
                    temperature,
                    noise[chunk],
                    eos=self.eos,
                    vocabulary=self.vocabulary,
                )
                for i, sample in zip(chunk, samples, strict=True):
                    out[i] = sample
        return [sample for sample in out if sample is not None]

    @torch.inference_mode()
    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        out: list[Floats] = [np.zeros(0, np.float32)] * len(rows)
        with self._model(role) as model:
            sizes = [len(prompt) + len(completion) for prompt, completion in rows]
            for chunk in micro_batches(range(len(rows)), sizes, self.batch_tokens):
                prompts, completions = zip(*(rows[i] for i in chunk), strict=True)
                states = self._read(role, model, prompts, completions)
                asked = flat(completions, states.hidden.device)
                found = [-cross_entropy(states.rows(at), asked[at]) for at in states.slices()]
                parts = torch.cat(found).split(states.lengths) if found else ()
                for i, part in zip(chunk, parts, strict=bool(found)):
                    out[i] = part.float().cpu().numpy()
        return out

    @torch.inference_mode()
    def rows(self, role: Role, prompt: Ids, completion: Ids) -> Rows:
        ids = torch.tensor([prompt + completion])
        with self._model(role) as model:
            device = model.get_input_embeddings().weight.device
            logits = model(ids.to(device), logits_to_keep=len(completion) + 1).logits[0]
        kept = logits[-len(completion) - 1 : -1, : self.vocabulary].double()
        return np.asarray(kept.log_softmax(-1).cpu().numpy())

    @torch.inference_mode()
    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        out: list[Outlook] = [Outlook()] * len(rows)
        ends = sorted(self.eos)
        with self._model(role) as model:
            sizes = [len(prompt) + len(completion) for prompt, completion in rows]
            for chunk in micro_batches(range(len(rows)), sizes, self.batch_tokens):
                prompts, completions = zip(*(rows[i] for i in chunk), strict=True)
                states = self._read(role, model, prompts, completions)
                heard = [
                    p[-1:] + c[:-1] if c else () for p, c in zip(prompts, completions, strict=True)
                ]
                asked, heard_ids = (flat(x, states.hidden.device) for x in (completions, heard))
                found = [
                    outlook(states.rows(at), asked[at], heard_ids[at], ends)
                    for at in states.slices()
                ]
                parts = torch.cat(found, 1).split(states.lengths, 1) if found else ()
                for i, part in zip(chunk, parts, strict=bool(found)):
                    out[i] = Outlook(*part.cpu().numpy())
        return out

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        tally = Tally()
        for losses, chunk in self._chunks(data):
            self._forward(losses, chunk, tally, backward=True)
        self._models["student"].eval()
        return self._update(learning_rate, tally)

    @torch.no_grad()
    def measure(self, data: Sequence[Datum]) -> StepStats:
        tally = Tally()
        for losses, chunk in self._chunks(data):
            self._forward(losses, chunk, tally, backward=False)
        self._models["student"].eval()
        return StepStats(tally.loss, 0.0, tally.means())

    def _chunks(self, data: Sequence[Datum]) -> Iterator[tuple[tuple[Loss, ...], list[Datum]]]:
        """Micro-batches whose rows share their losses."""
        groups: dict[tuple[Loss, ...], list[Datum]] = defaultdict(list)
        for datum in data:
            if datum.completion:
                groups[tuple(term.loss for term in datum.terms)].append(datum)
        for losses, members in groups.items():
            sizes = [len(d.prompt) + len(d.completion) for d in members]
            for chunk in micro_batches(members, sizes, self.batch_tokens):
                yield losses, chunk

    def _forward(
        self, losses: tuple[Loss, ...], data: list[Datum], tally: Tally, *, backward: bool
    ) -> None:
        """One micro-batch: its weighted loss goes into the tally, its gradient to the weights.

        The loss and its gradient are worked out slice by slice of positions down to the hidden
        states; from there the gradient goes through the model in one piece.
        """
        with self._model("student") as model:
            model.train(self.checkpointed)
            prompts, completions = [d.prompt for d in data], [d.completion for d in data]
            student = self._read("student", model, prompts, completions)
        targets: dict[Role, States] = {}
        for role in {loss.to for loss in losses if needs_rows(loss)}:
            with torch.no_grad(), self._model(role) as model:
                seen = zip(*(d.seen_by(role) for d in data), strict=True)
                targets[role] = self._read(role, model, *seen)
        columns = Columns(data, losses, student.hidden.device)
        grad = torch.zeros_like(student.hidden) if backward else None
        for at in student.slices():
            logits = student.logits(at)
            others = {role: states.logits(at).to(logits.device) for role, states in targets.items()}
            take(losses, columns, at, logits, others, tally, backward=backward)
            if grad is not None:
                student.backward(at, logits, into=grad)
        if grad is not None:
            student.through(grad)

    def _update(self, learning_rate: float, tally: Tally) -> StepStats:
        start, params = self._now(), list(self._trained.values())
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        limit = self.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(params, limit).item()
        if not (math.isfinite(tally.loss) and math.isfinite(norm)):
            self._optimizer.zero_grad()
            raise NonFinite(f"loss {tally.loss}, gradient norm {norm}")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepStats(tally.loss, norm, tally.means(), self._now() - start)

    def _now(self) -> float:
        """The clock, once the student's GPU has done what it was given."""
        device = next(iter(self._trained.values())).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def _read(
        self, role: Role, model: Any, prompts: Sequence[Ids], completions: Sequence[Ids]
    ) -> States:
        return read(model, prompts, completions, self.vocabulary, self.pair.spec_of(role))

    @contextlib.contextmanager
    def _model(self, role: Role) -> Iterator[Any]:
        """The model of a role, ready to run; teacher and init are loaded when first needed."""
        if role == "teacher" and self.pair.one_model:
            role = "init"  # the same weights, before training
        spec = self.pair.spec_of(role)
        if role == "init" and self.lora:
            with self._models["student"].disable_adapter(), autocast(spec):
                yield self._models["student"]
            return
        if role not in self._models:
            self._models[role] = load_model(self.pair.name_of(role), spec, trained=False)
        with autocast(spec):
            yield self._models[role]

    def machines(self) -> dict[Role, Machine]:
        """What each model's device does at best in its dtype."""
        known: dict[tuple[torch.device, str], Machine] = {}
        found: dict[Role, Machine] = {}
        for role, spec in self._placed():
            with self._model(role) as model:
                key = model.get_input_embeddings().weight.device, spec.dtype
            if key not in known:
                known[key] = measure(key[0], getattr(torch, spec.dtype))
            found[role] = known[key]
        return found

    def bounds(
        self, machines: dict[Role, Machine], rows: Sequence[tuple[int, int]], targets: set[Role]
    ) -> dict[str, float]:
        """The least seconds of each activity on rows of (prompt, completion) tokens.

        Args:
            machines: what to hold against.
            rows: tokens of prompts and completions.
            targets: models whose rows the losses need.
        """
        sizes: dict[Role, Size] = {}
        for role, spec in self._placed():
            with self._model(role) as model:
                sizes[role] = size_of(model, getattr(torch, spec.dtype))
        student, its = sizes["student"], machines["student"]
        reading = {r: machines[r].seconds(size.forward(rows)) for r, size in sizes.items()}
        others = sum(reading["teacher" if role == "teacher" else "student"] for role in targets)
        return {
            "student sampling": least_decoding(student, its, rows),
            "scoring": reading["teacher"],
            "forward and backward": its.seconds(student.training(rows)) + others,
        }

    def _placed(self) -> tuple[tuple[Role, ModelSpec], ...]:
        return ("student", self.pair.student_spec), ("teacher", self.pair.teacher_spec)

    def memory(self) -> tuple[int, int]:
        places = [host_memory()]
        if torch.cuda.is_available():
            places += [
                (
                    torch.cuda.max_memory_reserved(i),
                    torch.cuda.get_device_properties(i).total_memory,
                )
                for i in range(torch.cuda.device_count())
            ]
        return max(places, key=lambda place: place[0] / place[1])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight/{name}": p.detach() for name, p in self._trained.items()}
        for name, param in self._trained.items():
            for key, value in self._optimizer.state[param].items():
                tensors[f"{key}/{name}"] = value
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "engine.safetensors")

    def load(self, folder: Path) -> None:
        tensors = load_file(folder / "engine.safetensors")
        state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        with torch.no_grad():
            for key, value in tensors.items():
                kind, name = key.split("/", 1)
                param = self._trained[name]
                if kind == "weight":
                    param.copy_(value)
                else:
                    state[param][kind] = value.to(param.device)  # fused Adam: the step too
        self._optimizer.state = defaultdict(dict, state)

    def export(self, folder: Path) -> None:
        export_student(self.pair, self._models["student"], folder, lora=self.lora)

    def close(self) -> None:
        self._models.clear()
        self._trained.clear()


def micro_batches(
    rows: Sequence[Row], sizes: Sequence[int], limit: int, overhead: int = SPARE
) -> Iterator[list[Row]]:
    """Group rows of similar size so that little is padded.

    Of all ways to cut the rows, sorted by size, into groups it takes the one with the fewest
    padded tokens, each group counted as `overhead` tokens more.

    Args:
        rows: what to group.
        sizes: tokens of each row.
        limit: most padded tokens of a group; a single row may be larger.
        overhead: what one more group costs, in tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: (-sizes[i], i))
    best, cut = [0] * (len(order) + 1), [0] * (len(order) + 1)  # of the last n rows
    for n in range(1, len(order) + 1):
        width = sizes[order[-n]]
        most = min(n, max(1, limit // max(1, width)))
        best[n], cut[n] = min((width * k + overhead + best[n - k], -k) for k in range(1, most + 1))
    n = len(order)
    while n:
        here, n = len(order) - n, n + cut[n]
        yield [rows[i] for i in order[here : len(order) - n]]


ENGINE: Callable[..., TorchEngine] = TorchEngine
