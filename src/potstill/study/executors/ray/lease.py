"""A cell on loan: its folder is behind a URL, an attempt at it works in local scratch.

What the folder holds is copied here when the attempt begins; what grows and every resume point is
copied back while it works, so that another node can go on from there. There are no locks over
nodes: a mark at the URL names the attempt that has the cell, and changes every few seconds while
that lives. Each attempt reads the mark before it writes it, and leaves when it bears another name;
so of two attempts one goes on. Should both write for a moment, nothing is lost: equal cells give
equal bytes, and files are replaced whole.
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
from potstill.study.remote import GROWING, MARK, RESULT, SPENT, STOP, Patience, Remote
from potstill.study.storage import Cell, CellFolder, StudyFolder
from potstill.training import checkpoint
from potstill.training.spending import BudgetReached

BEAT = 3.0  # seconds between changes of the mark
ABANDONED = 30.0  # a mark that has not changed for so many seconds belongs to nobody
COPY = 2.0  # seconds between two looks for what is to be copied


class Lost(StorageError):
    """Another attempt has the cell: this one leaves it, and it is nobody's fault."""


class Loan:
    """One attempt's hold on a cell, and the copying to and fro.

    Args:
        remote: the study's folder.
        cell: which cell.
        scratch: the study's folder on this node.
        driver: who started the attempt; an attempt may follow one of the same driver.
        abandoned: the name of an attempt that is known to be gone.
    """

    def __init__(
        self, remote: Remote, cell: Cell, scratch: StudyFolder, driver: str, abandoned: str = ""
    ) -> None:
        self._remote, self._there = remote, f"cells/{cell}"
        self._here, self._teacher = scratch.cell(cell), scratch.cell(Cell(cell.pair, "teacher"))
        self._driver, self._abandoned = driver, abandoned
        self._name, self._beats = uuid.uuid4().hex, 0
        self._sent: dict[str, tuple[int, int]] = {}
        self._kept: set[str] = set()  # resume points that are whole there
        self.mine = False
        self._over, self._stop = threading.Event(), ""
        self._error: StorageError | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Loan:
        """Take the cell and copy it here; `mine` is False where it has ended or is another's."""
        mark = self._mark()
        others = mark and mark["driver"] != self._driver and mark["attempt"] != self._abandoned
        if not others and self._remote.read(f"{self._there}/{RESULT}") is None:
            self.mine = True
            self._stop = self._told_to_stop()
            self._write_mark()
            self._fetch()
            for job, every in ((self._beat, BEAT), (self._copy, COPY)):
                thread = threading.Thread(target=self._repeat, args=(job, every), daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Copy back what is left and give the cell free, with its result if it has one; after a
        failure leave what is there to another attempt."""
        if not self.mine:
            return
        self._over.set()
        for thread in self._threads:
            thread.join()
        try:
            if kind is None or issubclass(kind, BudgetReached):
                self.told()
                self._beat()
                self._copy()
                if self._here.result is not None:
                    self._send_result()
            with contextlib.suppress(StorageError):
                if self._holds():
                    self._remote.remove(f"{self._there}/{MARK}")
        finally:
            _empty(self._here.path)

    def told(self) -> str:
        """The limit that the study has reached, in words; raises what stands in the way."""
        if self._error:
            raise self._error
        return self._stop

    def _repeat(self, job: Callable[[], None], every: float) -> None:
        """Do a job now and then; a place that is silent for a moment is asked again."""
        patience = Patience()
        while not self._over.wait(every) and not self._error:
            try:
                with patience:
                    job()
            except StorageError as error:
                self._error = error
            except Exception as error:  # of a thread: it would be heard by nobody
                self._error = StorageError(f"{self._there}: {error!r}", "please report this")

    def _mark(self) -> dict[str, Any]:
        content = self._remote.read(f"{self._there}/{MARK}")
        return dict(json.loads(content)) if content else {}

    def _holds(self) -> bool:
        return self._mark().get("attempt") == self._name

    def _write_mark(self) -> None:
        who = {"pid": os.getpid(), "host": platform.node()}
        who |= {"attempt": self._name, "driver": self._driver}
        mark = {**who, "beat": self._beats}
        self._remote.write(f"{self._there}/{MARK}", json.dumps(mark).encode())
        self._beats += 1

    def _beat(self) -> None:
        if not self._holds():
            raise Lost(f"another attempt has taken {self._there}")
        self._write_mark()
        self._stop = self._told_to_stop()

    def _told_to_stop(self) -> str:
        return (self._remote.read(STOP) or b"").decode()

    def _fetch(self) -> None:
        """Copy the teacher's row and what earlier attempts left of the cell here."""
        teacher, texts = f"cells/{self._teacher.path.parent.parent.name}/teacher/all", GROWING[1]
        for name in (RESULT, texts):
            self._remote.download(f"{teacher}/{name}", self._teacher.path / name)
        _empty(self._here.path)
        found = sorted(self._remote.tree(self._there))
        whole = {n.rpartition("/")[0] for n in found if n.endswith("/state.json")}
        for name in found:
            below = name.removeprefix(f"{self._there}/")
            if below in GROWING or name.rpartition("/")[0] in whole:
                self._remote.download(name, self._here.path / below)
        reached = max((row["step"] for row in self._here.metrics), default=-1)
        for point in _points(self._here):
            if checkpoint.step_of(point) > reached:  # an older attempt wrote the metrics last
                shutil.rmtree(point)
        self._kept = {point.name for point in _points(self._here)}

    def _copy(self) -> None:
        """Copy back what has changed: metrics before the resume points that they lead up to."""
        points = _points(self._here)
        for name in GROWING:
            self._send(name)
        for point in points:
            if point.name not in self._kept:
                self._send_point(point)
        for gone in self._kept - {point.name for point in points}:
            self._remote.remove(f"{self._there}/checkpoints/{gone}")
            self._kept.remove(gone)

    def _send(self, name: str) -> None:
        file = self._here.path / name
        with contextlib.suppress(FileNotFoundError):
            told = file.stat()
            state = told.st_mtime_ns, told.st_size
            if self._sent.get(name) != state:
                self._held_upload(file, name)
                self._sent[name] = state

    def _send_point(self, point: Path) -> None:
        """A resume point; its state.json goes last and says that it is whole."""
        with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
            for file in sorted(point.iterdir(), key=lambda file: file.name == "state.json"):
                self._held_upload(file, f"checkpoints/{point.name}/{file.name}")
            self._kept.add(point.name)

    def _send_result(self) -> None:
        """What a cell ends with, its result last of all."""
        for file in sorted((self._here.path / "student").rglob("*")):
            if file.is_file():
                self._held_upload(file, file.relative_to(self._here.path).as_posix())
        if not (self._here.path / SPENT).exists():
            self._remote.remove(f"{self._there}/{SPENT}")
        self._held_upload(self._here.path / RESULT, RESULT)
        self._remote.remove(f"{self._there}/checkpoints")

    def _held_upload(self, file: Path, name: str) -> None:
        if isinstance(self._error, Lost):
            raise self._error
        self._remote.upload(file, f"{self._there}/{name}")


def _points(place: CellFolder) -> list[Path]:
    return checkpoint.points(place.path / "checkpoints")


def _empty(folder: Path) -> None:
    """Remove what an attempt that died on this node left; its lock is held by this one."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
