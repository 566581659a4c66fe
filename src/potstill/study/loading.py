"""Reads a study from a TOML file or a table: overrides, validation, defaults.

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
from potstill.study.schema import EMBEDDED_LEARNING_RATE, ENGINE_TABLES, PUBLISHED, Study
from potstill.study.tracking.registry import check_trackers
from potstill.study.validation import check_model, check_recipe, check_teachers, check_tokenizers
from potstill.types import ModelSpec


def resolve(study: Study) -> Study:
    """Check the study as a whole and fill in the learning rate. Opens no model.

    Raises:
        PotstillError: the study cannot run as it is written.
    """
    from potstill.engines.registry import ENGINES

    _check_unique(study)
    check_faults(study.faults)
    check_trackers(study.track)
    if study.published and study.published not in PUBLISHED:
        raise PotstillError(
            f'unknown published study "{study.published}"',
            did_you_mean(study.published, PUBLISHED, "published studies"),
        )
    if study.engine.name == "tinker" and not study.train.lora_rank:
        raise PotstillError(
            'engine "tinker" trains LoRA adapters, train.lora_rank is 0',
            "set train.lora_rank, 32 is usual",
        )
    for recipe in study.recipes.values():
        check_recipe(recipe, study, ENGINES[study.engine.name].losses)
    assert study.contexts is not None  # parses them, which raises if one is invalid
    for name in study.models:
        _check_pair(study, name)
    return _with_learning_rate(study)


def _check_unique(study: Study) -> None:
    for values, name in (
        (study.methods, "methods"),
        (study.seeds, "seeds"),
        (study.pairs, "pairs"),
        (study.track, "track"),
    ):
        if len(set(values)) < len(values):
            raise PotstillError(f"{name} lists {list(values)}, one of them twice", "list each once")


def _check_pair(study: Study, name: str) -> None:
    """Check the references of one pair's table: its teachers, models and tokenizers."""
    pair, table = study.models[name], f"pair.{name}"
    check_teachers(table, pair.route, pair.teachers, study.engine.name)
    if study.engine.name != "torch":
        return
    if name in study.pair:  # embedded pairs need no check
        for role in ("student", "teacher"):
            check_model(getattr(pair, role), f"{table}.{role}")
        for key, teacher in pair.teachers.items():
            check_model(teacher, f"{table}.teachers.{key}")
    check_tokenizers(study, name, differ(pair.student, pair.teacher))


def _with_learning_rate(study: Study) -> Study:
    """The default learning rate is that of the embedded pairs; other pairs have none."""
    if study.train.learning_rate is not None:
        return study
    embedded = {zoo.folder(pair, role) for pair in zoo.PAIRS for role in ("student", "teacher")}
    own = [
        name
        for name, pair in study.models.items()
        if name in study.pair and pair.student not in embedded
    ]
    if own:
        raise PotstillError(
            f"train.learning_rate is needed for your own pair ({own[0]}): the default is "
            "tuned for the embedded pairs",
            "1e-4 is usual with LoRA, 1e-5 with all weights of a model of billions",
        )
    train = study.train.model_copy(update={"learning_rate": EMBEDDED_LEARNING_RATE})
    return study.model_copy(update={"train": train})


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `key=value` overrides and validate the result.

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
    table.pop("provenance", None)  # present in the study.toml of a study's folder
    return read_study(table, overrides, where=str(path))


def read_study(
    table: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "study"
) -> Study:
    """Read a study from a table; `where` names the table in error messages."""
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
        if isinstance(inner, str):  # task = "gsm8k" is short for a table with that name
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise PotstillError(f'override "{key}": "{part}" is not a table', "see the study file")
        table[part] = dict(inner)
        table = table[part]
    table[last] = parse_value(raw.strip())


def parse_value(raw: str) -> Any:
    """Parse an override's value: as TOML if possible, else as a list at commas, else as text."""
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
    """Suggest to leave out a field, with its default."""
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
