"""Reads a study from a TOML file or a table: overrides, validation, defaults.

Nothing here opens a model or a data set.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.diagnostics.faults import check_faults
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.token_bytes import differ
from potstill.errors import Errors, PotstillError, did_you_mean, together
from potstill.fields import brief, explain
from potstill.settings import Train
from potstill.study.aliases import with_our_names
from potstill.study.benchmarks import check_benchmarks
from potstill.study.names import check_study_names
from potstill.study.paths import located
from potstill.study.problems import add_data_errors
from potstill.study.reading import DEEPEST, LARGEST, check_values, parse_toml, text_problem
from potstill.study.schema import EMBEDDED_LEARNING_RATE, PUBLISHED, Study
from potstill.study.settling import check_length
from potstill.study.tables import check_tables
from potstill.study.tracking.registry import check_trackers
from potstill.study.validation import (
    check_alone,
    check_model,
    check_recipe,
    check_teachers,
    check_tokenizers,
)
from potstill.tasks.reading import read_text
from potstill.urls import Url, as_urls, remember_variables, whole

MOST_NAMES = 100  # methods, or pairs
MOST_RUNS = 100_000
_QUOTED = re.compile(r"""\[?\s*["']""")


def resolve(study: Study) -> Study:
    """Check the study as a whole and fill in the learning rate. Opens no model.

    Raises:
        PotstillError: the study cannot run as it is written.
    """
    errors = Errors()
    _check_unique(study, errors)
    with errors:
        check_study_names(study)
    with errors:
        _check_size(study)
    with errors:
        _check_budget(study)
    with errors:
        check_faults(study.faults)
    with errors:
        check_trackers(study.track)
    with errors:
        check_benchmarks(study.eval, study.engine.name)
    with errors:
        _check_published(study)
    with errors:
        _check_adapters(study)
    with errors:
        _check_addresses(study)
    with errors:
        _check_recipes(study)
    with errors:
        assert study.contexts is not None  # parses them, which raises if one is invalid
    with errors:
        for name in study.models:
            with errors:
                _check_pair(study, name)
    with errors:
        study = _with_learning_rate(study)
    errors.check()
    return study


def _check_published(study: Study) -> None:
    if study.published and study.published not in PUBLISHED:
        raise PotstillError(
            f'unknown published study "{study.published}"',
            did_you_mean(study.published, PUBLISHED, "published studies"),
        )


def _check_unique(study: Study, errors: Errors) -> None:
    for values, name in (
        (study.methods, "methods"),
        (study.seeds, "seeds"),
        (study.pairs, "pairs"),
        (study.track, "track"),
    ):
        if len(set(values)) < len(values):
            message = f"{name} lists {brief(list(values))}, one of them twice"
            errors.add(PotstillError(message, "list each once"))


def _check_size(study: Study) -> None:
    """Check that there is something to run, and that its runs can be listed."""
    if not study.methods:
        raise PotstillError(
            "methods is empty, so that nothing would be trained",
            "name some, see `potstill ls methods`, or leave it out for all",
        )
    for name in ("methods", "models"):
        if len(getattr(study, name)) > MOST_NAMES:
            kind = "methods" if name == "methods" else "pairs"
            raise PotstillError(
                f"a study has at most {MOST_NAMES} {kind}, got {len(getattr(study, name))}",
                "make several studies",
            )
    runs = len(study.models) * len(study.methods) * len(study.seeds)
    if runs > MOST_RUNS:
        raise PotstillError(
            f"a study has at most {MOST_RUNS:,} runs, got {runs:,}", "name fewer seeds or methods"
        )
    check_length(study)


def _check_budget(study: Study) -> None:
    """Check that a budget in dollars can be reached."""
    if study.budget.usd is not None and not any(study.price.model_dump().values()):
        raise PotstillError(
            f"budget.usd = {study.budget.usd:g} is never reached, as all prices are 0",
            "set a price, such as price.hour, or budget.hours or budget.tokens",
        )


def _check_adapters(study: Study) -> None:
    train, plain = study.train, Train()
    names = ("lora_alpha", "lora_dropout", "lora_target")
    changed = any(getattr(train, name) != getattr(plain, name) for name in names)
    if changed and (not train.lora_rank or study.engine.name != "torch"):
        raise PotstillError(
            f"train.{', train.'.join(names)} are of the torch engine's adapters, got "
            f'lora_rank = {train.lora_rank} and engine "{study.engine.name}"',
            'set train.lora_rank and engine = "torch", or leave them out',
        )
    if study.engine.name == "tinker" and not study.train.lora_rank:
        raise PotstillError(
            'engine "tinker" trains LoRA adapters, train.lora_rank is 0',
            "set train.lora_rank, 32 is usual",
        )


def _check_addresses(study: Study) -> None:
    """Reject an address from a study's folder, which has none of its secrets."""
    for key in ("base_url", "teacher_url"):
        url = getattr(study.engine, key, None)
        if isinstance(url, Url) and url.incomplete:
            raise PotstillError(
                f'engine.{key} is without its secrets, got "{url}"',
                f"a study's folder never has them: add engine.{key}=URL with the whole address",
            )


def _check_recipes(study: Study) -> None:
    """Check every recipe; an error that several of them share is reported of the first."""
    from potstill.engines.registry import ENGINES

    errors: dict[str, PotstillError] = {}
    for name, recipe in study.recipes.items():
        try:
            check_recipe(recipe, study, ENGINES[study.engine.name].losses)
        except PotstillError as error:
            errors.setdefault(str(error).replace(name, ""), error)
    if errors:
        raise together(list(errors.values()))


def _check_pair(study: Study, name: str) -> None:
    """Check the references of one pair's table: its teachers, models and tokenizers."""
    pair, table, errors = study.models[name], f"pair.{name}", Errors()
    with errors:
        check_teachers(table, pair.route, pair.teachers, study.engine.name)
    models = {f"{table}.{role}": getattr(pair, role) for role in ("student", "teacher")}
    models |= {f"{table}.teachers.{key}": model for key, model in pair.teachers.items()}
    if not pair.teacher:
        del models[f"{table}.teacher"]
        with errors:
            check_alone(study, name)
    local = study.engine.name == "torch"
    if local and name in study.pair:  # embedded pairs need no check
        for place, model in models.items():
            with errors:
                check_model(model, place)
    errors.check()
    if local and pair.teacher:
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
    if not os.path.lexists(os.path.expanduser(path)):
        raise PotstillError(
            f'no study file "{path}"', "see the files in studies/; an override is key=value"
        )
    text = read_text(path, "give a TOML file in UTF-8", LARGEST)
    try:
        table = parse_toml(text, str(path))
    except tomllib.TOMLDecodeError as error:
        raise PotstillError(f'"{path}" is not TOML: {error}', "see studies/quick.toml") from None
    own = "provenance" not in table  # else the study.toml of a study's folder
    table.pop("provenance", None)
    errors, study = Errors(), None
    check_values(table, str(path))
    place = Path(path).expanduser().absolute().parent
    replaced = [text.partition("=")[0].strip() for text in overrides]
    table = located(table, place, errors, replaced=replaced) if own else table
    with errors:
        study = read_study(table, overrides, where=str(path))
    errors.check()
    assert study is not None
    return study


def read_study(
    table: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "study"
) -> Study:
    """Read a study from a table; `where` names the table in error messages."""
    merged = dict(table)
    for text in overrides:
        override(merged, text)
    errors, study = Errors(), None
    check_values(merged, where)
    if keys := [text.partition("=")[0].strip() for text in overrides]:
        merged = located(merged, Path.cwd(), errors, keys)
    merged = whole(as_urls(merged))  # its secrets are known then, and cut out of errors
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # of a table of another form
        remember_variables(merged["ray"]["runtime_env"]["env_vars"])
    with errors:
        merged = with_our_names(merged, where)
        study = _validated(merged, where)
    with errors:
        check_tables(merged)
    if study is not None:
        with errors:
            study = resolve(study)
    if errors.collected:
        add_data_errors(merged.get("task"), study, errors)
    errors.check()
    assert study is not None
    return study


def _validated(table: Mapping[str, Any], where: str) -> Study:
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        raise explain(error, where, Study) from None


def override(table: dict[str, Any], text: str) -> None:
    """Set one value of nested tables, as `a.b=value` names it."""
    key, equals, raw = text.partition("=")
    hint = "for example train.steps=20"
    if not equals or not key.strip() or not raw.strip():
        raise PotstillError(f"an override is key=value, got {brief(text)}", hint)
    if len(text) > LARGEST:
        raise PotstillError(f"an override has at most {LARGEST:,} characters, got more", hint)
    if problem := text_problem(text):
        raise PotstillError(f"override {brief(key)}: {problem}", hint)
    *path, last = key.strip().split(".")
    if len(path) >= DEEPEST:
        raise PotstillError(f"an override has at most {DEEPEST} keys, got {len(path) + 1}", hint)
    for part in path:
        inner = table.get(part, {})
        if isinstance(inner, str):  # task = "gsm8k" is short for a table with that name
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise PotstillError(
                f"override {brief(key)}: {brief(part)} is not a table", "see the study file"
            )
        table[part] = dict(inner)
        table = table[part]
    table[last] = parse_value(raw.strip())


def parse_value(raw: str) -> Any:
    """Parse an override's value: as TOML if possible, else as a list at commas, else as text."""
    try:
        table = parse_toml(f"value = {raw}", brief(raw))
        if len(table) == 1:  # a line end in the value begins no other setting
            return table["value"]
    except tomllib.TOMLDecodeError as error:
        if _QUOTED.match(raw):
            raise PotstillError(
                f"an override that begins with a quote is TOML, got {brief(raw)}: {error}",
                "close the quote, or leave quotes and brackets out",
            ) from None
    parts = [part.strip() for part in raw.split(",")]
    return [parse_value(part) for part in parts if part] if len(parts) > 1 else raw
