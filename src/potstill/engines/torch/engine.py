"""The torch engine: any `AutoModelForCausalLM` pair by hub name or folder, on the devices of
this machine, or of several processes.

The head runs on completion positions only, in sampling, scoring and training alike. Batches are
dealt to processes and cut into micro-batches of rows of similar length (`batching`); gradients add
up to the same sum. The sampler is `sampling.py`; the weights are `models.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

from potstill.algorithms.losses import CROSSING, LOSSES, cross_entropy
from potstill.engines.flops import Machine, Size
from potstill.engines.prompts import Prompting, by_reader
from potstill.engines.torch.distributed import ALONE, Team
from potstill.engines.torch.lm_head import States
from potstill.engines.torch.loading import Pair
from potstill.engines.torch.loss_terms import expectation, flat
from potstill.engines.torch.models import Models, one_device_each
from potstill.engines.torch.roofline import least_decoding, measure, size_of
from potstill.engines.torch.sampling import generate
from potstill.engines.torch.stepping import Stepper, read_states
from potstill.settings import TorchSettings
from potstill.tasks.rendering import Messages, render
from potstill.types import (
    Datum,
    Expectation,
    Floats,
    Ids,
    ModelSpec,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
)

Found = TypeVar("Found")
transformers.utils.logging.disable_progress_bar()

NOTHING = Sample((), np.zeros(0, np.float32))
IDLE: tuple[Ids, Ids] = (0,), (0,)  # what a process reads that has no row left


class TorchEngine(Prompting):
    """A student and a teacher in this process, or its part of them.

    Args:
        student: hub name or folder of the model to train.
        teacher: hub name or folder of the model to learn from.
        teachers: further ones by name, each with the role "teacher:NAME".
        seed: for the LoRA adapters' initial weights.
        lora_rank: rank of the adapters on all linear layers; 0 trains all weights.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off.
        settings: devices, dtypes and memory; default: those of a study, with torch's own choice of
            CPU threads.
        team: the processes that are this engine.
        changes: single fields of the settings, such as `threads=1`.
    """

    losses = frozenset(LOSSES) - CROSSING
    cross = False  # whether the teacher may have a tokenizer of its own, see `engines.cross`

    def __init__(
        self,
        student: str,
        teacher: str,
        *,
        teachers: Mapping[str, str] | None = None,
        seed: int = 0,
        lora_rank: int = 0,
        max_grad_norm: float = 1.0,
        settings: TorchSettings | None = None,
        team: Team = ALONE,
        **changes: Any,
    ) -> None:
        self.settings = settings = (settings or TorchSettings(threads=0)).changed(changes)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if not team.alone:
            one_device_each(settings.student, settings.teacher)
        pair = Pair.open(student, teacher, settings.student, settings.teacher, self.cross)
        self.pair = pair.join(teachers or {})
        self.tokenizer, self.eos, self.notes = self.pair.tokenizer, self.pair.eos, self.pair.notes
        self.vocabulary, self.team = self.pair.vocabulary, team
        self.models = Models(self.pair, team, settings, lora_rank=lora_rank, seed=seed)
        self._stepper = Stepper(self.pair, self.models, team, settings.batch_tokens, max_grad_norm)

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
        def call(reader: Role, rows: list[int]) -> list[Sample]:
            ids, limits = [prompts[i].read_by(reader) for i in rows], [max_tokens[i] for i in rows]
            return self._sample(reader, ids, limits, temperature, rng)

        return by_reader(role, prompts, call)

    def _sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        longest = max(max_tokens, default=0)
        noise = rng.random((len(prompts), longest), dtype=np.float32)
        out = dict.fromkeys(range(len(prompts)) if self.team.first else (), NOTHING)
        asked = [i for i, most in enumerate(max_tokens) if most > 0]
        sizes = [len(prompts[i]) + longest for i in asked]  # the cache is that wide
        most = self.settings.sample_tokens  # one more group means all of its steps once more
        with self.models.still(), self.models.writing(role) as (model, together):
            for chunk in self.team.chunks(sizes, most, overhead=most, together=together):
                rows = [asked[i] for i in chunk]
                samples = generate(
                    model,
                    [prompts[i] for i in rows] or [(0,)],
                    [max_tokens[i] for i in rows] or [1],
                    temperature,
                    noise[rows] if rows else np.zeros((1, 1), np.float32),
                    eos=self.pair.ends(role),
                    vocabulary=self.pair.width(role),
                    others=self.team.anyone if together else None,
                )
                out.update(zip(rows, samples, strict=False))
        return self.team.merge(out)

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        def work(states: States, _: Sequence[Ids], completions: Sequence[Ids]) -> list[Floats]:
            asked = flat(completions, states.hidden.device)
            found = [-cross_entropy(states.rows(at), asked[at]) for at in states.slices()]
            parts = torch.cat(found).split(states.lengths) if found else ()
            return [part.float().cpu().numpy() for part in parts]

        return self._over(role, rows, work, np.zeros(0, np.float32))

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        role = prompt.reader(role)
        ids = torch.tensor([prompt.read_by(role) + completion])
        with self.models.still(), self.models.use(role) as model:
            device = model.get_input_embeddings().weight.device
            logits = model(ids.to(device), logits_to_keep=len(completion) + 1).logits[0]
        kept = logits[-len(completion) - 1 : -1, : self.pair.width(role)].double()
        return np.asarray(kept.log_softmax(-1).cpu().numpy())

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        ends = sorted(self.pair.ends(role))

        def work(
            states: States, prompts: Sequence[Ids], completions: Sequence[Ids]
        ) -> list[Expectation]:
            pairs = zip(prompts, completions, strict=True)
            heard = [p[-1:] + c[:-1] if c else () for p, c in pairs]
            asked, heard_ids = (flat(x, states.hidden.device) for x in (completions, heard))
            found = [
                expectation(states.rows(at), asked[at], heard_ids[at], ends)
                for at in states.slices()
            ]
            parts = torch.cat(found, 1).split(states.lengths, 1) if found else ()
            return [Expectation(*part.cpu().numpy()) for part in parts]

        return self._over(role, rows, work, Expectation())

    def _over(
        self,
        role: Role,
        rows: Sequence[Reading],
        work: Callable[[States, Sequence[Ids], Sequence[Ids]], list[Found]],
        empty: Found,
    ) -> list[Found]:
        """Results of `work` on rows, each read by the model that the role means for it."""

        def call(reader: Role, picked: list[int]) -> list[Found]:
            ids = [(rows[i][0].read_by(reader), rows[i][1]) for i in picked]
            return self._batched(reader, ids, work, empty)

        return by_reader(role, [prompt for prompt, _ in rows], call)

    def _batched(
        self,
        role: Role,
        rows: Sequence[tuple[Ids, Ids]],
        work: Callable[[States, Sequence[Ids], Sequence[Ids]], list[Found]],
        empty: Found,
    ) -> list[Found]:
        """Results of `work` on (prompt, completion) rows, micro-batch by micro-batch."""
        out = dict.fromkeys(range(len(rows)) if self.team.first else (), empty)
        sizes = [len(prompt) + len(completion) for prompt, completion in rows]
        together = self.models.together(role)
        with self.models.still(), self.models.use(role) as model:
            for chunk in self.team.chunks(sizes, self.settings.batch_tokens, together=together):
                prompts, completions = zip(*([rows[i] for i in chunk] or [IDLE]), strict=True)
                states = read_states(self.pair, self.models, role, model, prompts, completions)
                out.update(zip(chunk, work(states, prompts, completions), strict=False))
        return self.team.merge(out)

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self._stepper.step(data, learning_rate)

    def measure(self, data: Sequence[Datum]) -> StepStats:
        return self._stepper.measure(data)

    def machines(self) -> dict[Role, Machine]:
        """What each model's device does at best in its dtype."""
        known: dict[tuple[torch.device, str], Machine] = {}
        found: dict[Role, Machine] = {}
        for role, spec in self._placed():
            with self.models.use(role) as model:
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
        sizes = {role: self.size(role) for role, _ in self._placed()}
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

    def size(self, role: Role) -> Size:
        return size_of(self.models.ensure(role), getattr(torch, self.models.spec(role).dtype))

    @property
    def devices(self) -> int:
        return self.team.size * self.models.devices

    def memory(self) -> tuple[int, int]:
        return self.models.memory()

    def save(self, folder: Path) -> None:
        self.models.save(folder)

    def load(self, folder: Path) -> None:
        self.models.load(folder)

    def export(self, folder: Path) -> None:
        self.models.export(folder)

    def close(self) -> None:
        self.models.close()
