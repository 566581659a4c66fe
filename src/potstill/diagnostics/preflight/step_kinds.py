"""Kinds of steps: a run's steps grouped by cost, so that one step of each kind has to be timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import Schedule, whole
from potstill.training import objective
from potstill.training.rollout import student_prompts
from potstill.types import Loss, Source


@dataclass(frozen=True)
class StepKind:
    """The properties of a step that determine its cost."""

    student: int  # prompts that the student completes
    teacher: int  # prompts that the teacher completes
    prefix: int  # tokens of the teacher before the student's
    losses: tuple[Loss, ...]

    @property
    def data(self) -> str:
        """The sources of the completions, for people."""
        if self.student and self.teacher:
            return "completions of both"
        return "student completions" if self.student else "teacher completions"


def kind_at(recipe: Recipe, t: float, batch: int, dealt: int | None = None) -> StepKind:
    """The kind of step that a recipe makes at progress `t`.

    Args:
        recipe: the method.
        t: progress of the run.
        batch: prompts per step.
        dealt: prompts of the student where the remainder of a share is dealt over the steps. One
            prompt more or less matters only where it leaves a source out; default: the nearest.
    """
    student = round(recipe.on_policy(t) * batch)
    if dealt is not None and not 0 < dealt < batch:
        student = dealt
    elif dealt is not None:
        student = min(max(student, 1), batch - 1)
    sources: list[Source] = ["student"] if student else []
    sources += ["teacher"] if student < batch else []
    losses = {loss for source in sources for loss, _ in objective.losses_for(recipe, source)}
    prefix = recipe.prefix.count(t) if student else 0
    return StepKind(student, batch - student, prefix, tuple(sorted(losses, key=str)))


def kinds_at(recipe: Recipe, t: float, batch: int) -> list[StepKind]:
    """The kinds of steps at progress `t`: two where a dealt remainder can leave a source out.

    >>> mixed = Recipe(name="x", on_policy=0.7)
    >>> [kind.student for kind in kinds_at(mixed, 0.0, 1)]
    [0, 1]
    >>> [kind.student for kind in kinds_at(mixed, 0.0, 32)]
    [22]
    """
    student = recipe.on_policy(t) * batch
    dealt = (whole(student), -whole(-student))  # one below and one above, unless it is whole
    return list(dict.fromkeys(kind_at(recipe, t, batch, count) for count in dealt))


def moments(recipe: Recipe) -> list[tuple[float, float]]:
    """Stretches of a run, as pairs of its end and the progress in its middle, which represents it.

    A stretch in which a schedule moves is split into two.

    >>> from potstill.algorithms.schedules import linear, switch
    >>> moments(Recipe(name="x", on_policy=switch(0.0, 1.0, at=0.5)))
    [(0.5, 0.25), (1.0, 0.75)]
    >>> moments(Recipe(name="x", prefix=linear(20, 0, until=0.5)))
    [(0.25, 0.125), (0.5, 0.375), (1.0, 0.75)]
    """
    schedules = (recipe.on_policy, recipe.prefix)
    ends = sorted({0.0, 1.0, *(s.until for s in schedules if _moves(s))})
    stretches: list[tuple[float, float]] = []
    for a, b in pairwise(ends):
        middle = (a + b) / 2
        if all(s(a) == s(middle) for s in schedules):
            stretches.append((b, middle))
        else:
            stretches += [(middle, (a + middle) / 2), (b, (middle + b) / 2)]
    return stretches


def _moves(schedule: Schedule) -> bool:
    return schedule.start != schedule.end


def teacher_calls(
    recipe: Recipe, step: int, count: int, batch: int
) -> Iterator[tuple[int, int, int, int]]:
    """Keys of a step's teacher completions in the cache: step, first and last prompt, length.

    Args:
        recipe: the method.
        step: index of the step.
        count: steps of the run.
        batch: prompts per step.
    """
    student = student_prompts(recipe.on_policy(step / count), batch, step, 0)
    prefix = recipe.prefix.count(step / count)
    if student < batch:
        yield step, student, batch, 0
    if student and prefix:
        yield step, 0, student, prefix
