"""One token after another: the two ways to run a model for sampling.

`Plain` is transformers' own forward pass with its growing cache: any model. `Fast` knows the
layers of the Llama and Qwen families: after a prefill by `Plain` it decodes with weights folded
once a call (adapters merged, projections joined, in the dtype of the computation) and a static
cache that is written in place. Tests hold the one against the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.backends import mkldnn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import DynamicCache

from potstill.engines.torch.loading import without_adapters

FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
ROPES = frozenset({"default", "linear", "llama3"})  # tables that do not depend on the length
JOINED = 1 << 30  # bytes of weights up to which a call may hold a copy of them
PACKED = 1 << 18  # entries of a matrix from which oneDNN's layout pays: 1 MB in float32


def begin(model: Any, ids: Tensor, seen: Tensor, room: int) -> Plain:
    """Read left-padded prompts and be ready to go on.

    Args:
        model: a causal language model of transformers, adapters included.
        ids: (B, P) prompts.
        seen: (B, P) 1 where a token stands, 0 on padding.
        room: most tokens that will be added.
    """
    return (Fast if fits(model) else Plain)(model, ids, seen, room)


def fits(model: Any) -> bool:
    """Whether `Fast` knows the layers of a model, and its copies of weights stay small."""
    config, device = model.config, next(model.parameters()).device.type
    copies = hasattr(model, "peft_config") or torch.is_autocast_enabled(device)
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in FAMILIES
        and rope.get("rope_type", "default") in ROPES
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and len({p.device for p in model.parameters()}) == 1
        and not any(isinstance(p, DTensor) for p in model.parameters())  # gathered layer by layer
        and not (copies and _size(model) > JOINED)
    )


def _size(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


class Plain:
    """Transformers' forward pass; `logits` (B, V) are of the newest position."""

    def __init__(self, model: Any, ids: Tensor, seen: Tensor, room: int) -> None:
        self.model, self.seen = model, seen
        self.position = (seen.cumsum(1) - 1).clamp_min(0)
        self.cache = DynamicCache(config=model.config.get_text_config())
        self._keyword = _cache_keyword(model)
        self.logits = self._run(ids)

    def step(self, tokens: Tensor) -> None:
        """Read one token a row, (B,)."""
        self.position = self.position[:, -1:] + 1
        self.seen = torch.cat((self.seen, self.seen.new_ones(len(self.seen), 1)), 1)
        self.logits = self._run(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.cache.batch_select_indices(rows)
        rows = rows.to(self.seen.device)
        self.position, self.seen = self.position[rows], self.seen[rows]

    def _run(self, ids: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.seen,
            position_ids=self.position,
            **{self._keyword: self.cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return out[:, -1]


class Fast(Plain):
    """Joined weights over a static cache."""

    def __init__(self, model: Any, ids: Tensor, seen: Tensor, room: int) -> None:
        super().__init__(model, ids, seen, room)
        inner = without_adapters(model)
        core = inner.model
        layers: list[Any] = self.cache.layers
        self.length, longest = ids.shape[1], ids.shape[1] + room
        keys = layers[0].keys
        shape = (2, len(layers), len(ids), keys.shape[1], longest, keys.shape[3])
        self._kept = keys.new_empty(shape)
        for i, layer in enumerate(layers):
            self._kept[0, i, :, :, : self.length] = layer.keys
            self._kept[1, i, :, :, : self.length] = layer.values
        del self.cache
        self._mask = torch.ones(len(ids), 1, 1, longest, dtype=torch.bool, device=ids.device)
        self._mask[:, 0, 0, : self.length] = seen.bool()
        self._padded = not bool(seen.all())
        self.at = self.position[:, -1] + 1
        self._embed, self._norm = core.embed_tokens.weight, _norm(core.norm)
        head = inner.lm_head
        join = _size(core.layers) + _size(head) <= JOINED
        dtype = keys.dtype
        self._layers = [_Layer(layer, dtype, join, len(ids)) for layer in core.layers]
        self._head = _weights([head], dtype, join, len(ids))
        places = torch.arange(int(self.at.max()) + room, device=ids.device)[None]
        cos, sin = core.rotary_emb(self._embed, places)
        half = cos.shape[-1] // 2
        self._cos = cos[0].to(dtype)
        self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).to(dtype)

    def step(self, tokens: Tensor) -> None:
        here, end = self.length, self.length + 1
        x = F.embedding(tokens, self._embed)
        turn = self._cos[self.at][:, None], self._sin[self.at][:, None]
        mask = self._mask[..., :end] if self._padded else None
        for layer, keys, values in zip(self._layers, *self._kept, strict=True):
            q, keys[:, :, here], values[:, :, here] = layer.project(x, turn)
            mixed = F.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, scale=layer.scale
            )
            x = layer.finish(x, mixed.flatten(1))
        self.length, self.at = end, self.at + 1
        self.logits = _linear(self._norm(x), self._head)

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.at.device)
        room = self._kept.shape[4]
        kept = self._kept[:, :, rows, :, : self.length]
        self._kept = F.pad(kept, (0, 0, 0, room - self.length))
        self._mask, self.at = self._mask[rows], self.at[rows]


