"""A study as data: TOML in, checked whole before anything runs, TOML out with every default
written down.

Unknown keys, methods, pairs and values out of range are refused with a hint. One field, one
line, one unit. Nothing here opens a model or a data set.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe, recipe_from_toml
from potstill.diagnostics.faults import check_faults
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.token_bytes import differ
from potstill.engines.routed import check_teachers
from potstill.errors import PotstillError, did_you_mean
from potstill.refusals import check_model, check_recipe, check_tokenizers
from potstill.settings import (
    Budget,
    Eval,
    FakeSettings,
    Pair,
    Part,
    Price,
    RaySettings,
    TinkerSettings,
    TorchSettings,
    Train,
)
from potstill.tasks.context import Context, read_context
from potstill.trackers import check_trackers
from potstill.types import ModelSpec

# Chosen on the embedded pairs' dev problems with seeds 100 and up; LOG.md has the runs.
EMBEDDED_LEARNING_RATE = 1e-4

ENGINE_TABLES: dict[str, type[Part]] = {
    "torch": TorchSettings,
    "tinker": TinkerSettings,
    "fake": FakeSettings,
}

# What `potstill study` runs when it is given no file: the defaults of every part, over two seeds.
QUICK: dict[str, Any] = {"name": "quick", "seeds": [0, 1]}


def _named(default: str) -> Callable[[Any], Any]:
    """Reader of a table with a name: the bare name is short for it, no name means the default."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return read


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_listed), Field(min_length=1)
]


class Study(Part):
    """A grid of cells (pair x method x seed) with the settings they share."""

    name: str = Field("study", pattern=r"^\w[\w.-]*$")
    task: Annotated[dict[str, Any], BeforeValidator(_named("arithmetic"))] = {"name": "arithmetic"}
    engine: Annotated[
        TorchSettings | TinkerSettings | FakeSettings,
        Field(discriminator="name"),
        BeforeValidator(_named("torch")),
    ] = TorchSettings()
    methods: Names = tuple(METHODS)
    pairs: Names = ()  # names of [pair.NAME] tables or embedded pairs; default: every table
    seeds: Seeds = (0,)
    pair: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Pair] = {}
    train: Train = Train()
    eval: Eval = Eval()
    student_loss: str | dict[str, Any] | None = None  # in the place of every method's own
    recipe: dict[str, dict[str, Any]] = {}
    price: Price = Price()
    budget: Budget = Budget()
    ray: RaySettings = RaySettings()
    track: Names = ()  # trackers that are sent the metrics, see `potstill ls trackers`
    faults: Names = ()  # deviations switched on for an experiment, see `potstill ls faults`

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The study's methods, its own recipes included, in table order."""
        mine: dict[str, Any] = (
            {} if self.student_loss is None else {"student_loss": self.student_loss}
        )
        known = {name: dataclasses.replace(one, **mine) for name, one in METHODS.items()}
        for name, table in self.recipe.items():
            if name in METHODS:
                raise PotstillError(
                    f'recipe "{name}" would redefine a method of that name',
                    "choose another name, so that tables mean one thing",
                )
            known[name] = recipe_from_toml(name, table if "from" in table else mine | table, known)
        for name in self.methods:
            if name not in known:
                raise PotstillError(
                    f'unknown method "{name}"', did_you_mean(name, known, "methods")
                )
        return {name: known[name] for name in self.methods}

    @cached_property
    def models(self) -> dict[str, Pair]:
        """The study's pairs by name, embedded ones resolved to their folders."""
        names = self.pairs or tuple(self.pair) or zoo.DEFAULT
        found = {}
        for name in names:
            if name in self.pair:
                found[name] = _placed(self.pair[name])
            elif name in zoo.PAIRS:
                found[name] = Pair(
                    student=zoo.folder(name, "student"),
                    teacher=zoo.folder(name, "teacher"),
                    context=zoo.CONTEXTS.get(name, {}),
                )
            else:
                raise PotstillError(
                    f'unknown pair "{name}"',
                    did_you_mean(name, {*self.pair, *zoo.PAIRS}, "pairs"),
                )
        return found

    @cached_property
    def contexts(self) -> dict[str, Context]:
        """What the teachers alone see, by pair; pairs without a context are left out."""
        return {
            name: read_context(pair.context, f"pair.{name}.context")
            for name, pair in self.models.items()
            if pair.context
        }

    @property
    def graded_tokens(self) -> int:
        """Most tokens of a graded completion."""
        return self.eval.max_tokens or self.train.max_tokens

    def total_steps(self, recipe: Recipe) -> int:
        """Optimizer steps of one cell."""
        return max(1, round(self.train.steps * recipe.budget))

    def to_toml(self) -> dict[str, Any]:
        """The study with every default written down, ready to be read again."""
        table = self.model_dump(mode="json", exclude_none=True)
        table["pairs"] = list(self.models)
        return _without_none(table)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def resolve(study: Study) -> Study:
    """Check what no single field shows, and decide what was left open. Opens no model.

    Raises:
        PotstillError: the study asks for something that cannot be right.
    """
    from potstill.engines.registry import ENGINES

    for values, what in (
        (study.methods, "methods"),
        (study.seeds, "seeds"),
        (study.pairs, "pairs"),
        (study.track, "track"),
    ):
        if len(set(values)) < len(values):
            raise PotstillError(f"{what} lists {list(values)}, one of them twice", "list each once")
    check_faults(study.faults)
    check_trackers(study.track)
    if study.engine.name == "tinker" and not study.train.lora_rank:
        raise PotstillError(
            'engine "tinker" trains LoRA adapters, train.lora_rank is 0',
            "set train.lora_rank, 32 is usual",
        )
    for recipe in study.recipes.values():
        check_recipe(recipe, study, ENGINES[study.engine.name].losses)
    assert study.contexts is not None  # read, and refused where one is wrong
    for name, pair in study.models.items():
        check_teachers(f"pair.{name}", pair.route, pair.teachers, study.engine.name)
        if name in study.pair and study.engine.name == "torch":
            for role in ("student", "teacher"):
                check_model(getattr(pair, role), f"pair.{name}.{role}")
            for key, teacher in pair.teachers.items():
                check_model(teacher, f"pair.{name}.teachers.{key}")
        if study.engine.name == "torch":
            check_tokenizers(study, name, differ(pair.student, pair.teacher))
    if study.train.learning_rate is None:
        foreign = [
            name for name in study.models if name in study.pair and not _embedded(study, name)
        ]
        if foreign:
            raise PotstillError(
                f"train.learning_rate is needed for your own pair ({foreign[0]}): the default is "
                "tuned for the embedded pairs",
                "1e-4 is usual with LoRA, 1e-5 with all weights of a model of billions",
            )
        train = study.train.model_copy(update={"learning_rate": EMBEDDED_LEARNING_RATE})
        study = study.model_copy(update={"train": train})
    return study


