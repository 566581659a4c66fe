"""From a TOML file or a table to a checked study: overrides, errors with hints, defaults.

Nothing here opens a model or a data set.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.diagnostics.faults import check_faults
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.token_bytes import differ
from potstill.errors import PotstillError, did_you_mean
from potstill.settings import (
    Budget,
    Eval,
    Pair,
    Part,
    Price,
    RaySettings,
    TorchSettings,
    Train,
)
from potstill.study.schema import EMBEDDED_LEARNING_RATE, ENGINE_TABLES, Study
from potstill.study.tracking.registry import check_trackers
from potstill.study.validation import check_model, check_recipe, check_teachers, check_tokenizers
from potstill.types import ModelSpec


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
