"""The models of the torch engine: the weights of each role, their placement, and checkpoints.

The student is trained. The teacher and the student of step 0 (`init`) are frozen; `init` is the
student without its adapters, or a second copy. In several processes each model is sharded, except
that a frozen teacher may be whole in each process. A checkpoint contains whole tensors, so a
different number of processes can load it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_pt_utils import get_parameter_names

from potstill.engines.host import host_memory
from potstill.engines.prompts import NO_TEACHER
from potstill.engines.torch.adapters import add_lora, continue_lora, coverage
from potstill.engines.torch.distributed import World
from potstill.engines.torch.exporting import export_student
from potstill.engines.torch.fsdp import Sharded, gathered, scattered
from potstill.engines.torch.loading import (
    ModelPair,
    autocast,
    load_model,
)
from potstill.engines.torch.quantised import check_adapters
from potstill.engines.torch.recomputing import checkpoint_activations
from potstill.engines.torch.roofline import gpu_memory
from potstill.engines.torch.sharing import Sharing, sharing_of
from potstill.errors import PotstillError
from potstill.settings import Adam, Lora, TorchSettings
from potstill.types import ModelSpec, Role, is_teacher

TINY = 1e-8  # of Adam
# Parameters without weight decay, as in the Trainer of transformers.
NOT_DECAYED = r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"


class Models:
    """The student, the teachers and the student of step 0.

    Args:
        pair: names and placements of the models.
        world: the processes that hold them.
        lora: the adapters; rank 0 trains all weights.
        adam: the optimizer's settings; default: those of `Adam`.
        seed: seed of the adapters' initial weights.
        settings: memory and sharding.
    """

    def __init__(
        self,
        pair: ModelPair,
        world: World,
        settings: TorchSettings,
        *,
        lora: Lora,
        seed: int,
        adam: Adam | None = None,
    ) -> None:
        self.pair, self.world, self.adapters, self.seed = pair, world, lora, seed
        self.checkpointed = settings.gradient_checkpointing
        self._shard_teacher, self._gather = settings.shard_teacher, settings.gather_for_sampling
        self.held: dict[Role, Any] = {}
        self._shards: dict[Role, Sharded] = {}
        self._sharing: dict[Role, Sharing] = {}
        self._weight_notes: tuple[str, ...] = ()
        student = self._load("student")
        self.coverage = coverage(student) if self.lora else None
        self.trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(student, self.trained, adam or Adam())

    @property
    def lora(self) -> bool:
        """True if only LoRA adapters are trained."""
        return self.adapters.rank > 0

    def spec(self, role: Role) -> ModelSpec:
        """Return the placement of a role's model."""
        return self.pair.spec_of(role)

    def together(self, role: Role) -> bool:
        """Return whether a forward pass of this model needs every process."""
        role = self._holder(role)
        return not self.world.single and (not is_teacher(role) or self._shard_teacher)

    def no_grad(self) -> contextlib.AbstractContextManager[object]:
        """Turn off gradients.

        Inference mode is used in a single process only: weights that FSDP gathers in inference mode
        cannot be trained later.
        """
        return torch.inference_mode() if self.world.single else torch.no_grad()

    @contextlib.contextmanager
    def use(self, role: Role) -> Iterator[Any]:
        """Yield the model of a role, ready to run; frozen models are loaded on first use."""
        with contextlib.ExitStack() as held:
            model = self.ensure(role)
            if role != "student" and model is self.held["student"]:
                held.enter_context(model.disable_adapter())
            held.enter_context(self.gathered_embeddings(role))
            held.enter_context(autocast(self.spec(role)))
            yield model

    def ensure(self, role: Role) -> Any:
        """Return the model that has a role's weights, and load it on first use."""
        holder = self._holder(role)
        return self.held[holder] if holder in self.held else self._load(holder)

    def sharing(self, role: Role) -> Sharing:
        """Return which rows of a role's model may share a batch; the model is loaded."""
        self.ensure(role)
        return self._sharing[self._holder(role)]

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions about the models that are loaded, for the run's record."""
        lines = (line for sharing in self._sharing.values() for line in sharing.notes())
        return tuple(dict.fromkeys((*self._weight_notes, *lines)))

    def gathered_embeddings(self, role: Role) -> contextlib.AbstractContextManager[object]:
        """Gather a sharded model's embedding and head, as long as `lm_head.States` are used."""
        shards = self._shards.get(self._holder(role))
        return shards.gathered_embeddings() if shards else contextlib.nullcontext()

    @contextlib.contextmanager
    def for_sampling(self, role: Role) -> Iterator[tuple[Any, bool]]:
        """Yield the model of a role, and whether every token needs every process."""
        with self.use(role) as model:
            shards = self._shards.get(self._holder(role))
            if shards and self._gather:
                with shards.gathered_layers():
                    yield model, False
            else:
                yield model, shards is not None

    def _holder(self, role: Role) -> Role:
        """Return the role whose model has the weights of this role."""
        if is_teacher(role) and self.pair.alone:
            raise PotstillError(*NO_TEACHER)
        if role == "teacher" and self.pair.one_model:
            role = "init"  # the same weights, before training
        fresh = self.lora and not self.pair.student_adapter
        return "student" if role == "init" and fresh else role

    def _load(self, role: Role) -> Any:
        spec, trained = self.spec(role), role == "student"
        name = self.pair.name_of(role)
        adapted = trained and self.lora
        with self.world.in_turn():
            model = load_model(
                name,
                spec,
                trained=trained and not adapted,
                share=self.together(role),
                merged=not adapted,
            )
            self._weight_notes += model.weight_notes
            if adapted:
                check_adapters(model, name)
            if adapted and self.pair.student_adapter:
                model = continue_lora(model, name, self.pair.student_adapter, self.adapters)
            elif adapted:
                torch.manual_seed(self.seed)
                model = add_lora(model, self.adapters)
            if trained and self.checkpointed:
                checkpoint_activations(model)
            if self.together(role):
                self._shards[role] = Sharded(model, self.world, spec)
        self.held[role] = model
        vocabulary = self.pair.vocabulary_of(role)
        with self.no_grad(), self.gathered_embeddings(role), autocast(spec):
            self._sharing[role] = sharing_of(model, name, vocabulary, spec)
        return model

    @property
    def devices(self) -> int:
        """Number of devices of this process that hold the models."""
        return len({p.device for model in self.held.values() for p in model.parameters()})

    def memory(self) -> tuple[int, int]:
        """Return (peak, total) bytes on the most loaded device of all processes."""
        local = [host_memory(), *gpu_memory()]
        devices = [device for part in self.world.gather(local) for device in part]
        return max(devices, key=lambda device: device[0] / device[1])

    def save(self, folder: Path) -> None:
        """Write the trained weights and the optimizer state."""
        tensors: dict[str, Tensor] = {}
        for name, param in self.trained.items():
            for kind, value in {"weight": param, **self.optimizer.state[param]}.items():
                whole = gathered(value)
                if self.world.leads:
                    tensors[f"{kind}/{name}"] = whole.contiguous()
        if self.world.leads:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "engine.safetensors")

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote, possibly in another number of processes."""
        tensors = load_file(folder / "engine.safetensors") if self.world.leads else {}
        state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        with torch.no_grad():
            for key in self.world.broadcast(list(tensors)):
                kind, name = key.split("/", 1)
                param, value = self.trained[name], tensors.get(key)
                if kind == "weight":
                    param.copy_(scattered(value, param))
                elif kind == "step":  # a scalar; fused Adam needs it on the device
                    count = self.world.broadcast(value)
                    assert count is not None
                    state[param][kind] = count.to(param.device)
                else:
                    state[param][kind] = scattered(value, param)
        self.optimizer.state = defaultdict(dict, state)

    def export(self, folder: Path) -> None:
        """Write the student as an ordinary model folder."""
        model, weights = self.held["student"], None
        if self.together("student"):
            named = self.trained if self.lora else dict(model.named_parameters())
            weights = {name: gathered(param).cpu() for name, param in named.items()}
        if self.world.leads:
            export_student(self.pair, model, folder, lora=self.lora, weights=weights)

    def close(self) -> None:
        self.held.clear()
        self._shards.clear()
        self._sharing.clear()
        self.trained.clear()
        self.optimizer.state.clear()


def _optimizer(model: Any, trained: Mapping[str, Tensor], adam: Adam) -> torch.optim.AdamW:
    """AdamW on the trained weights; biases and norms are not decayed."""
    groups: list[dict[str, Any]] = [{"params": [*trained.values()], "weight_decay": 0.0}]
    if adam.weight_decay:
        decayed = {*get_parameter_names(model, [torch.nn.LayerNorm], list(NOT_DECAYED))}
        groups = [
            {
                "params": [p for name, p in trained.items() if (name in decayed) == decay],
                "weight_decay": adam.weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        groups = [{"params": [torch.zeros(0)]}]  # a quantised student has none
    return torch.optim.AdamW(groups, lr=0.0, fused=True, betas=adam.betas, eps=TINY)


def check_one_device_each(*specs: ModelSpec | None) -> None:
    """Raise a `PotstillError` if several processes would share a device."""
    for spec in specs:
        if spec and (spec.device_map or spec.device.startswith("cuda")):
            device = spec.device_map or spec.device
            raise PotstillError(
                f'each of several processes has its own GPU, got "{device}"',
                'leave out device and device_map, or write device = "cpu"',
            )
