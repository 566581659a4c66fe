"""The command line. Progress goes to stderr, results to stdout; each command imports what it needs
when it runs.

Exit codes: 0 done, 1 a run failed or the budget is spent, 2 the request was wrong, 130 interrupted,
141 the reader of stdout has gone.
"""

from __future__ import annotations

from potstill.cli.app import app
from potstill.cli.entry import main

# Commands register themselves; help lists them in this order, the order of work.
from potstill.cli import check, study, race, watch  # noqa: F401 isort: skip
from potstill.cli import report, compare, diagnose, eval  # noqa: F401 isort: skip
from potstill.cli import bench, audit, probe, track  # noqa: F401 isort: skip
from potstill.cli import ls, zoo  # noqa: F401 isort: skip

__all__ = ["app", "main"]
