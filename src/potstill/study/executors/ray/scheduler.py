"""Submits a study's runs as tasks of a Ray cluster, and handles how they end.

Every runnable run is a task of its own; Ray places it. Crashes are counted here and not left to
Ray's retries, because a retried run continues from its checkpoint and a run that crashed too often
gets a result. Ownership of a run is decided in its folder: by a lock if the folder is shared, by
a lease behind a URL (see `lease`).
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import (
    EXIT_TIMEOUT,
    Results,
    check_budget,
    execute,
    record_crash,
    runnable,
    unfinished,
)
from potstill.study.executors.ray.lease import EXPIRY
from potstill.study.executors.ray.resources import insufficient, requested, require_node
from potstill.study.executors.ray.worker import AttemptOutcome, Job, execute_job
from potstill.study.remote import Mirror
from potstill.study.remote.names import RESULT, RUNNING, STOP
from potstill.study.remote.url import GracePeriod
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder

INTERVAL = 2.0  # seconds between updates of the mirror, and retries of a run that is held
VISIBLE = 60.0  # seconds for a result that a node has written to appear in the folder here
STARVED = 300.0  # seconds to wait for a node that is large enough
CRASHES = {
    "WorkerCrashedError": "its worker process died",
    "NodeDiedError": "its node died",
    "OutOfMemoryError": "the node ran out of memory",
}


class RayScheduler:
    """The Ray tasks of one study.

    Args:
        ray: the ray module, connected.
        study: the settings; `study.ray` has the resources that a run requests.
        folder: the study's folder here: one that all nodes share, or the mirror's.
        keys: the runs.
        limit: most tasks at a time; 0: every runnable run.
        mirror: the local copy, if the study's folder is behind a URL.
    """

    def __init__(
        self,
        ray: Any,
        study: Study,
        folder: StudyFolder,
        keys: Sequence[RunId],
        limit: int = 0,
        mirror: Mirror | None = None,
    ) -> None:
        self.study, self.folder, self.keys = study, folder, list(keys)
        self.crashes: Counter[RunId] = Counter()
        self._ray, self._limit, self._mirror = ray, limit, mirror
        self._task = ray.remote(execute_job)
        self._running: dict[Any, RunId] = {}  # by task
        self._name = uuid.uuid4().hex
        self._not_before: dict[RunId, float] = {}
        self._ended: dict[RunId, tuple[float, str]] = {}  # when a node reported it, and which
        self._leases: dict[RunId, tuple[dict[str, Any], float]] = {}  # of others, and since when
        self._updated = self._satisfied = time.monotonic()
        self._grace = GracePeriod()

    def run(self, on_poll: Callable[[], None], every: float = 0.5) -> Results:
        """Execute the pending runs; see `execute`."""
        if self._mirror:
            self._mirror.open()
            self._mirror.remote.remove(STOP)
        return execute(self, self.study, self.folder, self.keys, on_poll, every)

    def poll(self, pending: Sequence[RunId]) -> None:
        self._collect(wait=False)
        now = time.monotonic()
        if now - self._updated >= INTERVAL:
            self._updated = now
            self._check_nodes(now)
            if self._mirror:
                with self._grace:
                    self._mirror.pull()
                check_budget(self, self.study, self.folder, self.keys)
        submitted = set(self._running.values())
        for key in runnable(self.study, self.folder, pending):
            if self._limit and len(self._running) >= self._limit:
                return
            if key not in submitted and self._may_start(key, now):
                self._submit(key)

    def drain(self) -> None:
        if self._mirror:
            limit = self.folder.ledger(self.study).over()
            self._mirror.remote.write(STOP, limit.encode())
        self._collect(wait=True)
        if self._mirror:
            self._mirror.pull()

    def stop(self) -> None:
        """Cancel all tasks. Checkpoints remain; locks and leases are released or expire."""
        tasks = list(self._running)
        with contextlib.suppress(self._ray.exceptions.RayError):  # may be the reason to stop
            if tasks and not unfinished(self.folder, self.keys):  # each exits by itself
                self._ray.wait(tasks, num_returns=len(tasks), timeout=EXIT_TIMEOUT)
            for task in tasks:
                self._ray.cancel(task, force=True)
            if tasks:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=30)
        if self._mirror:
            with contextlib.suppress(StorageError):  # may be the reason to stop
                self._release_leases(self._mirror)
        self._running.clear()

    def _release_leases(self, mirror: Mirror) -> None:
        mirror.pull()
        for key in self._running.values():
            if mirror.lease(str(key)).get("driver") == self._name:
                mirror.remote.remove(f"cells/{key}/{RUNNING}")

    def _submit(self, key: RunId) -> None:
        place = self._mirror.remote.url if self._mirror else str(self.folder.path.resolve())
        expired = self._leases.get(key, ({}, 0.0))[0].get("attempt", "")
        table = self.study.to_toml()
        job = Job(table, key, place, self._mirror is not None, self._name, expired)
        task = self._task.options(**requested(self.study), max_retries=0, name=str(key))
        self._running[task.remote(job)] = key

    def _may_start(self, key: RunId, now: float) -> bool:
        """False while another process is known to own the run, or a retry is not yet due."""
        if key in self._ended:
            self._check_visible(key, now)
            return False
        if now < self._not_before.get(key, now):
            return False
        lease = self._mirror.lease(str(key)) if self._mirror else {}
        if not lease or lease["driver"] == self._name:
            self._leases.pop(key, None)
            return True
        if self._leases.get(key, ({}, 0.0))[0] != lease:
            self._leases[key] = lease, now
        return now - self._leases[key][1] > EXPIRY

    def _check_visible(self, key: RunId, now: float) -> None:
        """Raise if the result of a run that has ended on a node does not appear here."""
        since, host = self._ended[key]
        if now - since > VISIBLE:
            raise PotstillError(
                f'{key} has ended on {host}, and its result is not in "{self.folder.path}"',
                "give an --out that every node shares with this machine, or a URL such as s3://...",
            )

    def _collect(self, wait: bool) -> None:
        """Handle the tasks that have ended; with `wait`, all tasks."""
        if not self._running:
            return
        tasks, timeout = list(self._running), None if wait else 0
        ended, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=timeout)
        outcomes = [(self._running.pop(task), outcome_of(self._ray, task)) for task in ended]
        for key, outcome in outcomes:
            self._handle(key, outcome)
        if not wait and any(
            isinstance(o, AttemptOutcome) and o.kind == "budget" for _, o in outcomes
        ):
            check_budget(self, self.study, self.folder, self.keys)

    def _handle(self, key: RunId, outcome: AttemptOutcome | str) -> None:
        if isinstance(outcome, str):
            self._count_crash(key, outcome)
        elif outcome.kind == "done":
            self._ended[key] = time.monotonic(), outcome.host
        elif outcome.kind == "storage":
            raise StorageError(outcome.text, outcome.hint)
        elif outcome.kind == "error":
            raise PotstillError(outcome.text, outcome.hint)
        else:  # another process holds the run, or the budget is spent
            self._not_before[key] = time.monotonic() + INTERVAL

    def _count_crash(self, key: RunId, cause: str) -> None:
        """Count a crash; beyond `ray.retries`, record the run as failed."""
        self.crashes[key] += 1
        crashes, retries = self.crashes[key], self.study.ray.retries
        if crashes <= retries:
            print(f"warning: {key}: {cause}; retry {crashes} of {retries}", file=sys.stderr)
            return
        if self._mirror:
            self._mirror.pull()
        if self.folder.cell(key).result is not None:
            return  # it crashed after its result was written
        times = "once" if crashes == 1 else f"{crashes} times"
        record_crash(self.study, self.folder, key, f"its worker or node died {times} ({cause})")
        if self._mirror:
            self._mirror.upload(f"cells/{key}/{RESULT}")
            for name in ("checkpoints", RUNNING):
                self._mirror.remote.remove(f"cells/{key}/{name}")

    def _check_nodes(self, now: float) -> None:
        """Raise if no node has been large enough for a run for `STARVED` seconds."""
        if not insufficient(self._ray, self.study):
            self._satisfied = now
        elif now - self._satisfied > STARVED:
            require_node(self._ray, self.study)


def outcome_of(ray: Any, task: Any) -> AttemptOutcome | str:
    """Return the outcome of a task; text if it crashed.

    Raises:
        PotstillError: it could not start, because the node lacks potstill or Ray rejects the
            runtime_env; or the connection to Ray is lost.
    """
    try:
        outcome: AttemptOutcome = ray.get(task)
        return outcome
    except ray.exceptions.RayTaskError as error:
        raise node_error(error) from None
    except ray.exceptions.RuntimeEnvSetupError as error:
        reason = str(error).strip().split("\n")[0]
        raise PotstillError(f"Ray cannot set up the runtime_env: {reason}", "see [ray]") from None
    except ray.exceptions.LocalRayletDiedError:
        raise PotstillError(
            "the Ray node to which this process is connected is gone",
            "run the same command again when the cluster is up: unfinished runs continue",
        ) from None
    except ray.exceptions.RayError as error:
        return CRASHES.get(type(error).__name__, type(error).__name__)


def node_error(error: Any) -> Exception:
    """The exception that a task raised on its node."""
    if "No module named 'potstill" in str(error):
        return PotstillError(
            "a node of the cluster has no potstill",
            "install the same version on every node, or let [ray] runtime_env do it with pip",
        )
    cause = error.cause
    return cause if isinstance(cause, Exception) else error
