"""Terms of a step as rows of a training service, and its losses from the log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from potstill.algorithms.losses import SampledLoss
from potstill.engines.tinker.client import TrainingRow
from potstill.errors import PotstillError
from potstill.types import WHOLE, Datum, Floats, Sample, StepStats, Term, Truncation


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A sampled loss at the current weights, as the sum of -A x p(target) / reference.

    Where a weight is 0 everything is: 0 x inf is not a number.
    """

    advantages: Floats  # (T,) A
    reference: Floats  # (T,) log of the denominator, at which the ratio has its limit
    clipped: npt.NDArray[np.bool_] | None  # (T,) where the limit was exceeded; None: there is none


@dataclass(frozen=True, eq=False)
class WeightedTerm:
    """One term of one datum."""

    datum: Datum
    term: Term
    surrogate: Surrogate | None = None  # of sampled losses; None for cross-entropy

    @property
    def coefficients(self) -> Floats:
        """Factors (T,) of the importance ratios."""
        weights = self.term.weights.astype(np.float32)
        return weights if self.surrogate is None else weights * self.surrogate.advantages


def check_rank(rank: int) -> None:
    """Reject training without adapters."""
    if rank < 1:
        raise PotstillError(
            f"a training service trains LoRA adapters, got lora_rank {rank}",
            "set train.lora_rank, 32 is usual",
        )


def check_truncation(truncation: Truncation) -> None:
    """Reject what the API has no name for."""
    if truncation.min_p:
        raise PotstillError(
            f"a training service samples with top_k and top_p alone, got min_p {truncation.min_p}",
            "leave min_p out, or use top_p",
        )


def with_behavior(
    drawn: Sequence[Sample],
    temperature: float,
    truncation: Truncation,
    score: Callable[[], Sequence[Floats]] | None,
) -> list[Sample]:
    """Samples with log-probabilities of both kinds, NaN where the server does not tell them.

    Args:
        drawn: samples with the log-probabilities that the server reported.
        temperature: that of the sampler.
        truncation: that of the sampler; a server does not say whether it renormalises after it.
        score: computes the log-probabilities at temperature 1; None: the server reports these.
    """
    if temperature == 0 or (temperature, truncation) == (1, WHOLE):
        return list(drawn)
    known = score is not None and truncation == WHOLE
    scores = score() if score else [sample.logprobs for sample in drawn]
    return [
        Sample(s.tokens, own, s.logprobs if known else np.full_like(s.logprobs, np.nan))
        for s, own in zip(drawn, scores, strict=True)
    ]


def estimated(datum: Datum, term: Term, now: Floats, target: Floats) -> WeightedTerm:
    """A term of `ReverseKLSampled`, which has the equations.

    Args:
        datum: the sampled tokens.
        term: the loss and its weights.
        now: (T,) log-probabilities of the tokens under the current student.
        target: (T,) those of the model that the student is pulled towards.
    """
    loss, counted = term.loss, term.weights != 0
    assert isinstance(loss, SampledLoss)
    advantages, moved, clipped = target - now, now - datum.logprobs, None
    if loss.cap is not None:
        advantages = advantages.clip(-loss.cap, loss.cap)
    if loss.clip_ratio is not None:
        limit = np.float32(math.log(loss.clip_ratio))
        moved, clipped = moved.clip(max=limit), (moved > limit)[counted]
    reference = now - (moved + (datum.logprobs - datum.behavior_logprobs))
    advantages, reference = (
        np.where(counted, x, 0).astype(np.float32) for x in (advantages, reference)
    )
    return WeightedTerm(datum, term, Surrogate(advantages, reference, clipped))


def behind(terms: Sequence[tuple[Datum, Term]]) -> list[Datum]:
    """The data whose sampled losses need the current student's log-probabilities."""
    data = [d for d, t in terms if t.loss.to == "init" or (_is_sampled(t) and not d.fresh)]
    return list({id(datum): datum for datum in data}.values())


def _is_sampled(term: Term) -> bool:
    return term.loss.needs == "token_scores"


def weighted(
    terms: Sequence[tuple[Datum, Term]], now: Mapping[int, Floats], start: Sequence[Floats]
) -> list[WeightedTerm]:
    """The terms of a step.

    Args:
        terms: every term with its datum.
        now: log-probabilities (T,) of these data under the current student, by id.
        start: those of the anchored terms under the student of step 0, in order.
    """
    anchors, parts = iter(start), []
    for datum, term in terms:
        if not _is_sampled(term):
            parts.append(WeightedTerm(datum, term))
            continue
        target = next(anchors) if term.loss.to == "init" else datum.teacher_logprobs
        assert target is not None
        parts.append(estimated(datum, term, now.get(id(datum), datum.logprobs), target))
    return parts


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
    clipped: list[bool] = []
    for part, logp in zip(parts, logprobs, strict=True):
        values = -logp.astype(float)
        if part.surrogate is not None:
            ratio = np.exp(logp.astype(float) - part.surrogate.reference)
            values = -ratio * part.surrogate.advantages
            clipped.extend([] if part.surrogate.clipped is None else part.surrogate.clipped)
        total += float((part.term.weights * values).sum())
        counted = part.term.weights != 0
        key = "anchor" if part.term.loss.to == "init" else part.datum.source
        sums[key] = sums.get(key, 0.0) + float(values[counted].sum())
        counts[key] = counts.get(key, 0) + int(counted.sum())
    means = {key: sums[key] / count for key, count in counts.items() if count}
    return StepStats(total, norm, means, float(np.mean(clipped)) if clipped else None)
