"""Distance between a sampler and its model, as pre-flight and the monitor measure it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.engines.protocol import Engine
from potstill.types import Floats, Reading, Role

# Largest mean distance in nats for equal weights. Half precision moves single tokens by 0.05 and
# more; other weights give a mean of 0.1.
SAMPLER_GAP = 0.02


def sampler_gap(
    engine: Engine,
    role: Role,
    readings: Sequence[Reading],
    sampled: Sequence[Floats],
    prefixes: Sequence[int] = (),
) -> float:
    """Mean distance in nats between a sampler's log-probabilities and the model's scores.

    Args:
        engine: scores the tokens.
        role: the model that the sampler should sample from.
        readings: prompts and sampled completions.
        sampled: log-probabilities (T,) of the sampler, one array per completion.
        prefixes: leading tokens of each completion to leave out; default: none.
    """
    scores = engine.score(role, readings)
    starts = prefixes or [0] * len(scores)
    gaps = [
        np.abs(logprobs - score)[start:]
        for logprobs, score, start in zip(sampled, scores, starts, strict=True)
    ]
    return float(np.concatenate(gaps).mean())
