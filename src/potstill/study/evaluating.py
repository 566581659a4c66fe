"""Checks of a study's evaluation against its task, before a model is opened."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.study.schema import Study
from potstill.tasks import Task, is_graded
from potstill.types import Truncation

NO_GRADER = "name a grader in [task], or leave it out"


def check_evaluation(study: Study, task: Task, evaluated: Sequence[Problem]) -> None:
    """Raise `PotstillError` if the study needs a grader or completions that its task lacks.

    Args:
        study: the settings.
        task: its task.
        evaluated: the held-out problems.
    """
    if is_graded(task):
        return
    for name, recipe in study.recipes.items():
        for setting, used in (
            ("reject_wrong = true", recipe.reject_wrong),
            ('prefix_over = "success"', recipe.prefix_over == "success"),
        ):
            if used:
                raise PotstillError(
                    f"{name} has {setting}, which needs grades, and the task has no grader",
                    NO_GRADER,
                )
    chosen = study.eval
    if chosen.temperature not in (0.0, 1.0) or chosen.truncation != Truncation():
        raise PotstillError(
            "without a grader, evaluated completions are drawn at temperature 1 from all tokens, "
            f"got temperature = {chosen.temperature:g}, top_k = {chosen.top_k}, "
            f"top_p = {chosen.top_p:g}, min_p = {chosen.min_p:g}",
            "leave these settings of [eval] out",
        )
    if chosen.pass_at:
        raise PotstillError(
            "eval.pass_at counts right completions, and the task has no grader", NO_GRADER
        )
    for name, pair in study.models.items():
        lacking = [problem.id for problem in evaluated if not problem.completions]
        if not pair.teacher and lacking:
            raise PotstillError(
                "without a grader and a teacher, held-out problems have completions to measure "
                f'the student on: pair "{name}" has no teacher, and {len(lacking)} of '
                f"{len(evaluated)} problems have none (first: {lacking[0]})",
                "add a completion column to the held-out data, a teacher, or a grader",
            )
