"""The command line. Progress goes to stderr, results to stdout; it imports what a command needs,
when it runs.

Exit codes: 0 done, 1 some cell failed or the budget is spent, 2 the request was wrong, 130
interrupted.
"""

from __future__ import annotations

import os
import sys

from potstill.cli import reading, running  # noqa: F401 - they add their commands to the app
from potstill.cli.parts import app
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError
from potstill.training.spending import BudgetReached

__all__ = ["app", "main"]

INTERRUPTED = 130


def main() -> None:
    """Entry point: errors of the user become two lines and code 2."""
    try:
        if one_of_several():
            _take_part()
        app()
    except BudgetReached as reached:
        print(f"stopped: {reached}\nhint: {reached.hint}", file=sys.stderr)
        sys.exit(1)
    except PotstillError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer makes this of Ctrl-C
            print("interrupted: run the same command again to go on", file=sys.stderr)
        raise


def _take_part() -> None:
    """The first process runs the command; the others are the rest of its engine, until it ends."""
    from potstill.engines.cross_tokenizer import engine as cross
    from potstill.engines.torch import distributed as processes

    if os.environ["RANK"] == "0":
        processes.dismiss_at_exit()
    else:
        processes.follow(cross.TwoTokenizers)
        sys.exit(0)
