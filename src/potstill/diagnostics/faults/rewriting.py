"""Faults that rewrite the data of a step: shift, prompt, masks, the teacher's view."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from potstill.algorithms.losses import REVERSE_KL_SAMPLED
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults.base import DataFault
from potstill.engines.protocol import Engine
from potstill.types import Datum, Floats, Ids, Prompt, Reading, Role, Term


class UnshiftedTargets(DataFault):
    """On teacher tokens, the position that reads token i is asked for token i."""

    name = "unshifted_targets"
    what = "supervised steps ask position i for token i: the student learns to copy"
    where = "tinker_trainer.py, train_supervised_step"
    remedy = "shift: position i predicts token i + 1, so targets are the ids from 1 on"
    would_be = "asking position i for token i"
    together = ("eos_untrained",)
    sources = ("teacher",)
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.uses_teacher

    def spoil(self, datum: Datum, engine: Engine) -> Datum:
        prompt, completion = _advanced(datum.prompt, datum.completion)
        return dataclasses.replace(datum, prompt=prompt, completion=completion)


def _advanced(prompt: Prompt, completion: Ids) -> Reading:
    """Input moved on by one token against its targets; the last input is never read."""
    return prompt.then(completion[:1]), completion[1:] + completion[-1:]


class PromptDropped(DataFault):
    """On student tokens, the forward pass sees the completion alone; the teacher saw the prompt."""

    name = "prompt_dropped"
    what = "the step on student tokens runs on the completion alone"
    where = "train_gkd_step"
    remedy = "run the step on prompt and completion, and give the prompt weight 0"
    would_be = "a forward pass without the prompt"
    together = ("prefix_trained",)
    sources = ("student",)
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.uses_student

    def spoil(self, datum: Datum, engine: Engine) -> Datum:
        if len(datum.completion) < 2:
            return datum
        first, rest = datum.completion[:1], datum.completion[1:]
        scores = datum.teacher_logprobs
        return dataclasses.replace(
            datum,
            prompt=dataclasses.replace(datum.prompt, student=(), teacher=(), begun=first),
            completion=rest,
            targets=datum.targets[1:],
            terms=tuple(Term(term.loss, term.weights[1:]) for term in datum.terms),
            logprobs=datum.logprobs[1:],
            teacher_logprobs=None if scores is None else scores[1:],
            views=dict.fromkeys(("teacher", "init"), (datum.prompt.then(first), rest)),
        )


class PrefixTrained(DataFault):
    """Tokens of the teacher's prefix are trained with a sampler log-probability of 0."""

    name = "prefix_trained"
    what = "seeded tokens get sampler log-probability 0: the teacher's own tokens are pushed down"
    where = "_generate_student_response_seeded"
    remedy = "give seeded tokens weight 0: they are context"
    would_be = "training the prefix"
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.prefix.range[1] > 0

    def rewrite(self, data: Sequence[Datum], engine: Engine) -> list[Datum]:
        rows = [(datum.prompt, datum.completion) for datum in data]
        scores = engine.score("teacher", rows)
        return [self._pushed(datum, score) for datum, score in zip(data, scores, strict=True)]

    def _pushed(self, datum: Datum, scores: Floats) -> Datum:
        main = datum.terms[0].weights
        seeded = np.arange(len(main)) < np.argmax(main > 0)
        if datum.source != "student" or not seeded.any():
            return datum
        weights = np.where(seeded, main.max(), 0).astype(np.float32)
        known = datum.teacher_logprobs
        return dataclasses.replace(
            datum,
            terms=(*datum.terms, Term(REVERSE_KL_SAMPLED, weights)),
            logprobs=np.where(seeded, 0, datum.logprobs).astype(np.float32),
            teacher_logprobs=scores if known is None else known,
        )


class EosUntrained(DataFault):
    """EOS carries no loss."""

    name = "eos_untrained"
    what = "EOS carries no loss: the student never learns to stop"
    where = "pad token is EOS, and padding is masked"
    remedy = "EOS is a token of the completion: do not mask it with the padding"
    would_be = "leaving EOS out"

    def spoil(self, datum: Datum, engine: Engine) -> Datum:
        kept = np.array([token not in engine.eos for token in datum.targets], np.float32)
        terms = tuple(Term(term.loss, term.weights * kept) for term in datum.terms)
        return dataclasses.replace(datum, terms=terms)


class TeacherView(DataFault):
    """The teacher reads another row than the one that it is asked about."""

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        """The row that it reads."""
        raise NotImplementedError

    def spoil(self, datum: Datum, engine: Engine) -> Datum:
        view = self.view(engine, *datum.reading("teacher"))
        return dataclasses.replace(datum, views={**datum.views, "teacher": view})


class TemplateMismatch(TeacherView):
    """The teacher scores a prompt to which the chat template was applied twice."""

    name = "template_mismatch"
    what = "the teacher scores under another rendering of the prompt"
    where = "chat template applied twice"
    remedy = "render the prompt once and give both models the same ids"
    would_be = "the teacher under a doubled template"

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        text = engine.decode(prompt.teacher)
        foreign = None if prompt.foreign is None else engine.encode(text, "teacher")
        doubled = dataclasses.replace(prompt, teacher=engine.encode(text), foreign=foreign)
        return doubled, completion

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        views = [self.view(engine, *row) for row in rows] if role == "teacher" else rows
        return engine.score(role, views)


class TeacherShifted(TeacherView):
    """The teacher's distribution for token i + 1 is taken for that of token i."""

    name = "teacher_shifted"
    what = "the teacher's rows are off by one position"
    where = "logits sliced [P:] where [P-1:-1] is meant"
    remedy = "the teacher's row for token i is its output after i tokens: [P - 1 : -1]"
    would_be = "the teacher one position on"

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        return _advanced(prompt, completion)

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        scores = engine.score(role, rows)
        if role != "teacher":
            return scores
        return [np.concatenate([row[1:], row[-1:]]) for row in scores]
