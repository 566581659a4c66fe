"""Worker processes of this machine that fill in a study's grid.

Workers share nothing but the folder: each takes the first cell that is missing, ready and not
held by another process, so several studies may work on one folder. A worker that dies is
replaced; its cell goes on from its checkpoint once, then counts as failed. A worker whose study
is gone leaves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from potstill.diagnostics.preflight import Check
from potstill.engines import zoo
from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import (
    LEAVING,
    Results,
    afford,
    give_up,
    ready,
    take,
    unfinished,
    work,
)
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder, cells_of
from potstill.tasks import load_task
from potstill.training.spending import BudgetReached

DEATHS = 2  # a cell whose worker died this often has failed
_DISK = 74  # a worker's exit code when the disk refuses (EX_IOERR)
_SPENT = 75  # and when the budget is spent (EX_TEMPFAIL)


class Pool:
    """The worker processes of one `potstill study` and what is left to do."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        workers: int,
        cells: Sequence[Cell] | None = None,
    ) -> None:
        self.study, self.folder, self.workers = study, folder, workers
        self.cells = list(cells or cells_of(study))
        self.deaths: Counter[Cell] = Counter()
        self.idle_deaths = 0  # of workers that had no cell
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, Any] = {}  # by place, which decides their cores

    def run(self, tick: Callable[[], None], every: float = 0.5) -> Results:
        """Fill in the grid, see `where.work`."""
        return work(self, self.study, self.folder, self.cells, tick, every)

    def settle(self) -> None:
        """Wait until every worker has left."""
        for process in self._processes.values():
            process.join()

    def stop(self) -> None:
        """End the workers; where all is done each leaves by itself, its last cell in order."""
        if not unfinished(self.folder, self.cells):
            for process in self._processes.values():
                process.join(LEAVING)
        for process in self._processes.values():
            process.terminate()
        self.settle()

    def tend(self, missing: Sequence[Cell]) -> None:
        """Replace workers that are gone while there is work."""
        for place, process in [(i, p) for i, p in self._processes.items() if not p.is_alive()]:
            del self._processes[place]
            if process.exitcode == _DISK:
                self._raise_storage()
            if process.exitcode == _SPENT:
                afford(self, self.study, self.folder, self.cells)
            if process.exitcode:
                self._bury(process)
        for place in range(min(self.workers, len(missing))):
            if place in self._processes:
                continue
            process = self._context.Process(
                target=_work,
                args=(
                    self.study.to_toml(),
                    self.folder,
                    self.cells,
                    os.getpid(),
                    cores(place, self.workers, allowed()),
                ),
            )
            process.start()
            self._processes[place] = process

    def _bury(self, process: Any) -> None:
        """Note the death of a worker; a cell that costs two workers has failed.

        Raises:
            PotstillError: workers die one after the other before they have taken a cell.
        """
        mark = {"pid": process.pid, "host": platform.node()}
        missing = unfinished(self.folder, self.cells)
        held = [cell for cell in missing if self.folder.cell(cell).running == mark]
        self.idle_deaths = 0 if held else self.idle_deaths + 1
        if self.idle_deaths > DEATHS * self.workers:
            raise PotstillError(
                f"workers end with exit code {process.exitcode} before they take a cell",
                "their messages stand above; run one cell alone with `potstill run`",
            )
        for cell in held:
            self.deaths[cell] += 1
            if self.deaths[cell] >= DEATHS:
                code = process.exitcode
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                died = f"its worker process died {DEATHS} times ({how})"
                give_up(self.folder, cell, f"{died}; memory may have run out")

    def _raise_storage(self) -> None:
        note = self.folder.path / ".storage-error"
        text = note.read_text() if note.exists() else "the disk refused a write"
        raise StorageError(
            text, "free space, then run the same command again: what is finished is kept"
        )


class Processes:
    """This machine as a place of work.

    Args:
        workers: processes; 0: one a core for embedded pairs, else one.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers

    def preflight(self, study: Study) -> dict[str, list[Check]]:
        return preflight_study(study)

    def run(
        self, study: Study, folder: StudyFolder, cells: Sequence[Cell], tick: Callable[[], None]
    ) -> Results:
        return Pool(study, folder, self._workers or _fitting(study), cells).run(tick)


def _fitting(study: Study) -> int:
    threads = max(1, getattr(study.engine, "threads", 1))
    tiny = all(name in zoo.PAIRS for name in study.models)
    return max(1, (len(allowed()) or os.cpu_count() or 1) // threads) if tiny else 1


def preflight_study(study: Study) -> dict[str, list[Check]]:
    """Pre-flight of every pair, in a process of its own that gives the memory back."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        jobs = {pair: pool.submit(_preflight, study.to_toml(), pair) for pair in study.models}
        return {pair: job.result() for pair, job in jobs.items()}


def _preflight(table: dict[str, Any], pair: str) -> list[Check]:
    return preflight_pair(read_study(table), pair)


def cores(place: int, workers: int, allowed: Sequence[int]) -> frozenset[int]:
    """The cores of one worker: an equal share, so that none drives another from its cache.

    >>> cores(1, 2, [0, 1, 2, 3, 4])
    frozenset({2, 3, 4})

    All of them where there are fewer cores than workers, or one worker.
    """
    if workers > len(allowed):
        return frozenset(allowed)
    first, end = (len(allowed) * i // workers for i in (place, place + 1))
    return frozenset(allowed[first:end])


def allowed() -> list[int]:
    """The cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _work(
    table: dict[str, Any],
    folder: StudyFolder,
    cells: Sequence[Cell],
    parent: int,
    mine: frozenset[int],
) -> None:
    """A worker process: run cells until none is left to take."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it; it is only faster
        if mine:
            os.sched_setaffinity(0, mine)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    study = read_study(table)
    task, ledger = load_task(**study.task), folder.ledger(study)
    try:
        while True:
            missing = unfinished(folder, cells)
            if not missing:
                return
            if not any(take(study, folder, c, task, ledger) for c in ready(folder, missing)):
                time.sleep(0.2)  # what is left is held by others or waits for a teacher row
    except BudgetReached:
        os._exit(_SPENT)
    except StorageError as error:
        with contextlib.suppress(OSError):  # the disk may be full; the exit code says it
            (folder.path / ".storage-error").write_text(str(error))
        os._exit(_DISK)


def _leave_with(parent: int) -> None:
    """End this process when the study that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
