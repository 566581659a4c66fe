"""The check of the completions that the data have: how many there are, end, and are right."""

from __future__ import annotations

from collections.abc import Callable

from potstill.diagnostics.preflight.check import Check
from potstill.diagnostics.preflight.rehearsal import Rehearsal
from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.tasks import Task, is_graded
from potstill.tasks.selecting import completed
from potstill.training.given import Survey, survey
from potstill.types import Ids

NAME = "data completions"
MANY = 0.5  # share of cut completions from which on it warns


def data_completions(rehearsal: Rehearsal) -> list[Check]:
    """Count the completions of the training problems, if a recipe trains on them."""
    engine, task = rehearsal.engine, rehearsal.any_run().task
    asking = [recipe for recipe in rehearsal.recipes if recipe.asks_teacher]
    if not asking or not completed(task.train):
        return []
    rejecting = any(recipe.reject_wrong for recipe in asking) and is_graded(task)
    limit = rehearsal.settings.max_tokens
    counts = survey(
        task.train,
        limit,
        lambda p, text: engine.encode_completion(engine.prompt(p), text),
        _grading(engine, task) if rejecting else None,
    )
    evidence = _evidence(counts, limit)
    if counts.unreadable:
        evidence += f"; {counts.unreadable} cannot be read, {counts.error}"
        return [Check(NAME, "refused", evidence, counts.error.hint)]
    if counts.cut == counts.checked:
        hint = f"raise train.max_tokens to {counts.longest}, which holds the longest"
        return [Check(NAME, "refused", evidence + ": none of them ends", hint)]
    if counts.right == 0:
        hint = "check the grader and the answers, or leave reject_wrong out"
        return [Check(NAME, "refused", evidence, hint)]
    if counts.cut > MANY * counts.checked:
        return [Check(NAME, "warning", evidence, f"raise train.max_tokens, up to {counts.longest}")]
    return [Check(NAME, "passed", evidence)]


def _evidence(counts: Survey, limit: int) -> str:
    parts = [
        f"{counts.having} of {counts.problems} training problems have {counts.texts} completions"
    ]
    if counts.checked < counts.texts:
        parts.append(f"{counts.checked} of them are looked at")
    cut = f"{counts.cut} of {counts.checked} are cut at train.max_tokens = {limit}"
    parts.append(f"{cut}, the longest has {counts.longest} tokens")
    if counts.right is not None:
        parts.append(f"{counts.right} of {counts.checked} are right, the others are rejected")
    return "; ".join(parts)


def _grading(engine: Engine, task: Task) -> Callable[[Problem, Ids], bool]:
    def grade(problem: Problem, ids: Ids) -> bool:
        opening = engine.opening(engine.prompt(problem), "student")
        return task.grade(problem, opening + engine.decode(ids)).correct

    return grade
