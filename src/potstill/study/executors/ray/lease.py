"""The lease on a run whose folder is behind a URL, while a worker executes it in local scratch.

The run's files are downloaded when the attempt starts. While it executes, growing files and every
checkpoint are uploaded, so that another node can continue from there. Object stores have no locks:
a lease file at the URL names the attempt that owns the run, and the owner renews it every few
seconds. An attempt reads the file before it renews it, and gives up if the file names another
one, so of two attempts one remains. If both write for a moment nothing is lost: equal runs give
equal bytes, and files are replaced atomically.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.errors import StorageError
from potstill.study.remote.names import GROWING, RESULT, RUNNING, SPENT, STOP
from potstill.study.remote.url import GracePeriod, Remote
from potstill.study.storage import RunFolder, RunId, StudyFolder
from potstill.training import checkpoint
from potstill.training.spending import BudgetReached

HEARTBEAT = 3.0  # seconds between renewals
EXPIRY = 30.0  # seconds without a renewal after which a lease has expired
UPLOAD = 2.0  # seconds between uploads of what has changed


class LeaseLost(StorageError):
    """Raised when another worker holds the lease. Not a failure."""


class Lease:
    """One attempt's lease on a run; downloads and uploads the run's files.

    A context manager. `acquired` is False if the run has ended or another attempt owns it.

    Args:
        remote: the study's folder.
        key: the run.
        scratch: the study's folder on this node.
        driver: name of the scheduler; an attempt may succeed one of the same scheduler.
        expired: name of an attempt whose lease has expired.
    """

    def __init__(
        self, remote: Remote, key: RunId, scratch: StudyFolder, driver: str, expired: str = ""
    ) -> None:
        self.acquired = False
        self._remote, self._there = remote, f"cells/{key}"
        self._here, self._teacher = scratch.cell(key), scratch.cell(RunId(key.pair, "teacher"))
        self._driver, self._expired = driver, expired
        self._attempt, self._beats = uuid.uuid4().hex, 0
        self._uploaded: dict[str, tuple[int, int]] = {}  # modification time and size by name
        self._complete: set[str] = set()  # checkpoints that are complete at the URL
        self._students: set[str] = set()  # students of some steps that are there
        self._limit = ""  # budget limit that the scheduler reports
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: StorageError | None = None

    def __enter__(self) -> Lease:
        current = self._read()
        taken = (
            current and current["driver"] != self._driver and current["attempt"] != self._expired
        )
        if not taken and self._remote.read(f"{self._there}/{RESULT}") is None:
            self.acquired = True
            self._limit = self._read_limit()
            self._renew()
            self._download()
            self._start(self._beat, HEARTBEAT)
            self._start(self._upload_changes, UPLOAD)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Upload what is left, the result last, and release the lease.

        After an error nothing more is uploaded: another attempt continues from what is there.
        """
        if not self.acquired:
            return
        self._closing.set()
        for thread in self._threads:
            thread.join()
        try:
            if kind is None or issubclass(kind, BudgetReached):
                self.budget_limit()
                self._beat()
                self._upload_changes()
                if self._here.result is not None:
                    self._upload_result()
            with contextlib.suppress(StorageError):
                if self._owns():
                    self._remote.remove(f"{self._there}/{RUNNING}")
        finally:
            _empty(self._here.path)

    def budget_limit(self) -> str:
        """The budget limit that the scheduler reports, if one is reached.

        Raises:
            LeaseLost: another attempt owns the run.
            StorageError: the storage has been unavailable for too long.
        """
        if self._error:
            raise self._error
        return self._limit

    def _start(self, job: Callable[[], None], every: float) -> None:
        thread = threading.Thread(target=self._repeat, args=(job, every), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _repeat(self, job: Callable[[], None], every: float) -> None:
        """Repeat a job until the lease ends, tolerating short outages."""
        grace = GracePeriod()
        while not self._closing.wait(every) and not self._error:
            try:
                with grace:
                    job()
            except StorageError as error:
                self._error = error
            except Exception as error:  # raised in the main thread by `budget_limit`
                self._error = StorageError(f"{self._there}: {error!r}", "please report this")

    def _read(self) -> dict[str, Any]:
        content = self._remote.read(f"{self._there}/{RUNNING}")
        return dict(json.loads(content)) if content else {}

    def _owns(self) -> bool:
        return self._read().get("attempt") == self._attempt

    def _renew(self) -> None:
        owner = {"pid": os.getpid(), "host": platform.node()}
        lease = {**owner, "attempt": self._attempt, "driver": self._driver, "beat": self._beats}
        self._remote.write(f"{self._there}/{RUNNING}", json.dumps(lease).encode())
        self._beats += 1

    def _beat(self) -> None:
        if not self._owns():
            raise LeaseLost(f"another attempt has taken {self._there}")
        self._renew()
        self._limit = self._read_limit()

    def _read_limit(self) -> str:
        return (self._remote.read(STOP) or b"").decode()

    def _download(self) -> None:
        """Copy the teacher baseline, and what earlier attempts left of the run."""
        teacher = f"cells/{self._teacher.path.parent.parent.name}/teacher/all"
        for name in (RESULT, "examples.jsonl"):
            self._remote.download(f"{teacher}/{name}", self._teacher.path / name)
        _empty(self._here.path)
        names = sorted(self._remote.tree(self._there))
        complete = {name.rpartition("/")[0] for name in names if name.endswith("/state.json")}
        for name in names:
            below = name.removeprefix(f"{self._there}/")
            if below in GROWING or name.rpartition("/")[0] in complete:
                self._remote.download(name, self._here.path / below)
        last = max((row["step"] for row in self._here.metrics), default=-1)
        for point in _checkpoints(self._here):
            if checkpoint.step_of(point) > last:  # an older attempt uploaded the metrics last
                shutil.rmtree(point)
        self._complete = {point.name for point in _checkpoints(self._here)}

    def _upload_changes(self) -> None:
        """Upload what has changed: metrics before the checkpoints that follow them."""
        points = _checkpoints(self._here)
        for name in GROWING:
            self._upload_if_changed(name)
        for student in sorted(self._here.path.glob("students/step-*")):  # before its checkpoint
            if student.name not in self._students:
                self._upload_folder(student)
                self._students.add(student.name)
        for point in points:
            if point.name not in self._complete:
                self._upload_checkpoint(point)
        for removed in self._complete - {point.name for point in points}:
            self._remote.remove(f"{self._there}/checkpoints/{removed}")
            self._complete.remove(removed)

    def _upload_if_changed(self, name: str) -> None:
        file = self._here.path / name
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            version = stat.st_mtime_ns, stat.st_size
            if self._uploaded.get(name) != version:
                self._upload(file, name)
                self._uploaded[name] = version

    def _upload_checkpoint(self, point: Path) -> None:
        """state.json goes last: it marks the checkpoint as complete."""
        with contextlib.suppress(FileNotFoundError):  # a newer checkpoint has replaced it
            for file in sorted(point.iterdir(), key=lambda file: file.name == "state.json"):
                self._upload(file, f"checkpoints/{point.name}/{file.name}")
            self._complete.add(point.name)

    def _upload_result(self) -> None:
        """The trained student, then the result."""
        self._upload_folder(self._here.path / "student")
        if not (self._here.path / SPENT).exists():
            self._remote.remove(f"{self._there}/{SPENT}")
        self._upload(self._here.path / RESULT, RESULT)
        if "state" not in (self._here.result or {}):
            self._remote.remove(f"{self._there}/checkpoints")

    def _upload_folder(self, folder: Path) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self._upload(file, file.relative_to(self._here.path).as_posix())

    def _upload(self, file: Path, name: str) -> None:
        if isinstance(self._error, LeaseLost):
            raise self._error
        self._remote.upload(file, f"{self._there}/{name}")


def _checkpoints(run: RunFolder) -> list[Path]:
    return checkpoint.points(run.path / "checkpoints")


def _empty(folder: Path) -> None:
    """Remove what a crashed attempt left on this node; this attempt holds its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
