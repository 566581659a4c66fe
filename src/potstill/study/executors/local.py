"""The local executor: worker processes on this machine.

Workers share nothing but the study's folder. Each takes the first run that is pending, can start
and is not locked by another process, so several studies may share a folder. A worker that crashes
is replaced: its run continues once from its checkpoint, and fails at the second crash. Workers
exit when the process that started them is gone.
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
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from multiprocessing.context import SpawnProcess
from typing import Any

from potstill.diagnostics.preflight import Check, Progress
from potstill.engines import zoo
from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import (
    EXIT_TIMEOUT,
    PairWatch,
    Results,
    check_budget,
    execute,
    record_crash,
    run_if_free,
    runnable,
    unfinished,
    unwatched_pair,
)
from potstill.study.kept import keeper_of
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.tasks import load_task
from potstill.training.spending import BudgetReached

MAX_CRASHES = 2  # worker crashes after which a run has failed
POLL = 0.1  # seconds between two looks at the progress of pre-flight
_STORAGE_EXIT = 74  # a worker's exit code when storage is unavailable (EX_IOERR)
_BUDGET_EXIT = 75  # and when the budget is spent (EX_TEMPFAIL)


class LocalExecutor:
    """Runs studies in worker processes on this machine.

    Args:
        workers: their number; 0: one per core for embedded pairs, else one.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers

    def preflight(
        self, study: Study, watch: PairWatch = unwatched_pair, *, repeat: bool = False
    ) -> dict[str, list[Check]]:
        return preflight_study(study, watch, repeat=repeat)

    def run(
        self, study: Study, folder: StudyFolder, keys: Sequence[RunId], on_poll: Callable[[], None]
    ) -> Results:
        return LocalScheduler(study, folder, self._workers or _workers_for(study), keys).run(
            on_poll
        )


class LocalScheduler:
    """Starts and replaces the worker processes of one study; workers choose their runs."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        workers: int,
        keys: Sequence[RunId] | None = None,
    ) -> None:
        self.study, self.folder, self.workers = study, folder, workers
        self.keys = list(keys or runs_of(study))
        self.crashes: Counter[RunId] = Counter()
        self.idle_crashes = 0  # in a row, of workers without a run
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}  # by slot, which determines their cores

    def run(self, on_poll: Callable[[], None], every: float = 0.5) -> Results:
        """Execute the pending runs; see `execute`."""
        return execute(self, self.study, self.folder, self.keys, on_poll, every)

    def poll(self, pending: Sequence[RunId]) -> None:
        for slot, process in list(self._processes.items()):
            if not process.is_alive():
                del self._processes[slot]
                self._handle_exit(process)
        for slot in range(min(self.workers, len(pending))):
            if slot not in self._processes:
                self._processes[slot] = self._start(slot)

    def drain(self) -> None:
        for process in self._processes.values():
            process.join()

    def stop(self) -> None:
        if not unfinished(self.folder, self.keys):  # each exits by itself, its last run in order
            for process in self._processes.values():
                process.join(EXIT_TIMEOUT)
        for process in self._processes.values():
            process.terminate()
        self.drain()

    def _start(self, slot: int) -> SpawnProcess:
        cores = worker_cores(slot, self.workers, available_cores())
        process = self._context.Process(
            target=_worker,
            args=(self.study.to_toml(), self.folder, self.keys, os.getpid(), cores),
        )
        process.start()
        return process

    def _handle_exit(self, process: SpawnProcess) -> None:
        if process.exitcode == _STORAGE_EXIT:
            self._raise_storage()
        if process.exitcode == _BUDGET_EXIT:
            check_budget(self, self.study, self.folder, self.keys)
        if process.exitcode:
            self._count_crash(process)

    def _count_crash(self, process: SpawnProcess) -> None:
        """Count the crash of a worker; a run that has crashed `MAX_CRASHES` workers has failed.

        Raises:
            PotstillError: worker after worker crashes without a run.
        """
        mark = {"pid": process.pid, "host": platform.node()}
        pending = unfinished(self.folder, self.keys)
        held = [key for key in pending if self.folder.cell(key).running == mark]
        self.idle_crashes = 0 if held else self.idle_crashes + 1
        code = process.exitcode or 0
        if self.idle_crashes > MAX_CRASHES * self.workers:
            raise PotstillError(
                f"workers exit with code {code} before they start a run",
                "their messages are above; execute a single run with `potstill run`",
            )
        for key in held:
            self.crashes[key] += 1
            if self.crashes[key] >= MAX_CRASHES:
                reason = f"signal {-code}" if code < 0 else f"exit code {code}"
                crashed = f"its worker process died {MAX_CRASHES} times ({reason})"
                record_crash(self.folder, key, f"{crashed}; memory may have run out")

    def _raise_storage(self) -> None:
        note = self.folder.path / ".storage-error"
        text = note.read_text() if note.exists() else "a write failed"
        raise StorageError(
            text, "free space, then run the same command again: finished runs are kept"
        )


def _workers_for(study: Study) -> int:
    """One worker per core for embedded pairs, which are small, else one."""
    threads = max(1, getattr(study.engine, "threads", 1))
    embedded = all(name in zoo.PAIRS for name in study.models)
    cores = len(available_cores()) or os.cpu_count() or 1
    return max(1, cores // threads) if embedded else 1


def preflight_study(
    study: Study, watch: PairWatch = unwatched_pair, *, repeat: bool = False
) -> dict[str, list[Check]]:
    """Run the pre-flight checks of every pair in a process of its own, which frees its memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    start = partial(ProcessPoolExecutor, 1, mp_context=context)
    with start(initializer=_report_to, initargs=(queue,)) as pool:
        table = study.to_toml()
        jobs = {pair: pool.submit(_preflight, table, pair, repeat) for pair in study.models}
        running = set(jobs.values())
        while running:
            running = wait(running, timeout=POLL).not_done
            while not queue.empty():
                watch(*queue.get())
        return {pair: job.result() for pair, job in jobs.items()}


