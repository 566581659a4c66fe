"""Terms of a step as rows of a training service, and its losses from the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.engines.tinker.client import TrainingRow
from potstill.types import Datum, Floats, StepStats, Term


@dataclass(frozen=True, eq=False)
class WeightedTerm:
    """One term of one datum: the sum of -weights x advantages x p(target) / p_sampler(target)."""

    datum: Datum
    term: Term
    advantages: Floats | None  # (T,) for sampled losses; None for cross-entropy

    @property
    def coefficients(self) -> Floats:
        """Factors (T,) of the importance ratios."""
        weights = self.term.weights.astype(np.float32)
        return weights if self.advantages is None else weights * self.advantages


def row(part: WeightedTerm, advantages: Floats, reference: Floats) -> TrainingRow:
    """Convert a part to a sequence; the prompt's positions have weight 0."""
    prompt, completion = part.datum.read_by("student")
    zeros = np.zeros(len(prompt) - 1, np.float32)
    ids = (prompt + completion)[:-1]

    def pad(values: Floats) -> Floats:
        return np.concatenate([zeros, values.astype(np.float32)])

    counts = pad(np.ones(len(completion), np.float32))
    targets = (*prompt[1:], *part.datum.targets)
    return TrainingRow(ids, targets, counts, pad(advantages), pad(reference))


def completion(part: WeightedTerm, values: Floats) -> Floats:
    """Return the completion's part (T,) of a row's values (N,)."""
    return values[len(part.datum.read_by("student")[0]) - 1 :]


def stats_of(parts: Sequence[WeightedTerm], logprobs: Sequence[Floats], norm: float) -> StepStats:
    """Compute the losses of a step from the log-probabilities before it."""
    total, sums, counts = 0.0, dict[str, float](), dict[str, int]()
    for part, logp in zip(parts, logprobs, strict=True):
        if part.advantages is None:
            values = -logp.astype(float)
        else:
            values = -np.exp(logp.astype(float) - part.datum.logprobs) * part.advantages
        total += float((part.term.weights * values).sum())
        counted = part.term.weights != 0
        key = "anchor" if part.term.loss.to == "init" else part.datum.source
        sums[key] = sums.get(key, 0.0) + float(values[counted].sum())
        counts[key] = counts.get(key, 0) + int(counted.sum())
    means = {key: sums[key] / count for key, count in counts.items() if count}
    return StepStats(total, norm, means)
