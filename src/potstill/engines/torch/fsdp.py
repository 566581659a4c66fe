"""Shard a model over several processes with PyTorch's FSDP2.

Layers are gathered when they run and resharded afterwards (`fully_shard`). The embedding and the
head are handled separately, because `lm_head` computes their gradients by hand: they are gathered
for a whole call, and their gradients are summed over the processes at its end. Gradients are sums,
not means, because each process computes its own rows' part of one loss.

Tensor parallelism, expert parallelism and offloading are not supported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from potstill.engines.torch.distributed import World
from potstill.engines.torch.loading import without_adapters
from potstill.errors import PotstillError
from potstill.types import ModelSpec


class Sharded:
    """A model whose weights are sharded over processes.

    Args:
        model: a causal language model of transformers, adapters included; its parameters become
            `DTensor`s, sharded by their first dimension.
        world: the processes.
        spec: has the dtype of gathered layers and of the computation.
    """

    def __init__(self, model: Any, world: World, spec: ModelSpec) -> None:
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise PotstillError(
                f"several processes need torch 2.9 or newer, got {torch.__version__}",
                'pip install "torch>=2.9"',
            )
        self.mesh, self.device = world.mesh, spec.device
        inner = without_adapters(model)
        self.body: Any = inner.base_model
        candidates = inner.get_input_embeddings(), inner.get_output_embeddings()
        embeddings = [module for module in candidates if module is not None]
        policy = MixedPrecisionPolicy()
        if spec.dtype != "float32":
            policy = MixedPrecisionPolicy(getattr(torch, spec.dtype), torch.float32)
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": policy}
        options["ignored_params"] = {p for module in embeddings for p in module.parameters()}
        layer_types = set(getattr(inner, "_no_split_modules", None) or ())
        for module in list(self.body.modules()):
            if type(module).__name__ in layer_types:
                fully_shard(module, **options)
        fully_shard(self.body, **options)
        for module in self.body.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        # tied weights have two owners
        owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in embeddings:
            for name, param in module.named_parameters(recurse=False):
                owners.setdefault(param, []).append((module, name))
        self._owners = {self._shard(param, pairs): pairs for param, pairs in owners.items()}
        self._depth = 0  # of nested `gathered_embeddings`

    def _shard(self, param: nn.Parameter, owners: list[tuple[nn.Module, str]]) -> nn.Parameter:
        """Replace a parameter of the embedding or head by its shard, and return the shard."""
        value = param.detach().to(self.device)
        part = distribute_tensor(value, self.mesh, [Shard(0)], src_data_rank=None)
        shard = nn.Parameter(part, requires_grad=param.requires_grad)
        for module, name in owners:
            setattr(module, name, shard)
        return shard

    @contextlib.contextmanager
    def gathered_embeddings(self) -> Iterator[None]:
        """Gather the embedding and the head; at the end, sum and reshard their gradients."""
        self._depth += 1
        if self._depth == 1:
            for shard, owners in self._owners.items():
                whole = nn.Parameter(gathered(shard), requires_grad=shard.requires_grad)
                for module, name in owners:
                    setattr(module, name, whole)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._reshard_embeddings()

    def _reshard_embeddings(self) -> None:
        for shard, owners in self._owners.items():
            module, name = owners[0]
            whole = getattr(module, name)
            for module, name in owners:
                setattr(module, name, shard)
            if whole.grad is not None:
                sums = DTensor.from_local(whole.grad, self.mesh, [Partial()])
                shard.grad = sums.redistribute(placements=[Shard(0)])

    @contextlib.contextmanager
    def gathered_layers(self) -> Iterator[None]:
        """Gather all layers in every process, in the dtype of the computation: for sampling."""
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
    """Return the whole tensor in every process. Every process must call this."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def scattered(value: Tensor | None, like: Tensor) -> Tensor:
    """Distribute the leader's tensor like another one; `value` is None in the followers."""
    whole = torch.empty(like.shape, dtype=like.dtype) if value is None else value
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
