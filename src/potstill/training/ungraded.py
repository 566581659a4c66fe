"""The evaluation of a task without a grader: three distances from the teacher, in nats per token.

The model's completions are drawn at temperature 1, because each distance is an expectation over
a model's own samples: on greedy completions a student that has the teacher's distribution would
not be the best one. For each held-out problem:

- `kl`: KL(model || teacher) on the model's completion: the mean over its tokens of the divergence
  of the two next-token distributions. Where an engine has no full-vocabulary log-probs, log p - log
  q of the sampled token takes its place (`estimator`), which has the same mean over completions of
  one length and more noise.
- `teacher_loss`: the teacher's mean -log q on the model's completion.
- `student_loss`: the model's mean -log p on the teacher's completion, drawn at temperature 1 as
  well, or on those of the data if the pair has no teacher.

For the teacher itself `kl` is 0, and both losses are its loss on its own completions: the least
`student_loss` that any student has on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from potstill.algorithms.losses import ReverseKL
from potstill.engines.protocol import Engine
from potstill.errors import NonFinite, PotstillError
from potstill.types import Datum, Floats, Prompt, Reading, Role, Sample, Term

Values = npt.NDArray[np.float64]

EXACT, SAMPLED = "full vocabulary", "sampled tokens"  # estimators of the KL
MEASURES = ("kl", "teacher_loss", "student_loss")


def losses(
    engine: Engine,
    role: Role,
    own: tuple[Sequence[Prompt], Sequence[Sample]],
    reference: Sequence[Sequence[Reading]],
    *,
    teacher: bool,
) -> tuple[dict[str, Values], str]:
    """The distances (P,) of a model from the teacher, and the estimator of the KL.

    Args:
        engine: has the models.
        role: the model.
        own: prompts and samples of its completions, as many of each problem.
        reference: the teacher's completions of each problem; of the data, if there is no teacher.
        teacher: whether there is a teacher; if not, only `student_loss` is known.
    """
    values: dict[str, Values] = {}
    estimator = ""
    if teacher:
        prompts, samples = own
        readings = [(p, sample.tokens) for p, sample in zip(prompts, samples, strict=True)]
        numbers = np.repeat(np.arange(len(reference)), len(readings) // max(1, len(reference)))
        scores = engine.score("teacher", readings)
        if role == "teacher":
            values["kl"], estimator = np.zeros(len(reference)), EXACT
        else:
            drawn = [sample.logprobs for sample in samples]
            kl, estimator = divergences(engine, readings, drawn, scores)
            values["kl"] = _by_problem(kl, numbers, readings)
        values["teacher_loss"] = _by_problem(_losses(scores), numbers, readings)
    if any(reference):
        readings = [reading for completions in reference for reading in completions]
        numbers = np.repeat(np.arange(len(reference)), [len(c) for c in reference])
        scores = engine.score(role, readings)
        values["student_loss"] = _by_problem(_losses(scores), numbers, readings)
    if not all(np.isfinite(row).all() for row in values.values()):
        raise NonFinite("the distance of a model from the teacher")
    return values, estimator


def divergences(
    engine: Engine,
    readings: Sequence[Reading],
    drawn: Sequence[Floats],
    scores: Sequence[Floats],
) -> tuple[Values, str]:
    """KL(p, q) (N,) of each of the student's completions in nats per token, and its estimator.

    Args:
        engine: has the models.
        readings: N prompts with the student's completions.
        drawn: (T,) of each, the log-probabilities with which they were drawn.
        scores: (T,) of each, the teacher's log-probabilities.
    """
    if "reverse_kl" in engine.losses:
        loss = ReverseKL()
        data = [
            Datum(p, c, c, (Term(loss, np.full(len(c), 1 / len(c), np.float32)),), "student", s)
            for (p, c), s in zip(readings, drawn, strict=True)
            if c
        ]
        exact = engine.measure(data).by_datum
        if exact is not None:
            values = np.full(len(readings), np.nan)
            values[[bool(c) for _, c in readings]] = exact
            return values, EXACT
    gaps = [p.astype(float) - q for p, q in zip(drawn, scores, strict=True)]
    return np.array([_mean(gap) for gap in gaps]), SAMPLED


def _losses(scores: Sequence[Floats]) -> Values:
    return np.array([-_mean(row) for row in scores])


def _mean(row: Floats) -> float:
    return float(np.mean(row, dtype=float)) if len(row) else np.nan


def _by_problem(
    values: Values, numbers: npt.NDArray[np.int64], readings: Sequence[Reading]
) -> Values:
    """Means (P,) over the completions of each problem; those without tokens are left out."""
    known = np.array([bool(completion) for _, completion in readings])
    counts = np.bincount(numbers[known], minlength=int(numbers.max(initial=-1)) + 1)
    if (counts == 0).any():
        raise PotstillError(
            "the distance from the teacher is per token, and all completions of a held-out "
            f"problem are empty (number {int(np.argmin(counts)) + 1})",
            "remove it from the data",
        )
    return np.asarray(np.bincount(numbers[known], values[known]) / counts)
