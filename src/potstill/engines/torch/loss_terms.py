"""What is computed at a slice of positions: the losses of a step, and what a model expects."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.algorithms.losses import (
    LOSSES,
    ONE_TOKENIZER,
    anchor_sampled,
    cross_entropy,
    gold,
    reverse_kl_sampled,
    row_divergence,
)
from potstill.errors import PotstillError
from potstill.types import Datum, Loss, Role, Term

BLOCK = 1 << 20  # most entries of a block of logits on a CPU: 4 MB in float32


def needs_rows(loss: Loss) -> bool:
    """Whether another model has to read the micro-batch: its rows, or the student's of step 0."""
    return LOSSES[loss.name] == "row" or loss.to == "init"


class Columns:
    """A micro-batch's data, row after row: each (N,)."""

    def __init__(self, data: Sequence[Datum], losses: Sequence[Loss], device: torch.device) -> None:
        self.source = np.repeat([d.source for d in data], [len(d.completion) for d in data])
        self.targets = flat([d.targets for d in data], device)
        self.weights = [
            flat([d.terms[i].weights for d in data], device) for i in range(len(losses))
        ]
        self.shared = next((torch.from_numpy(d.match.shared) for d in data if d.match), None)
        if any(LOSSES[loss.name] == "token_scores" for loss in losses):
            self.sampler = flat([d.logprobs for d in data], device)
            scores = [d.teacher_logprobs for d in data if d.teacher_logprobs is not None]
            self.teacher = flat(scores, device) if len(scores) == len(data) else None


def idle(rows: Sequence[Datum]) -> Datum:
    """The shortest of some rows with no weight, for a process that has none left to compute."""
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
    """Work out the losses of a slice of positions; the gradient takes the place of the logits.

    It goes block by block of positions, so that what autograd keeps stays in a processor's cache.

    Args:
        losses: what is asked of each position.
        columns: the micro-batch, N positions.
        at: the slice, n of them.
        logits: (n, V) the student's; with `backward` overwritten by the gradient of the sum.
        others: (n, V) logits of the models that rows are pulled towards.
        tally: where losses are added up.
        backward: whether the gradient is wanted.
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
    """A loss (n,) from the student's rows (n, V) and another model's logits (n, V)."""
    if loss.name == "cross_entropy":
        return cross_entropy(logp, columns.targets[at])
    if loss.name == "reverse_kl_sampled":
        mine = -cross_entropy(logp, columns.targets[at])
        if other is not None:  # towards the student of step 0
            its = -cross_entropy(other.log_softmax(-1), columns.targets[at])
            return anchor_sampled(mine, columns.sampler[at], its)
        assert columns.teacher is not None
        return reverse_kl_sampled(mine, columns.sampler[at], columns.teacher[at])
    assert other is not None
    if loss.name == "gold":
        if columns.shared is None:
            raise PotstillError(ONE_TOKENIZER, "write { jsd = 0.5 }")
        assert loss.beta is not None
        return gold(logp, other.log_softmax(-1), columns.shared.to(logp.device), loss.beta)
    values = row_divergence(loss, logp, other.log_softmax(-1))
    return values if loss.cap is None else values.clamp_max(loss.cap)


def expectation(logp: Tensor, asked: Tensor, heard: Tensor, ends: list[int]) -> Tensor:
    """The rows of an `Expectation` (5, n) at some positions, from log-probabilities (n, V)."""
    p, chosen = logp.exp(), -cross_entropy(logp, asked)
    return torch.stack(
        [
            chosen,
            -(p * logp).sum(-1),
            p.gather(-1, heard[:, None])[:, 0],
            p[:, ends].sum(-1),
            (logp > chosen[:, None]).sum(-1),
        ]
    ).float()


class Tally:
    """Sums up a step's losses by who wrote the tokens, for the record."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, loss: Loss, source: Any, weights: Tensor, values: Tensor) -> None:
        for name in ("student", "teacher"):
            mine = torch.from_numpy(source == name).to(weights.device) & (weights != 0)
            key = "anchor" if loss.to == "init" else name
            self._sums[key] += values[mine].sum().item()
            self._counts[key] += int(mine.sum())

    def total(self, parts: Sequence[Tally]) -> Tally:
        """What several processes have added up, this one among them."""
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
    """Concatenate per-row values to one tensor (N,)."""
    return torch.from_numpy(np.concatenate([np.asarray(row) for row in rows])).to(device)
