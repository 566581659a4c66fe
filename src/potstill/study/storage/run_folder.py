"""The folder of one run: metrics, completions, diagnosis, result, lock."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from potstill.errors import writing
from potstill.study.budget import Ledger
from potstill.study.files import read_json, read_lines, to_json, write_text
from potstill.training.spending import Spent
from potstill.types import Evaluation, Finding, Graded


class RunFolder:
    """One run's folder; implements the training loop's `Recorder`.

    Args:
        path: the folder.
        teacher: the teacher's completions by problem id, stored next to the student's.
        examples: completions kept per evaluation.
        ledger: enforces the study's budget.
    """

    def __init__(
        self,
        path: Path,
        teacher: Mapping[str, str] | None = None,
        examples: int = 4,
        ledger: Ledger | None = None,
    ) -> None:
        self.path = path
        self.checkpoints: Path | None = path / "checkpoints"
        self.teacher, self.examples, self.ledger = teacher or {}, examples, ledger

    @property
    def result(self) -> dict[str, Any] | None:
        """The run's record; None until it has ended."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The recorded steps."""
        return read_lines(self.path / "metrics.jsonl")

    @property
    def steps(self) -> int:
        """Recorded steps, without parsing them: one line each, after one line for step 0."""
        path = self.path / "metrics.jsonl"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The stored completions."""
        return read_lines(self.path / "examples.jsonl")

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The diagnosis so far."""
        try:
            return list(json.loads((self.path / "findings.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []

    @property
    def running(self) -> dict[str, Any] | None:
        """pid and host of the process that executes the run."""
        return read_json(self.path / ".running")

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
            write_text(mark, to_json({"pid": os.getpid(), "host": platform.node()}))
        else:
            mark.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Remove all that was recorded after a step."""
        for name in ("metrics.jsonl", "examples.jsonl"):
            path = self.path / name
            kept = [row for row in read_lines(path) if row["step"] <= step]
            write_text(path, "".join(to_json(row) + "\n" for row in kept))

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
        text = to_json([asdict(finding) for finding in findings]) + "\n"
        path = self.path / "findings.json"
        if text != (path.read_text(encoding="utf-8") if path.exists() else "[]\n"):
            write_text(path, text)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which ends the run, and remove its checkpoints."""
        write_text(self.path / "result.json", to_json(result) + "\n")
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
        spent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if "lost" in spent:
            write_text(path, to_json({"lost": spent["lost"]}))
        else:
            path.unlink(missing_ok=True)

    def _example(self, step: int, row: Graded) -> dict[str, Any]:
        return example(step, row) | {"teacher": self.teacher.get(row.problem.id)}

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.path / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))


def example(step: int, row: Graded) -> dict[str, Any]:
    """One graded completion as a record of examples.jsonl."""
    return {
        "step": step,
        "problem": row.problem.id,
        "question": row.problem.question,
        "answer": row.problem.answer,
        "text": row.text,
        "strict": row.grade.strict,
        "flexible": row.grade.flexible,
        "tokens": row.tokens,
        "ended": row.ended,
    }
