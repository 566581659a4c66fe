"""Errors that a user can cause.

Each is a `PotstillError`: the message has the rule and what it got, `hint` what to do. The command
line prints both lines and exits with code 2. Neither has a secret of a URL, nor a long value as a
whole. Bugs in potstill are ordinary exceptions and keep their traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.urls import without_secrets

NOTE = 50  # characters, at most, of the note in the place of what is left out

MOST_ERRORS = 20  # of several in one
LONGEST = 1000  # characters of a line; names in it can have any length
MOST_LINES = 200


class PotstillError(ValueError):
    """An invalid request. `str(error)` is the rule and what it got, `error.hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(shown(message))
        self.hint = shown(hint)

    def __reduce__(self) -> tuple[type[PotstillError], tuple[str, str]]:
        # so that the hint is kept when a worker process pickles the error
        return type(self), (str(self), self.hint)


def shown(text: str, longest: int = LONGEST) -> str:
    r"""A message without secrets, and without the middle of lines that are too long to be read.

    Control characters are escaped, and so is half a surrogate pair, which no file can hold.

    >>> shown("got " + 100 * "x" + ", which is no name", 80)
    'got xxxxxx... (92 characters left out) ...xx, which is no name'
    >>> shown("got \x1b[31m")
    'got \\x1b[31m'
    """
    lines = without_secrets(text).split("\n")
    more = len(lines) - MOST_LINES
    lines = [_line(line, longest) for line in lines[:MOST_LINES]]
    return "\n".join([*lines, f"and {more:,} more lines"] if more > 0 else lines)


def _line(text: str, longest: int) -> str:
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) <= longest:
        return text
    tail = longest // 4
    head = longest - tail - NOTE
    left_out = len(text) - head - tail
    return f"{text[:head]}... ({left_out} characters left out) ...{text[-tail:]}"


class NonFinite(ArithmeticError):
    """A loss, a gradient or a log-probability is not finite. The run fails; the study continues."""


def out_of_memory(error: Exception) -> bool:
    """True if memory ran out, of this machine or of a GPU; each library has its own error for it.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    >>> out_of_memory(ValueError("/data/memory/model is not a folder"))
    False
    """
    text = str(error).lower()
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "out of memory" in text or "allocate memory" in text


class StorageError(PotstillError):
    """Storage is unavailable. Aborts the study; finished runs are kept."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert a failed write in the block to a `StorageError` that names `path`.

    safetensors reports a full disk with an exception of its own, identified by its text.
    """
    try:
        yield
    except TimeoutError:  # another process holds a lock
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f'cannot write "{path}": {reason}',
            "free space or choose another folder with --out, then run the same command again: "
            "finished runs are kept",
        ) from error


def did_you_mean(got: str, choices: Iterable[str], what: str = "choices") -> str:
    """A hint that names the nearest of `choices`, or lists all of them.

    >>> did_you_mean("hybird", ["hybrid", "mixture"])
    'did you mean "hybrid"?'
    >>> did_you_mean("zzz", ["b", "a"], "methods")
    'methods: a, b'
    """
    names = sorted(choices)
    near = difflib.get_close_matches(got, names, n=1)
    return f'did you mean "{near[0]}"?' if near else f"{what}: {', '.join(names)}"


class PotstillErrors(PotstillError):
    """Several errors in one: a numbered line of the message each, and of the hint."""

    def __init__(self, errors: Sequence[PotstillError]) -> None:
        self.errors = tuple(errors)
        super().__init__(
            f"{len(errors)} errors{_numbered(map(str, errors))}",
            f"one for each{_numbered(error.hint or '-' for error in errors)}",
        )

    def __reduce__(self) -> Any:
        return type(self), (self.errors,)


def _numbered(lines: Iterable[str]) -> str:
    texts = [f"\n  {n}. {line}" for n, line in enumerate(lines, 1)]
    more = len(texts) - MOST_ERRORS
    return "".join(texts[:MOST_ERRORS]) + (f"\n  and {more:,} more" if more > 0 else "")


class Errors:
    """Collects the errors of several checks, to raise them together.

    >>> errors = Errors()
    >>> for number in (1, -1):
    ...     with errors:
    ...         if number < 0:
    ...             raise PotstillError(f"a count is at least 0, got {number}", "write 0")
    >>> errors.check()
    Traceback (most recent call last):
    potstill.errors.PotstillError: a count is at least 0, got -1
    """

    def __init__(self) -> None:
        self.collected: list[PotstillError] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, PotstillError) or isinstance(error, StorageError):
            return False
        self.add(error)
        return True

    def add(self, error: PotstillError) -> None:
        """Collect an error, or the errors of several; the same message counts once."""
        known = set(map(str, self.collected))
        errors = error.errors if isinstance(error, PotstillErrors) else (error,)
        self.collected += (one for one in errors if str(one) not in known)

    def check(self) -> None:
        """Raise what was collected, if anything: one error as it is, several as one."""
        if self.collected:
            raise together(self.collected)


def together(errors: Sequence[PotstillError]) -> PotstillError:
    """One error as it is, several as `PotstillErrors`."""
    return errors[0] if len(errors) == 1 else PotstillErrors(errors)
