"""What a run will take: real steps at learning rate 0, timed, on the batch of the study.

A step of each kind that the recipes have (how many texts are the student's, how long the prefix,
which losses), each with what is watched beside it, and gradings of two sizes, through which a line
gives the study's own. What a teacher has written for one method is not written again for the next:
its seconds are counted once. The optimizer has its moments afterwards, so that the peak of memory
is a training step's. It leaves out what training changes: texts are taken to stay as long.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import Schedule, constant
from potstill.diagnostics.monitor import Monitor
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training import objective
from potstill.training.evaluation import TeacherCompletions, evaluate
from potstill.training.metering import Metered, Usage
from potstill.training.rollout import collect, draw
from potstill.training.run import RunSpec
from potstill.training.spending import Spent, total
from potstill.types import Limits, Loss, Role, Source

REPEATS = 2  # steps of each kind
GRADED = (48, 144)  # problems of the two gradings


@dataclass(frozen=True)
class Kind:
    """What tells one step from another, as far as its cost goes."""

    student: int  # prompts that the student answers
    teacher: int  # and the teacher
    prefix: int  # tokens that the teacher writes before it
    losses: tuple[Loss, ...]

    @property
    def words(self) -> str:
        """Whose text it trains on."""
        if self.student and self.teacher:
            return "text of both"
        return "student text" if self.student else "teacher text"


@dataclass(frozen=True)
class Step:
    """What one step takes, and what of it comes from a cache where another run had it."""

    spent: Spent
    kept: float  # seconds of the teacher's writing


LOSSES = ("student_loss", "teacher_loss", "anchor", "anchor_loss")  # of a recipe


@dataclass(frozen=True)
class Estimate:
    """What one pair's runs take, each as one process does them."""

    steps: Mapping[Kind, Step]
    gradings: Mapping[Role, Spent]  # one grading of the study's size
    looks: Spent  # once at what the student does
    runs: Mapping[str, Spent]  # method -> one run
    peak: int  # bytes
    memory: int  # bytes that there are

    @property
    def words(self) -> str:
        """The estimate as evidence."""
        times: dict[str, list[float]] = {}
        for kind, step in self.steps.items():
            times.setdefault(kind.words, []).append(step.spent.seconds)
        steps = ", ".join(f"{_span(found)} on {words}" for words, found in times.items())
        runs = _span([run.seconds for run in self.runs.values()])
        grading = self.gradings["student"].seconds
        return (
            f"a step takes {steps}, a grading {grading:.2g} s, a run about {runs} "
            f"if texts stay as long; peak {_size(self.peak)} of {_size(self.memory)}"
        )


