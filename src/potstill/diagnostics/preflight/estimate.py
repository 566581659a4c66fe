"""The estimate of a study's cost, from real steps at learning rate 0 on the study's batch size.

It times a step of each kind that the recipes have, one probe, and evaluations of two sizes, through
which a line gives the study's size. Teacher completions that an earlier run leaves in the cache
save their seconds, not their tokens. The timed steps fill the optimizer's state, so that the peak
of memory is that of training. The estimate assumes that completions keep their length.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import constant
from potstill.diagnostics.monitor import Monitor
from potstill.diagnostics.preflight.step_kinds import (
    StepKind,
    kind_at,
    kinds_at,
    moments,
    teacher_calls,
)
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training import objective
from potstill.training.evaluation import TeacherCompletions, evaluate
from potstill.training.metering import Metered, Usage
from potstill.training.rollout import collect, draw, student_prompts
from potstill.training.run import RunSpec
from potstill.training.spending import Spent, total
from potstill.types import Limits, Role

REPEATS = 2  # steps of each kind
PROBLEMS = (48, 144)  # problems of the two evaluations
LOSSES = ("student_loss", "teacher_loss", "anchor", "anchor_loss")  # fields of a recipe


@dataclass(frozen=True)
class Step:
    """Cost of a step, and the part that a cache of teacher completions can save."""

    spent: Spent
    cached: float  # seconds of the teacher's sampling


@dataclass(frozen=True)
class Estimate:
    """Cost of one pair's runs, each in one process."""

    steps: Mapping[StepKind, Step]
    evaluations: Mapping[Role, Spent]  # one evaluation of the study's size
    probe: Spent  # one probe with the checks before it
    runs: Mapping[str, Spent]  # method -> one run
    peak: int  # bytes used at most
    memory: int  # bytes in total

    @property
    def summary(self) -> str:
        """The estimate as evidence of the check."""
        times: dict[str, list[float]] = {}
        for kind, step in self.steps.items():
            times.setdefault(kind.data, []).append(step.spent.seconds)
        steps = ", ".join(f"{_range(seconds)} on {data}" for data, seconds in times.items())
        runs = _range([run.seconds for run in self.runs.values()])
        evaluation = self.evaluations["student"].seconds
        return (
            f"a step takes {steps}, an evaluation {evaluation:.2g} s, a run about {runs} "
            f"if completions keep their length; peak {_size(self.peak)} of {_size(self.memory)}"
        )


