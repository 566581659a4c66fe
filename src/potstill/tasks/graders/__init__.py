"""Graders: values that compare a completion with a problem's reference answer. Opened by name.

A grader is a frozen pydantic dataclass whose fields are its options in a study file. To add one,
write the class and list it in `GRADERS`. In a study file `grade` is a name, a table with a name
and options, a list (all but the last extract the answer, the last one compares), or the place of
one's own function, `mine.py:grade` or `package.module:function`. In Python it may be a callable.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from potstill.errors import PotstillError, did_you_mean
from potstill.fields import brief
from potstill.problems import Problem
from potstill.tasks.graders.base import Grader, GraderError

__all__ = ["GRADERS", "Grader", "GraderError", "GraderOption", "checked", "load_grader"]

_HERE = "potstill.tasks.graders"

GRADERS: dict[str, tuple[str, str, str]] = {  # name: (module, class, description)
    "number": (f"{_HERE}.number", "Number", "a number in any notation, within a tolerance"),
    "exact": (f"{_HERE}.text", "Exact", "the same text"),
    "normalised": (f"{_HERE}.text", "Normalised", "the same words, without case and punctuation"),
    "contains": (f"{_HERE}.text", "Contains", "the reference is in the completion"),
    "choice": (f"{_HERE}.choice", "Choice", "the letter or the text of one of several options"),
    "regex": (f"{_HERE}.extractors", "Regex", "a regular expression, or its group"),
    "boxed": (f"{_HERE}.extractors", "Boxed", "the last \\boxed{...}, as LaTeX text"),
    "after": (f"{_HERE}.extractors", "After", "the text after a mark such as ####"),
    "line": (f"{_HERE}.extractors", "Line", "the last line, or the first"),
    "math": (f"{_HERE}.latex", "Math", "equal expressions, by math-verify"),
    "json": (f"{_HERE}.structured", "Json", "a JSON value: its fields, or a schema"),
    "code": (f"{_HERE}.code", "Code", "code that passes the tests of its problem"),
    "any": (f"{_HERE}.composed", "AnyOf", "the best grade of several graders"),
    "all": (f"{_HERE}.composed", "AllOf", "the worst grade of several graders"),
    "chain": (f"{_HERE}.composed", "Chain", "extractors and a grader; a list is short for it"),
    "gsm8k": (f"{_HERE}.gsm8k", "GSM8KNumber", "the number after ####, flexible the last one"),
    "lm_eval": (f"{_HERE}.gsm8k", "LMEval", "lm-eval's gsm8k filters, to the letter"),
}

ALIASES = {"numeric": "gsm8k"}  # as `match` of the jsonl task has it

_HINT = (
    'a name (see `potstill ls graders`), a table such as { name = "number", tolerance = 0.01 }, '
    'a list such as ["boxed", "number"], or "mine.py:grade"'
)


def load_grader(spec: Any) -> Grader:
    """Make a grader.

    Args:
        spec: a name, a table with a name and options, a list, the place of a function, a callable,
            or a grader, which is returned as it is.

    Raises:
        PotstillError: no such grader, or options that it does not have or that break its limits.
    """
    try:
        return _loaded(spec)
    except RecursionError:
        raise PotstillError("graders are nested too deeply", _HINT) from None


def _loaded(spec: Any) -> Grader:
    if hasattr(spec, "grade") and hasattr(spec, "check") and hasattr(spec, "identity"):
        grader: Grader = spec
        return grader
    if isinstance(spec, str):
        spec = {"name": spec}
    elif isinstance(spec, Sequence):
        spec = {"name": "chain", "graders": [*spec]}
    elif callable(spec) or callable(getattr(spec, "grade", None)):
        spec = spec if callable(spec) else spec.grade
        return _made(f"{_HERE}.own", "Callable", {"function": spec})
    name = spec.get("name") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(name, str):
        raise PotstillError(f"a grader is given by its name, got {brief(spec)}", _HINT)
    options = {key: value for key, value in spec.items() if key != "name"}
    name = ALIASES.get(name, name)
    if ":" in name and "place" not in options:
        return _made(f"{_HERE}.own", "Function", {"place": name, **options})
    if name.endswith(".py"):
        raise PotstillError(f'"{name}" is a file without a function', f"write {name}:grade")
    if name not in GRADERS:
        raise PotstillError(f'unknown grader "{name}"', did_you_mean(name, GRADERS, "graders"))
    module, attribute, _ = GRADERS[name]
    return _made(module, attribute, options)


def _made(module: str, attribute: str, options: Mapping[str, Any]) -> Grader:
    grader: Grader = getattr(importlib.import_module(module), attribute)(**options)
    return grader


def checked(grader: Grader, problem: Problem, where: str) -> Problem:
    """A problem whose reference its grader accepts; `where` names its place in errors."""
    try:
        grader.check(problem)
    except GraderError:
        raise
    except PotstillError as error:
        raise PotstillError(f"{where}: {error}", error.hint) from None
    return problem


def _read(spec: Any) -> Grader | None:
    return None if spec is None else load_grader(spec)


# A task's option `grade`, whose field has another name: a task's method is `grade`.
GraderOption = Annotated[Any, BeforeValidator(_read), Field(validation_alias="grade")]
