"""The names of a study's runs, and the order in which they are executed."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.study.schema import Study

REFERENCES = ("untrained", "teacher")  # the baselines: evaluated once per pair, never trained
ALL_SEEDS = "all"


@dataclass(frozen=True, order=True)
class RunId:
    """The key of one run in a study; baselines have no seed."""

    pair: str
    method: str
    seed: int | None = None

    def __str__(self) -> str:
        seed = ALL_SEEDS if self.seed is None else self.seed
        return f"{self.pair}/{self.method}/{seed}"


def references_of(study: Study, pair: str) -> tuple[str, ...]:
    """The baselines of a pair: a teacher is one if there is one."""
    return REFERENCES if study.models[pair].teacher else REFERENCES[:1]


def runs_of(study: Study) -> list[RunId]:
    """Every run in execution order: baselines first, then seed by seed, long runs first."""
    baselines = [
        RunId(pair, role)
        for role in reversed(REFERENCES)
        for pair in study.models
        if role in references_of(study, pair)
    ]
    by_length = sorted(study.recipes.values(), key=lambda recipe: -recipe.budget)
    runs = [
        RunId(pair, recipe.name, seed)
        for seed in study.seeds
        for recipe in by_length
        for pair in study.models
    ]
    return baselines + runs
