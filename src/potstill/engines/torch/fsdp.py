"""One model over several processes: PyTorch's FSDP2, each holding its part of every weight.

Layers are gathered when they run and let go again (`fully_shard`). The embedding and the head are
not layers: their gradients are worked out by hand (`heads`), so they are gathered for a whole call
and their gradients added up over the processes at its end. Gradients are sums, not means: each
process has the part of one loss that its own rows have.

It leaves out tensor and expert parallelism, and offloading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from potstill.engines.torch.distributed import Team
from potstill.engines.torch.loading import without_adapters
from potstill.errors import PotstillError
from potstill.types import ModelSpec


class Sharded:
    """A model's weights over the processes of a team.

    Args:
        model: a causal language model of transformers, adapters included; its parameters become
            `DTensor`s, sharded by their first dimension.
        team: the processes.
        spec: the dtype that layers are gathered and computed in.
    """

    def __init__(self, model: Any, team: Team, spec: ModelSpec) -> None:
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise PotstillError(
                f"several processes need a newer torch than {torch.__version__}",
                'pip install "torch>=2.9"',
            )
        self.mesh, self.device = team.mesh, spec.device
        inner = without_adapters(model)
        self.body: Any = inner.base_model
        found = inner.get_input_embeddings(), inner.get_output_embeddings()
        ends = [module for module in found if module is not None]
        policy = MixedPrecisionPolicy()
        if spec.dtype != "float32":
            policy = MixedPrecisionPolicy(getattr(torch, spec.dtype), torch.float32)
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": policy}
        options["ignored_params"] = {p for module in ends for p in module.parameters()}
        kinds = set(getattr(inner, "_no_split_modules", None) or ())
        for module in list(self.body.modules()):
            if type(module).__name__ in kinds:
                fully_shard(module, **options)
        fully_shard(self.body, **options)
        for module in self.body.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in ends:
            for name, param in module.named_parameters(recurse=False):
                self._places.setdefault(param, []).append((module, name))
        self._ends = {self._sharded(param): places for param, places in self._places.items()}
        self._open = 0

    def _sharded(self, param: nn.Parameter) -> nn.Parameter:
        """One of the ends as a part of it, in its places."""
        value = param.detach().to(self.device)
        part = distribute_tensor(value, self.mesh, [Shard(0)], src_data_rank=None)
        found = nn.Parameter(part, requires_grad=param.requires_grad)
        for module, name in self._places[param]:
            setattr(module, name, found)
        return found

    @contextlib.contextmanager
    def ends(self) -> Iterator[None]:
        """The embedding and the head whole; at the end their gradients are added up and shared."""
        self._open += 1
        if self._open == 1:
            for part, places in self._ends.items():
                whole = nn.Parameter(gathered(part), requires_grad=part.requires_grad)
                for module, name in places:
                    setattr(module, name, whole)
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._close()

    def _close(self) -> None:
        for part, places in self._ends.items():
            module, name = places[0]
            whole = getattr(module, name)
            for module, name in places:
                setattr(module, name, part)
            if whole.grad is not None:
                sums = DTensor.from_local(whole.grad, self.mesh, [Partial()])
                part.grad = sums.redistribute(placements=[Shard(0)])

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Every weight in every process, in the dtype of the computation: for sampling."""
        layers = [module for module in self.body.modules() if isinstance(module, FSDPModule)]
        for layer in layers:
            layer.unshard()
        self.body.set_reshard_after_forward(False)
        try:
            yield
        finally:
            self.body.set_reshard_after_forward(True)
            for layer in layers:
                layer.reshard()


def gathered(value: Tensor) -> Tensor:
    """A tensor as a whole, in every process; all of them have to ask."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_out(value: Tensor | None, like: Tensor) -> Tensor:
    """This process's part of a value that the first process has, placed as another tensor is."""
    whole = torch.empty(like.shape, dtype=like.dtype) if value is None else value
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
