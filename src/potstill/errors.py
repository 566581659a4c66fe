"""What potstill says when a request cannot be met.

Every error that a user can cause is a `PotstillError`: it states the rule, what it got, and (as
`hint`) what to do. The command line prints it as two lines and leaves with code 2. Bugs of our
own stay ordinary exceptions with a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class PotstillError(ValueError):
    """A wrong request. `str(error)` states the rule and what it got, `error.hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[type[PotstillError], tuple[str, str]]:
        # keep the hint when a worker process sends the error home
        return type(self), (str(self), self.hint)


class NonFinite(ArithmeticError):
    """A loss or gradient stopped being a number: the cell fails, the study goes on."""


class StorageError(PotstillError):
    """The disk refuses: no cell's fault, so a study stops where it is."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refused write inside into a `StorageError` that names `path`.

    safetensors reports a full disk in an exception of its own, known by its text.
    """
    try:
        yield
    except TimeoutError:  # a lock that is held, not a disk that refuses
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f'cannot write "{path}": {reason}',
            "free space or choose another folder with --out, then run the same command again: "
            "what is finished is kept",
        ) from error


def did_you_mean(got: str, choices: Iterable[str], what: str = "choices") -> str:
    """Return a hint that names the nearest of `choices`, or lists them all.

    >>> did_you_mean("hybird", ["hybrid", "mixture"])
    'did you mean "hybrid"?'
    >>> did_you_mean("zzz", ["b", "a"], "methods")
    'methods: a, b'
    """
    names = sorted(choices)
    near = difflib.get_close_matches(got, names, n=1)
    return f'did you mean "{near[0]}"?' if near else f"{what}: {', '.join(names)}"
