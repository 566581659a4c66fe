"""Follows a study's folder and sends new rows to one tracker.

Errors of the tracker are noted in the run's folder, as `tracking/TRACKER.json`, and the tracker is
tried again half a minute later.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.study.file_schemas import NoteRecord, checked, metrics_error
from potstill.study.files import JsonlTail, read_record, write_record
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunId, StudyFolder, runs_of
from potstill.study.tracking.protocol import RunInfo, TrackerRun, numbers, run_opener
from potstill.urls import without_secrets

RETRY = 30.0  # seconds until a tracker that failed is tried again
LONGEST = 300  # characters of a message


@dataclass
class Note:
    """The state of one run in one tracker, as the run's folder records it."""

    id: str
    sent: int = -1  # the last step that was sent
    ended: bool = False  # the tracker has the complete run
    trouble: str = ""  # the last error


class Follower:
    """Sends the runs of one study to one tracker."""

    def __init__(self, study: Study, folder: StudyFolder, tracker: str) -> None:
        self._study, self._folder, self._tracker = study, folder, tracker
        self._unsent = [key for key in runs_of(study) if key.method not in REFERENCES]
        self._open: dict[RunId, tuple[TrackerRun, JsonlTail]] = {}
        self._retry_at = 0.0

    def update(self, *, now: bool = False) -> None:
        """Send the new rows of every run; `now`: even if the tracker has just failed."""
        if time.monotonic() < self._retry_at and not now:
            return
        for key in list(self._unsent):
            note = self.note(key)
            if not note.ended:
                self._update(key, note)
            if note.ended or note.trouble:
                self._unsent.remove(key)
                self._open.pop(key, None)
            if note.trouble:  # another run may succeed next time
                self._unsent.append(key)
                self._retry_at = time.monotonic() + RETRY
                return

    def note(self, key: RunId) -> Note:
        """The note of a run, or a new one."""
        return _note_in(self._note_file(key)) or Note(uuid.uuid4().hex[:12])

    def close(self) -> None:
        """Close the open runs, which are to be continued."""
        for key, (run, _) in self._open.items():
            try:
                run.close({})
            except Exception as error:
                note = self.note(key)
                note.trouble = without_secrets(str(error))[:LONGEST]
                self._write(key, note)

    def _note_file(self, key: RunId) -> Path:
        return self._folder.cell(key).path / "tracking" / f"{self._tracker}.json"

    def _write(self, key: RunId, note: Note) -> None:
        file = self._note_file(key)
        file.parent.mkdir(exist_ok=True)
        write_record(file, asdict(note))

    def _update(self, key: RunId, note: Note) -> None:
        """Send the new rows of one run, and write its note."""
        run_folder = self._folder.cell(key)
        result = run_folder.result  # read before the rows: then no row can follow
        if key not in self._open and not (run_folder.path / "metrics.jsonl").exists():
            return
        before = asdict(note)
        try:
            self._send(key, note, result)
            note.trouble = ""
        except Exception as error:  # an error of a tracker never fails the study
            message = " ".join(str(error).split()) or type(error).__name__
            note.trouble = without_secrets(message)[:LONGEST]
        if asdict(note) != before:
            self._write(key, note)

    def _send(self, key: RunId, note: Note, result: dict[str, Any] | None) -> None:
        if key not in self._open:
            self._write(key, note)  # the id first, so that a run is found again after a crash
            place = self._folder.cell(key)
            rows = JsonlTail(place.path / "metrics.jsonl", place.hint, metrics_error)
            self._open[key] = run_opener(self._tracker)(self._info(key, note)), rows
        run, tail = self._open[key]
        new = [(row["step"], numbers(row)) for row in tail.new_rows() if row["step"] > run.last]
        if new:
            run.log(new)
            run.last = new[-1][0]
        note.sent = run.last
        if result is not None:
            run.close(result)
            note.ended = True

    def _info(self, key: RunId, note: Note) -> RunInfo:
        config = {
            "pair": key.pair,
            "method": key.method,
            "seed": key.seed,
            **self._study.models[key.pair].model_dump(),
            "study": self._study.to_toml(),
        }
        folder = self._folder.path / "track" / self._tracker
        return RunInfo(self._study.name, str(key), note.id, config, folder)


def _note_in(file: Path) -> Note | None:
    """The note in a file; None if there is none.

    Raises:
        DamagedFile: it is not what was written.
    """
    hint = f'remove "{file}": its tracker is then sent the run as a new one'
    stored = read_record(file, hint)
    return Note(**checked(NoteRecord, stored[0], file, hint)) if stored else None


def troubles(folder: StudyFolder, keys: Sequence[RunId]) -> dict[str, str]:
    """The first error of each tracker that has one, by tracker."""
    errors = {
        file.stem: f"{file.read_text()}; see {file.with_suffix('.log')}"
        for file in sorted((folder.path / "track").glob("*.trouble"))
    }
    for key in keys:
        for file in sorted((folder.cell(key).path / "tracking").glob("*.json")):
            if (note := _note_in(file)) and note.trouble:
                errors.setdefault(file.stem, f"{key}: {note.trouble}")
    return errors
