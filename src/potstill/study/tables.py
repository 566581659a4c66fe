"""The tables of a study file whose keys are not fields of `Study`: task, recipes and contexts.

`Study` keeps them as they are written; here they are read into values, with every error of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from potstill.algorithms.losses import loss
from potstill.algorithms.methods import KNOWN, METHODS
from potstill.algorithms.recipe import Recipe, recipe_from_toml
from potstill.engines import zoo
from potstill.errors import Errors, PotstillError, did_you_mean
from potstill.fields import listed
from potstill.tasks import load_task
from potstill.tasks.context import read_context


def named(default: str) -> Callable[[Any], Any]:
    """Validator of a table with a name: text is short for a name, a missing name the default."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, Mapping) else value

    return read


def checked_loss(value: Any) -> Any:
    """Validator of the form of a loss in a study file."""
    if value is not None:
        loss(value)
    return value


def read_recipes(tables: Mapping[str, Mapping[str, Any]], student_loss: Any) -> dict[str, Recipe]:
    """The built-in methods and a study's own recipes by name.

    Args:
        tables: the study's `[recipe.NAME]` tables.
        student_loss: replaces that of every method; None keeps theirs.

    Raises:
        PotstillError: tables with errors, all of them.
    """
    errors, invalid = Errors(), set[str]()
    common: dict[str, Any] = {} if student_loss is None else {"student_loss": student_loss}
    known = {name: dataclasses.replace(recipe, **common) for name, recipe in KNOWN.items()}
    for name, table in tables.items():
        if str(table.get("from")) in invalid:  # whose error is reported
            continue
        fields = table if "from" in table else {**common, **table}
        try:
            known[name] = _recipe(name, fields, known)
        except PotstillError as error:
            invalid.add(name)
            errors.add(error)
    errors.check()
    return known


def _recipe(name: str, fields: Mapping[str, Any], known: Mapping[str, Recipe]) -> Recipe:
    if fields.get("from") == name:
        raise PotstillError(f'recipe "{name}" starts from itself', "name another method")
    if name in METHODS:  # one of the name `sft` is older than the method
        raise PotstillError(
            f'recipe "{name}" would redefine a method of that name',
            "choose another name, so that tables mean one thing",
        )
    return recipe_from_toml(name, fields, known)


def check_tables(study: Mapping[str, Any]) -> None:
    """Check the task, recipes, contexts and names of a study file, whatever else is wrong in it.

    Values of another type are left to `Study`.

    Raises:
        PotstillError: tables with errors, all of them.
    """
    errors = Errors()
    task = named("arithmetic")(study.get("task", {}))
    if isinstance(task, Mapping):
        with errors:
            load_task(**task)
    student_loss = study.get("student_loss")
    if _is_loss(student_loss):  # recipes depend on it
        with errors:
            read_recipes(_tables(study.get("recipe")), student_loss)
    for name, pair in _tables(study.get("pair")).items():
        context = pair.get("context")
        if isinstance(context, Mapping) and context:
            with errors:
                read_context(context, f"pair.{name}.context")
    for kind, table, built_in in (("method", "recipe", KNOWN), ("pair", "pair", zoo.PAIRS)):
        own = study.get(table)
        known = {*built_in, *(own if isinstance(own, Mapping) else ())}
        with errors:
            check_names(kind, listed(study.get(f"{kind}s", ())), known)
    errors.check()


def check_names(kind: str, names: Iterable[Any], known: Collection[str]) -> None:
    """Raise `PotstillError` for names that are not known, all of them."""
    errors = Errors()
    for name in names:
        if isinstance(name, str) and name not in known:
            hint = did_you_mean(name, known, f"{kind}s")
            errors.add(PotstillError(f'unknown {kind} "{name}"', hint))
    errors.check()


def _tables(value: Any) -> dict[str, Mapping[str, Any]]:
    """The tables of a table."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {name: table for name, table in items if isinstance(table, Mapping)}


def _is_loss(value: Any) -> bool:
    try:
        checked_loss(value)
    except PotstillError:
        return False
    return True
