"""What potstill says when a request cannot be met.

Every error that a user can cause is a `PotstillError`: it states the rule, what it got, and (as `hint`)
what to do. The command line prints it as two lines and leaves with code 2. Bugs of our own stay
ordinary exceptions with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PotstillError(ValueError):
    """A wrong request. `str(error)` states the rule and what it got, `error.hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self):  # keep the hint when a worker process sends the error home
        return type(self), (str(self), self.hint)


class NonFinite(ArithmeticError):
    """A loss, gradient or log-probability stopped being a number: the cell fails, the study goes on."""


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
