"""Truncated distributions in numpy: what a sampler with top-k, top-p or min-p draws from.

The rules and their order are those of transformers' warpers, which the torch engine runs, ties
included: top-k keeps all tokens that are as likely as the k-th; of equal tokens at the limit of
top-p, those with the higher ids stay.
"""

from __future__ import annotations

import numpy as np

from potstill.types import WHOLE, Floats, Rows, Truncation


def truncated(logp: Rows, truncation: Truncation) -> Rows:
    """Return the log-probabilities (T, V) after truncation: renormalised, -inf outside.

    Args:
        logp: log-probabilities (T, V), at the sampling temperature.
        truncation: the tokens to keep.
    """
    if truncation == WHOLE:
        return logp
    if truncation.top_k:
        kth = np.sort(logp, -1)[:, -min(truncation.top_k, logp.shape[1]), None]
        logp = np.where(logp < kth, -np.inf, logp)
    if truncation.top_p < 1:
        order = np.argsort(logp, -1, kind="stable")
        below = np.take_along_axis(_probabilities(logp), order, -1).cumsum(-1)
        outside = below <= 1 - truncation.top_p  # what is left holds at least top_p
        outside[:, -1] = False
        removed = np.zeros_like(outside)
        np.put_along_axis(removed, order, outside, -1)
        logp = np.where(removed, -np.inf, logp)
    if truncation.min_p:
        p = _probabilities(logp)
        least = np.float32(truncation.min_p) * p.max(-1, keepdims=True)
        logp = np.where(p < least, -np.inf, logp)
    return np.asarray(logp - np.log(np.exp(logp).sum(-1, keepdims=True)))


def _probabilities(logp: Rows) -> Floats:
    """Probabilities in the precision of a sampler, whose limits are met with it."""
    p = np.exp(logp - logp.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True), np.float32)
