"""A run as pre-flight rehearses it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight.budget import CheckSize, TimeBudget
from potstill.diagnostics.preflight.reference import forward_gap
from potstill.engines.protocol import CrossTokenizer, Engine, Wrapper, bare
from potstill.errors import writing
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.training.evaluation import has_teacher
from potstill.training.rollout import draw, generator, limits_of
from potstill.training.run import RunSpec
from potstill.types import Datum, Floats, Limits, Reading, Role, StepStats

# Sizes of a rehearsed step and of the samples on which the models are compared.
STEP_SIZES = (CheckSize(2, 16), CheckSize(4, 32), CheckSize(12, 64))
ROW_SIZES = (CheckSize(2, 16), CheckSize(8, 16))
OWN_PASS = (
    "the engine does not compute this model's own numbers: choose another checkpoint or dtype, and "
    "report the model's class as a bug of potstill"
)
AFTER_PREFIX = 8  # tokens that a rehearsed completion has after the teacher's prefix, at least


class DryRun(Wrapper):
    """The innermost engine of a rehearsed run: it records the data of steps and trains nothing."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps: list[list[Datum]] = []

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        self.steps.append(list(data))
        return StepStats(0.0, 0.0)


@dataclass
class Measured:
    """Results of earlier checks that later ones use."""

    rows: CheckSize | None = None  # of the samples on which the models are compared
    forward_gap: float | None = None
    evaluated: int = 0  # held-out problems that both models have answered
    per_problem: float = 0.0  # seconds of both models' answers to one


@dataclass(frozen=True)
class Rehearsal:
    """A run set up as it will be trained, for steps that do not change the student.

    Args:
        wire: sets up a run around an engine as training does, faults included.
        engine: the engine without faults.
        recipes: the study's recipes, without faults.
        seed: the study's seed, without faults.
        settings: batch and limits.
        evaluation: number of problems and interval of evaluations.
        seeds: number of the study's seeds.
        budget: the time that the checks may take; default: as long as they need.
    """

    wire: Callable[[Engine, Recipe], RunSpec]
    engine: Engine
    recipes: Sequence[Recipe]
    seed: int
    settings: Train
    evaluation: Eval
    seeds: int = 1
    budget: TimeBudget = field(default_factory=TimeBudget)
    measured: Measured = field(default_factory=Measured)

    def limits(self, tokens: int, prefix: int = 0) -> Limits:
        """Limits of a rehearsed completion, of which a teacher's prefix leaves some tokens."""
        s = self.settings
        longest = min(s.max_tokens, max(tokens, prefix + AFTER_PREFIX))
        return limits_of(s, longest)

    def any_run(self) -> RunSpec:
        """A run of the first recipe, for checks that do not depend on the recipe."""
        return self.wire(self.engine, self.recipes[0])

    def problems(self, run: RunSpec) -> list[Problem]:
        """The problems of a rehearsed step, of which the first ones have different teachers."""
        drawn = draw(run.task.train, STEP_SIZES[-1].problems, self.seed, 0)
        first: dict[str, Problem] = {}
        for problem in drawn:
            first.setdefault(self.engine.prompt(problem).route, problem)
        chosen = list(first.values())
        return chosen + [problem for problem in drawn if problem not in chosen]

    @property
    def row_size(self) -> CheckSize:
        """CheckSize of the samples on which the models are compared."""
        return self.measured.rows or ROW_SIZES[0 if self.budget.limit is not None else -1]

    def sampled(
        self, engine: Engine, role: Role, size: CheckSize
    ) -> tuple[list[Reading], list[Floats]]:
        """Prompts and completions that an engine samples, with the sampler's log-probabilities.

        They are those of a rehearsed step of the same size.
        """
        problems = self.problems(self.any_run())[: size.problems]
        prompts, limits = [self.engine.prompt(p) for p in problems], self.limits(size.tokens)
        longest = limits.max_tokens
        temperature, cut = limits.sampler(role)
        numbers = generator(self.seed, 0, f"{role}:0:{longest}")
        samples = engine.sample(role, prompts, [longest] * len(prompts), temperature, numbers, cut)
        readings = [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]
        return readings, [s.logprobs for s in samples]

    def forward_gap(self, size: CheckSize) -> float:
        """Mean distance in nats between the engine's scores and the models' own forward passes."""
        roles = ("student",) if self.crossing else self.roles
        return max(
            forward_gap(self.engine, role, self.sampled(self.engine, role, size)[0])
            for role in roles
        )

    @cached_property
    def rounding(self) -> float:
        """`forward_gap` as its check has measured it."""
        gap = self.measured.forward_gap
        return self.forward_gap(self.row_size) if gap is None else gap

    @property
    def roles(self) -> tuple[Role, ...]:
        """The student, and the teacher if there is one."""
        return ("student", "teacher") if has_teacher(self.engine) else ("student",)

    @property
    def crossing(self) -> CrossTokenizer | None:
        """The engine if its teacher has a tokenizer of its own, else None."""
        crossing = isinstance(bare(self.engine), CrossTokenizer)
        return cast(CrossTokenizer, self.engine) if crossing else None


@contextmanager
def restored(engine: Engine) -> Iterator[None]:
    """Restore the engine's state after the block."""
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as folder:
        with writing(Path(folder)):
            engine.save(Path(folder))
        try:
            yield
        finally:
            engine.load(Path(folder))
