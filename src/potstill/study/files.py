"""Reading and writing the files of a study, which other processes may read at the same time.

Files that are read whole are written under another name and renamed. Files that grow are read
line by line, without a last line that is still being written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, writing


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically; after an error the old file is unchanged."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path), partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """JSON text of a record; non-finite numbers become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing or only partly written."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file that may still be growing."""
    if not path.exists():
        return []
    *complete, _partial = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in complete]
    except json.JSONDecodeError as error:
        raise PotstillError(
            f'"{path}" is damaged: {error}',
            f'remove the folder "{path.parent}" to repeat its run',
        ) from None


class JsonlTail:
    """Reads the new lines of a growing JSON Lines file; starts over if the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode, self._offset = path, -1, 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Complete lines since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset = stat.st_ino, 0
            file.seek(self._offset)
            complete, _, _partial = file.read().rpartition(b"\n")
        self._offset += len(complete) + 1 if complete else 0
        return [json.loads(line) for line in complete.split(b"\n") if line]
