"""Worker processes that fill in a study's grid.

Workers share nothing but the folder: each takes the first cell that is missing, ready and not
held by another process, so several studies may work on one folder. A worker that dies is
replaced; its cell goes on from its checkpoint once, then counts as failed. A worker whose study
is gone leaves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from potstill.config import Study, read_study
from potstill.cost import BudgetReached, Ledger
from potstill.errors import PotstillError, StorageError
from potstill.preflight import Check
from potstill.provenance import provenance
from potstill.store import REFERENCES, Cell, StudyFolder, cells_of
from potstill.study import preflight_pair, run_cell
from potstill.tasks import Task, load_task

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

    def run(self, tick: Callable[[], None], every: float = 0.5) -> dict[Cell, dict[str, Any]]:
        """Fill in the grid; `tick` is called between looks, to draw progress.

        Raises:
            StorageError: the disk refuses; what is finished is kept.
            BudgetReached: the study has spent what it may; what is begun can go on.
        """
        try:
            self._afford()
            while missing := self.missing():
                self._tend(len(missing))
                tick()
                time.sleep(every)
        finally:
            for process in self._processes.values():
                process.terminate()
            for process in self._processes.values():
                process.join()
        tick()
        return self.folder.results(self.cells)

    def missing(self) -> list[Cell]:
        """Cells without a result."""
        return [cell for cell in self.cells if self.folder.cell(cell).result is None]

    def _tend(self, missing: int) -> None:
        """Replace workers that are gone while there is work."""
        for place, process in [(i, p) for i, p in self._processes.items() if not p.is_alive()]:
            del self._processes[place]
            if process.exitcode == _DISK:
                self._raise_storage()
            if process.exitcode == _SPENT:
                self._afford()
            if process.exitcode:
                self._bury(process)
        for place in range(min(self.workers, missing)):
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
        held = [
            cell
            for cell in self.missing()
            if (self.folder.cell(cell).running or {}).get("pid") == process.pid
        ]
        self.idle_deaths = 0 if held else self.idle_deaths + 1
        if self.idle_deaths > DEATHS * self.workers:
            raise PotstillError(
                f"workers end with exit code {process.exitcode} before they take a cell",
                "their messages stand above; run one cell alone with `potstill run`",
            )
        for cell in held:
            place = self.folder.cell(cell)
            self.deaths[cell] += 1
            if self.deaths[cell] >= DEATHS:
                code = process.exitcode
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                cause = f"its worker process died {DEATHS} times ({how}); memory may have run out"
                steps = len(place.metrics)
                place.finish(
                    {
                        "pair": cell.pair,
                        "method": cell.method,
                        "seed": cell.seed,
                        "status": "failed",
                        "cause": cause,
                        "steps": steps,
                        "provenance": provenance(),
                    }
                )

    def _afford(self) -> None:
        """Raise where the budget is spent and something is left to do, once no worker works."""
        over = self.folder.ledger(self.study).over()
        if not over or not self.missing():
            return
        for process in self._processes.values():
            process.join()  # each stops by itself, after the step that it is at
        hint = "raise it and run the same command again: what is begun goes on"
        raise BudgetReached(f"the budget is spent: {over}", hint)

    def _raise_storage(self) -> None:
        note = self.folder.path / ".storage-error"
        text = note.read_text() if note.exists() else "the disk refused a write"
        raise StorageError(
            text, "free space, then run the same command again: what is finished is kept"
        )


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
            missing = [c for c in cells if folder.cell(c).result is None]
            if not missing:
                return
            if not _take_one(study, folder, missing, task, ledger):
                time.sleep(0.2)  # what is left is held by others or waits for a teacher row
    except BudgetReached:
        os._exit(_SPENT)
    except StorageError as error:
        with contextlib.suppress(OSError):  # the disk may be full; the exit code says it
            (folder.path / ".storage-error").write_text(str(error))
        os._exit(_DISK)


def _take_one(
    study: Study, folder: StudyFolder, missing: Sequence[Cell], task: Task, ledger: Ledger
) -> bool:
    """Run the first of the missing cells that can be had; False where none can."""
    if over := ledger.over():
        raise BudgetReached(f"the budget is spent: {over}")
    for cell in missing:
        teacher = Cell(cell.pair, "teacher")
        if cell.method not in REFERENCES and folder.cell(teacher).result is None:
            continue
        place = folder.cell(cell)
        with place.claim() as mine:
            if mine and place.result is None:
                run_cell(study, folder, cell, task, ledger)
                return True
    return False


def _leave_with(parent: int) -> None:
    """End this process when the study that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
