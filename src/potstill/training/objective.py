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

from potstill.algorithms.recipe import Recipe, anchor_losses
from potstill.engines.protocol import Engine
from potstill.types import Datum, Floats, Loss, Source, Term, Trajectory


def losses_for(recipe: Recipe, source: Source) -> list[tuple[Loss, float]]:
    """The losses on tokens that `source` wrote, each with its factor."""
    main = recipe.student_loss if source == "student" else recipe.teacher_loss
    cap = recipe.clip_advantage if main.needs == "token_scores" else recipe.kl_cap
    if cap and main.needs != "tokens":
        main = dataclasses.replace(main, cap=float(cap))
    return [(main, 1.0), *((loss, recipe.anchor) for loss in anchor_losses(recipe))]


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
        weights = np.zeros(len(trajectory.completion), np.float32)
        weights[trajectory.prefix :] = share[source] / trained[source]
        data.append(
            Datum(
                prompt=trajectory.prompt,
                completion=trajectory.completion,
                targets=trajectory.completion,
                terms=tuple(
                    Term(loss, weights * np.float32(factor))
                    for loss, factor in losses_for(recipe, source)
                ),
                source=source,
                logprobs=trajectory.logprobs,
                teacher_logprobs=teacher_logprobs,
            )
        )
    return data


def _teacher_scores(
    recipe: Recipe, batch: Sequence[Trajectory], engine: Engine
) -> list[Floats | None]:
    if recipe.student_loss.needs != "token_scores":
        return [None] * len(batch)
    student = [t for t in batch if t.source == "student"]
    scores = engine.score("teacher", [(t.prompt, t.completion) for t in student])
    clipped = iter(_clipped(recipe, t, q) for t, q in zip(student, scores, strict=True))
    return [next(clipped) if t.source == "student" else None for t in batch]


def _clipped(recipe: Recipe, t: Trajectory, scores: Floats) -> Floats:
    """Teacher log-probabilities (T,), clipped so that the advantages are within the limit."""
    limit = recipe.clip_advantage
    return t.logprobs + (scores - t.logprobs).clip(-limit, limit) if limit else scores