class _Layer:
    """The weights of one decoder layer, joined where there is room."""

    def __init__(self, layer: Any, dtype: torch.dtype, join: bool, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.dim, self.scale = attention.head_dim, attention.scaling
        self.before = _norm(layer.input_layernorm)
        self.after = _norm(layer.post_attention_layernorm)
        self.qkv = _weights(
            [attention.q_proj, attention.k_proj, attention.v_proj], dtype, join, rows
        )
        self.out = _weights([attention.o_proj], dtype, join, rows)
        self.up = _weights([mlp.gate_proj, mlp.up_proj], dtype, join, rows)
        self.down = _weights([mlp.down_proj], dtype, join, rows)
        self.act = mlp.act_fn
        self.kv = attention.k_proj.out_features // self.dim
        self.q = attention.q_proj.out_features // self.dim
        self.norms = None
        if hasattr(attention, "q_norm"):
            norms = (
                attention.q_norm.weight.expand(self.q, -1),
                attention.k_norm.weight.expand(self.kv, -1),
            )
            self.norms, self.eps = torch.cat(norms), attention.q_norm.variance_epsilon

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, kv heads, group, D), the new keys and values (B, kv heads, D)."""
        rows = _linear(self.before(x), self.qkv).view(len(x), -1, self.dim)
        qk, values = rows[:, : self.q + self.kv], rows[:, self.q + self.kv :]
        if self.norms is not None:
            qk = F.rms_norm(qk.float(), (self.dim,), None, self.eps).to(qk.dtype) * self.norms
        cos, sin = turn
        half = self.dim // 2
        swapped = torch.cat((qk[..., half:], qk[..., :half]), -1)
        qk = torch.addcmul(qk * cos, swapped, sin).to(values.dtype)
        q, keys = qk[:, : self.q], qk[:, self.q :]
        return q.reshape(len(x), self.kv, -1, self.dim), keys, values

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, from mixed values (B, heads x D)."""
        x = x + _linear(mixed, self.out)
        gate, up = _linear(self.after(x), self.up).chunk(2, -1)
        return x + _linear(self.act(gate) * up, self.down)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """The family's root mean square norm in one call instead of six."""
    weight, eps = module.weight, module.variance_epsilon
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


Matrices = list[Callable[[Tensor], Tensor]]


def _weights(modules: list[Any], dtype: torch.dtype, join: bool, rows: int) -> Matrices:
    """Linear modules as functions, adapters merged; one function where they may be joined.

    Args:
        modules: what to apply to the same input.
        dtype: of the computation.
        join: whether copies of the weights may be held.
        rows: (B,) how many there will be.
    """
    found = [_merged(module, dtype) for module in modules]
    if join and len(found) > 1:
        biases = [bias for _, bias in found if bias is not None]
        found = [(torch.cat([w for w, _ in found]), torch.cat(biases) if biases else None)]
    return [_matrix(weight, bias, join, rows) for weight, bias in found]


def _matrix(
    weight: Tensor, bias: Tensor | None, pack: bool, rows: int
) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + b; large float32 weights in oneDNN's layout on a CPU.

    A few rows times a large matrix is bound by reading it, and the plain product reads it at a
    third of the speed that the packed one does. In half precision the plain one is oneDNN's too.
    """
    large = weight.device.type == "cpu" and weight.numel() >= PACKED
    if pack and large and weight.dtype == torch.float32 and mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        return lambda x: _packed(x.float(), packed, bias)
    return lambda x: F.linear(x.to(weight.dtype), weight, bias)


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _merged(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    base = getattr(module, "base_layer", module)
    weight, bias = base.weight, base.bias
    if base is not module and not module.disable_adapters:
        weight = weight + sum(module.get_delta_weight(name) for name in module.active_adapters)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _linear(x: Tensor, matrices: Matrices) -> Tensor:
    parts = [matrix(x) for matrix in matrices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _cache_keyword(model: Any) -> str:
    """`past_key_values` is called `cache` in newer transformers; adapters hide the signature."""
    forward = without_adapters(model).forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
