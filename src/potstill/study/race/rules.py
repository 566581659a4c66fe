"""The settings of a race, and the seeds that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

from potstill.errors import PotstillError
from potstill.fields import brief, explain, limits
from potstill.settings import MOST_SEED, Table
from potstill.stats.comparisons import VERDICT_SEEDS
from potstill.study.race.decision import levels
from potstill.study.schema import MOST_SEEDS, Study
from potstill.tasks import is_graded, load_task

SCREEN = 4  # the screen trains for one part of so many of the steps


def _checked(looks: tuple[int, ...]) -> tuple[int, ...]:
    if not looks or min(looks) < 1:
        raise PotstillError(f"looks are 1 seed or more, got {brief(looks)}", "for example 1,3,5,10")
    if list(looks) != sorted(set(looks)):
        raise PotstillError(
            f"looks are numbers of seeds that grow, got {brief(looks)}",
            "for example 1,3,5,10",
        )
    if 2 in looks:
        raise PotstillError(
            f"two seeds allow no verdict, got a look at 2 of {brief(looks)}",
            f"look at 1 seed, and from {VERDICT_SEEDS} on",
        )
    if looks[-1] > MOST_SEEDS:
        raise PotstillError(
            f"a race has at most {MOST_SEEDS:,} seeds, got a look at {brief(looks[-1])}",
            "for example 1,3,5,10",
        )
    if looks[-1] < VERDICT_SEEDS:
        raise PotstillError(
            f"the last look has at least {VERDICT_SEEDS} seeds, got {looks[-1]}", "for example 1,3"
        )
    return looks


class Rules(Table):
    """The settings of a race. They are fixed once its folder is opened, as its error rate needs.

    Args:
        looks: seeds of each method at which the race decides.
        within: the race ends when all survivors are within so many points of each other.
        alpha: most races that may drop the truly best method, as a share.
        fresh: seeds of each finalist that decide nothing; 0: the finalists get no intervals.
        screen: train every method for a quarter of the steps first.
    """

    looks: Annotated[tuple[int, ...], AfterValidator(_checked)] = (1, 3, 5, 10)
    within: Annotated[float, limits("above 0 and at most 100 points", gt=0, le=100)] = 1.0
    alpha: Annotated[float, limits("above 0 and below 0.5", gt=0, lt=0.5)] = 0.05
    fresh: Annotated[int, limits("0 or more", ge=0)] = 3
    screen: bool = False

    @classmethod
    def read(cls, table: dict[str, Any], where: str = "race") -> Rules:
        """Rules from a table.

        Raises:
            PotstillError: a value is out of range.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise explain(error, where, cls) from None

    @property
    def levels(self) -> list[float]:
        """The part of alpha that each look spends; a screen shares that of the first look."""
        first, *rest = levels(self.alpha, self.looks)
        return [first / 2 if self.screen else first, *rest]

    @property
    def seeds(self) -> int:
        """Seeds of a method that stays to the end."""
        return self.looks[-1] + self.fresh

    def deciding(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """The seeds on which the race decides."""
        return tuple(seeds[: self.looks[-1]])

    def fresh_of(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """The finalists' seeds that decide nothing."""
        return tuple(seeds[self.looks[-1] : self.seeds])


def raced(study: Study, rules: Rules) -> Study:
    """The study with as many seeds as the race may need: its own, then the next numbers.

    A race needs a grader: its first look assumes how much accuracy differs between seeds. Its error
    rate was simulated with right and wrong answers; grades in between vary less.

    Raises:
        PotstillError: there is nothing to compare, or no grader to compare by.
    """
    if len(study.methods) < 2:
        raise PotstillError(
            f"a race has at least two methods, got {', '.join(study.methods)}",
            "name more in methods, see `potstill ls methods`",
        )
    if not is_graded(load_task(**study.task)):
        raise PotstillError(
            f'a race drops methods by their grades, and the task "{study.task.get("name")}" has no '
            "grader",
            "run `potstill study` with the same file: it compares by the KL to the teacher",
        )
    if rules.seeds > MOST_SEEDS:
        raise PotstillError(
            f"a race has at most {MOST_SEEDS:,} seeds, got looks and fresh of {brief(rules.seeds)}",
            "lower fresh, or the last look",
        )
    first = max(study.seeds) + 1
    if first + rules.seeds > MOST_SEED:
        raise PotstillError(
            f"a race uses the {rules.seeds} numbers after its seeds, the last is {first - 1:,}",
            f"use seeds below {MOST_SEED - rules.seeds:,}",
        )
    seeds = (*study.seeds, *range(first, first + rules.seeds))[: rules.seeds]
    return study.model_copy(update={"seeds": seeds})


def screening(study: Study) -> Study:
    """The study of the screen: the first seed, a quarter of the steps, no student kept."""
    steps = max(1, study.train.steps // SCREEN)
    train = study.train.model_copy(update={"steps": steps, "save": False, "save_every": 0})
    return study.model_copy(update={"train": train, "seeds": study.seeds[:1]})
