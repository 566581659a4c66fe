"""Reference of the losses: computed a second time from logits, unpadded, in plain numpy.

It shares no code with the losses, the objective or the batching of an engine, so that agreement is
evidence. Exact and slow; pre-flight applies it to a dozen trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.algorithms.losses import (
    JSD,
    CrossEntropy,
    ForwardKL,
    ReverseKL,
    ReverseKLSampled,
    TopK,
    TruncatedReverseKL,
)
from potstill.engines.protocol import Engine
from potstill.types import Datum, Floats, Loss, Reading, Role, Rows, Trajectory

Terms = Sequence[tuple[Loss, float]]  # losses with their factors


def trained_mask(t: Trajectory) -> Floats:
    """1 for each token (T,) after the teacher's prefix."""
    return (np.arange(len(t.completion)) >= t.prefix).astype(np.float32)


def reference(engine: Engine, trajectories: Sequence[Trajectory], terms: Terms) -> Rows:
    """Mean loss per trained token of one source's trajectories, as two `moments`.

    Position i predicts token i + 1 of prompt + completion; tokens of the prefix do not count.

    Args:
        engine: computes full-vocabulary log-probs.
        trajectories: trajectories of one source.
        terms: losses with their factors.
    """
    total = np.zeros(2)
    for t in trajectories:
        p = engine.rows("student", t.prompt, t.completion)
        for loss, factor in terms:
            q = p if loss.name == "cross_entropy" else engine.rows(loss.to, t.prompt, t.completion)
            total += factor * moments(weighted(trained_mask(t), definition(loss, p, q, t)))
    return total / sum(t.trained for t in trajectories)


def forward_gap(engine: Engine, role: Role, readings: Sequence[Reading]) -> float:
    """Mean distance in nats between an engine's scores and the model's own forward pass.

    The scores are computed as in training: in batches, with every short cut of the engine. The
    forward pass is that of the whole model on single rows.
    """
    readings = [reading for reading in readings if reading[1]]
    scores = engine.score(role, readings)
    gaps = []
    for (prompt, completion), score in zip(readings, scores, strict=True):
        exact = engine.rows(role, prompt, completion)
        gaps.append(np.abs(score - exact[np.arange(len(completion)), list(completion)]))
    return float(np.concatenate(gaps).mean()) if gaps else 0.0


def moments(values: Rows) -> Rows:
    """Sum of per-token values (T,), and their sum weighted towards the end.

    A mistake that moves values between tokens changes only the second.
    """
    weights = 1 / (1 + np.arange(len(values))[::-1])
    return np.array([values.sum(), (values * weights).sum()])


def weighted(weights: Floats, values: Rows) -> Rows:
    """The product (T,); where a weight is 0 so is the product, whatever the value."""
    return np.multiply(weights, values, out=np.zeros(len(values)), where=weights != 0)


def targets_of(datum: Datum) -> Trajectory:
    """The targets of a datum with its log-probabilities, as `definition` reads them."""
    behavior = datum.behavior_logprobs
    return Trajectory(
        datum.prompt, datum.targets, datum.logprobs, datum.source, behavior_logprobs=behavior
    )


def observed(engine: Engine, datum: Datum) -> Rows:
    """The weighted loss of one datum as it reached an engine, as two `moments`."""
    p, total = engine.rows("student", datum.prompt, datum.completion), np.zeros(2)
    targets = targets_of(datum)
    for term in datum.terms:
        q = p
        if term.loss.needs != "tokens":
            q = engine.rows(term.loss.to, *datum.reading(term.loss.to))
        if term.loss.name == "reverse_kl_sampled" and datum.teacher_logprobs is not None:
            q = q.copy()
            q[np.arange(len(datum.targets)), list(datum.targets)] = datum.teacher_logprobs
        total += moments(weighted(term.weights, definition(term.loss, p, q, targets)))
    return total


def definition(loss: Loss, p: Rows, q: Rows, t: Trajectory) -> Rows:
    """Per-token values (T,) of a loss, written out; p and q are log-probabilities (T, V)."""
    y = (np.arange(len(t.completion)), np.array(t.completion))
    match loss:
        case CrossEntropy():
            return np.asarray(-p[y])
        case ReverseKLSampled():
            then, behavior = (x.astype(float) for x in (t.logprobs, t.behavior_logprobs))
            return estimate(loss, q[y] - p[y], p[y] - then, then - behavior)
    values = _divergence(loss, np.exp(p), np.exp(q))
    return values if loss.cap is None else values.clip(max=loss.cap)


def estimate(loss: ReverseKLSampled, advantage: Rows, moved: Rows, tempered: Rows) -> Rows:
    """-r A of sampled actions (...), each a token or a span.

    Args:
        loss: has the limits.
        advantage: log q - log p of each action.
        moved: log p - log p_then, by which the student has moved since it wrote the action.
        tempered: log p_then - log s, which the temperature of sampling makes.
    """
    limit = np.inf if loss.clip_ratio is None else np.log(loss.clip_ratio)
    cap = np.inf if loss.cap is None else loss.cap
    return np.asarray(-np.exp(moved.clip(max=limit) + tempered) * advantage.clip(-cap, cap))


def _divergence(loss: Loss, p: Rows, q: Rows) -> Rows:
    """Per-token divergences (T,) of probabilities (T, V)."""
    match loss:
        case ForwardKL() | JSD(beta=0):
            return _kl(q, p)
        case ReverseKL() | JSD(beta=1):
            return _kl(p, q)
        case JSD(beta=beta):
            m = beta * q + (1 - beta) * p
            return beta * _kl(q, m) + (1 - beta) * _kl(p, m)
        case TopK(base=base, k=k):
            if k < q.shape[1]:
                p, q = (np.c_[x, 1 - x.sum(1)] for x in _kept(k, p, q))
            return _divergence(base, p, q)
        case TruncatedReverseKL(k=k):
            return _kl(*_kept(k, p, q))
    raise NotImplementedError(f"{loss} is not written out here")


def _kept(k: int, p: Rows, q: Rows) -> tuple[Rows, Rows]:
    """The probabilities (T, K) of the likeliest ids of q."""
    if k >= q.shape[1]:
        return p, q
    ids = np.argsort(-q, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(p, ids, 1), np.take_along_axis(q, ids, 1)


def _kl(a: Rows, b: Rows) -> Rows:
    """sum_v a (log a - log b) of probabilities, 0 where a is 0."""
    a, b = a.clip(0), b.clip(1e-300)
    return np.asarray(np.where(a > 0, a * (np.log(a.clip(1e-300)) - np.log(b)), 0.0).sum(1))
