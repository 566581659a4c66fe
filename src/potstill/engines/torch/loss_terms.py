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
    over_spans,
    token_logprobs,
)
from potstill.errors import PotstillError
from potstill.types import Datum, Loss, Role, Term

BLOCK = 1 << 20  # maximum entries of a block of logits on a CPU: 4 MB in float32


def needs_rows(loss: Loss) -> bool:
    """Return whether a loss needs another model's log-probs, or those of the student of step 0."""
    return loss.needs == "full_logprobs" or loss.to == "init"


# Log-probabilities (N,) of sampled tokens: of the distribution that they were drawn from, of the
# model that wrote them, and of the teacher.
Sampled = tuple[Tensor, Tensor, Tensor | None]


class Columns:
    """The data of a micro-batch as one array (N,) per field, row after row."""

    def __init__(
        self,
        data: Sequence[Datum],
        losses: Sequence[Loss],
        device: torch.device,
        rows: Sequence[int] | None = None,
    ) -> None:
        lengths = [len(d.completion) for d in data]
        self.rows = None if rows is None else np.repeat(rows, lengths)  # number of the datum
        self.source = np.repeat([d.source for d in data], [len(d.completion) for d in data])
        self.targets = flat([d.targets for d in data], device)
        self.weights = [
            flat([d.terms[i].weights for d in data], device) for i in range(len(losses))
        ]
        self.shared = next((torch.from_numpy(d.match.shared) for d in data if d.match), None)
        self.spans: Tensor | None = None
        if any(loss.needs == "token_scores" for loss in losses):
            behavior = flat([d.behavior_logprobs for d in data], device)
            then = flat([d.logprobs for d in data], device)
            self.sampled: dict[Role, Sampled] = {"init": (behavior, then, None)}
            if all(d.teacher_logprobs is not None for d in data):
                scores = flat([d.teacher_logprobs for d in data], device)
                self.sampled["teacher"] = behavior, then, scores
            if data[0].match and "teacher" in self.sampled:
                self.spans = _numbered([d.match.spans for d in data if d.match], device)

    def credit(self, now: Tensor) -> None:
        """Sum the log-probabilities of the sampled losses over spans.

        Args:
            now: (N,) log-probabilities of the targets under the current student.
        """
        assert self.spans is not None
        drawn, then, scores = self.sampled["teacher"]
        assert scores is not None
        # of a prefix from a file nobody knows them: a span of both has the ratio of the rest
        drawn, then = (torch.where(x.isnan(), now, x) for x in (drawn, then))
        behavior, then, scores = (over_spans(x, now, self.spans) for x in (drawn, then, scores))
        self.sampled["teacher"] = behavior, then, scores


def _numbered(spans: Sequence[Any], device: torch.device) -> Tensor:
    """The span of each token (N,), numbered over all rows; -1: none."""
    first, rows = 0, []
    for row in spans:
        rows.append(np.where(row < 0, row, row + first))
        first += len(row)  # a row has no more spans than tokens
    return flat(rows, device)


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
                part_of = _Positions(columns, whole, logp, other)
                values, clipped = part_of.values(loss, weights[whole])
                total = total + (weights[whole] * values).sum()
                tally.add(loss, columns.source[whole], weights[whole], values.detach(), clipped)
                if columns.rows is not None:
                    tally.add_rows(columns.rows[whole], weights[whole] * values.detach())
        tally.loss += total.item()
        if backward:
            (logits[part],) = torch.autograd.grad(total, leaf)


