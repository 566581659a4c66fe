"""Decode token by token: the three ways to run a model for sampling.

`Plain` is transformers' forward pass with its growing cache. `Whole` uses no cache and reads every
row again for each token, for models whose cache is wrong (`sharing` compares them). `Fast`
implements the layers of the Llama and Qwen families: after a prefill by `Plain` it decodes with
weights that are prepared once per call (adapters merged, projections joined, in the dtype of the
computation) and a static cache that is written in place. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.backends import mkldnn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from potstill.engines.torch.forward import cache_keyword, logits_at, parameters
from potstill.engines.torch.loading import without_adapters
from potstill.engines.torch.proved import fast_layers

JOINED = 1 << 30  # maximum bytes of weights that a call may copy
PACKED = 1 << 18  # minimum entries of a matrix to use oneDNN's layout: 1 MB in float32


def begin(
    model: Any, ids: Tensor, mask: Tensor, room: int, *, padded: bool = True, cached: bool = True
) -> Decoder:
    """Read left-padded prompts, and return the decoder that continues them.

    Args:
        model: a causal language model of transformers, adapters included.
        ids: (B, P) prompts.
        mask: (B, P) 1 at tokens, 0 at padding.
        room: maximum number of tokens that will be added.
        padded: whether the model reads the mask; otherwise the prompts have one length.
        cached: whether the model's cache is right, see `sharing`.
    """
    if not cached:
        return Whole(model, ids, mask)
    if padded and fits(model):
        return Fast(model, ids, mask, room)
    return Plain(model, ids, mask, room, padded)


class Decoder(Protocol):
    """The next-token logits (B, V) of the unfinished rows of a batch."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """Read one token (B,) per row."""

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""


def fits(model: Any) -> bool:
    """Return whether `Fast` implements the layers of a model and its weight copies are small."""
    device = next(model.parameters()).device.type
    copies = hasattr(model, "peft_config") or torch.is_autocast_enabled(device)
    return (
        fast_layers(model)
        and len({p.device for p in model.parameters()}) == 1
        and not any(isinstance(p, DTensor) for p in model.parameters())  # gathered layer by layer
        and not (copies and _size(model) > JOINED)
    )


def _size(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


class Plain:
    """Transformers' forward pass; `logits` (B, V) belong to the last position.

    Recurrent layers of some models apply a mask to other columns than its own, or twice, so it is
    left out if the prompts have one length.
    """

    def __init__(
        self, model: Any, ids: Tensor, mask: Tensor, room: int, padded: bool = True
    ) -> None:
        self.model, self.mask = model, mask
        self.position = (mask.cumsum(1) - 1).clamp_min(0)
        self.cache = DynamicCache(config=model.config.get_text_config())
        self._names = parameters(model) - (frozenset() if padded else {"attention_mask"})
        self._keyword = cache_keyword(self._names)
        self.logits = self._run(ids)

    def step(self, tokens: Tensor) -> None:
        self.position = self.position[:, -1:] + 1
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(self.mask), 1)), 1)
        self.logits = self._run(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        layers: list[Any] = self.cache.layers
        for layer in layers:
            linear = isinstance(layer, LinearAttentionCacheLayerMixin)  # has no other selection
            (layer.reorder_cache if linear else layer.batch_select_indices)(rows)
        rows = rows.to(self.mask.device)
        self.position, self.mask = self.position[rows], self.mask[rows]

    def _run(self, ids: Tensor) -> Tensor:
        options = {
            "attention_mask": self.mask,
            "position_ids": self.position,
            "logits_to_keep": 1,
            self._keyword: self.cache,
        }
        accepted = {name: value for name, value in options.items() if name in self._names}
        out: Tensor = self.model(input_ids=ids, use_cache=True, **accepted).logits
        return out[:, -1]


class Whole:
    """All tokens of a row are read again for each new one: slow, and right without any cache."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor) -> None:
        self.model = model
        self.rows = [row[tokens.bool()] for row, tokens in zip(ids, mask, strict=True)]
        self.logits = self._run()

    def step(self, tokens: Tensor) -> None:
        pairs = zip(self.rows, tokens[:, None], strict=True)
        self.rows = [torch.cat((row, token)) for row, token in pairs]
        self.logits = self._run()

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]

    def _run(self) -> Tensor:
        last = torch.tensor([len(row) - 1 for row in self.rows])
        columns = torch.arange(int(last.min()), int(last.max()) + 1)
        ids = torch.nn.utils.rnn.pad_sequence(self.rows, batch_first=True)
        logits = logits_at(self.model, ids, columns)
        return logits[torch.arange(len(last)), last - columns[0]]


