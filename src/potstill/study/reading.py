"""TOML of study files and overrides, as values that a study can hold.

A parser that takes all that TOML allows also takes what no setting means: numbers of thousands of
digits, thousands of brackets, keys of thousands of parts. They are rejected here, so that checks,
messages and files need not expect them.
"""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from potstill.errors import PotstillError
from potstill.fields import ELSEWHERE, brief

LARGEST = 2**20  # bytes of a study file
DEEPEST = 20  # tables and lists in each other
MOST_VALUES = 100_000
LONGEST_KEY = 200  # characters
# A key of 50 parts: tomllib takes the square of their number, or hours for a file of 1 MB.
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""", re.ASCII
)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table of a TOML text.

    Args:
        text: of a file or an override.
        where: its name in messages.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML.
        PotstillError: it is TOML that no setting means.
    """
    reason = ""
    try:
        if not _LONG_KEY.search(text):
            return tomllib.loads(text)
        reason = "a key has 50 parts or more"
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python reads 4,300 digits at most
        reason = "a number has thousands of digits"
    except RecursionError:
        reason = "lists or tables are nested too deeply"
    raise PotstillError(f"{where}: {reason}", ELSEWHERE)


def check_values(table: Mapping[Any, Any], where: str) -> None:
    """Reject values that no setting has, anywhere in a table.

    Raises:
        PotstillError: with the key of the first one.
    """
    stack: list[tuple[str, int, Any]] = [("", 0, table)]
    count = 0
    while stack:
        key, depth, value = stack.pop()
        count += 1
        inner: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            if problem := next(filter(None, map(_wrong_key, value)), ""):
                place = f"{where}: {key}" if key else where
                raise PotstillError(f"{place}: {problem}", ELSEWHERE)
            inner = [(f"{key}.{name}" if key else name, one) for name, one in value.items()]
        elif isinstance(value, list | tuple):
            inner = [(f"{key}.{n}", one) for n, one in enumerate(value)]
        problem = _wrong(value)
        if inner and depth >= DEEPEST:
            problem = f"tables and lists are at most {DEEPEST} deep in each other"
        if count + len(stack) + len(inner) > MOST_VALUES:
            problem = f"a study has at most {MOST_VALUES:,} values"
        if problem:
            place = key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}..."
            raise PotstillError(f"{where}: {f'{place}: ' * bool(key)}{problem}", ELSEWHERE)
        stack += [(name, depth + 1, one) for name, one in reversed(inner)]


def _wrong_key(key: Any) -> str:
    """The fault of a key; "" if it has none."""
    if not isinstance(key, str):
        return f"a key is text, got {brief(key)}"
    if len(key) > LONGEST_KEY:
        return f"a key has at most {LONGEST_KEY} characters, got {len(key)}"
    return "" if key.isprintable() else f"a key has no control characters, got {brief(key)}"


def _wrong(value: Any) -> str:
    """The fault of a value; "" if it has none."""
    if isinstance(value, str):
        return text_problem(value)
    if isinstance(value, bool):
        return ""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"a whole number is at least -2**63 and below 2**63, got {brief(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"a number is finite, got {value}"
    if isinstance(value, datetime.date | datetime.time):
        return f'a date or time is text, got {value}: write "{value}"'
    return ""


def text_problem(text: str) -> str:
    """The fault of a text that no study can hold; "" if it has none."""
    if "\0" in text:
        return f"a text has no NUL character, got {brief(text)}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a text has characters only, got half of a pair at {error.start + 1}"
    return ""
