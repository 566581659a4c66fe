"""Texts of models, files and servers on a terminal, and output that cannot be written.

Such a text may hold control sequences that rewrite the screen, or characters that change the order
of what is read. `echo` prints it with those characters escaped. `streams` guards stdout and stderr
as a whole: no misleading character, none that the encoding lacks, no traceback where a disk is full
or a pipe closed; and no secret on stderr, where libraries print too. Results on stdout come from
files that have none, and are printed as they are. Styles and cursor movements of potstill's own
drawings pass.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from potstill.urls import without_secrets

# Characters that change the order of others, line separators of Unicode, C1, lone surrogates.
_MISLEADING = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_NOWHERE = re.compile(f"[{_MISLEADING}]")
_IN_TEXT = re.compile(f"[\x00-\x08\x0b-\x1f{_MISLEADING}]")
# potstill's own characters, for encodings that lack them.
PLAIN = {"−": "-", "—": "-", "…": "...", "·": "|", "⟨": "<", "⟩": ">", "←": "<-", "’": "'"}
PLAIN |= dict(zip("▁▂▃▄▅▆▇█", "__..--==", strict=True))
PLAIN |= dict.fromkeys("━╸╺╴╶─", "-")
ERRORS = "potstill"  # name of the error handler that uses them


class OutputLost(Exception):
    """Nothing more can be written to stdout."""

    def __init__(self, cause: OSError | ValueError) -> None:
        super().__init__(str(cause))
        self.closed = isinstance(cause, BrokenPipeError)
        self.reason = getattr(cause, "strerror", None) or str(cause)


def printable(text: object) -> str:
    r"""A text with its control characters escaped, line ends and tabs excepted.

    >>> print(printable("a\x1b[2Jb\u202ec\n"), end="")
    a\x1b[2Jb\u202ec
    """
    return _IN_TEXT.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def echo(*texts: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print texts that others may have written."""
    print(printable(" ".join(map(str, texts))), end=end, file=file or sys.stdout)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Encode what an encoding lacks: as `PLAIN` characters, else escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    texts = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(texts), error.end


codecs.register_error(ERRORS, _plain)


class Guarded(io.TextIOBase):
    """A stream without misleading characters, whose failures are not OSErrors.

    Args:
        stream: the real one.
        messages: cut secrets out, and drop what cannot be written; else raise `OutputLost`.
    """

    def __init__(self, stream: Any, messages: bool) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
        self._stream, self._messages = stream, messages
        self.failed = False  # something could not be written

    def write(self, text: str) -> int:
        safe = _NOWHERE.sub(_escaped, without_secrets(text) if self._messages else text)
        with self._failures():
            self._stream.write(safe)
        return len(text)

    def flush(self) -> None:
        with self._failures():
            self._stream.flush()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.failed = True
            if not self._messages:
                raise OutputLost(error) from error

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> Any:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    def close(self) -> None:
        """Leave the real stream open."""


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Guard stdout and stderr while the block runs, and write out what they hold.

    Raises:
        OutputLost: stdout is closed, or its disk is full.
    """
    real = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # for a stream that was closed
        out = Guarded(real[0] or nowhere, messages=False)
        err = Guarded(real[1] or nowhere, messages=True)
        sys.stdout, sys.stderr = out, err
        try:
            yield
            out.flush()
        finally:
            err.flush()
            if err.failed:
                abandon(2)
            sys.stdout, sys.stderr = real


def abandon(number: int) -> None:
    """Lead a file descriptor nowhere, so that Python does not fail when it ends."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class Formatter(logging.Formatter):
    """Lines of the log, printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal's stderr that something goes on; elsewhere nothing."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
