"""The local executor: worker processes on this machine.

Workers share nothing but the study's folder. Each takes the first run that is pending, can start
and is not locked by another process, so several studies may share a folder. A worker that crashes
is replaced: its run continues once from its checkpoint, and fails at the second crash. Processes
that are started here exit when the one that started them is gone, and send it their errors through
a pipe: a disk may be full.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import platform
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from potstill.diagnostics.preflight import Check, Progress
from potstill.engines import zoo
from potstill.errors import PotstillError
from potstill.interrupts import check_interrupts
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
from potstill.study.settling import task_of
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.training.spending import BudgetReached

MAX_CRASHES = 2  # worker crashes after which a run has failed
_CONTEXT = multiprocessing.get_context("spawn")
_ERROR_EXIT = 74  # a worker's exit code when it has sent an error (EX_IOERR)
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
        self._processes: dict[int, SpawnProcess] = {}  # by slot, which determines their cores
        self._errors: dict[int, Connection] = {}  # from the process in each slot

    def run(self, on_poll: Callable[[], None], every: float = 0.5) -> Results:
        """Execute the pending runs; see `execute`."""
        return execute(self, self.study, self.folder, self.keys, on_poll, every)

    def poll(self, pending: Sequence[RunId]) -> None:
        for slot, process in list(self._processes.items()):
            if not process.is_alive():
                del self._processes[slot]
                self._handle_exit(process, self._errors.pop(slot))
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
        self._errors[slot], sending = _CONTEXT.Pipe(duplex=False)
        table = self.study.to_toml()
        return _started(_worker, (table, self.folder, self.keys, cores), sending)

    def _handle_exit(self, process: SpawnProcess, errors: Connection) -> None:
        if process.exitcode == _ERROR_EXIT:
            with contextlib.suppress(EOFError):  # it has exited so for another reason
                raise errors.recv()
        if process.exitcode == _BUDGET_EXIT:
            check_budget(self, self.study, self.folder, self.keys)
        if process.exitcode:
            self._count_crash(process)

    def _count_crash(self, process: SpawnProcess) -> None:
        """Count the crash of a worker; a run that has crashed `MAX_CRASHES` workers has failed.

        Raises:
            PotstillError: worker after worker crashes without a run.
        """
        pending = unfinished(self.folder, self.keys)
        held = [key for key in pending if self._marked(key, process)]
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
                crashed = f"its worker process died {MAX_CRASHES} times ({_end_of(process)})"
                record_crash(self.study, self.folder, key, f"{crashed}; memory may have run out")

    def _marked(self, key: RunId, process: SpawnProcess) -> bool:
        """True if the process was executing the run."""
        mark = self.folder.cell(key).mark or {}
        return (mark.get("pid"), mark.get("host")) == (process.pid, platform.node())


def _workers_for(study: Study) -> int:
    """One worker per core for embedded pairs, which are small, else one."""
    threads = max(1, getattr(study.engine, "threads", 1))
    embedded = all(name in zoo.PAIRS for name in study.models)
    cores = len(available_cores()) or os.cpu_count() or 1
    return max(1, cores // threads) if embedded else 1


def preflight_study(
    study: Study, watch: PairWatch = unwatched_pair, *, repeat: bool = False
) -> dict[str, list[Check]]:
    """Run the pre-flight checks of every pair in a process of its own, which frees its memory.

    Raises:
        PotstillError: a pair cannot be checked, or the process died.
    """
    messages, sending = _CONTEXT.Pipe(duplex=False)
    process = _started(_preflight, (study.to_toml(), repeat), sending)
    results: dict[str, list[Check]] = {}
    try:
        while len(results) < len(study.models):
            check_interrupts()
            message = messages.recv()
            if isinstance(message, Exception):
                raise message
            pair, content = message
            if isinstance(content, Progress):
                watch(pair, content)
            else:
                results[pair] = content
        return results
    except EOFError:
        process.join()
        raise PotstillError(
            f"the process of pre-flight died ({_end_of(process)})",
            "memory may have run out: a smaller batch or model needs less",
        ) from None
    finally:
        process.terminate()
        process.join()


def _preflight(table: dict[str, Any], repeat: bool, sending: Connection) -> None:
    """The process of pre-flight: send progress, then the checks of each pair."""
    try:
        study = read_study(table)
        for pair in study.models:

            def watch(progress: Progress, pair: str = pair) -> None:
                sending.send((pair, progress))

            keeper = keeper_of(study, pair, repeat=repeat)
            sending.send((pair, list(preflight_pair(study, pair, watch=watch, keeper=keeper))))
    except Exception as error:
        sending.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """The error, or its traceback as text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    error.add_note("".join(traceback.format_tb(error.__traceback__)))
    return error


def _started(target: Callable[..., None], args: Sequence[Any], sending: Connection) -> SpawnProcess:
    """Start a process with the arguments and its end of a pipe.

    It never sees Ctrl-C, which a terminal sends to all processes: this process handles it.
    """
    process = _CONTEXT.Process(target=_guarded, args=(target, os.getpid(), *args, sending))
    with _interrupts_blocked():
        process.start()
    sending.close()
    return process


def _guarded(target: Callable[..., None], parent: int, *args: Any) -> None:
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    target(*args)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold back SIGINT; processes that are started in the block never get it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


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
    cores: frozenset[int],
    sending: Connection,
) -> None:
    """The worker process: execute runs until none is unfinished."""
    with contextlib.suppress(OSError):  # sandboxes may forbid it; it only saves time
        if cores:
            os.sched_setaffinity(0, cores)
    try:
        study = read_study(table)
        task, ledger = task_of(study), folder.ledger(study)
        while pending := unfinished(folder, keys):
            for key in runnable(study, folder, pending):
                if run_if_free(study, folder, key, task, ledger):
                    break
            else:
                time.sleep(0.2)  # other workers hold what is left, or a teacher baseline is due
    except BudgetReached:
        os._exit(_BUDGET_EXIT)
    except PotstillError as error:  # of storage, or of a damaged file
        sending.send(error)
        os._exit(_ERROR_EXIT)


def _exit_with(parent: int) -> None:
    """Exit when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
