"""Follows a study's folder for one tracker: what is new in it is sent.

Runs in a process of its own (`python -m potstill.study.tracking.exporter FOLDER TRACKER`), which
`potstill study` starts and which ends when its standard input does. What went wrong is noted in
the cell, as `tracking/TRACKER.json`, and the tracker is tried again half a minute later.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from potstill.errors import PotstillError
from potstill.study.schema import Study
from potstill.study.storage import (
    REFERENCES,
    Cell,
    Lines,
    StudyFolder,
    cells_of,
    to_json,
    write_text,
)
from potstill.study.tracking import Sheet, Tracked, numbers, opener
from potstill.study.tracking.registry import without_secrets

EVERY = 0.5  # seconds between two looks at the folder
REST = 30.0  # seconds until a tracker that failed is tried again
PATIENCE = 120.0  # seconds that a study waits for its trackers once all cells have ended


@dataclass
class Note:
    """What a cell's folder says of one tracker."""

    id: str
    sent: int = -1  # the last step that was handed over
    ended: bool = False  # all of the run is with the tracker
    trouble: str = ""  # why not, where something failed


class Follower:
    """Sends the cells of one study to one tracker."""

    def __init__(self, study: Study, folder: StudyFolder, tracker: str) -> None:
        self._study, self._folder, self._name = study, folder, tracker
        self._left = [cell for cell in cells_of(study) if cell.method not in REFERENCES]
        self._open: dict[Cell, tuple[Tracked, Lines]] = {}
        self._wait = 0.0  # until this time the tracker is left alone

    def look(self, *, now: bool = False) -> None:
        """Send what is new in every cell; `now` also where the tracker failed a moment ago."""
        if time.monotonic() < self._wait and not now:
            return
        for cell in list(self._left):
            note = self.note(cell)
            if not note.ended:
                self._send(cell, note)
            if note.ended or note.trouble:
                self._left.remove(cell)
                self._open.pop(cell, None)
            if note.trouble:  # the others may fare better next time
                self._left.append(cell)
                self._wait = time.monotonic() + REST
                return

    def note(self, cell: Cell) -> Note:
        """What is noted of a cell; a new run's where nothing is."""
        try:
            return Note(**json.loads(self._place(cell).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Note(uuid.uuid4().hex[:12])

    def _place(self, cell: Cell) -> Path:
        return self._folder.cell(cell).path / "tracking" / f"{self._name}.json"

    def _keep(self, cell: Cell, note: Note) -> None:
        place = self._place(cell)
        place.parent.mkdir(exist_ok=True)
        write_text(place, to_json(asdict(note)) + "\n")

    def _send(self, cell: Cell, note: Note) -> None:
        """Send what is new of one cell, and note what came of it."""
        place = self._folder.cell(cell)
        result = place.result  # read before the rows: then no row comes after it
        if cell not in self._open and not (place.path / "metrics.jsonl").exists():
            return
        before = asdict(note)
        try:
            self._tell(cell, note, result)
            note.trouble = ""
        except Exception as error:  # a tracker's trouble is noted, and is none of the study
            words = " ".join(str(error).split()) or type(error).__name__
            note.trouble = without_secrets(words)[:300]
        if asdict(note) != before:
            self._keep(cell, note)

    def _tell(self, cell: Cell, note: Note, result: dict[str, Any] | None) -> None:
        if cell not in self._open:
            self._keep(cell, note)  # the id first: a run that is begun is found again
            lines = Lines(self._folder.cell(cell).path / "metrics.jsonl")
            self._open[cell] = opener(self._name)(self._sheet(cell, note)), lines
        run, lines = self._open[cell]
        rows = [(r["step"], numbers(r)) for r in lines.new() if r["step"] > run.last]
        if rows:
            run.log(rows)
            run.last = rows[-1][0]
        note.sent = run.last
        if result is not None:
            run.close(result)
            note.ended = True

    def _sheet(self, cell: Cell, note: Note) -> Sheet:
        config = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
        models = self._study.models[cell.pair].model_dump()
        table = {**config, **models, "study": self._study.to_toml()}
        place = self._folder.path / "track" / self._name
        return Sheet(self._study.name, str(cell), note.id, table, place)

    def close(self) -> None:
        """End what is open; its cells go on another time."""
        for cell, (run, _) in self._open.items():
            try:
                run.close({})
            except Exception as error:
                note = self.note(cell)
                note.trouble = without_secrets(str(error))[:300]
                self._keep(cell, note)


def main(path: Path, tracker: str) -> None:
    """Follow a folder until standard input ends; then send what is left, once."""
    folder = StudyFolder(path)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the study, and that ends this
    with filelock.FileLock(path / "track" / f".{tracker}.lock"):  # one a folder, others wait
        follower = Follower(study_in(folder), folder, tracker)
        while not ended.wait(EVERY):
            follower.look()
        follower.look(now=True)
        follower.close()


def study_in(folder: StudyFolder) -> Study:
    """The study whose folder it is.

    Raises:
        PotstillError: it is no study's folder.
    """
    table = folder.settings
    if table is None:
        raise PotstillError(
            f'"{folder.path}" holds no study', "give a folder that `potstill study` wrote"
        )
    table.pop("provenance", None)
    return Study.model_validate(table)


@contextmanager
def following(
    folder: StudyFolder, trackers: Sequence[str], patience: float | None = PATIENCE
) -> Iterator[None]:
    """Have trackers follow a folder while the block runs, and send what is left after it.

    Args:
        folder: a study's.
        trackers: their names.
        patience: seconds that they may take after the block; None: as many as they need.
    """
    processes = {name: _start(folder.path, name) for name in trackers}
    try:
        yield
    finally:
        for process in processes.values():
            process.stdin.close()
        end = time.monotonic() + (patience or 0.0)
        for name, process in processes.items():
            try:
                left = None if patience is None else max(0.1, end - time.monotonic())
                if process.wait(left):
                    _say(folder, name, f"its process ended with exit code {process.returncode}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                _say(folder, name, f"it took more than {patience:g} s after the last cell")


def _start(path: Path, tracker: str) -> Any:
    (path / "track").mkdir(parents=True, exist_ok=True)
    (path / "track" / f"{tracker}.trouble").unlink(missing_ok=True)
    words = [sys.executable, "-m", "potstill.study.tracking.exporter", str(path), tracker]
    with (path / "track" / f"{tracker}.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)


def _say(folder: StudyFolder, tracker: str, words: str) -> None:
    """Trouble that no cell can note."""
    write_text(folder.path / "track" / f"{tracker}.trouble", words)


def troubles(folder: StudyFolder, cells: Sequence[Cell]) -> dict[str, str]:
    """What is not with a tracker, in words, by tracker."""
    found = {
        place.stem: f"{place.read_text()}; see {place.with_suffix('.log')}"
        for place in sorted((folder.path / "track").glob("*.trouble"))
    }
    for cell in cells:
        for place in sorted((folder.cell(cell).path / "tracking").glob("*.json")):
            note = json.loads(place.read_text(encoding="utf-8"))
            if note["trouble"]:
                found.setdefault(place.stem, f"{cell}: {note['trouble']}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
