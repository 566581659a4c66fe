"""Compute the losses of a step, and a model's expectations, at a slice of positions."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.algorithms.losses import (
    ONE_TOKENIZER,
    Divergence,
    SampledLoss,
    TokenLoss,
    TwoVocabularies,
    token_logprobs,
)
from potstill.errors import PotstillError
from potstill.types import Datum, Loss, Role, Term

BLOCK = 1 << 20  # maximum entries of a block of logits on a CPU: 4 MB in float32


def needs_rows(loss: Loss) -> bool:
    """Return whether a loss needs another model's log-probs, or those of the student of step 0."""
    return loss.needs == "full_logprobs" or loss.to == "init"


class Columns:
    """The data of a micro-batch as one array (N,) per field, row after row."""

    def __init__(self, data: Sequence[Datum], losses: Sequence[Loss], device: torch.device) -> None:
        self.source = np.repeat([d.source for d in data], [len(d.completion) for d in data])
        self.targets = flat([d.targets for d in data], device)
        self.weights = [
            flat([d.terms[i].weights for d in data], device) for i in range(len(losses))
        ]
        self.shared = next((torch.from_numpy(d.match.shared) for d in data if d.match), None)
        if any(loss.needs == "token_scores" for loss in losses):
            self.sampler = flat([d.logprobs for d in data], device)
            scores = [d.teacher_logprobs for d in data if d.teacher_logprobs is not None]
            self.teacher = flat(scores, device) if len(scores) == len(data) else None


def idle(rows: Sequence[Datum]) -> Datum:
    """Return the shortest row with zero weights, for a process without rows of its own."""
    row = min(rows, key=lambda d: sum(map(len, d.read_by("student"))))
    terms = tuple(Term(term.loss, np.zeros_like(term.weights)) for term in row.terms)
    return dataclasses.replace(row, terms=terms)


def take(
    losses: Sequence[Loss],
    columns: Columns,
    at: slice,
    logits: Tensor,
    others: dict[Role, Tensor],
    tally: Tally,
    *,
    backward: bool,
) -> None:
    """Compute the losses at a slice of positions, and overwrite the logits with the gradient.

    The positions are processed in blocks, so that autograd's tensors fit into a processor's cache.

    Args:
        losses: the losses at every position.
        columns: the micro-batch, N positions.
        at: the slice, n positions.
        logits: (n, V) the student's; with `backward` overwritten by the gradient of the sum.
        others: (n, V) logits of the models that the losses compare the student with.
        tally: accumulates the losses.
        backward: whether to compute the gradient.
    """
    size = len(logits) if logits.is_cuda else max(1, BLOCK // logits.shape[1])
    for start in range(0, len(logits), size):
        part = slice(start, min(start + size, len(logits)))
        whole = slice(at.start + part.start, at.start + part.stop)
        leaf = logits[part].requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            logp, total = leaf.log_softmax(-1), leaf.new_zeros(())
            for loss, weights in zip(losses, columns.weights, strict=True):
                other = others[loss.to][part] if loss.to in others else None
                values = _values(loss, logp, columns, whole, other)
                total = total + (weights[whole] * values).sum()
                tally.add(loss, columns.source[whole], weights[whole], values.detach())
        tally.loss += total.item()
        if backward:
            (logits[part],) = torch.autograd.grad(total, leaf)


def _values(loss: Loss, logp: Tensor, columns: Columns, at: slice, other: Tensor | None) -> Tensor:
    """Return a loss (n,) of the student's log-probs (n, V) and another model's logits (n, V)."""
    targets = columns.targets[at]
    if isinstance(loss, TokenLoss):
        return loss.value(logp, targets)
    if isinstance(loss, SampledLoss):
        if other is not None:  # towards the student of step 0
            logq_y = token_logprobs(other.log_softmax(-1), targets)
        else:
            assert columns.teacher is not None
            logq_y = columns.teacher[at]
        return loss.value(token_logprobs(logp, targets), columns.sampler[at], logq_y)
    assert other is not None
    logq = other.log_softmax(-1)
    if isinstance(loss, TwoVocabularies):
        if columns.shared is None:
            raise PotstillError(ONE_TOKENIZER, "write { jsd = 0.5 }")
        return loss.value(logp, logq, columns.shared.to(logp.device))
    assert isinstance(loss, Divergence)
    values = loss.value(logp, logq)
    return values if loss.cap is None else values.clamp_max(loss.cap)


def expectation(logp: Tensor, tokens: Tensor, previous: Tensor, eos_ids: list[int]) -> Tensor:
    """Return the fields of an `Expectation` (5, n) from log-probs (n, V).

    Args:
        logp: (n, V) full-vocabulary log-probs.
        tokens: (n,) the completion tokens.
        previous: (n,) the tokens before them.
        eos_ids: ids that end a completion.
    """
    p, scores = logp.exp(), token_logprobs(logp, tokens)
    return torch.stack(
        [
            scores,
            -(p * logp).sum(-1),
            p.gather(-1, previous[:, None])[:, 0],
            p[:, eos_ids].sum(-1),
            (logp > scores[:, None]).sum(-1),
        ]
    ).float()


class Tally:
    """Accumulates the losses of a step by the source of the tokens, for the metrics."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, loss: Loss, source: Any, weights: Tensor, values: Tensor) -> None:
        for name in ("student", "teacher"):
            counted = torch.from_numpy(source == name).to(weights.device) & (weights != 0)
            key = "anchor" if loss.to == "init" else name
            self._sums[key] += values[counted].sum().item()
            self._counts[key] += int(counted.sum())

    def total(self, parts: Sequence[Tally]) -> Tally:
        """Combine the tallies of all processes, including this one."""
        if len(parts) == 1:
            return self
        whole = Tally()
        for part in parts:
            whole.loss += part.loss
            for key, count in part._counts.items():
                whole._sums[key] += part._sums[key]
                whole._counts[key] += count
        return whole

    def means(self) -> dict[str, float]:
        return {key: self._sums[key] / count for key, count in self._counts.items() if count}


def flat(rows: Sequence[Any], device: torch.device) -> Tensor:
    """Concatenate per-row values into one tensor (N,)."""
    return torch.from_numpy(np.concatenate([np.asarray(row) for row in rows])).to(device)
