"""A study with its data: what its settings leave open until the problems are read."""

from __future__ import annotations

from potstill.errors import PotstillError
from potstill.settings import MOST_STEPS
from potstill.study.problems import study_task
from potstill.study.schema import Study
from potstill.tasks import Task
from potstill.training.validating import check_measure, held_back


def task_of(study: Study) -> Task:
    """The study's task, without long prompts, and without validation problems in training."""
    return held_back(study_task(study), study.train.validation)


def settled(study: Study, task: Task | None = None) -> Study:
    """The study with `train.epochs` written as steps; reads the data only if it has epochs.

    Args:
        study: its settings.
        task: the task, if it is loaded already.
    """
    if study.train.epochs is None:
        return study
    problems = len((task or task_of(study)).train)
    study = study.model_copy(update={"train": study.train.settled(problems)})
    check_length(study)
    return study


def check_validation(study: Study, task: Task) -> None:
    """Check that the validation problems can be measured by its settings."""
    check_measure(study.train, task)
    alone = [name for name, pair in study.models.items() if not pair.teacher]
    problems = getattr(task, "validation", ())
    if alone and problems and not any(problem.completions for problem in problems):
        raise PotstillError(
            "a validation loss is on the teacher's completions or on those of the data, and pair "
            f'"{alone[0]}" has no teacher and its validation problems no completions',
            "give the pair a teacher or the data completions, or leave train.validation out",
        )


def check_length(study: Study) -> None:
    """Check the steps of every method, unless they depend on the data."""
    if study.train.epochs is not None:
        return
    longest = max(map(study.total_steps, study.recipes.values()))
    if longest > MOST_STEPS:
        raise PotstillError(
            f"a run has at most {MOST_STEPS:,} steps, a recipe's budget times train.steps is "
            f"{longest:,}",
            "lower train.steps or the budget",
        )
    for recipe in study.recipes.values():
        if recipe.replay and study.train.steps < 2:
            raise PotstillError(
                f"{recipe.name} replays earlier steps, train.steps is 1", "raise train.steps"
            )
