"""From a forward pass to log-probability rows, a few positions at a time.

The rows of a large vocabulary are what fills memory: 4,096 positions of 151,936 ids are 2.5 GB a
copy, and a divergence with its gradient needs several. So a forward pass stops before the head,
and the head runs on slices of the completion positions whose rows are used and dropped. Families
whose logits are more than `lm_head` (soft caps, scales) run whole, and only the rest is sliced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.engines.loading import autocast, without_adapters
from potstill.types import Ids, ModelSpec

SLICE = 1 << 24  # most entries of a slice of rows: 64 MB in float32
# Families whose logits are lm_head(last hidden state), nothing else.
PLAIN = frozenset(
    {"llama", "mistral", "mixtral", "olmo2", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
)


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
    """

    hidden: Tensor
    lengths: list[int]
    head: Any
    vocabulary: int
    spec: ModelSpec

    def slices(self) -> Iterator[slice]:
        """The positions in parts that fit into memory."""
        size = max(1, SLICE // self.vocabulary)
        for start in range(0, len(self.hidden), size):
            yield slice(start, start + size)

    def rows(self, part: slice, hidden: Tensor | None = None) -> Tensor:
        """Log-probabilities (n, V) of some positions, from these hidden states or from others."""
        states = self.hidden[part] if hidden is None else hidden[part]
        if self.head is not None:
            with autocast(self.spec):
                states = self.head(states)
        return states[:, : self.vocabulary].float().log_softmax(-1)


def read(
    model: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    vocabulary: int,
    spec: ModelSpec,
) -> States:
    """Forward pass over rows laid out as [left pad | prompt | completion | right pad]."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = torch.zeros(len(prompts), left + right, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = left - len(prompt), left + len(completion)
        ids[row, start:end] = torch.tensor(prompt + completion)
        seen[row, start:end] = 1
    device = model.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": seen.to(device),
        "position_ids": (seen.cumsum(1) - 1).clamp_min(0).to(device),
        "use_cache": False,
    }
    inner = without_adapters(model)
    plain = inner.config.model_type in PLAIN
    if plain:
        states = inner.model(**inputs).last_hidden_state
    else:
        states = model(**inputs, logits_to_keep=right + 1).logits
    mask = seen[:, left:].bool().to(states.device)
    hidden = states[:, -right - 1 : -1][mask]
    lengths = [len(completion) for completion in completions]
    return States(hidden, lengths, inner.lm_head if plain else None, vocabulary, spec)
