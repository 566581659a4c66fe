"""The entry point: runs the app and turns exceptions into messages and exit codes.

A wrong request becomes `error: ...` and `hint: ...`, without a traceback unless --verbose is given.
A bug keeps its traceback. Neither shows a secret that was on the command line.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from typing import Any

import typer

from potstill.cli.app import PROG, app, is_verbose
from potstill.cli.terminal import OutputLost, abandon, echo, printable, streams
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError, shown
from potstill.urls import remember, without_secrets

FAILED, WRONG, INTERRUPTED, CLOSED = 1, 2, 130, 141


def main() -> None:
    """Run the command line and exit."""
    for word in sys.argv[1:]:
        remember(word)
    try:
        with streams():
            code = _run()
    except OutputLost as error:
        code = _without_output(error)
    sys.exit(code)


def _run() -> int:
    """Run the command line; returns its exit code."""
    try:
        if one_of_several():
            _take_part()
        code = app(prog_name=PROG, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OutputLost:
        raise
    except Exception as error:
        code = explain(error)
    if code == INTERRUPTED:
        echo("interrupted: run the same command again to resume", file=sys.stderr)
    return int(code)


def _without_output(error: OutputLost) -> int:
    """The exit code where stdout cannot be written: that of a closed pipe, or an error."""
    abandon(1)
    if error.closed:
        return CLOSED
    with contextlib.suppress(OSError):
        print(f"error: cannot write to stdout: {error.reason}", file=sys.stderr)
        print("hint: free space, or send the output elsewhere", file=sys.stderr)
    return WRONG


def explain(error: Exception) -> int:
    """Print an error and what to do about it; returns the exit code.

    Raises:
        Exception: the error, where it is a bug.
    """
    if isinstance(error, PotstillError):
        message, hint = str(error), error.hint
    elif hasattr(error, "format_message"):  # a word that typer does not understand
        message, hint = misread(error)
    elif isinstance(error, OSError):
        message = f"{error.strerror or type(error).__name__}"
        message += f': "{error.filename}"' if error.filename else f" ({error})"
        hint = "check that it exists and that you may use it; --verbose shows where it is used"
    else:
        sys.excepthook = _print_bug
        raise error
    if is_verbose():
        echo("".join(traceback.format_exception(error)), end="", file=sys.stderr)
    spent = _is_spent_budget(error)
    echo(f"{'stopped' if spent else 'error'}: {shown(message)}", file=sys.stderr)
    if hint:
        echo(f"hint: {shown(hint)}", file=sys.stderr)
    return FAILED if spent else WRONG


def _print_bug(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a traceback as Python does, but safely."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    with contextlib.suppress(OSError):
        print(printable(without_secrets(lines)), end="", file=sys.stderr)


def misread(error: Exception) -> tuple[str, str]:
    """Message and hint of typer's error, which holds both in a line."""
    text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    message, near, rest = re.match(  # type: ignore[union-attr]
        r"(.*?)(?:[. (]*(Did you mean|Possible options:)(.*?)[)]?)?$", text
    ).groups(default="")
    context = getattr(error, "ctx", None)
    where = f"{context.command_path if context else PROG} --help"
    hint = f"{near[0].lower()}{near[1:]}{rest}" if near else f"see {where}"
    return message[:1].lower() + message[1:].rstrip("."), hint


def _is_spent_budget(error: Exception) -> bool:
    if not isinstance(error, PotstillError):
        return False
    from potstill.training.spending import BudgetReached

    return isinstance(error, BudgetReached)


def _take_part() -> None:
    """The first process runs the command; the others are the rest of its engine, until it ends."""
    from potstill.engines.cross_tokenizer import engine as cross
    from potstill.engines.torch import distributed as processes

    if os.environ["RANK"] == "0":
        processes.dismiss_at_exit()
    else:
        processes.follow(cross.TwoTokenizers)
        sys.exit(0)
