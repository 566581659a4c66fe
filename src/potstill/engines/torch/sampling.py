"""Batched sampling with the sampler's own log-probabilities kept.

One uniform number a token, drawn beforehand, is turned into an id by the inverse of the
cumulative distribution: a row's tokens depend on its own numbers alone, not on who shares its
batch. Finished rows leave the batch. It leaves out top-p, top-k and penalties: they would change
the policy that is being trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.engines.torch.decoding import begin
from potstill.types import Floats, Ids, Sample, pad_left


def generate(
    model: Any,
    prompts: Sequence[Ids],
    max_tokens: Sequence[int],
    temperature: float,
    noise: Floats,
    *,
    eos: frozenset[int],
    vocabulary: int,
    others: Callable[[bool], bool] | None = None,
) -> list[Sample]:
    """Continue prompts until EOS or their limit.

    Args:
        model: a causal language model of transformers.
        prompts: B rows of ids.
        max_tokens: (B,) most tokens to add to each, at least 1.
        temperature: 0 is greedy.
        noise: (B, max(max_tokens)) uniform numbers in [0, 1).
        eos: ids that end a row; the id itself is kept.
        vocabulary: ids at and above it are never drawn (padding rows of the head).
        others: where a forward pass needs every process: told before each whether this one goes
            on, it says whether any does.
    """
    device = model.get_input_embeddings().weight.device
    width = max(max_tokens)
    tokens = np.zeros((len(prompts), width), np.int64)
    logprobs = np.zeros((len(prompts), width), np.float32)
    lengths = np.zeros(len(prompts), np.int64)
    ids = torch.from_numpy(pad_left(prompts, 0)).to(device)
    seen = torch.from_numpy(pad_left([(1,) * len(p) for p in prompts], 0)).to(device)
    ends, limits = np.array(sorted(eos)), np.array(max_tokens)
    alive = np.arange(len(prompts))  # rows still being written, as indices into the batch
    run = begin(model, ids, seen, width - 1)
    for column in range(width):
        logp = run.logits[:, :vocabulary].float().log_softmax(-1)
        drawn = _draw(logp, temperature, torch.from_numpy(noise[alive, column]).to(device))
        chosen = drawn.cpu().numpy()
        tokens[alive, column] = chosen
        logprobs[alive, column] = logp.gather(1, drawn[:, None])[:, 0].cpu().numpy()
        lengths[alive] += 1
        going = ~np.isin(chosen, ends) & (lengths[alive] < limits[alive])
        if not going.any():
            break
        if not going.all():
            keep = torch.from_numpy(np.flatnonzero(going))  # on the CPU: layers may be anywhere
            alive = alive[going]
            run.keep(keep)
            drawn = drawn[keep.to(device)]
        if others:
            others(True)
        run.step(drawn)
    if others and others(False):
        run.keep(torch.tensor([0]))
        run.step(drawn[:1])
        while others(False):
            run.step(drawn[:1])
    return [
        Sample(tuple(tokens[row, :n].tolist()), logprobs[row, :n].copy())
        for row, n in enumerate(lengths)
    ]


def _draw(logp: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Ids (B,) from log-probabilities (B, V) and uniform numbers (B,)."""
    if temperature == 0:
        return logp.argmax(-1)
    scaled = logp if temperature == 1 else (logp / temperature).log_softmax(-1)
    cumulative = scaled.double().exp().cumsum(-1)
    point = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_max(logp.shape[-1] - 1)
