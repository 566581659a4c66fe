"""Fields that pydantic validates, and the one translation of its errors.

Recipes, tasks, contexts and the tables of a study file declare theirs with `limits`. What
pydantic refuses becomes a `PotstillError` with the rule, what was got and a hint. Rules that
concern several fields are in the classes themselves.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from potstill.errors import PotstillError, PotstillErrors, did_you_mean, together

CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)  # no unknown keys, no infinite numbers
ELSEWHERE = "see the files in studies/"
MOST_SHOWN = 150  # characters of a value in a message

T = TypeVar("T")


def limits(rule: str, hint: str = "", **bounds: Any) -> Any:
    """Limits of a field, for `Annotated`, with their rule in words.

    Args:
        rule: read as "KEY is RULE".
        hint: what to do; default: name the field's default.
        bounds: pydantic's own, such as `ge=0`.
    """
    extra = {"hint": hint} if hint else None
    return Field(description=rule, json_schema_extra=extra, **bounds)  # type: ignore[arg-type]


def listed(value: Any) -> Any:
    """Validator of a list: a single value is short for a list of it."""
    return value if isinstance(value, list | tuple) else [value]


def brief(value: Any) -> str:
    """A value in a message: its repr, shortened, for values of any size and depth.

    >>> brief("abc"), brief("a" * 1000) == repr("a" * 150) + "..."
    ("'abc'", True)
    """
    try:
        text = repr(value[: MOST_SHOWN + 1] if isinstance(value, str | list | tuple) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        return f"a {type(value).__name__} that is too long to print"
    if isinstance(value, str):
        return text if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]!r}..."
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def reported(kind: str, also: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Decorator of a pydantic dataclass whose constructor raises `PotstillError`.

    Args:
        kind: how messages call the class; an instance's `name` is added.
        also: keys that its table has in a file, besides the fields.
    """

    def decorate(cls: type[T]) -> type[T]:
        init: Any = cls.__init__

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                where = f'{kind} "{kwargs["name"]}"' if "name" in kwargs else kind
                raise explain(error, where, cls, also) from None

        cls.__init__ = __init__  # type: ignore[assignment]
        return cls

    return decorate


def is_flag_for_number(value: Any, annotation: Any) -> bool:
    """True for true or false, alone or in a list, where the type allows numbers and no flags.

    >>> is_flag_for_number(True, int), is_flag_for_number([1, False], tuple[int, ...])
    (True, True)
    >>> is_flag_for_number(True, bool), is_flag_for_number(1, float | None)
    (False, False)
    """
    kinds = _members(annotation)
    for kind in kinds:
        if get_origin(kind) in (list, tuple):
            values = value if isinstance(value, list | tuple) else [value]
            return any(is_flag_for_number(one, get_args(kind)[0]) for one in values)
    return isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds)


def explain(
    error: ValidationError, where: str, table: Any, also: Iterable[str] = ()
) -> PotstillError:
    """Translate pydantic's errors into rules, what was got, and hints.

    Args:
        error: of a validation.
        where: how messages call the table.
        table: the model or dataclass that was validated.
        also: keys that the table has in a file, besides its fields.
    """
    return together([one for detail in error.errors() for one in _each(detail, where, table, also)])


def _each(
    detail: Mapping[str, Any], where: str, table: Any, also: Iterable[str]
) -> list[PotstillError]:
    """One of pydantic's errors; several where a validator raised several."""
    path, around, within, field = _walk(table, detail["loc"])
    kind, key, got = detail["type"], ".".join(path), detail["input"]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, PotstillError):
        place = f"{where}: {key}" if key else where
        errors = cause.errors if isinstance(cause, PotstillErrors) else (cause,)
        return [PotstillError(f"{place}: {one}", one.hint) for one in errors]
    keys = [name for node in around for name in _fields(node)]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        choices = [*keys, *(also if len(path) == 1 else ())]
        stated, hint = f'unknown key "{key}"', did_you_mean(path[-1], choices, "keys")
    elif kind.startswith("union_tag"):
        tag = got.get("name") if isinstance(got, Mapping) else got
        tags = [name for node in within for name in _tags(node)]
        stated, hint = f'unknown {key} "{tag}"', did_you_mean(str(tag), tags, f"{key}s")
    elif kind == "missing":
        given = got if isinstance(got, Mapping) else getattr(got, "kwargs", None)
        stated = f"{key} is required, got {', '.join(given or ()) or 'nothing'}"
        hint = f"keys: {', '.join(keys)}"
    else:
        stated, hint = f"{_rule(key, field, detail['msg'])}, got {brief(got)}", _hint(field)
    return [PotstillError(f"{where}: {stated}", hint)]


def _rule(key: str, field: Any, message: str) -> str:
    """A field's rule in its own words, or else in pydantic's."""
    if text := getattr(field, "description", None):
        return f"{key} is {text}"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}"


def _hint(field: Any) -> str:
    """A field's own hint, or the value that it has when it is left out."""
    if own := (getattr(field, "json_schema_extra", None) or {}).get("hint"):
        return str(own)
    factory = getattr(field, "default_factory", None)
    default = factory() if callable(factory) else getattr(field, "default", None)
    if default in (None, {}, ()) or default is PydanticUndefined:
        return ELSEWHERE
    return f"leave it out for the default, {default!r}"


def _walk(
    table: Any, place: Sequence[str | int]
) -> tuple[list[str], Sequence[Any], Sequence[Any], Any]:
    """Follow an error's place from a table: keys, types around and within, and the last field."""
    path: list[str] = []
    around, within, field = [table], [table], None
    if place and isinstance(place[0], int) and _fields(table):  # an argument by position
        place = [[*_fields(table)][place[0]], *place[1:]]
    for step in place:
        if any(step in _tags(node) for node in within):  # a member of a union, not a key
            within = [node for node in within if step in _tags(node)]
            continue
        children = [child for node in within for child in _children(node, step)]
        around, within = within, [node for kind, _ in children for node in _members(kind)]
        field = next((one for _, one in children if one is not None), field)
        path.append(str(step))
    return path, around, within, field


def _children(node: Any, step: str | int) -> list[tuple[Any, Any]]:
    """Types one step below a type, with their fields where they have one."""
    fields = _fields(node)
    if step in fields:
        return [(getattr(fields[step], "annotation", None), fields[step])]
    if get_origin(node) is dict:
        return [(get_args(node)[1], None)]
    return [(get_args(node)[0], None)] if get_origin(node) in (list, tuple) else []


def _members(annotation: Any) -> list[Any]:
    """The types of a union, and other types alone."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [node for member in get_args(annotation) for node in _members(member)]
    return [annotation]


def _fields(node: Any) -> Mapping[Any, Any]:
    """Fields by the name in a file of a pydantic model or a dataclass; another type has none."""
    fields = getattr(node, "__pydantic_fields__", None) or getattr(node, "__dataclass_fields__", {})
    return {getattr(one, "validation_alias", None) or name: one for name, one in fields.items()}


def _tags(node: Any) -> tuple[Any, ...]:
    """Values of `name` by which a table is chosen from a union."""
    annotation = getattr(_fields(node).get("name"), "annotation", None)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
