"""Timed parts of a study: steps at learning rate 0 on its batch size, evaluations, a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import Schedule, constant
from potstill.diagnostics.monitor import Monitor
from potstill.diagnostics.preflight.memo import Memo
from potstill.diagnostics.preflight.step_kinds import StepKind, kinds_at, moments
from potstill.engines.protocol import Engine
from potstill.settings import Eval, Train
from potstill.tasks import Resplit, Task
from potstill.training import objective
from potstill.training.completing import held_out
from potstill.training.evaluation import TeacherCompletions, evaluate, has_teacher
from potstill.training.metering import Metered, Usage
from potstill.training.rollout import collect, draw, limits_of
from potstill.training.run import RunSpec
from potstill.training.spending import Spent
from potstill.types import Limits, Role, Trajectory

REPEATS = 2  # steps of each kind
PROBLEMS = (4, 48, 144)  # problems of the evaluations
PROBED = 2  # completions of the smallest checks before a probe
LOSSES = ("student_loss", "teacher_loss", "anchor", "anchor_loss")  # fields of a recipe

Refinement = tuple[str, Callable[[], float], Callable[[], None]]  # name, seconds, what to do


@dataclass(frozen=True)
class Step:
    """Cost of a step, and the part that a cache of teacher completions can save."""

    spent: Spent
    cached: float  # seconds of the teacher's sampling


class Timing:
    """Measurements of a study's parts.

    Args:
        engine, recipes, task, settings, evaluation: as for `estimate`.
    """

    def __init__(
        self,
        engine: Engine,
        recipes: Sequence[Recipe],
        task: Task,
        settings: Train,
        evaluation: Eval,
    ) -> None:
        self.engine, self.recipes, self.task = engine, recipes, task
        self.settings, self.evaluation = settings, evaluation
        self._kinds: dict[StepKind, tuple[Recipe, float]] = {}  # a recipe that makes it, and when
        for recipe in recipes:
            for _, moment in moments(recipe):
                for kind in kinds_at(recipe, moment, settings.batch_size):
                    self._kinds.setdefault(kind, (recipe, moment))
        self.steps: dict[StepKind, list[Step]] = {kind: [] for kind in self._kinds}
        roles: tuple[Role, ...] = ("teacher", "student") if has_teacher(engine) else ("student",)
        self.evaluations: dict[Role, list[tuple[int, Spent]]] = {role: [] for role in roles}
        self.probe = Spent()
        self._batch: list[Trajectory] = []  # of the first timed step

    def once(self) -> None:
        """Make the smallest measurement of everything."""
        self._warm_up()
        for kind in self._kinds:
            self._time_step(kind)
        self._time_evaluations(min(self.evaluation.problems, PROBLEMS[0]))
        self._time_probe(PROBED)

    def refinements(self) -> Iterator[Refinement]:
        """Larger and further measurements, each with the seconds that it takes at most."""
        for size in PROBLEMS[1:]:
            yield "evaluations", partial(self._seconds, size), partial(self._evaluate_more, size)
        whole = max(self.evaluation.probe, self.settings.batch_size)
        if whole > PROBED:
            yield "probe", lambda: self.probe.seconds, self._time_probe
        for kind in self._kinds:
            for _ in range(1, REPEATS):
                yield "steps", partial(self._last_step, kind), partial(self._time_step, kind)

    @property
    def step_of_each_kind(self) -> float:
        """Seconds of one step of each kind."""
        return sum(steps[0].spent.seconds for steps in self.steps.values())

    @property
    def evaluated(self) -> int:
        """Problems of the largest evaluation so far."""
        return self.evaluations["student"][-1][0]

    @property
    def per_problem(self) -> float:
        """Seconds of both models' answers to one problem, in the largest evaluation."""
        return sum(made[-1][1].seconds for made in self.evaluations.values()) / self.evaluated

    def _recomputing(self) -> AbstractContextManager[None]:
        """A block in which nothing is taken from memory."""
        return self.engine.recomputing() if isinstance(self.engine, Memo) else nullcontext()

    def _last_step(self, kind: StepKind) -> float:
        return self.steps[kind][-1].spent.seconds

    def _seconds(self, size: int) -> float:
        """Seconds of two evaluations of this size, at most; 0 if they are not larger."""
        count = min(self.evaluation.problems, size)
        made = [last[-1] for last in self.evaluations.values()]
        return sum(spent.seconds * count / done for done, spent in made if count > done)

    def _evaluate_more(self, size: int) -> None:
        count = min(self.evaluation.problems, size)
        if count > self.evaluated:
            self._time_evaluations(count)

    def _limits(self) -> Limits:
        s = self.settings
        return limits_of(s)

    def _warm_up(self) -> None:
        """Make a step on two tokens: the first one takes longer than those that follow."""
        kind = next(iter(self._kinds))
        fixed = self._fixed(kind, constant(float(kind.student > 0)), constant(0))
        limits = replace(self._limits(), max_tokens=2)
        problems = draw(self.task.train, 1, 0, 0)
        batch = collect(fixed, self.engine, problems, 0.0, 0, 0, limits)
        self.engine.step(objective.build(fixed, batch, self.engine), 0.0)

    def _fixed(self, kind: StepKind, on_policy: Schedule, prefix: Schedule) -> Recipe:
        """A recipe that makes steps of one kind only."""
        recipe, _ = self._kinds[kind]
        interleave = recipe.interleave if kind.student else 0
        return Recipe(
            name=recipe.name,
            on_policy=on_policy,
            prefix=prefix,
            interleave=interleave,
            **{key: getattr(recipe, key) for key in LOSSES},
        )

    def _time_step(self, kind: StepKind) -> None:
        """Time one more step of a kind."""
        size, step, t = self.settings.batch_size, len(self.steps[kind]), self._kinds[kind][1]
        fixed = self._fixed(kind, constant(kind.student / size), constant(kind.prefix))
        problems = draw(self.task.train, size, 0, step)
        start, usage = time.perf_counter(), Usage(self.engine)
        meter = Metered(self.engine, usage)
        with self._recomputing():
            batch = collect(fixed, meter, problems, t, step, 0, self._limits())
            meter.step(objective.build(fixed, batch, meter), 0.0)
        self._batch = self._batch or batch
        self.steps[kind].append(Step(_spent(start, usage), usage.seconds["teacher sampling"]))

    def _time_evaluations(self, count: int) -> None:
        """Time an evaluation of both models on a number of problems."""
        limit = self.evaluation.max_tokens or self.settings.max_tokens
        problems, teacher = held_out(self.task, self.evaluation, count), None
        for role in self.evaluations:
            start, usage = time.perf_counter(), Usage(self.engine)
            meter = Metered(self.engine, usage, "evaluation")
            with self._recomputing():
                made = evaluate(meter, role, self.task, problems, limit, self.evaluation, teacher)
            self.evaluations[role].append((count, _spent(start, usage)))
            teacher = teacher or TeacherCompletions.of(made.rows)  # a run has them as well

    def _time_probe(self, most: int | None = None) -> None:
        """Time one probe with the checks before it.

        Args:
            most: completions of the checks, at most; the probe then has problems of the evaluation,
                of which the teacher's completions are known, and both are scaled.
        """
        engine, settings, task = self.engine, self.settings, self.task
        count = min(self.evaluation.probe, self.evaluated) if most else self.evaluation.probe
        smaller = self.evaluation.model_copy(update={"probe": count})
        task = Resplit(task, task.test, task.test) if most else task
        part = self._batch[:: max(1, len(self._batch) // (most or len(self._batch)))]
        limit = self.evaluation.max_tokens or settings.max_tokens
        teacher = TeacherCompletions.generate(engine, task, task.train[:count], limit)
        meter = Metered(engine, Usage(engine), "evaluation")
        spec = RunSpec(self.recipes[0], engine, task, 0)
        monitor = Monitor(spec, settings, smaller, meter, teacher)
        start, meter.usage = time.perf_counter(), Usage(engine)
        with self._recomputing():
            monitor.before(1, part, part)
        before = _spent(start, meter.usage) * (len(self._batch) / max(1, len(part)))
        start, meter.usage = time.perf_counter(), Usage(engine)
        with self._recomputing():
            monitor.probe.measure()
        self.probe = before + _spent(start, meter.usage) * (self.evaluation.probe / count)


def _spent(start: float, usage: Usage) -> Spent:
    return Spent.read(
        {"seconds": time.perf_counter() - start, "tokens": usage.tokens, "flops": usage.flops}
    )
