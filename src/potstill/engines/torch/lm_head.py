"""From a forward pass to log-probability rows, a few positions at a time.

The rows of a large vocabulary are what fills memory: 4,096 positions of 151,936 ids are 2.5 GB a
copy, and a divergence with its gradient needs several. So a forward pass stops before the head,
and the head runs on slices of the completion positions whose rows are used and dropped. A slice's
gradient goes through the head by hand: autograd would write out a whole gradient of the head for
each slice and then add it up, which in float32 is one product into place. For the same reason the
embedding's gradient is added at the ids that were read. Families whose logits are more than
`lm_head` (soft caps, scales) run whole, and only the rest is sliced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.engines.torch.loading import without_adapters
from potstill.types import Datum, Ids, ModelSpec, Role

SLICE = 1 << 25  # most entries of a slice of logits: 128 MB in float32; eightfold on a GPU
# Families whose logits are lm_head(last hidden state), nothing else.
PLAIN = frozenset(
    {"llama", "mistral", "mixtral", "olmo2", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
)


class Embedded:
    """What an embedding gave out, as the place where autograd stops."""

    def __init__(self, module: Any, ids: Tensor) -> None:
        self.module, self.ids = module, ids
        self.out = F.embedding(ids, module.weight.detach()).requires_grad_()

    @torch.no_grad()
    def learn(self) -> None:
        """Add the gradient to the embedding's, except at its padding id, as torch does."""
        if self.out.grad is None:
            return
        param, ids, grad = self.module.weight, self.ids.flatten(), self.out.grad.flatten(0, 1)
        if self.module.padding_idx is not None:
            grad[ids == self.module.padding_idx] = 0.0
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        param.grad.index_put_((ids,), grad, accumulate=True)  # index_add_ has no order on a GPU


@dataclass(frozen=True)
class States:
    """What a model has to say at N completion positions, before its rows are written out.

    Args:
        hidden: (N, H) last hidden states, or (N, V) logits where the head is not plain; row by
            row, at the positions that predict the completion tokens.
        lengths: completion tokens of each row; they sum to N.
        head: from hidden states to logits; None where they are logits already.
        vocabulary: ids at and above it are cut.
        spec: the dtype to compute in.
        embedded: where the body's gradient ends, if its embedding is trained by hand.
    """

    hidden: Tensor
    lengths: list[int]
    head: Any
    vocabulary: int
    spec: ModelSpec
    embedded: Embedded | None = None

    def slices(self) -> Iterator[slice]:
        """The positions in parts that fit into memory."""
        most = SLICE << 3 if self.hidden.is_cuda else SLICE
        size = max(1, most // self.vocabulary)
        for start in range(0, len(self.hidden), size):
            yield slice(start, start + size)

    def logits(self, part: slice) -> Tensor:
        """Logits (n, V) of some positions in float32, without a graph.

        Without a plain head they may be the model's own: what overwrites them, overwrites these.
        """
        hidden = self.hidden[part].detach()
        if self.head is None:
            return hidden[:, : self.vocabulary].float()
        return F.linear(hidden.to(self.weight.dtype), self.weight).float()

    def rows(self, part: slice) -> Tensor:
        """Log-probabilities (n, V) of some positions, without a graph."""
        return self.logits(part).log_softmax(-1)

    @torch.no_grad()
    def backward(self, part: slice, grad: Tensor, into: Tensor) -> None:
        """From the gradient of a slice's logits (n, V) to that of the hidden states and the head.

        Args:
            part: the positions.
            grad: (n, V) gradient of the loss by the logits.
            into: (N, H) gradient of the hidden states; the slice's part is written.
        """
        if self.head is None:
            into[part, : self.vocabulary] = grad
            return
        param, hidden = self.head.weight, self.hidden[part].to(self.weight.dtype)
        grad = grad.to(self.weight.dtype)
        into[part] = grad @ self.weight
        if not param.requires_grad:
            return
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        total = param.grad[: self.vocabulary]
        if total.dtype == grad.dtype:
            total.addmm_(grad.T, hidden)
        else:
            total += grad.T @ hidden

    def through(self, grad: Tensor) -> None:
        """From the gradient of the hidden states (N, H) to that of the body and the embedding."""
        if self.hidden.requires_grad:
            self.hidden.backward(grad)
        if self.embedded is not None:
            self.embedded.learn()

    @cached_property
    def weight(self) -> Tensor:
        """The head's (V, H) in the dtype of the computation; plain heads have no bias."""
        whole: Tensor = self.head.weight.detach()[: self.vocabulary]
        return whole.to(getattr(torch, self.spec.dtype))


def read(
    model: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    vocabulary: int,
    spec: ModelSpec,
) -> States:
    """Forward pass over rows laid out as [prompt | completion | right pad].

    Attention is causal, so what stands before the padding never sees it, and no mask is needed.
    """
    starts = [len(prompt) - 1 for prompt in prompts]  # the first position that predicts
    lengths = [len(completion) for completion in completions]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=device)
    first = min(starts)
    last = max(first + 1, *(start + n for start, n in zip(starts, lengths, strict=True)))
    inner = without_adapters(model)
    # a head that is offloaded has its weights only while the whole model runs
    plain = inner.config.model_type in PLAIN and inner.lm_head.weight.device.type != "meta"
    embedding, embedded = inner.get_input_embeddings(), None
    if plain:
        if embedding.weight.requires_grad and torch.is_grad_enabled():
            embedded = Embedded(embedding, ids)
        source = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded.out}
        states = inner.model(**source, use_cache=False).last_hidden_state[:, first:last]
        states = states.to(inner.lm_head.weight.device)
    else:
        keep = torch.arange(first, last)
        states = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
    column, begin = torch.arange(first, last), torch.tensor(starts)[:, None]
    asked = (column >= begin) & (column < begin + torch.tensor(lengths)[:, None])
    hidden = states[asked.to(states.device)]
    head = inner.lm_head if plain else None
    return States(hidden, lengths, head, vocabulary, spec, embedded)


def matched_states(states: States, data: Sequence[Datum], role: Role) -> States:
    """Reorder a teacher's states to the student's positions when the tokenizers differ.

    A position without a match gets an arbitrary state, because its weight is 0.
    """
    if role != "teacher" or all(datum.match is None for datum in data):
        return states
    found, start = [], 0
    for datum, length in zip(data, states.lengths, strict=True):
        assert datum.match is not None
        found.append(torch.from_numpy(datum.match.positions).clamp_min(0) + start)
        start += length
    at = torch.cat(found).to(states.hidden.device)
    lengths = [len(datum.completion) for datum in data]
    return dataclasses.replace(states, hidden=states.hidden[at], lengths=lengths)
