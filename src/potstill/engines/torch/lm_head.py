"""Compute full-vocabulary log-probs from a forward pass, a few positions at a time.

The log-probs of a large vocabulary dominate memory: 4,096 positions of 151,936 ids are 2.5 GB per
copy, and a divergence with its gradient needs several copies. The forward pass therefore stops
before the head, and the head runs on slices of the completion positions, whose log-probs are used
and dropped. The gradient through the head is computed by hand. Autograd would allocate a full
gradient of the head for each slice and then add it; in float32 this is one matrix product that adds
in place. For the same reason the embedding's gradient is added only at the ids that were read. For
families whose logits are more than `lm_head` (soft caps, scales) the head runs on all positions,
and only the rest is sliced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.engines.torch.forward import logits_at
from potstill.engines.torch.loading import without_adapters
from potstill.engines.torch.proved import PLAIN_HEADS, plain_embedding, sliced_head
from potstill.types import Datum, Ids, ModelSpec, Role

SLICE = 1 << 25  # maximum entries of a slice of logits: 128 MB in float32; 8 times that on a GPU
PLAIN = PLAIN_HEADS


class Embedded:
    """The output of an embedding, at which autograd stops."""

    def __init__(self, module: nn.Embedding, ids: Tensor) -> None:
        self.module, self.ids = module, ids
        self.out = F.embedding(ids, module.weight.detach()).requires_grad_()

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the output's gradient to the weights', except at the padding id, as torch does."""
        if self.out.grad is None:
            return
        param, ids, grad = self.module.weight, self.ids.flatten(), self.out.grad.flatten(0, 1)
        if self.module.padding_idx is not None:
            grad[ids == self.module.padding_idx] = 0.0
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        # index_add_ is not deterministic on a GPU
        param.grad.index_put_((ids,), grad, accumulate=True)


@dataclass(frozen=True)
class States:
    """A model's states at N completion positions, before the head is applied.

    Args:
        hidden: (N, H) last hidden states, or (N, V) logits if the head is not plain; row after
            row, at the positions that predict the completion tokens.
        lengths: number of completion tokens of each row; they sum to N.
        head: maps hidden states to logits; None if `hidden` contains logits.
        vocabulary: logits of this id and above are dropped.
        spec: has the dtype of the computation.
        embedded: the embedding's output, if the embedding is trained by hand.
    """

    hidden: Tensor
    lengths: list[int]
    head: Any
    vocabulary: int
    spec: ModelSpec
    embedded: Embedded | None = None

    def slices(self) -> Iterator[slice]:
        """Yield slices of the positions whose logits fit into memory."""
        limit = SLICE << 3 if self.hidden.is_cuda else SLICE
        size = max(1, limit // self.vocabulary)
        for start in range(0, len(self.hidden), size):
            yield slice(start, start + size)

    def logits(self, part: slice) -> Tensor:
        """Return logits (n, V) of some positions in float32, without a graph.

        If the head is not plain, they may share memory with `hidden`.
        """
        hidden = self.hidden[part].detach()
        if self.head is None:
            return hidden[:, : self.vocabulary].float()
        return F.linear(hidden.to(self.weight.dtype), self.weight).float()

    def log_probs(self, part: slice) -> Tensor:
        """Return full-vocabulary log-probs (n, V) of some positions, without a graph."""
        return self.logits(part).log_softmax(-1)

    @torch.no_grad()
    def backward(self, part: slice, grad: Tensor, into: Tensor) -> None:
        """Propagate the gradient of a slice's logits to the hidden states and the head.

        Args:
            part: the positions of the slice.
            grad: (n, V) gradient of the loss with respect to the logits.
            into: (N, H) gradient of the hidden states; the slice's part is overwritten.
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

    def backward_body(self, grad: Tensor) -> None:
        """Propagate the gradient of the hidden states (N, H) to the body and the embedding."""
        if self.hidden.requires_grad:
            self.hidden.backward(grad)
        if self.embedded is not None:
            self.embedded.add_gradient()

    @cached_property
    def weight(self) -> Tensor:
        """Weights (V, H) of the head in the dtype of the computation; plain heads have no bias."""
        whole: Tensor = self.head.weight.detach()[: self.vocabulary]
        return whole.to(getattr(torch, self.spec.dtype))


def read(
    model: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    vocabulary: int,
    spec: ModelSpec,
) -> States:
    """Run a forward pass over rows laid out as [prompt | completion | right padding].

    Attention is causal, so no token attends to the padding after it, and no mask is needed.
    """
    starts = [len(prompt) - 1 for prompt in prompts]  # first predicting positions
    lengths = [len(completion) for completion in completions]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=device)
    first = min(starts)
    last = max(first + 1, *(start + n for start, n in zip(starts, lengths, strict=True)))
    inner, plain, embedded = without_adapters(model), sliced_head(model, PLAIN), None
    if plain:
        embedding = inner.get_input_embeddings()
        trained = embedding.weight.requires_grad and torch.is_grad_enabled()
        if trained and plain_embedding(embedding):
            embedded = Embedded(embedding, ids)
        source = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded.out}
        states = inner.model(**source, use_cache=False).last_hidden_state[:, first:last]
        states = states.to(inner.lm_head.weight.device)
    else:
        states = logits_at(model, ids, torch.arange(first, last))
    column, begin = torch.arange(first, last), torch.tensor(starts)[:, None]
    predicts = (column >= begin) & (column < begin + torch.tensor(lengths)[:, None])
    hidden = states[predicts.to(states.device)]
    head = inner.lm_head if plain else None
    return States(hidden, lengths, head, vocabulary, spec, embedded)


def matched_states(states: States, data: Sequence[Datum], role: Role) -> States:
    """Reorder a teacher's states to the student's positions when the tokenizers differ.

    A position without a match gets an arbitrary state, because its weight is 0.
    """
    if role != "teacher" or all(datum.match is None for datum in data):
        return states
    indices, start = [], 0
    for datum, length in zip(data, states.lengths, strict=True):
        assert datum.match is not None
        indices.append(torch.from_numpy(datum.match.positions).clamp_min(0) + start)
        start += length
    at = torch.cat(indices).to(states.hidden.device)
    lengths = [len(datum.completion) for datum in data]
    return dataclasses.replace(states, hidden=states.hidden[at], lengths=lengths)