def _placed(pair: Pair) -> Pair:
    """A pair whose embedded models, written PAIR/ROLE, are folders."""
    models: dict[str, Any] = {r: zoo.place(getattr(pair, r)) for r in ("student", "teacher")}
    models["teachers"] = {key: zoo.place(name) for key, name in pair.teachers.items()}
    return pair.model_copy(update=models)


def _embedded(study: Study, name: str) -> bool:
    known = {zoo.folder(pair, role) for pair in zoo.PAIRS for role in ("student", "teacher")}
    return study.models[name].student in known


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `key=value` overrides and check the result.

    Args:
        path: a TOML file.
        overrides: such as `train.steps=20` or `seeds=0,1`.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PotstillError(
            f'no study file "{path}"', "see the files in studies/; an override is key=value"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PotstillError(f'cannot read "{path}": {error}', "give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise PotstillError(f'"{path}" is not TOML: {error}', "see studies/quick.toml") from None
    table.pop("provenance", None)  # a study folder's own study.toml reads back
    return read_study(table, overrides, where=str(path))


def read_study(
    table: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "study"
) -> Study:
    """Make a checked study from a table."""
    merged = dict(table)
    for text in overrides:
        _override(merged, text)
    try:
        study = Study.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, where) from None
    return resolve(study)


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip() or not raw.strip():
        raise PotstillError(f'an override is key=value, got "{text}"', "for example train.steps=20")
    *path, last = key.strip().split(".")
    for part in path:
        inner = table.get(part, {})
        if isinstance(inner, str):  # task = "gsm8k" and engine = "torch" are short for tables
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise PotstillError(
                f'"{key}" goes into "{part}", which is no table', "see the study file"
            )
        table[part] = dict(inner)
        table = table[part]
    table[last] = parse_value(raw.strip())


def parse_value(raw: str) -> Any:
    """Read an override's value: TOML where it is, a list where commas are, else text."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        parts = [part.strip() for part in raw.split(",")]
        return [parse_value(part) for part in parts if part] if len(parts) > 1 else raw


def _explain(error: ValidationError, where: str) -> PotstillError:
    """Turn pydantic's first finding into a rule, what it got and a hint."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ENGINE_TABLES]
    key = ".".join(path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *parents, last = path
        engine = next((t for n, t in ENGINE_TABLES.items() if n in first["loc"]), TorchSettings)
        return PotstillError(
            f'{where}: unknown key "{key}"', did_you_mean(last, _fields(parents, engine), "keys")
        )
    if first["type"].startswith("union_tag"):
        from potstill.engines.registry import ENGINES

        got = first["input"].get("name") if isinstance(first["input"], Mapping) else first["input"]
        return PotstillError(
            f'{where}: unknown engine "{got}"', did_you_mean(str(got), ENGINES, "engines")
        )
    got = first["input"]
    shown = repr(got) if not isinstance(got, float) or math.isfinite(got) else str(got)
    message = first["msg"][0].lower() + first["msg"][1:]
    return PotstillError(f"{where}: {key}: {message}, got {shown}", _default_hint(path))


def _default_hint(path: list[str]) -> str:
    """What the field would be if it were left out."""
    value: Any = Study()
    for part in path:
        value = getattr(value, part, None)
    if value in (None, {}, ()):
        return "see the files in studies/"
    return f"leave it out for the default, {value!r}"


def _fields(path: list[str], engine: type[Part]) -> list[str]:
    """Keys that the table at this path may have."""
    tables: dict[str, Any] = {"train": Train, "eval": Eval, "pair": Pair, "engine": engine}
    tables |= {"price": Price, "budget": Budget, "ray": RaySettings}
    if not path:
        return list(Study.model_fields)
    if path[0] == "engine" and len(path) > 1:
        return list(ModelSpec.__dataclass_fields__)
    return list(tables[path[0]].model_fields) if path[0] in tables else []
