"""What is computed at a slice of positions: the losses of a step, and what a model expects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.engines.heads import States
from potstill.losses import LOSSES, cross_entropy, reverse_kl_sampled, row_divergence
from potstill.types import Datum, Loss, Role


class Columns:
    """A micro-batch's data, row after row: each (N,)."""

    def __init__(self, data: Sequence[Datum], losses: Sequence[Loss], device: torch.device) -> None:
        self.targets = flat([d.targets for d in data], device)
        self.weights = [
            flat([d.terms[i].weights for d in data], device) for i in range(len(losses))
        ]
        if any(LOSSES[loss.name] == "token_scores" for loss in losses):
            self.sampler = flat([d.logprobs for d in data], device)
            self.teacher = flat([d.teacher_logprobs for d in data], device)


def values_at(
    loss: Loss, logp: Tensor, columns: Columns, at: slice, targets: dict[Role, States]
) -> Tensor:
    """A loss at some positions (n,), from the student's rows (n, V)."""
    if loss.name == "cross_entropy":
        return cross_entropy(logp, columns.targets[at])
    if loss.name == "reverse_kl_sampled":
        mine = -cross_entropy(logp, columns.targets[at])
        return reverse_kl_sampled(mine, columns.sampler[at], columns.teacher[at])
    with torch.no_grad():
        logq = targets[loss.to].rows(at).to(logp.device)
    return row_divergence(loss, logp, logq)


def outlook(logp: Tensor, asked: Tensor, heard: Tensor, ends: list[int]) -> Tensor:
    """The four rows of an `Outlook` (4, n) at some positions, from log-probabilities (n, V)."""
    p = logp.exp()
    return torch.stack(
        [
            -cross_entropy(logp, asked),
            -(p * logp).sum(-1),
            p.gather(-1, heard[:, None])[:, 0],
            p[:, ends].sum(-1),
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

    def means(self) -> dict[str, float]:
        return {key: self._sums[key] / count for key, count in self._counts.items() if count}


def flat(rows: Sequence[Any], device: torch.device) -> Tensor:
    """Concatenate per-row values to one tensor (N,)."""
    return torch.from_numpy(np.concatenate([np.asarray(row) for row in rows])).to(device)
