"""Checks of the completions that the data have, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill.errors import Errors, PotstillError
from potstill.fields import brief
from potstill.problems import Problem
from potstill.settings import Pair
from potstill.study.schema import Study
from potstill.tasks import Task, is_graded
from potstill.tasks.selecting import completed
from potstill.training.given import Encode, Survey, survey
from potstill.types import Ids, ModelSpec

Decode = Callable[[Ids], str]


def check_completions(study: Study, task: Task, evaluated: Sequence[Problem]) -> None:
    """Check that each problem has the completions that the study needs, and that they can be read.

    Args:
        study: the settings.
        task: its training problems may have completions.
        evaluated: the held-out problems.

    Raises:
        PotstillError: all that is wrong with them.
    """
    errors = Errors()
    _check_present(study, task, errors)
    errors.check()
    if not any(recipe.asks_teacher for recipe in study.recipes.values()):
        return
    _check_anchors(study, task, errors)
    texts = bool(completed(task.train))
    for name, pair in study.models.items():
        ungraded = not (pair.teacher or is_graded(task))
        if texts or ungraded:
            with errors:
                _check_texts(study, name, pair, task, evaluated if ungraded else ())
    errors.check()


def _check_present(study: Study, task: Task, errors: Errors) -> None:
    """Check that there are completions wherever no teacher can write them."""
    having = completed(task.train)
    if len(having) == len(task.train):
        return
    missing = next(place for place, other in enumerate([*having, -1]) if place != other)
    first, lacking = task.train[missing].id, len(task.train) - len(having)
    count = f"{lacking} of {len(task.train)} training problems have no completion"
    asking = {name: r for name, r in study.recipes.items() if r.asks_teacher}
    data = [name for name, recipe in asking.items() if recipe.from_data]
    if data:
        errors.add(
            PotstillError(
                f"{', '.join(data)} trains on completions of the data, and {count} (first: "
                f"{first})",
                "give every problem a completion column, or drop those without one; where a "
                'teacher shall write them, use "off_policy"',
            )
        )
    others = [name for name in asking if name not in data]
    for name, pair in study.models.items() if others else ():
        if not pair.teacher:
            errors.add(
                PotstillError(
                    f'{count}, and pair "{name}" has no teacher to write it (first: {first})',
                    f"drop them, or name a teacher, pair.{name}.teacher",
                )
            )


def _check_anchors(study: Study, task: Task, errors: Errors) -> None:
    """Check that no loss needs the probability with which a completion was written."""
    first = task.train[having[0]].id if (having := completed(task.train)) else ""
    for recipe in study.recipes.values() if first else ():
        sampled = recipe.anchor_loss.needs == "token_scores"
        if recipe.anchor and sampled and recipe.uses_teacher:
            errors.add(
                PotstillError(
                    f"{recipe.name} anchors by {recipe.anchor_loss}, which needs the probability "
                    f"with which each token was drawn, and a completion of the data has none "
                    f"({first})",
                    'write anchor_loss = "reverse_kl", or leave the method out',
                )
            )


def _check_texts(
    study: Study, name: str, pair: Pair, task: Task, evaluated: Sequence[Problem]
) -> None:
    """Check the texts themselves: they can be tokenized, some of them end, and some are right."""
    encode, decode = _tokenizing(study, pair, task)
    rejecting = [r.name for r in study.recipes.values() if r.reject_wrong and r.asks_teacher]
    grade = None
    if rejecting and is_graded(task):

        def grade(problem: Problem, ids: Ids) -> bool:
            return task.grade(problem, decode(ids)).correct

    limit = study.train.max_tokens
    counts = survey(task.train, limit, encode, grade)
    refuse(counts, limit, f'pair "{name}"', rejecting)
    refuse(survey(evaluated, study.graded_tokens, encode), 0, f'pair "{name}"')


def refuse(counts: Survey, limit: int, where: str, rejecting: Sequence[str] = ()) -> None:
    """Raise for completions that cannot be trained on; a limit of 0 is none."""
    if counts.unreadable:
        count = f"{counts.unreadable} of {counts.checked} completions"
        raise PotstillError(f"{where}: {count} cannot be read; {counts.error}", counts.error.hint)
    if limit and counts.checked and counts.cut == counts.checked:
        raise PotstillError(
            f"{where}: {counts.cut} of {counts.checked} completions reach train.max_tokens = "
            f"{limit}: none of them ends",
            f"raise train.max_tokens to {counts.longest}, which holds the longest",
        )
    if counts.right == 0 and counts.example is not None:
        problem, text = counts.example
        raise PotstillError(
            f"{where}: all {counts.checked} completions are graded wrong, and "
            f"{', '.join(rejecting)} trains on right ones alone (first: {problem.id}, answer "
            f"{brief(problem.answer)}, {brief(text)})",
            "check the grader and the answers, or leave reject_wrong out",
        )


def _tokenizing(study: Study, pair: Pair, task: Task) -> tuple[Encode, Decode]:
    """Functions that write and read the ids of completions, from tokenizer files alone."""
    if study.engine.name == "fake":
        from potstill.engines.registry import open_engine

        engine = open_engine("fake", pair)
        return lambda p, text: engine.encode_completion(engine.prompt(p), text), engine.decode
    from potstill.engines.completions import CompletionEncoder
    from potstill.engines.torch.loading import ModelPair
    from potstill.engines.torch.thoughts import decoder_of
    from potstill.tasks.grading import THOUGHT
    from potstill.tasks.rendering import written

    specs = (ModelSpec(), ModelSpec())
    if study.engine.name == "torch":
        specs = study.engine.student, study.engine.teacher
    models = ModelPair.open(pair.student, pair.teacher, *specs, study.engine.name == "torch")
    encoder = CompletionEncoder(
        models.tokenizer, models.eos, models.vocabulary, models.student_spec
    )
    prompt = written(models.tokenizer, task.train[0].conversation, models.student_spec)
    opening = THOUGHT[0] if prompt.rstrip().endswith(THOUGHT[0]) else ""
    decode = decoder_of(models.tokenizer)

    def encode(problem: Problem, text: str) -> Ids:
        try:
            return encoder.ways(text, prompt)[0]
        except PotstillError as error:
            raise PotstillError(f"{problem.id}: {error}", error.hint) from None

    return encode, lambda ids: opening + decode(ids)
