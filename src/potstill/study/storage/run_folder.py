"""The folder of one run: metrics, completions, diagnosis, result, lock."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from potstill.digests import file_digest, sealed, unsealed
from potstill.errors import writing
from potstill.problems import Evaluation, Graded
from potstill.study import file_schemas as schemas
from potstill.study.budget import Ledger, read_spent
from potstill.study.files import (
    damaged,
    read_lines,
    read_record,
    read_text,
    write_record,
    write_text,
)
from potstill.study.processes import is_alive, started_at
from potstill.study.storage.keys import RunId
from potstill.training.spending import Spent
from potstill.types import Finding

FILES = ("metrics.jsonl", "examples.jsonl")  # that grow, and are whole when a run has ended


class RunFolder:
    """One run's folder; implements the training loop's `Recorder`.

    Args:
        path: the folder.
        teacher: the teacher's completions by problem id, stored next to the student's.
        examples: completions kept per evaluation.
        ledger: enforces the study's budget.
        key: the run; None: any.
    """

    durable = True  # see `Recorder`

    def __init__(
        self,
        path: Path,
        teacher: Mapping[str, str] | None = None,
        examples: int = 4,
        ledger: Ledger | None = None,
        key: RunId | None = None,
    ) -> None:
        self.path, self.key = path, key
        self.checkpoints: Path | None = path / "checkpoints"
        self.students: Path | None = path / "students"
        self.teacher, self.examples, self.ledger = teacher or {}, examples, ledger

    @property
    def hint(self) -> str:
        """Advice for a damaged file of the run."""
        return f'remove the folder "{self.path}" to run it again; the other runs are kept'

    @property
    def result(self) -> dict[str, Any] | None:
        """The run's record; None until it has ended.

        Raises:
            DamagedFile: it is not what was written, or another run's.
        """
        path = self.path / "result.json"
        record = schemas.read_result(path, self.hint)
        if record and self.key and "pair" in record:
            key = RunId(record["pair"], record["method"], record["seed"])
            if key != self.key:
                raise damaged(path, f"it is the record of {key}", self.hint)
        return record

    @property
    def ended(self) -> bool:
        """True if there is a record, which is not read."""
        return (self.path / "result.json").exists()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The recorded steps.

        Raises:
            DamagedFile: a line is not what was written, or a step is there twice.
        """
        path = self.path / "metrics.jsonl"
        rows = read_lines(path, self.hint, schemas.metrics_error)
        if error := schemas.order_error(row["step"] for row in rows):
            raise damaged(path, error, self.hint)
        return rows

    @property
    def steps(self) -> int:
        """Recorded steps, without parsing them: one line each, after one line for step 0."""
        path = self.path / "metrics.jsonl"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The stored completions.

        Raises:
            DamagedFile: a line is not what was written.
        """
        return read_lines(self.path / "examples.jsonl", self.hint, schemas.example_error)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The diagnosis so far.

        Raises:
            DamagedFile: it is not what was written.
        """
        path = self.path / "findings.json"
        text = read_text(path, self.hint)
        if text is None:
            return []
        if text.lstrip().startswith("["):  # of a version without digests
            text = f'{{"findings": {text}}}'
        try:
            stored = unsealed(text.rstrip("\n"))
        except ValueError as error:
            raise damaged(path, error, self.hint) from None
        schemas.checked(schemas.FindingsRecord, stored, path, self.hint)
        return list(stored["findings"])

    def check_files(self, record: Mapping[str, Any], names: Sequence[str] = FILES) -> None:
        """Raise if the run has ended with other metrics or completions than are there now.

        Completions may have been removed to save space; metrics may not.

        Args:
            record: the run's.
            names: the files to check.

        Raises:
            DamagedFile: a file was changed, cut or exchanged.
        """
        digests = record.get("files", {})
        for name in digests.keys() & set(names):
            path, digest = self.path / name, digests[name]
            try:
                now = file_digest(path)
            except OSError as error:
                raise damaged(path, error.strerror, self.hint) from None
            if now != digest and (now is not None or name == "metrics.jsonl"):
                what = "it is missing" if now is None else "it has changed since the run ended"
                raise damaged(path, what, self.hint)

    @property
    def mark(self) -> dict[str, Any] | None:
        """pid and host of the process that executes the run, or died doing so."""
        path = self.path / ".running"
        hint = f'remove "{path}"'
        stored = read_record(path, hint)
        return stored and dict(schemas.checked(schemas.MarkRecord, stored[0], path, hint))

    @property
    def running(self) -> dict[str, Any] | None:
        """pid and host of the process that executes the run; None if it is known to be dead."""
        mark = self.mark
        if mark and mark["host"] == platform.node():
            return mark if is_alive(mark["pid"], mark.get("started", "")) else None
        return mark

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Lock the run for this process; yields False if another process holds the lock."""
        lock = filelock.FileLock(self.path / ".lock")
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire(blocking=False)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def mark_running(self, running: bool) -> None:
        """Write which process executes the run, for progress displays and schedulers."""
        mark = self.path / ".running"
        if running:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            pid = os.getpid()
            process = {"pid": pid, "host": platform.node(), "started": started_at(pid)}
            write_record(mark, process)
        else:
            mark.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Remove all that was recorded after a step."""
        for name, rows in (("metrics.jsonl", self.metrics), ("examples.jsonl", self.texts)):
            kept = [row for row in rows if row["step"] <= step]
            write_text(self.path / name, "".join(sealed(row) + "\n" for row in kept))

    def record(self, metrics: dict[str, Any], evaluation: Evaluation | None) -> None:
        """Append the metrics of one step, and some completions of its evaluation."""
        if evaluation:
            graded = evaluation.rows[: self.examples]
            self.add_completions([self._example(metrics["step"], row) for row in graded])
        self._append("metrics.jsonl", [{"step": metrics["step"], **metrics}])

    def add_completions(self, examples: list[dict[str, Any]]) -> None:
        """Append completions, made by `example`."""
        self._append("examples.jsonl", examples)

    def spend(self, state: Mapping[str, Mapping[str, float]]) -> str:
        """Book what the run has spent; returns the budget limit that is reached, if one is."""
        if self.ledger is None:
            return ""
        spent = Spent(sum(state["seconds"].values()), state["tokens"])
        with writing(self.path):
            return self.ledger.charge(self.path, spent)

    def note(self, findings: Sequence[Finding]) -> None:
        """Write the diagnosis so far, if it has changed."""
        path = self.path / "findings.json"
        now = [asdict(finding) for finding in findings]
        text = sealed({"findings": now}) + "\n"
        if text != read_text(path, self.hint) and (now or path.exists()):
            write_text(path, text)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which ends the run, and remove what only a running one needs.

        The digests of the run's files are added to it as `files`.
        """
        with writing(self.path):
            files = {name: file_digest(self.path / name) for name in FILES}
        result["files"] = files
        write_record(self.path / "result.json", result)
        self._tidy(result)

    def tidy(self) -> None:
        """Remove what a killed process has left behind; the lock of the run must be held."""
        for partial in self.path.glob(".*.[0-9]*"):  # of `write_text`
            if partial.is_file():
                partial.unlink(missing_ok=True)
        if (result := self.result) is not None:
            self._tidy(result)
            (self.path / ".running").unlink(missing_ok=True)

    def _tidy(self, result: Mapping[str, Any]) -> None:
        if "state" not in result:
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        if result["status"] == "done":  # of a failed run, .spent remains the only record
            self._close_account()

    def reset(self) -> None:
        """Remove the result of a failed run, so that it is executed again."""
        (self.path / "result.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / "tracking", ignore_errors=True)  # a new run for each tracker

    def _close_account(self) -> None:
        """Reduce .spent to the cost of failed attempts; result.json has the rest."""
        path = self.path / ".spent"
        spent = read_spent(path)
        if "lost" in spent:
            write_record(path, {"lost": spent["lost"]})
        else:
            path.unlink(missing_ok=True)

    def _example(self, step: int, row: Graded) -> dict[str, Any]:
        return example(step, row) | {"teacher": self.teacher.get(row.problem.id)}

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.path / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(sealed(row) + "\n" for row in rows))


def example(step: int, row: Graded) -> dict[str, Any]:
    """One graded completion as a record of examples.jsonl."""
    return {
        "step": step,
        "problem": row.problem.id,
        "question": row.problem.question,
        "answer": row.problem.answer,
        "text": row.text,
        "strict": row.grade and row.grade.strict,
        "flexible": row.grade and row.grade.flexible,
        "tokens": row.tokens,
        "ended": row.ended,
    }
