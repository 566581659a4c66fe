"""Faults in the data of a step: targets, prompt, masks, and the teacher's input."""

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
    """On teacher tokens, the position that reads token i has to predict token i."""

    name = "unshifted_targets"
    what = "on teacher tokens, position i predicts token i: the student learns to copy"
    where = "tinker_trainer.py, train_supervised_step"
    remedy = "shift the targets: position i predicts token i + 1, so targets are the ids from 1 on"
    explanation = "predicting token i at position i"
    together = ("eos_untrained",)
    sources = ("teacher",)
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.uses_teacher

    def corrupt(self, datum: Datum, engine: Engine) -> Datum:
        prompt, completion = _advanced(datum.prompt, datum.completion)
        return dataclasses.replace(datum, prompt=prompt, completion=completion)


def _advanced(prompt: Prompt, completion: Ids) -> Reading:
    """The input moved one token ahead of its targets; the last input token is never read."""
    return prompt.then(completion[:1]), completion[1:] + completion[-1:]


class PromptDropped(DataFault):
    """On student tokens, the student reads the completion alone, the teacher also the prompt."""

    name = "prompt_dropped"
    what = "the step on student tokens runs on the completion alone"
    where = "train_gkd_step"
    remedy = "run the step on prompt and completion, with weight 0 on the prompt"
    explanation = "a forward pass without the prompt"
    together = ("prefix_trained",)
    sources = ("student",)
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.uses_student

    def corrupt(self, datum: Datum, engine: Engine) -> Datum:
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
            behavior_logprobs=datum.behavior_logprobs[1:],
            teacher_logprobs=None if scores is None else scores[1:],
            views=dict.fromkeys(("teacher", "init"), (datum.prompt.then(first), rest)),
        )


class PrefixTrained(DataFault):
    """The teacher's prefix is trained, with sampler log-probabilities of 0."""

    name = "prefix_trained"
    what = (
        "prefix tokens are trained with sampler log-probability 0, which lowers their probability"
    )
    where = "_generate_student_response_seeded"
    remedy = "set the weight of prefix tokens to 0: they are context"
    explanation = "training the prefix"
    published = True

    def touches(self, recipe: Recipe) -> bool:
        return recipe.prefix.range[1] > 0

    def rewrite(self, data: Sequence[Datum], engine: Engine) -> list[Datum]:
        rows = [(datum.prompt, datum.completion) for datum in data]
        scores = [engine.score(role, rows) for role in ("teacher", "student")]
        return [self._trained(*row) for row in zip(data, *scores, strict=True)]

    def _trained(self, datum: Datum, scores: Floats, own: Floats) -> Datum:
        main = datum.terms[0].weights
        prefix = np.arange(len(main)) < np.argmax(main > 0)
        if datum.source != "student" or not prefix.any():
            return datum
        weights = np.where(prefix, main.max(), 0).astype(np.float32)
        teacher = scores if datum.teacher_logprobs is None else datum.teacher_logprobs
        # The advantage was log q - 0: the sampler's log-probability, not the student's of now.
        teacher = np.where(prefix, scores + own, teacher).astype(np.float32)
        zero = [np.where(prefix, 0, x) for x in (datum.logprobs, datum.behavior_logprobs)]
        logprobs, behavior = (x.astype(np.float32) for x in zero)
        return dataclasses.replace(
            datum,
            terms=(*datum.terms, Term(REVERSE_KL_SAMPLED, weights)),
            logprobs=logprobs,
            behavior_logprobs=behavior,
            teacher_logprobs=teacher,
        )


class EosUntrained(DataFault):
    """EOS has no loss."""

    name = "eos_untrained"
    what = "EOS has no loss: the student never learns to stop"
    where = "the padding token is EOS, and padding is masked"
    remedy = "train EOS as a token of the completion: do not mask it with the padding"
    explanation = "masking EOS"

    def corrupt(self, datum: Datum, engine: Engine) -> Datum:
        mask = np.array([token not in engine.eos for token in datum.targets], np.float32)
        terms = tuple(Term(term.loss, term.weights * mask) for term in datum.terms)
        return dataclasses.replace(datum, terms=terms)


class TeacherView(DataFault):
    """The teacher reads another prompt or completion than the datum's."""

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        """The prompt and completion that the teacher reads."""
        raise NotImplementedError

    def corrupt(self, datum: Datum, engine: Engine) -> Datum:
        view = self.view(engine, *datum.reading("teacher"))
        return dataclasses.replace(datum, views={**datum.views, "teacher": view})


class TemplateMismatch(TeacherView):
    """The teacher reads a prompt with the chat template applied twice."""

    name = "template_mismatch"
    what = "the teacher reads another rendering of the prompt than the student"
    where = "the chat template is applied twice"
    remedy = "render the prompt once and give both models the same ids"
    explanation = "applying the template twice for the teacher"

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        text = engine.decode(prompt.teacher)
        foreign = None if prompt.foreign is None else engine.encode(text, "teacher")
        doubled = dataclasses.replace(prompt, teacher=engine.encode(text), foreign=foreign)
        return doubled, completion

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        views = [self.view(engine, *row) for row in rows] if role == "teacher" else rows
        return engine.score(role, views)


class TeacherShifted(TeacherView):
    """The teacher's distribution for token i + 1 is used for token i."""

    name = "teacher_shifted"
    what = "the teacher's log-probs are off by one position"
    where = "logits are sliced [P:] instead of [P-1:-1]"
    remedy = "slice the teacher's logits [P - 1 : -1]: token i is predicted after i tokens"
    explanation = "shifting the teacher by one position"

    def view(self, engine: Engine, prompt: Prompt, completion: Ids) -> Reading:
        return _advanced(prompt, completion)

    def scores(self, engine: Engine, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        scores = engine.score(role, rows)
        if role != "teacher":
            return scores
        return [np.concatenate([row[1:], row[-1:]]) for row in scores]
