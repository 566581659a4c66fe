"""The models of the torch engine: which weights a role has, where they live, and how they are kept.

The student is trained; the teacher is read only, and so is the student of step 0 (`init`), which is
the student without its adapters or a second copy. Over several processes each model is sharded, or
a frozen teacher whole in each. A resume point holds whole tensors whoever wrote it, so it may be
taken up by another number of processes.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.engines.host import host_memory
from potstill.engines.torch.distributed import Team
from potstill.engines.torch.fsdp import Sharded, gathered, shared_out
from potstill.engines.torch.loading import (
    Pair,
    add_lora,
    autocast,
    checkpoint_activations,
    export_student,
    load_model,
)
from potstill.engines.torch.roofline import gpu_memory
from potstill.errors import PotstillError
from potstill.settings import TorchSettings
from potstill.types import ModelSpec, Role, is_teacher

ADAM: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


class Models:
    """Student, teacher and the student of step 0.

    Args:
        pair: what they are and where they live.
        team: the processes that hold them.
        lora_rank: rank of the adapters on all linear layers; 0 trains all weights.
        seed: for the adapters' initial weights.
        settings: memory and placement.
    """

    def __init__(
        self, pair: Pair, team: Team, settings: TorchSettings, *, lora_rank: int, seed: int
    ) -> None:
        self.pair, self.team, self.lora_rank, self.seed = pair, team, lora_rank, seed
        self.checkpointed = settings.gradient_checkpointing
        self._shard_teacher, self._gather = settings.shard_teacher, settings.gather_for_sampling
        self.held: dict[Role, Any] = {}
        self._shards: dict[Role, Sharded] = {}
        student = self._load("student")
        self.trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=0.0, fused=True, **ADAM)

    @property
    def lora(self) -> bool:
        return self.lora_rank > 0

    def spec(self, role: Role) -> ModelSpec:
        """Where a role's model lives and how it computes."""
        return self.pair.spec_of(role)

    def together(self, role: Role) -> bool:
        """Whether a forward pass of this model needs every process."""
        role = self._held_by(role)
        return not self.team.alone and (not is_teacher(role) or self._shard_teacher)

    def still(self) -> contextlib.AbstractContextManager[Any]:
        """Without gradients. Weights that are gathered in inference mode could not train later."""
        return torch.inference_mode() if self.team.alone else torch.no_grad()

    @contextlib.contextmanager
    def use(self, role: Role) -> Iterator[Any]:
        """The model of a role, ready to run; teacher and init are loaded when first needed."""
        with contextlib.ExitStack() as held:
            model = self.ensure(role)
            if role != "student" and model is self.held["student"]:
                held.enter_context(model.disable_adapter())
            held.enter_context(self.ends(role))
            held.enter_context(autocast(self.spec(role)))
            yield model

    def ensure(self, role: Role) -> Any:
        """The model that has a role's weights, loaded if it is not there yet."""
        held_by = self._held_by(role)
        return self.held[held_by] if held_by in self.held else self._load(held_by)

    def ends(self, role: Role) -> contextlib.AbstractContextManager[Any]:
        """A sharded model's embedding and head whole, for as long as `heads.States` are used."""
        shards = self._shards.get(self._held_by(role))
        return shards.ends() if shards else contextlib.nullcontext()

    @contextlib.contextmanager
    def writing(self, role: Role) -> Iterator[tuple[Any, bool]]:
        """The model for sampling, and whether every token needs every process."""
        with self.use(role) as model:
            shards = self._shards.get(self._held_by(role))
            if shards and self._gather:
                with shards.whole():
                    yield model, False
            else:
                yield model, shards is not None

    def _held_by(self, role: Role) -> Role:
        if role == "teacher" and self.pair.one_model:
            role = "init"  # the same weights, before training
        return "student" if role == "init" and self.lora else role

    def _load(self, role: Role) -> Any:
        spec, trained = self.spec(role), role == "student"
        name = self.pair.name_of(role)
        adapted = trained and self.lora
        with self.team.in_turn():
            model = load_model(
                name, spec, trained=trained and not adapted, share=self.together(role)
            )
            if adapted:
                torch.manual_seed(self.seed)
                model = add_lora(model, self.lora_rank)
            if trained and self.checkpointed:
                checkpoint_activations(model)
            if self.together(role):
                self._shards[role] = Sharded(model, self.team, spec)
        self.held[role] = model
        return model

    @property
    def devices(self) -> int:
        """How many devices of this process hold them."""
        return len({p.device for model in self.held.values() for p in model.parameters()})

    def memory(self) -> tuple[int, int]:
        """Bytes at the peak so far, and bytes that there are, where it is tightest."""
        places = [host_memory(), *gpu_memory()]
        found = [place for part in self.team.all(places) for place in part]
        return max(found, key=lambda place: place[0] / place[1])

    def save(self, folder: Path) -> None:
        """Write the trained weights and the optimizer's state."""
        tensors: dict[str, Tensor] = {}
        for name, param in self.trained.items():
            for kind, value in {"weight": param, **self.optimizer.state[param]}.items():
                whole = gathered(value)
                if self.team.first:
                    tensors[f"{kind}/{name}"] = whole.contiguous()
        if self.team.first:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "engine.safetensors")

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, in this number of processes or another."""
        tensors = load_file(folder / "engine.safetensors") if self.team.first else {}
        state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        with torch.no_grad():
            for key in self.team.told(list(tensors)):
                kind, name = key.split("/", 1)
                param, value = self.trained[name], tensors.get(key)
                if kind == "weight":
                    param.copy_(shared_out(value, param))
                elif kind == "step":  # a number; fused Adam wants it on the device too
                    count = self.team.told(value)
                    assert count is not None
                    state[param][kind] = count.to(param.device)
                else:
                    state[param][kind] = shared_out(value, param)
        self.optimizer.state = defaultdict(dict, state)

    def export(self, folder: Path) -> None:
        """Write the student as an ordinary model folder."""
        model, weights = self.held["student"], None
        if self.together("student"):
            named = self.trained if self.lora else dict(model.named_parameters())
            weights = {name: gathered(param).cpu() for name, param in named.items()}
        if self.team.first:
            export_student(self.pair, model, folder, lora=self.lora, weights=weights)

    def close(self) -> None:
        self.held.clear()
        self._shards.clear()
        self.trained.clear()
        self.optimizer.state.clear()


def one_device_each(*specs: ModelSpec | None) -> None:
    """Raise where a device is named that several processes would share."""
    for spec in specs:
        if spec and (spec.device_map or spec.device.startswith("cuda")):
            named = spec.device_map or spec.device
            raise PotstillError(
                f'each of several processes has a GPU of its own, got "{named}"',
                'leave out device and device_map, or write device = "cpu"',
            )
