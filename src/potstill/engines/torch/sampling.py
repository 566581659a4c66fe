"""Sample in batches, and record the log-probability of every sampled token: under the model, and
under the distribution that it was drawn from, which differs by temperature and truncation.

Each token uses one uniform number, drawn in advance, and the inverse of the cumulative
distribution. The tokens of a row therefore depend on its own numbers only, not on the other rows of
its batch. Finished rows leave the batch. Truncation is transformers' own, in its order, which a
temperature precedes. Penalties are left out: with them, what is drawn depends on the text so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from potstill.algorithms.losses import token_logprobs
from potstill.engines.torch.batching import pad_left
from potstill.engines.torch.decoding import begin
from potstill.errors import NonFinite
from potstill.types import WHOLE, Floats, Ids, Sample, Truncation

_NO_IDS: Any = None  # the warpers do not read the text so far


def generate(
    model: Any,
    prompts: Sequence[Ids],
    max_tokens: Sequence[int],
    temperature: float,
    noise: Floats,
    *,
    eos: frozenset[int],
    vocabulary: int,
    any_process: Callable[[bool], bool] | None = None,
    padded: bool = True,
    cached: bool = True,
    truncation: Truncation = WHOLE,
) -> list[Sample]:
    """Continue prompts until EOS or their limit.

    Args:
        model: a causal language model of transformers.
        prompts: B rows of ids.
        max_tokens: (B,) maximum number of tokens to add to each row, at least 1.
        temperature: 0 is greedy.
        noise: (B, max(max_tokens)) uniform numbers in [0, 1).
        eos: ids that end a row; the id itself is kept.
        vocabulary: this id and above are never sampled (padding rows of the head).
        any_process: needed if a forward pass runs in all processes at once. It is called before
            each pass with whether this process has rows left, and returns whether any process has.
        padded: whether the prompts may have several lengths, see `sharing`.
        cached: whether the model decodes with its cache, see `sharing`.
        truncation: the tokens that can be drawn.
    """
    device = model.get_input_embeddings().weight.device
    width = max(max_tokens)
    tokens = np.zeros((len(prompts), width), np.int64)
    logprobs, behavior = (np.zeros((len(prompts), width), np.float32) for _ in range(2))
    lengths = np.zeros(len(prompts), np.int64)
    ids = torch.from_numpy(pad_left(prompts, 0)).to(device)
    mask = torch.from_numpy(pad_left([(1,) * len(p) for p in prompts], 0)).to(device)
    ends, limits = np.array(sorted(eos)), np.array(max_tokens)
    alive = np.arange(len(prompts))  # indices of the unfinished rows
    warpers = _warpers(truncation)
    decoder = begin(model, ids, mask, width - 1, padded=padded, cached=cached)
    for column in range(width):
        logp = decoder.logits[:, :vocabulary].float().log_softmax(-1)
        uniform = torch.from_numpy(noise[alive, column]).to(device)
        drawn, drawn_logp = _draw(logp, temperature, uniform, warpers)
        chosen = drawn.cpu().numpy()
        tokens[alive, column] = chosen
        logprobs[alive, column] = token_logprobs(logp, drawn).cpu().numpy()
        behavior[alive, column] = drawn_logp.cpu().numpy()
        lengths[alive] += 1
        unfinished = ~np.isin(chosen, ends) & (lengths[alive] < limits[alive])
        if not unfinished.any():
            break
        if not unfinished.all():
            keep = torch.from_numpy(np.flatnonzero(unfinished))  # on the CPU, for any layer device
            alive = alive[unfinished]
            decoder.keep(keep)
            drawn = drawn[keep.to(device)]
        if any_process:
            any_process(True)
        decoder.step(drawn)
    if any_process and any_process(False):  # take part in the other processes' passes
        decoder.keep(torch.tensor([0]))
        decoder.step(drawn[:1])
        while any_process(False):
            decoder.step(drawn[:1])
    if np.isnan(logprobs).any():
        raise NonFinite("log-probabilities of sampled tokens")
    return [
        Sample(tuple(tokens[row, :n].tolist()), logprobs[row, :n].copy(), behavior[row, :n].copy())
        for row, n in enumerate(lengths)
    ]


def _warpers(truncation: Truncation) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if truncation.top_k:
        made.append(TopKLogitsWarper(truncation.top_k))
    if truncation.top_p < 1:
        made.append(TopPLogitsWarper(truncation.top_p))
    if truncation.min_p:
        made.append(MinPLogitsWarper(truncation.min_p))
    return made


def _draw(
    logp: Tensor,
    temperature: float,
    uniform: Tensor,
    warpers: LogitsProcessorList | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample ids (B,) from log-probs (B, V) and uniform numbers (B,).

    Returns:
        The ids, and their log-probabilities (B,) in the distribution that they were drawn from: at
        temperature 0 they are 0, as nothing else could have been drawn.
    """
    if temperature == 0:
        return logp.argmax(-1), torch.zeros_like(uniform)
    scaled = logp if temperature == 1 else (logp / temperature).log_softmax(-1)
    if warpers:
        scaled = warpers(_NO_IDS, scaled).log_softmax(-1)
    cumulative = scaled.double().exp().cumsum(-1)
    point = uniform.double()[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_max(logp.shape[-1] - 1)
    return drawn, token_logprobs(scaled, drawn)
