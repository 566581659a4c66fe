"""The estimate of a study's cost, from real steps at learning rate 0 on the study's batch size.

It times a step of each kind that the recipes have, a probe, and evaluations of several sizes: a
line through the two largest gives the study's size. One step of each kind, a small evaluation and
a part of a probe are always timed; they show how much more the budget of pre-flight pays for.
Teacher completions that an earlier run leaves in the cache save their seconds, not their tokens.
The timed steps fill the optimizer's state, so that the peak of memory is that of training. The
estimate assumes that completions keep their length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight.budget import TimeBudget, reduced
from potstill.diagnostics.preflight.step_kinds import StepKind, kind_at, moments, teacher_calls
from potstill.diagnostics.preflight.timing import Step, Timing
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.tasks import Task
from potstill.training.rollout import student_prompts
from potstill.training.spending import Spent, total
from potstill.types import Role

MOST_COUNTED = 10_000  # steps of a run that are counted one by one
REFINED = 0.5  # share of the budget within which the measurements are repeated and enlarged


@dataclass(frozen=True)
class Estimate:
    """Cost of one pair's runs, each in one process."""

    steps: Mapping[StepKind, Step]
    evaluations: Mapping[Role, Spent]  # one evaluation of the study's size
    probe: Spent  # one probe with the checks before it
    runs: Mapping[str, Spent]  # method -> one run
    peak: int  # bytes used at most
    memory: int  # bytes in total
    evaluated: int  # problems of the largest evaluation that was timed
    per_problem: float  # seconds of both models' answers to one problem
    note: str = ""  # what was timed on less than usual

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

    def study(self, seeds: int) -> float:
        """Seconds of all runs with a number of seeds, and of the two baselines."""
        runs = sum(run.seconds for run in self.runs.values()) * seeds
        return runs + sum(spent.seconds for spent in self.evaluations.values())


def estimate(
    engine: Engine,
    recipes: Sequence[Recipe],
    task: Task,
    settings: Train,
    evaluation: Eval,
    budget: TimeBudget | None = None,
    seeds: int = 1,
) -> Estimate:
    """Time a step of each kind and scale it to the runs of every recipe.

    Args:
        engine: the engine without faults; its optimizer makes steps at learning rate 0.
        recipes: the study's recipes.
        task: problems to sample and to evaluate.
        settings: steps, batch and limits.
        evaluation: number of problems and intervals.
        budget: limits the measurements, and gets its limit from them; default: all are made.
        seeds: number of seeds of the study.
    """
    budget = budget or TimeBudget()
    timing = Timing(engine, recipes, task, settings, evaluation)
    timing.once()
    estimated = _estimate(timing)
    budget.predict(estimated.study(seeds), timing.step_of_each_kind)
    left_out = []
    for name, seconds, refine in timing.refinements():
        if budget.pays(seconds(), REFINED):
            refine()
            estimated = _estimate(timing)
            budget.predict(estimated.study(seeds), timing.step_of_each_kind)
        else:
            left_out.append(name)
    return replace(estimated, note=_short(left_out, timing))


def _short(left_out: Sequence[str], timing: Timing) -> str:
    """A note of what was timed on less than usual."""
    parts = []
    if "steps" in left_out:
        parts.append("one step of each kind")
    if "evaluations" in left_out and timing.evaluated < timing.evaluation.problems:
        parts.append(f"{timing.evaluated} of {timing.evaluation.problems} problems")
    if "probe" in left_out:
        parts.append("a part of a probe")
    return f"timed {reduced(', '.join(parts))}" if parts else ""


def _estimate(timing: Timing) -> Estimate:
    """The cost of the runs by the measurements so far."""
    steps = {kind: _mean(made) for kind, made in timing.steps.items()}
    evaluations = {
        role: _line(made, timing.evaluation.problems) for role, made in timing.evaluations.items()
    }
    runs: dict[str, Spent] = {}
    cache: set[tuple[int, ...]] = set()  # filled in the order in which a study runs
    for recipe in sorted(timing.recipes, key=lambda recipe: -recipe.budget):
        training = _training(recipe, steps, timing.settings, cache)
        count = recipe.total_steps(timing.settings.steps)
        evaluated = evaluations["student"] * -(-count // timing.evaluation.every)
        probes = -(-count // timing.evaluation.probe_every) + 1
        runs[recipe.name] = training + evaluated + timing.probe * probes
        if validation := timing.settings.validation:  # evaluated like as many problems
            share = validation / timing.evaluation.problems
            times = -(-count // timing.settings.validate_every)
            runs[recipe.name] += evaluations["student"] * (share * times)
    peak, memory = timing.engine.memory()
    return Estimate(
        steps, evaluations, timing.probe, runs, peak, memory, timing.evaluated, timing.per_problem
    )


def _mean(steps: Sequence[Step]) -> Step:
    spent = total(step.spent for step in steps) * (1 / len(steps))
    return Step(spent, sum(step.cached for step in steps) / len(steps))


def _line(made: Sequence[tuple[int, Spent]], problems: int) -> Spent:
    """Cost of an evaluation, by a line through the two largest that were made."""
    (small, less), (large, more) = made[-2:][0], made[-1]
    scaled = more * (problems / large)
    if small == large:
        return scaled
    slope = max(0.0, (more.seconds - less.seconds) / (large - small))
    return replace(scaled, seconds=more.seconds + slope * (problems - large))


def _training(
    recipe: Recipe, steps: Mapping[StepKind, Step], settings: Train, cache: set[tuple[int, ...]]
) -> Spent:
    """Cost of all steps of a run, each with the kind of its stretch; adds to the cache.

    Of a long run, steps at equal distances are counted for all.
    """
    count, batch = recipe.total_steps(settings.steps), settings.batch_size
    stretches = moments(recipe)
    kinds: Counter[StepKind] = Counter()
    saved = 0.0
    parts = min(count, MOST_COUNTED)
    for step in (part * count // parts for part in range(parts)):
        moment = next(t for end, t in stretches if step / count < end)
        dealt = student_prompts(recipe.on_policy(moment), batch, step, 0)
        kind = kind_at(recipe, moment, batch, dealt)
        kinds[kind] += 1
        calls = set(teacher_calls(recipe, step, count, batch))
        if calls and calls <= cache:
            saved += steps[kind].cached
        cache |= calls
    each = count / parts  # exactly 1 for a run of so many steps
    spent = total(steps[kind].spent * (times * each) for kind, times in kinds.items())
    return replace(spent, seconds=spent.seconds - saved * each, saved=saved * each)


def _range(seconds: Sequence[float]) -> str:
    low, high = f"{min(seconds):.2g}", f"{max(seconds):.2g}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
