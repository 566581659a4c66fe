"""The settings of a study as a pydantic model, read from TOML and written back with defaults.

Unknown keys, methods and pairs and values out of range raise an error with a hint. Rules that
concern several fields are in `validation`. Nothing here opens a model or a data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.engines import zoo
from potstill.errors import PotstillError
from potstill.fields import listed
from potstill.settings import (
    MOST_SEED,
    Budget,
    Eval,
    FakeSettings,
    Pair,
    Price,
    RaySettings,
    Table,
    TinkerSettings,
    TorchSettings,
    Train,
)
from potstill.study.tables import check_names, checked_loss, named, read_recipes
from potstill.study.trained import model_of
from potstill.tasks.context import Context, read_context
from potstill.urls import as_urls

# Selected on the embedded pairs' dev problems with seeds from 100; see LOG.md.
EMBEDDED_LEARNING_RATE = 1e-4

MOST_SEEDS = 1000  # of a study; a race included

PUBLISHED = ("distribution-cliff",)  # their numbers are in `report.published`

# `potstill study` without a file runs the defaults of every table, with two seeds.
QUICK: dict[str, Any] = {"name": "quick", "seeds": [0, 1, 2]}


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_SEED)], ...],
    BeforeValidator(listed),
    Field(min_length=1, max_length=MOST_SEEDS),
]


LossTable = Annotated[str | dict[str, Any] | None, BeforeValidator(checked_loss)]


class Study(Table):
    """A grid of runs (pair x method x seed) with the settings they share."""

    name: str = Field("study", pattern=r"^\w[\w.-]*$")
    task: Annotated[dict[str, Any], BeforeValidator(named("arithmetic"))] = {"name": "arithmetic"}
    engine: Annotated[
        TorchSettings | TinkerSettings | FakeSettings,
        Field(discriminator="name"),
        BeforeValidator(named("torch")),
    ] = TorchSettings()
    methods: Names = tuple(METHODS)
    pairs: Names = ()  # [pair.NAME] tables or embedded pairs; default: every table
    seeds: Seeds = (0,)
    pair: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Pair] = {}
    train: Train = Train()
    eval: Eval = Eval()
    student_loss: LossTable = None  # replaces that of every method
    recipe: dict[str, dict[str, Any]] = {}
    price: Price = Price()
    budget: Budget = Budget()
    ray: RaySettings = RaySettings()
    track: Names = ()  # trackers to send metrics to, see `potstill ls trackers`
    faults: Names = ()  # faults to inject, see `potstill ls faults`
    published: str = ""  # the published study that the report shows too, see PUBLISHED

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The study's methods by name, including its own recipes, in the order of `methods`."""
        known = read_recipes(self.recipe, self.student_loss)
        check_names("method", self.methods, known)
        return {name: known[name] for name in self.methods}

    @cached_property
    def models(self) -> dict[str, Pair]:
        """The study's pairs by name, with the folders of embedded models."""
        names = self.pairs or tuple(self.pair) or zoo.DEFAULT
        check_names("pair", names, {*self.pair, *zoo.PAIRS})
        pairs = {}
        for name in names:
            if name in self.pair:
                pairs[name] = _with_folders(self.pair[name])
            else:
                pairs[name] = Pair(
                    student=zoo.folder(name, "student"),
                    teacher=zoo.folder(name, "teacher"),
                    context=zoo.CONTEXTS.get(name, {}),
                )
        return pairs

    @cached_property
    def contexts(self) -> dict[str, Context]:
        """The privileged contexts of teachers, by pair; pairs without one are left out."""
        return {
            name: read_context(pair.context, f"pair.{name}.context")
            for name, pair in self.models.items()
            if pair.context
        }

    @property
    def graded_tokens(self) -> int:
        """Most tokens of a completion in evaluation."""
        return self.eval.max_tokens or self.train.max_tokens

    def total_steps(self, recipe: Recipe) -> int:
        """Optimizer steps of one run.

        Raises:
            PotstillError: the training has epochs, whose steps depend on the data.
        """
        if self.train.epochs is not None:
            raise PotstillError(
                f"the steps of train.epochs = {self.train.epochs:g} depend on the data",
                "call potstill.study.settling.settled(study) first",
            )
        return recipe.total_steps(self.train.steps)

    def to_toml(self) -> dict[str, Any]:
        """The table of a study file, with every default.

        URLs with secrets are `Url`s: written without them, pickled with them.
        """
        table = self.model_dump(mode="json", exclude_none=True, context={"urls": "full"})
        table["pairs"] = list(self.models)
        if self.train.epochs is not None:
            table["train"].pop("steps")  # a file has one of the two
        return dict(as_urls(_without_none(table)))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _folder_of(name: str) -> str:
    return model_of(zoo.place(name))


def _with_folders(pair: Pair) -> Pair:
    """Replace embedded models, written PAIR/ROLE, and runs by the folders of their models."""
    models: dict[str, Any] = {r: _folder_of(getattr(pair, r)) for r in ("student", "teacher")}
    models["teachers"] = {key: _folder_of(name) for key, name in pair.teachers.items()}
    return pair.model_copy(update=models)