@dataclasses.dataclass(frozen=True)
class _Positions:
    """Some positions of a micro-batch, with the log-probs and logits there.

    Args:
        columns: the micro-batch.
        at: the positions in it.
        logp: (n, V) the student's log-probs.
        other: (n, V) logits of the model that a loss compares the student with.
    """

    columns: Columns
    at: slice
    logp: Tensor
    other: Tensor | None

    def values(self, loss: Loss, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a loss (n,), and where (n,) its importance ratio is clipped, if it can be.

        Where a weight (n,) is 0, or an infinite divergence is above its cap, the position becomes a
        constant: 0 x inf is not a number, neither in a value nor in a gradient.
        """
        values, clipped = self._values(loss, slice(None))
        cap = loss.cap if isinstance(loss, Divergence) else None
        if not values.isfinite().all():
            silent = ~values.isfinite() & (weights == 0)
            if cap is not None:
                silent |= values == float("inf")
            rest = (~silent).nonzero()[:, 0]
            constant = torch.full_like(weights, cap or 0.0)
            values = constant.index_put((rest,), self._values(loss, rest)[0])
        return values if cap is None else values.clamp_max(cap), clipped

    def _values(self, loss: Loss, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        logp, targets = self.logp[rows], self.columns.targets[self.at][rows]
        if isinstance(loss, TokenLoss):
            return loss.value(logp, targets), None
        logq = None if self.other is None else self.other[rows].log_softmax(-1)
        if isinstance(loss, SampledLoss):
            columns = self.columns.sampled[loss.to]
            behavior, then, scores = (None if x is None else x[self.at][rows] for x in columns)
            assert behavior is not None and then is not None
            if logq is not None:  # towards the student of step 0
                scores = token_logprobs(logq, targets)
            assert scores is not None
            logp_y = token_logprobs(logp, targets)
            values = loss.value(logp_y, behavior, scores, then)
            return values, None if loss.clip_ratio is None else loss.clipped(logp_y, then)
        assert logq is not None
        if isinstance(loss, TwoVocabularies):
            if self.columns.shared is None:
                raise PotstillError(ONE_TOKENIZER, "write { jsd = 0.5 }")
            return loss.value(logp, logq, self.columns.shared.to(logp.device)), None
        assert isinstance(loss, Divergence)
        return loss.value(logp, logq), None


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
            -(p * logp.masked_fill(p == 0, 0.0)).sum(-1),
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
        self.by_datum: dict[int, float] = defaultdict(float)  # weighted sums, by number
        self._clipped = [0, 0]  # tokens whose ratio was clipped, and all whose ratio can be

    def add(
        self, loss: Loss, source: Any, weights: Tensor, values: Tensor, clipped: Tensor | None
    ) -> None:
        if clipped is not None:
            of = clipped[weights != 0]
            self._clipped = [
                a + b for a, b in zip(self._clipped, (int(of.sum()), len(of)), strict=True)
            ]
        for name in ("student", "teacher"):
            counted = torch.from_numpy(source == name).to(weights.device) & (weights != 0)
            key = "anchor" if loss.to == "init" else name
            self._sums[key] += values[counted].sum().item()
            self._counts[key] += int(counted.sum())

    def add_rows(self, rows: Any, weighted: Tensor) -> None:
        """Add the weighted values (n,) of tokens to their data's sums, by number (n,)."""
        numbers, places = np.unique(rows, return_inverse=True)
        sums = np.bincount(places, weighted.double().cpu().numpy())
        for number, value in zip(numbers.tolist(), sums.tolist(), strict=True):
            self.by_datum[number] += value

    def total(self, parts: Sequence[Tally]) -> Tally:
        """Combine the tallies of all processes, including this one."""
        if len(parts) == 1:
            return self
        whole = Tally()
        for part in parts:
            whole.loss += part.loss
            for number, value in part.by_datum.items():
                whole.by_datum[number] += value
            whole._clipped = [a + b for a, b in zip(whole._clipped, part._clipped, strict=True)]
            for key, count in part._counts.items():
                whole._sums[key] += part._sums[key]
                whole._counts[key] += count
        return whole

    @property
    def clipped(self) -> float | None:
        """Share of tokens whose importance ratio was clipped."""
        return self._clipped[0] / self._clipped[1] if self._clipped[1] else None

    def means(self) -> dict[str, float]:
        return {key: self._sums[key] / count for key, count in self._counts.items() if count}


def flat(rows: Sequence[Any], device: torch.device) -> Tensor:
    """Concatenate per-row values into one tensor (N,)."""
    return torch.from_numpy(np.concatenate([np.asarray(row) for row in rows])).to(device)
