"""The executor protocol, and the scheduling loop that all executors share.

`local` uses worker processes of this machine, `ray` the tasks of a Ray cluster. They differ in
how a run is assigned and how a crash is detected. Which runs are pending, which of them can start,
what a spent budget means and when a run counts as failed does not differ, and is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from potstill.diagnostics.preflight import Check, Progress
from potstill.interrupts import check_interrupts
from potstill.study import record
from potstill.study.budget import Ledger
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunId, StudyFolder
from potstill.tasks import Task
from potstill.training.spending import BudgetReached

Results = dict[RunId, dict[str, Any]]  # records of the runs that have ended

PairWatch = Callable[[str, Progress], None]  # of a pair's checks

EXIT_TIMEOUT = 10.0  # seconds that workers may take to exit once all runs have ended


def unwatched_pair(pair: str, progress: Progress) -> None:
    """Report nothing."""


class Executor(Protocol):
    """Runs studies on some machines."""

    def preflight(
        self, study: Study, watch: PairWatch = unwatched_pair, *, repeat: bool = False
    ) -> dict[str, list[Check]]:
        """Run the pre-flight checks of every pair where its runs would execute.

        Args:
            study: the settings.
            watch: called with a pair when one of its checks starts and when it ends.
            repeat: make the checks whose results are kept again.
        """

    def run(
        self, study: Study, folder: StudyFolder, keys: Sequence[RunId], on_poll: Callable[[], None]
    ) -> Results:
        """Execute the pending runs; see `execute`."""


class Scheduler(Protocol):
    """Assigns the runs of one study to the workers of an executor."""

    def poll(self, pending: Sequence[RunId]) -> None:
        """Poll running workers and assign pending runs to idle ones."""

    def drain(self) -> None:
        """Wait for all workers to exit, which they do once the budget is spent."""

    def stop(self) -> None:
        """Terminate the workers that are still running."""


def execute(
    scheduler: Scheduler,
    study: Study,
    folder: StudyFolder,
    keys: Sequence[RunId],
    on_poll: Callable[[], None],
    every: float = 0.5,
) -> Results:
    """Poll the scheduler until every run has ended.

    Args:
        scheduler: assigns the runs.
        study: the settings.
        folder: the study's folder.
        keys: the runs.
        on_poll: called after each poll, for example to draw progress.
        every: seconds between two polls.

    Raises:
        StorageError: storage is unavailable; finished runs are kept.
        BudgetReached: the budget is spent; unfinished runs can continue from their checkpoints.
    """
    try:
        check_budget(scheduler, study, folder, keys)
        while pending := unfinished(folder, keys):
            check_interrupts()
            scheduler.poll(pending)
            on_poll()
            time.sleep(every)
    finally:
        scheduler.stop()
    on_poll()
    return folder.results(keys, study)


def unfinished(folder: StudyFolder, keys: Sequence[RunId]) -> list[RunId]:
    """Runs without a result."""
    return [key for key in keys if not folder.cell(key).ended]


def runnable(study: Study, folder: StudyFolder, pending: Sequence[RunId]) -> Iterator[RunId]:
    """Pending runs that can start: training needs the teacher baseline of its pair."""
    for key in pending:
        alone = not study.models[key.pair].teacher
        if key.method in REFERENCES or alone or folder.cell(RunId(key.pair, "teacher")).ended:
            yield key


def check_budget(
    scheduler: Scheduler, study: Study, folder: StudyFolder, keys: Sequence[RunId]
) -> None:
    """If the budget is spent and runs are unfinished, drain the scheduler and raise."""
    limit = folder.ledger(study).over()
    if not limit or not unfinished(folder, keys):
        return
    scheduler.drain()
    hint = "raise it and run the same command again: unfinished runs continue"
    raise BudgetReached(f"the budget is spent: {limit}", hint)


def run_if_free(
    study: Study, folder: StudyFolder, key: RunId, task: Task | None, ledger: Ledger
) -> bool:
    """Execute a run in this process, unless it has ended or another process holds its lock.

    Returns:
        True if the run was executed.

    Raises:
        BudgetReached: before the run starts or between two of its steps.
        StorageError: storage is unavailable.
    """
    if limit := ledger.over():
        raise BudgetReached(f"the budget is spent: {limit}")
    run = folder.cell(key)
    with run.lock() as locked:
        if locked:
            run.tidy()
        if locked and not run.ended:
            run_cell(study, folder, key, task, ledger)
            return True
    return False


def record_crash(study: Study, folder: StudyFolder, key: RunId, cause: str) -> None:
    """Record a run as failed after its workers have crashed too often."""
    run = folder.cell(key)
    run.path.mkdir(parents=True, exist_ok=True)  # they may have crashed before they made it
    outcome = {"status": "failed", "cause": cause, "steps": run.steps}
    run.finish(record.complete(study, key, outcome))