class Fast(Plain):
    """Prepared weights and a static cache."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, room: int) -> None:
        super().__init__(model, ids, mask, room)
        inner = without_adapters(model)
        core = inner.model
        layers: list[Any] = self.cache.layers
        self.length, longest = ids.shape[1], ids.shape[1] + room
        keys = layers[0].keys
        shape = (2, len(layers), len(ids), keys.shape[1], longest, keys.shape[3])
        self._cache = keys.new_empty(shape)
        for i, layer in enumerate(layers):
            self._cache[0, i, :, :, : self.length] = layer.keys
            self._cache[1, i, :, :, : self.length] = layer.values
        del self.cache
        self._mask = torch.ones(len(ids), 1, 1, longest, dtype=torch.bool, device=ids.device)
        self._mask[:, 0, 0, : self.length] = mask.bool()
        self._padded = not bool(mask.all())
        self.next = self.position[:, -1] + 1
        self._embed, self._norm = core.embed_tokens.weight, _norm(core.norm)
        head = inner.lm_head
        join = _size(core.layers) + _size(head) <= JOINED
        dtype = keys.dtype
        self._layers = [_Layer(layer, dtype, join, len(ids)) for layer in core.layers]
        self._head = _weights([head], dtype, join, len(ids))
        positions = torch.arange(int(self.next.max()) + room, device=ids.device)[None]
        cos, sin = core.rotary_emb(self._embed, positions)
        half = cos.shape[-1] // 2
        self._cos = cos[0].to(dtype)
        self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).to(dtype)

    def step(self, tokens: Tensor) -> None:
        last, end = self.length, self.length + 1
        x = F.embedding(tokens, self._embed)
        rotation = self._cos[self.next][:, None], self._sin[self.next][:, None]
        mask = self._mask[..., :end] if self._padded else None
        for layer, keys, values in zip(self._layers, *self._cache, strict=True):
            q, keys[:, :, last], values[:, :, last] = layer.project(x, rotation)
            mixed = F.scaled_dot_product_attention(
                q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, scale=layer.scale
            )
            x = layer.finish(x, mixed.flatten(1))
        self.length, self.next = end, self.next + 1
        self.logits = _linear(self._norm(x), self._head)

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.next.device)
        longest = self._cache.shape[4]
        kept = self._cache[:, :, rows, :, : self.length]
        self._cache = F.pad(kept, (0, 0, 0, longest - self.length))
        self._mask, self.next = self._mask[rows], self.next[rows]


class _Layer:
    """The weights of one decoder layer, joined if memory allows."""

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

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, kv heads, group, D), and new keys and values (B, kv heads, D)."""
        rows = _linear(self.before(x), self.qkv).view(len(x), -1, self.dim)
        qk, values = rows[:, : self.q + self.kv], rows[:, self.q + self.kv :]
        if self.norms is not None:
            qk = F.rms_norm(qk.float(), (self.dim,), None, self.eps).to(qk.dtype) * self.norms
        cos, sin = rotation
        half = self.dim // 2
        swapped = torch.cat((qk[..., half:], qk[..., :half]), -1)
        qk = torch.addcmul(qk * cos, swapped, sin).to(values.dtype)
        q, keys = qk[:, : self.q], qk[:, self.q :]
        return q.reshape(len(x), self.kv, -1, self.dim), keys, values

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Compute the rest of the layer from the attention output (B, heads x D)."""
        x = x + _linear(mixed, self.out)
        gate, up = _linear(self.after(x), self.up).chunk(2, -1)
        return x + _linear(self.act(gate) * up, self.down)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Return the family's RMS norm as one call instead of six."""
    weight, eps = module.weight, module.variance_epsilon
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


Matrices = list[Callable[[Tensor], Tensor]]


def _weights(modules: list[Any], dtype: torch.dtype, join: bool, rows: int) -> Matrices:
    """Return linear modules as functions with adapters merged; one function if they are joined.

    Args:
        modules: linear modules that are applied to the same input.
        dtype: dtype of the computation.
        join: whether copies of the weights may be held.
        rows: B, the number of rows in a batch.
    """
    merged = [_merged(module, dtype) for module in modules]
    if join and len(merged) > 1:
        biases = [bias for _, bias in merged if bias is not None]
        merged = [(torch.cat([w for w, _ in merged]), torch.cat(biases) if biases else None)]
    return [_matrix(weight, bias, join, rows) for weight, bias in merged]


def _matrix(
    weight: Tensor, bias: Tensor | None, pack: bool, rows: int
) -> Callable[[Tensor], Tensor]:
    """Return x -> x W^T + b, with large float32 weights in oneDNN's layout on a CPU.

    The product of a few rows and a large matrix is bound by reading the matrix, and the plain
    product reads it at a third of the packed product's speed. In half precision the plain product
    uses oneDNN anyway.
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