def estimate(
    engine: Engine, recipes: Sequence[Recipe], task: Task, settings: Train, evaluation: Eval
) -> Estimate:
    """Time a step of each kind and scale it to the runs of every recipe.

    Args:
        engine: the engine without faults; its optimizer makes steps at learning rate 0.
        recipes: the study's recipes.
        task: problems to sample and to evaluate.
        settings: steps, batch and limits.
        evaluation: number of problems and intervals.
    """
    steps: dict[StepKind, Step] = {}
    for recipe in recipes:
        for _, moment in moments(recipe):
            for kind in kinds_at(recipe, moment, settings.batch_size):
                if kind not in steps:
                    steps[kind] = _timed_step(engine, recipe, kind, moment, task, settings)
    evaluations: dict[Role, Spent] = {
        role: _timed_evaluation(engine, role, task, settings, evaluation)
        for role in ("student", "teacher")
    }
    probe = _timed_probe(engine, recipes[0], task, settings, evaluation)
    runs: dict[str, Spent] = {}
    cache: set[tuple[int, ...]] = set()  # filled in the order in which a study runs
    for recipe in sorted(recipes, key=lambda recipe: -recipe.budget):
        training = _training(recipe, steps, settings, cache)
        count = recipe.total_steps(settings.steps)
        evaluated = evaluations["student"] * -(-count // evaluation.every)
        probes = -(-count // evaluation.probe_every) + 1
        runs[recipe.name] = training + evaluated + probe * probes
    return Estimate(steps, evaluations, probe, runs, *engine.memory())


def _timed_step(
    engine: Engine, recipe: Recipe, kind: StepKind, t: float, task: Task, settings: Train
) -> Step:
    """Mean cost of steps of one kind."""
    fixed = Recipe(
        name=recipe.name,
        on_policy=constant(kind.student / settings.batch_size),
        prefix=constant(kind.prefix),
        interleave=recipe.interleave if kind.student else 0,
        **{key: getattr(recipe, key) for key in LOSSES},
    )
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    costs: list[Spent] = []
    cached = 0.0
    for step in range(REPEATS):
        problems = draw(task.train, settings.batch_size, 0, step)
        start, usage = time.perf_counter(), Usage(engine)
        meter = Metered(engine, usage)
        batch = collect(fixed, meter, problems, t, step, 0, limits)
        meter.step(objective.build(fixed, batch, meter), 0.0)
        cached += usage.seconds["teacher sampling"]
        costs.append(_spent(start, usage))
    return Step(total(costs) * (1 / REPEATS), cached / REPEATS)


def _spent(start: float, usage: Usage) -> Spent:
    return Spent.read(
        {"seconds": time.perf_counter() - start, "tokens": usage.tokens, "flops": usage.flops}
    )


def _timed_evaluation(
    engine: Engine, role: Role, task: Task, settings: Train, evaluation: Eval
) -> Spent:
    """Cost of an evaluation of the study's size, by a line through two smaller ones."""
    limit = evaluation.max_tokens or settings.max_tokens
    costs: list[tuple[int, Spent]] = []
    for count in sorted({min(evaluation.problems, size) for size in PROBLEMS}):
        start, usage = time.perf_counter(), Usage(engine)
        evaluate(Metered(engine, usage, "evaluation"), role, task, task.test[:count], limit)
        costs.append((count, _spent(start, usage)))
    (small, less), (large, more) = costs[0], costs[-1]
    scaled = more * (evaluation.problems / large)
    if small == large:
        return scaled
    slope = max(0.0, (more.seconds - less.seconds) / (large - small))
    return replace(scaled, seconds=more.seconds + slope * (evaluation.problems - large))


def _timed_probe(
    engine: Engine, recipe: Recipe, task: Task, settings: Train, evaluation: Eval
) -> Spent:
    """Cost of one probe with the checks of the step before it."""
    limit = evaluation.max_tokens or settings.max_tokens
    teacher = TeacherCompletions.generate(engine, task, task.train[: evaluation.probe], limit)
    limits = Limits(settings.max_tokens, settings.temperature, settings.teacher_temperature)
    meter = Metered(engine, Usage(engine), "evaluation")
    monitor = Monitor(RunSpec(recipe, engine, task, 0), settings, evaluation, meter, teacher)
    batch = collect(recipe, engine, draw(task.train, settings.batch_size, 0, 0), 0.0, 0, 0, limits)
    meter.usage = usage = Usage(engine)
    start = time.perf_counter()
    monitor.before(1, batch, batch)
    monitor.probe.measure()
    return _spent(start, usage)


def _training(
    recipe: Recipe, steps: Mapping[StepKind, Step], settings: Train, cache: set[tuple[int, ...]]
) -> Spent:
    """Cost of all steps of a run, each with the kind of its stretch; adds to the cache."""
    count, batch = recipe.total_steps(settings.steps), settings.batch_size
    stretches = moments(recipe)
    kinds: Counter[StepKind] = Counter()
    saved = 0.0
    for step in range(count):
        moment = next(t for end, t in stretches if step / count < end)
        dealt = student_prompts(recipe.on_policy(moment), batch, step, 0)
        kind = kind_at(recipe, moment, batch, dealt)
        kinds[kind] += 1
        calls = set(teacher_calls(recipe, step, count, batch))
        if calls and calls <= cache:
            saved += steps[kind].cached
        cache |= calls
    spent = total(steps[kind].spent * times for kind, times in kinds.items())
    return replace(spent, seconds=spent.seconds - saved, saved=saved)


def _range(seconds: Sequence[float]) -> str:
    low, high = f"{min(seconds):.2g}", f"{max(seconds):.2g}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