_queues: list[Any] = []  # of this process, to report the progress of pre-flight


def _report_to(queue: Any) -> None:
    _queues.append(queue)


def _preflight(table: dict[str, Any], pair: str, repeat: bool) -> list[Check]:
    study = read_study(table)

    def watch(progress: Progress) -> None:
        for queue in _queues:
            queue.put((pair, progress))

    return preflight_pair(study, pair, watch=watch, keeper=keeper_of(study, pair, repeat=repeat))


def worker_cores(slot: int, workers: int, available: Sequence[int]) -> frozenset[int]:
    """The cores of one worker: an equal share, so that workers do not evict each other's cache.

    >>> worker_cores(1, 2, [0, 1, 2, 3, 4])
    frozenset({2, 3, 4})

    All cores if there are fewer cores than workers, or a single worker.
    """
    if workers > len(available):
        return frozenset(available)
    first, end = (len(available) * i // workers for i in (slot, slot + 1))
    return frozenset(available[first:end])


def available_cores() -> list[int]:
    """The cores that this process may use; empty if the system does not report them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _worker(
    table: dict[str, Any],
    folder: StudyFolder,
    keys: Sequence[RunId],
    parent: int,
    cores: frozenset[int],
) -> None:
    """The worker process: execute runs until none is unfinished."""
    with contextlib.suppress(OSError):  # sandboxes may forbid it; it only saves time
        if cores:
            os.sched_setaffinity(0, cores)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    study = read_study(table)
    task, ledger = load_task(**study.task), folder.ledger(study)
    try:
        while pending := unfinished(folder, keys):
            for key in runnable(folder, pending):
                if run_if_free(study, folder, key, task, ledger):
                    break
            else:
                time.sleep(0.2)  # other workers hold what is left, or a teacher baseline is due
    except BudgetReached:
        os._exit(_BUDGET_EXIT)
    except StorageError as error:
        with contextlib.suppress(OSError):  # the disk may be full; the exit code is enough
            (folder.path / ".storage-error").write_text(str(error))
        os._exit(_STORAGE_EXIT)


def _exit_with(parent: int) -> None:
    """Exit when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
