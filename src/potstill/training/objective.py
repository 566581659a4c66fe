"""The objective: trajectories become weighted training data. Only this module reads a recipe's
losses; their mathematics is in `algorithms.losses`.

Loss = sum over sources of (the source's share of the batch) x (the mean loss over the source's
trained tokens). The weights contain both factors, so an engine only multiplies and adds. Prefix
tokens have weight 0. EOS is trained like any other token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from potstill.algorithms.losses import SampledLoss
from potstill.algorithms.recipe import Recipe, anchor_losses
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError
from potstill.types import Datum, Floats, Loss, Source, Term, Trajectory


def losses_for(recipe: Recipe, source: Source) -> list[tuple[Loss, float]]:
    """The losses on tokens that `source` wrote, each with its factor."""
    main = recipe.student_loss if source == "student" else recipe.teacher_loss
    cap = recipe.clip_advantage if main.needs == "token_scores" else recipe.kl_cap
    if cap and main.needs != "tokens":
        main = dataclasses.replace(main, cap=float(cap))
    terms = [(main, 1.0), *((loss, recipe.anchor) for loss in anchor_losses(recipe))]
    if source == "teacher" or not recipe.clip_ratio:
        return terms  # only the student moves away from what it wrote
    return [
        (dataclasses.replace(loss, clip_ratio=float(recipe.clip_ratio)), factor)
        if isinstance(loss, SampledLoss)
        else (loss, factor)
        for loss, factor in terms
    ]


def build(recipe: Recipe, batch: Sequence[Trajectory], engine: Engine) -> list[Datum]:
    """Weigh every token of a batch; score it by the teacher only if a loss needs the scores."""
    trained = {
        source: sum(t.trained for t in batch if t.source == source)
        for source in ("student", "teacher")
    }
    share = {s: sum(t.source == s for t in batch) / max(1, len(batch)) for s in trained}
    scores = _teacher_scores(recipe, batch, engine)
    data = []
    for trajectory, teacher_logprobs in zip(batch, scores, strict=True):
        source = trajectory.source
        if not trajectory.trained:
            continue
        terms = losses_for(recipe, source)
        if any(loss.needs == "token_scores" for loss, _ in terms):
            _check_behavior(trajectory)
        weights = np.zeros(len(trajectory.completion), np.float32)
        weights[trajectory.prefix :] = share[source] / trained[source]
        data.append(
            Datum(
                prompt=trajectory.prompt,
                completion=trajectory.completion,
                targets=trajectory.completion,
                terms=tuple(Term(loss, weights * np.float32(factor)) for loss, factor in terms),
                source=source,
                logprobs=trajectory.logprobs,
                teacher_logprobs=teacher_logprobs,
                behavior_logprobs=trajectory.behavior_logprobs,
                fresh=recipe.replay is None,
                origin=trajectory.origin,
            )
        )
    return data


def _teacher_scores(
    recipe: Recipe, batch: Sequence[Trajectory], engine: Engine
) -> list[Floats | None]:
    if recipe.student_loss.needs != "token_scores":
        return [None] * len(batch)
    student = [(t.prompt, t.completion) for t in batch if t.source == "student"]
    scores = iter(engine.score("teacher", student))
    return [next(scores) if t.source == "student" else None for t in batch]


def _check_behavior(t: Trajectory) -> None:
    """Reject tokens with an importance ratio that nobody knows."""
    if t.origin == "file":
        raise PotstillError(
            "reverse_kl_sampled needs the probability with which each token was drawn, and a "
            f"completion of the data has none ({t.problem})",
            'write anchor_loss = "reverse_kl", or leave the completions out of the data',
        )
    if np.isnan(t.behavior_logprobs[t.prefix :]).any():
        raise PotstillError(
            "reverse_kl_sampled needs the probability with which each token was drawn, and this "
            f"engine reports the {t.source}'s at temperature 1 only",
            f"set train.{'teacher_' * (t.source == 'teacher')}temperature to 1",
        )
