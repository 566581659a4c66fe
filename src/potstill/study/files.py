"""Reading and writing the files of a study, which other processes may read at the same time.

Files that are read whole are written under another name and renamed. Files that grow are read
line by line, without a last line that is still being written.

Every record, and every line of a file that grows, ends with a digest of its own text. Files of
versions that wrote no digest are still read, and checked by the rules of `file_schemas`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from potstill.digests import is_sealed, sealed, unsealed
from potstill.errors import PotstillError, writing


class DamagedFile(PotstillError):
    """A file that cannot be what potstill wrote. The message has its path, the hint a way out."""


def damaged(path: Path, reason: object, hint: str) -> DamagedFile:
    """The error for a file that cannot be read."""
    return DamagedFile(f'"{path}" is damaged: {reason}', hint)


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


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Replace a file by one record with its digest."""
    write_text(path, sealed(record) + "\n")


def read_text(path: Path, hint: str) -> str | None:
    """A file's text; None if there is no such file.

    Raises:
        DamagedFile: it is not a file, cannot be read, or is not UTF-8.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise damaged(path, "it is a link to nothing", hint) from None
        return None
    except ValueError:  # a name that no file can have
        return None
    except OSError as error:
        raise damaged(path, error.strerror, hint) from None
    if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
        raise damaged(path, "it is not a file", hint)
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, getattr(error, "strerror", None) or error, hint) from None


def read_record(path: Path, hint: str) -> tuple[dict[str, Any], bool] | None:
    """The record in a file, and whether it has a digest; None if there is no such file.

    Args:
        path: the file.
        hint: what to do about a damaged one.

    Raises:
        DamagedFile: the file cannot be read, or its digest does not fit.
    """
    text = read_text(path, hint)
    if text is None:
        return None
    try:
        text = text.rstrip("\n")
        return unsealed(text), is_sealed(text)
    except ValueError as error:
        raise damaged(path, error, hint) from None


RowError = Callable[[dict[str, Any]], str]  # the error in a row; empty if it has none


def rows_of(
    lines: Iterable[str], path: Path, hint: str, row_error: RowError
) -> list[dict[str, Any]]:
    """The rows in complete lines of a growing file, without their digests.

    Once a line has a digest, all that follow have one.

    Raises:
        DamagedFile: a line cannot be read, or its digest does not fit.
    """
    rows: list[dict[str, Any]] = []
    strict = False
    for number, line in enumerate(lines, 1):
        try:
            rows.append(unsealed(line))
            lacks, strict = strict and not is_sealed(line), is_sealed(line)
            if reason := "it has no digest" if lacks else row_error(rows[-1]):
                raise ValueError(reason)
        except ValueError as error:
            raise damaged(path, f"line {number}: {error}", hint) from None
    return rows


def read_lines(path: Path, hint: str, row_error: RowError) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file that may still be growing.

    Raises:
        DamagedFile: as `rows_of`.
    """
    *complete, _partial = (read_text(path, hint) or "").split("\n")
    return rows_of(complete, path, hint, row_error)


class JsonlTail:
    """Reads the new lines of a growing JSON Lines file; starts over if the file was replaced.

    Args:
        path: the file.
        hint: what to do about a damaged one.
        row_error: as for `rows_of`.
    """

    def __init__(self, path: Path, hint: str, row_error: RowError) -> None:
        self._path, self._hint, self._row_error = path, hint, row_error
        self._inode, self._offset = -1, 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Complete lines since the last call.

        Raises:
            DamagedFile: as `rows_of`.
        """
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise damaged(self._path, "it is not a file", self._hint)
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise damaged(self._path, error.strerror, self._hint) from None
        with file:
            state = os.fstat(file.fileno())
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._inode, self._offset = state.st_ino, 0
            file.seek(self._offset)
            complete, _, _partial = file.read().rpartition(b"\n")
        if not complete:
            return []
        try:
            lines = complete.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise damaged(self._path, error, self._hint) from None
        rows = rows_of(lines, self._path, self._hint, self._row_error)
        self._offset += len(complete) + 1
        return rows
