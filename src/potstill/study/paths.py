"""Paths in a study file are relative to that file; those of overrides, to the current folder.

They are made absolute when the file is read, so that a study is the same from wherever it is run.
A model or a data set is a folder only where there is one; other names are embedded models, or of
the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from potstill.engines.zoo import place
from potstill.errors import Errors, PotstillError
from potstill.fields import brief

# Keys as "/a/b"; a list has the key of its values.
_CONTEXT = "/pair/[^/]+/context(/hybrid)?"
FILES = re.compile(
    rf"/task/(train|test)_path|/task/grade(/graders)*/schema|/eval/drift|{_CONTEXT}/(few_shot/path|retrieval(/path)?)"
)
FOLDERS = re.compile(r"/task/dataset|/pair/[^/]+/(student|teacher|teachers/[^/]+)")  # or names
GRADERS = re.compile(r"/task/grade(/graders)*(/name)?")  # functions of files are FILE.py:NAME
_FUNCTION = re.compile(r"(.+\.py)(:[A-Za-z_][\w.]*)")


def located(
    table: Mapping[str, Any],
    folder: Path,
    errors: Errors,
    only: Collection[str] | None = None,
    replaced: Collection[str] = (),
) -> dict[str, Any]:
    """A study's table whose paths are absolute.

    Args:
        table: as in a study file; values of another type are left to its validation.
        folder: that paths are relative to.
        errors: collects those of paths that exist only in the current folder.
        only: dotted keys that are changed, and those in their tables; default: all.
        replaced: those that overrides replace, which stay as they are.
    """
    chosen = None if only is None else _as_keys(only)
    left = _as_keys(replaced)

    def absolute(key: str, value: str) -> str:
        if (chosen is None or _within(key, chosen)) and not _within(key, left):
            with errors:
                return _located(value, key, folder)
        return value

    changed: dict[str, Any] = _mapped(table, absolute)
    return changed


def _as_keys(dotted: Collection[str]) -> tuple[str, ...]:
    return tuple("/" + key.replace(".", "/") for key in dotted)


def _within(key: str, chosen: Collection[str]) -> bool:
    return any(key == one or key.startswith(f"{one}/") for one in chosen)


def _located(value: str, key: str, folder: Path) -> str:
    """A value of a study file with an absolute path, if it is a path."""
    if FILES.fullmatch(key):
        return _file(value, key, folder)
    if FOLDERS.fullmatch(key):
        if _exists(folder, value):
            return str(folder / value)
        return value if place(value) != value else _file(value, key, folder, name=True)
    if key == "/eval/lm_eval" and value.endswith((".yaml", ".yml")):  # others are names of tasks
        return _file(value, key, folder)
    match = _FUNCTION.fullmatch(value) if GRADERS.fullmatch(key) else None
    return _file(match[1], key, folder) + match[2] if match else value


def _file(value: str, key: str, folder: Path, *, name: bool = False) -> str:
    """An absolute path, also of a file that is not there, which its reader reports.

    Args:
        value: the path.
        key: that has it.
        folder: that it is relative to.
        name: it may be a name instead, which is returned as it is.
    """
    if not value or value.startswith("~") or not value.isprintable():
        return value
    path, here = folder / value, Path.cwd()
    if not _exists(folder, value) and _exists(here, value) and folder != here:
        dotted = key.strip("/").replace("/", ".")
        raise PotstillError(
            f"{dotted} is relative to the study file, and {brief(str(path))} does not exist",
            f"it is in the current folder: write {brief(str(here / value))}, or give it as an "
            f"override, {dotted}={value}",
        )
    return value if name else str(path)


def _exists(folder: Path, value: str) -> bool:
    """True if a relative path exists in a folder."""
    try:
        return bool(value) and (folder / value).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def earlier_tables(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A study's table as it may have been written when paths were kept as they were given.

    Each has the paths relative to one of the folders that they are in.
    """
    paths = [Path(value) for key, value in _texts(table) if _is_path(key, value)]
    for folder in dict.fromkeys(parent for path in paths for parent in path.parents):

        def relative(key: str, value: str, folder: Path = folder) -> str:
            inside = _is_path(key, value) and Path(value).is_relative_to(folder)
            return str(Path(value).relative_to(folder)) if inside else value

        yield _mapped(table, relative)


def as_now(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """A stored table with the absolute paths of today's, where they are the same paths."""
    now: dict[str, list[str]] = {}
    for key, text in _texts(current):
        now.setdefault(key, []).append(text)

    def absolute(key: str, value: str) -> str:
        ending = "/" + value.removeprefix("./")
        same = (path for path in now.get(key, ()) if _is_path(key, path) and path.endswith(ending))
        return value if value.startswith("/") else next(same, value)

    return _mapped(stored, absolute)


def _is_path(key: str, value: str) -> bool:
    if GRADERS.fullmatch(key):
        return value.startswith("/") and _FUNCTION.fullmatch(value) is not None
    return value.startswith("/") and any(kind.fullmatch(key) for kind in (FILES, FOLDERS))


def _mapped(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A copy of a table with other texts; a list has the key of its values."""
    if isinstance(value, Mapping):
        return {name: _mapped(inner, change, f"{key}/{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change, key) for inner in value]
    return change(key, value) if isinstance(value, str) else value


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a table with their keys."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}/{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value