def estimate(
    engine: Engine, recipes: Sequence[Recipe], task: Task, settings: Train, grading: Eval
) -> Estimate:
    """Time a step of each kind and scale it to the runs of every recipe.

    Args:
        engine: bare; its optimizer is stepped at learning rate 0.
        recipes: the study's.
        task: gives prompts and problems to grade.
        settings: steps, batch and limits.
        grading: how often and how many.
    """
    steps: dict[Kind, Step] = {}
    for recipe in recipes:
        for _, moment in moments(recipe):
            kind = kind_at(recipe, moment, settings.batch_size)
            if kind not in steps:
                steps[kind] = _timed(engine, recipe, kind, moment, task, settings)
    gradings: dict[Role, Spent] = {
        role: _grading(engine, role, task, settings, grading) for role in ("student", "teacher")
    }
    looks = _looks(engine, recipes[0], task, settings, grading)
    runs: dict[str, Spent] = {}
    written: set[tuple[int, ...]] = set()  # by the teacher, in the order in which a study runs
    for recipe in sorted(recipes, key=lambda recipe: -recipe.budget):
        training = _training(recipe, steps, settings, written)
        count = max(1, round(settings.steps * recipe.budget))
        graded = gradings["student"] * -(-count // grading.every)
        runs[recipe.name] = training + graded + looks * (-(-count // grading.probe_every) + 1)
    return Estimate(steps, gradings, looks, runs, *engine.memory())


def moments(recipe: Recipe) -> list[tuple[float, float]]:
    """Stretches of a run, as their ends and the progress that stands for each: its middle. A
    stretch in which something moves is two.

    >>> moments(Recipe(name="x", on_policy=switch(0.0, 1.0, at=0.5)))
    [(0.5, 0.25), (1.0, 0.75)]
    >>> moments(Recipe(name="x", prefix=linear(20, 0, until=0.5)))
    [(0.25, 0.125), (0.5, 0.375), (1.0, 0.75)]
    """
    ends = sorted({0.0, 1.0, *(s.until for s in (recipe.on_policy, recipe.prefix) if _moves(s))})
    found: list[tuple[float, float]] = []
    for a, b in pairwise(ends):
        still = all(s(a) == s((a + b) / 2) for s in (recipe.on_policy, recipe.prefix))
        middle = (a + b) / 2
        found += [(b, middle)] if still else [(middle, (a + middle) / 2), (b, (middle + b) / 2)]
    return found


def _moves(schedule: Schedule) -> bool:
    return schedule.start != schedule.end


def kind_at(recipe: Recipe, t: float, batch: int) -> Kind:
    """The kind of step that a recipe makes at some progress."""
    student = round(recipe.on_policy(t) * batch)
    sources: list[Source] = ["student"] if student else []
    sources += ["teacher"] if student < batch else []
    losses = {loss for source in sources for loss, _ in objective.losses_for(recipe, source)}
    prefix = int(recipe.prefix(t)) if student else 0
    return Kind(student, batch - student, prefix, tuple(sorted(losses, key=str)))


def _timed(
    engine: Engine, recipe: Recipe, kind: Kind, t: float, task: Task, settings: Train
) -> Step:
    """What one whole step of a kind takes."""
    alone = Recipe(
        name=recipe.name,
        on_policy=constant(recipe.on_policy(t)),
        prefix=constant(kind.prefix),
        interleave=recipe.interleave if kind.student else 0,
        **{key: getattr(recipe, key) for key in LOSSES},
    )
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    found: list[tuple[Spent, float]] = []
    for turn in range(REPEATS):
        problems = draw(task.train, settings.batch_size, 0, turn)
        start, usage = time.perf_counter(), Usage(engine)
        meter = Metered(engine, usage)
        batch = collect(alone, meter, problems, t, turn, 0, limits)
        meter.step(objective.build(alone, batch, meter), 0.0)
        kept = usage.seconds["teacher sampling"]
        found.append((_spent(start, usage), kept))
    mean = total(spent for spent, _ in found) * (1 / REPEATS)
    return Step(mean, sum(kept for _, kept in found) / REPEATS)


def _spent(start: float, usage: Usage) -> Spent:
    return Spent.read(
        {"seconds": time.perf_counter() - start, "tokens": usage.tokens, "flops": usage.flops}
    )


def _grading(engine: Engine, role: Role, task: Task, settings: Train, grading: Eval) -> Spent:
    """What grading the study's problems takes, by a line through two smaller gradings."""
    limit = grading.max_tokens or settings.max_tokens
    found: list[tuple[int, Spent]] = []
    for few in sorted({min(grading.problems, size) for size in GRADED}):
        start, usage = time.perf_counter(), Usage(engine)
        evaluate(Metered(engine, usage, "evaluation"), role, task, task.test[:few], limit)
        found.append((few, _spent(start, usage)))
    (small, less), (large, more) = found[0], found[-1]
    mean = more * (grading.problems / large)
    if small == large:
        return mean
    slope = max(0.0, (more.seconds - less.seconds) / (large - small))
    return replace(mean, seconds=more.seconds + slope * (grading.problems - large))


def _looks(engine: Engine, recipe: Recipe, task: Task, settings: Train, grading: Eval) -> Spent:
    """What it takes to look once at the student: its loss worked out, the probe answered."""
    probed = task.train[: grading.probe]
    texts = TeacherCompletions.generate(
        engine, task, probed, grading.max_tokens or settings.max_tokens
    )
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    usage = Usage(engine)
    counted = Metered(engine, usage, "evaluation")
    monitor = Monitor(RunSpec(recipe, engine, task, 0), settings, grading, counted, texts)
    batch = collect(recipe, engine, draw(task.train, settings.batch_size, 0, 0), 0.0, 0, 0, limits)
    counted.usage = usage = Usage(engine)
    start = time.perf_counter()
    monitor.before(1, batch, batch)
    monitor.probe.measure()
    return _spent(start, usage)


def _training(
    recipe: Recipe, steps: Mapping[Kind, Step], settings: Train, written: set[tuple[int, ...]]
) -> Spent:
    """All steps of a run: each is of the kind that its stretch of the run is timed as."""
    count, batch = max(1, round(settings.steps * recipe.budget)), settings.batch_size
    stretches = moments(recipe)
    parts: Counter[Kind] = Counter()
    saved = 0.0
    for step in range(count):
        moment = next(t for end, t in stretches if step / count < end)
        kind = kind_at(recipe, moment, batch)
        parts[kind] += 1
        calls = set(_teacher_calls(recipe, step, count, batch))
        if calls and calls <= written:
            saved += steps[kind].kept
        written |= calls
    spent = total(steps[kind].spent * times for kind, times in parts.items())
    return replace(spent, seconds=spent.seconds - saved)


def _teacher_calls(recipe: Recipe, step: int, count: int, batch: int) -> Iterator[tuple[int, ...]]:
    """What of the teacher's writing in a step a cache would find again: step, prompts, length."""
    student = round(recipe.on_policy(step / count) * batch)
    prefix = int(recipe.prefix(step / count))
    if student < batch:
        yield step, student, batch, 0
    if student and prefix:
        yield step, 0, student, prefix


def _span(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{low:.2g} s" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
