"""Reads the text of files that a user names, whatever is in them.

Folders, pipes and devices are rejected before they are read, and sizes are bounded: a pipe would
wait for ever, and a file of zeros would fill the memory. It leaves out other encodings than UTF-8,
which are named in the error, and compressed files, which `data.sources` unpacks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, BinaryIO

from potstill.errors import PotstillError

LONGEST_LINE = 16 * 2**20  # bytes; no model reads a prompt of this length
LARGEST_FILE = 4 * 2**30  # bytes of a file of many lines, all of which are kept in memory
BOM = b"\xef\xbb\xbf"

FORMS = {  # how files begin that are not text in UTF-8
    b"\x1f\x8b": "it is compressed with gzip",
    b"PK\x03\x04": "it is a zip archive",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd",
    b"\xfd7zXZ\x00": "it is compressed with xz",
    b"PAR1": "it is a Parquet file",
    b"\xff\xfe": "it is in UTF-16",
    b"\xfe\xff": "it is in UTF-16",
}


def open_regular(path: str | Path, hint: str, largest: int) -> BinaryIO:
    """Open a regular file; a pipe without a writer does not block.

    Args:
        path: the file; ~ is the user's folder.
        hint: what the caller needs instead.
        largest: bytes.

    Raises:
        PotstillError: there is no such file, or it cannot be read.
    """
    try:
        handle = os.open(Path(path).expanduser(), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError, RuntimeError) as error:  # NUL in a path; the ~ of an unknown user
        raise unreadable(path, str(error), hint) from None
    facts = os.fstat(handle)
    reason = ""
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or a device"
        reason = f"it is {kind}, not a file"
    elif facts.st_size > largest:
        reason = f"it has {facts.st_size:,} bytes, at most {largest:,} are read"
    if reason:
        os.close(handle)
        raise unreadable(path, reason, hint)
    return os.fdopen(handle, "rb")


def read_text(path: str | Path, hint: str, largest: int) -> str:
    """The whole text of a file in UTF-8, without a byte order mark.

    Raises:
        PotstillError: there is no such file, it is too large or it is not text.
    """
    try:
        with open_regular(path, hint, largest) as file:
            data = file.read(largest + 1)  # it may have grown
    except OSError as error:
        raise unreadable(path, str(error), hint) from None
    check_form(path, data, hint)
    text = decoded(data.removeprefix(BOM), f'"{path}"', hint)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise PotstillError(f'"{path}", line {line} has a NUL character: it is not text', hint)
    return text


def read_lines(path: str | Path, hint: str) -> Iterator[tuple[int, str]]:
    """The lines of a file in UTF-8 with their numbers; only a newline ends a line.

    Raises:
        PotstillError: there is no such file, or a line is too long or not text.
    """
    try:
        with open_regular(path, hint, LARGEST_FILE) as file:
            yield from lines_of(file, path, hint)
    except OSError as error:
        raise unreadable(path, str(error), hint) from None


def lines_of(file: IO[bytes], path: str | Path, hint: str) -> Iterator[tuple[int, str]]:
    """The lines of an open file, see `read_lines`."""
    for n in count(1):
        data = file.readline(LONGEST_LINE + 1)
        if n == 1:
            check_form(path, data, hint)
            data = data.removeprefix(BOM)
        if not data:
            return
        where = f"{path}, line {n}"
        if len(data) > LONGEST_LINE:
            rule = f"{where}: a line has at most {LONGEST_LINE:,} bytes, got more"
            raise PotstillError(rule, hint)
        yield n, decoded(data.removesuffix(b"\n"), where, hint)


def check_form(path: str | Path, data: bytes, hint: str) -> None:
    """Raise `PotstillError` if a file begins like one that is not text in UTF-8."""
    for begin, form in FORMS.items():
        if data.startswith(begin):
            raise unreadable(path, form, f"{hint}; unpack or convert it first")


def decoded(data: bytes, where: str, hint: str) -> str:
    """Text from UTF-8.

    Raises:
        PotstillError: with the first byte that is wrong.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise PotstillError(
            f"{where}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8", hint
        ) from None


def unreadable(path: str | Path, reason: str, hint: str) -> PotstillError:
    """The error of a file that cannot be read."""
    return PotstillError(f'cannot read "{path}": {reason}', hint)
