"""Progress of a study at one moment, read from its folder; the command line draws it.

Only the folder is read. Progress therefore covers the runs of any number of processes, and of
other machines if the folder is shared or mirrored. Only new lines of growing files are read, and
a run that has ended is read once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.stats.metric import ACCURACY, KL, WITHOUT_TEACHER, Metric
from potstill.study.file_schemas import metrics_error
from potstill.study.files import JsonlTail
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunId, StudyFolder
from potstill.training.spending import Spent, total

MEASURED = (ACCURACY, KL, WITHOUT_TEACHER)  # by which methods are compared; a run has one of them


@dataclass
class Running:
    """A run in progress."""

    cell: RunId
    total: int  # optimizer steps when it is complete; 0 for a baseline
    lines: JsonlTail
    step: int = 0
    levels: list[float] = field(default_factory=list)  # of the evaluations so far
    metric: Metric = ACCURACY  # of these
    score: list[float] = field(default_factory=list)  # similarity with the teacher, in [0, 1]
    findings: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        """Add the new rows."""
        for row in self.lines.new_rows():
            if row["step"] <= self.step:  # the run went back to a checkpoint
                self.levels, self.score = [], []
            self.step = row["step"]
            known = (one for one in MEASURED if row.get(one.curve) is not None)
            self.metric = next(known, self.metric)
            for name, values in ((self.metric.curve, self.levels), ("train/score", self.score)):
                if row.get(name) is not None:
                    values.append(row[name])

    @property
    def share(self) -> float:
        """Completed share of its steps, in [0, 1]."""
        return min(1.0, self.step / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Snapshot:
    """The progress of a study at one moment."""

    cells: int  # runs in all
    results: dict[RunId, dict[str, Any]]  # of runs that have ended
    fresh: list[RunId]  # runs that have ended since the last snapshot
    running: list[Running]
    steps: int  # optimizer steps so far, over all runs
    of_steps: int
    spent: Spent  # by ended runs, plus the predicted share of those in progress
    expected: Spent | None  # in all; None without predictions
    left: float | None  # seconds; None if unknown

    @property
    def failed(self) -> int:
        return sum(result["status"] == "failed" for result in self.results.values())

    @property
    def whole(self) -> bool:
        """True once every run has ended."""
        return len(self.results) == self.cells


class Watcher:
    """Reads the progress of some runs of a folder repeatedly."""

    def __init__(self, study: Study, folder: StudyFolder, cells: Sequence[RunId]) -> None:
        self.study, self.folder, self.cells = study, folder, list(cells)
        self._results: dict[RunId, dict[str, Any]] = {}
        self._running: dict[RunId, Running] = {}
        self._first: tuple[float, int] | None = None  # clock and steps at the first snapshot

    def look(self) -> Snapshot:
        """Read the folder."""
        fresh, running = [], []
        for key in self.cells:
            if key in self._results:
                continue
            if (result := self.folder.cell(key).result) is not None:
                self._results[key] = result
                self._running.pop(key, None)
                fresh.append(key)
            elif (run := self._read_run(key)) is not None:
                running.append(run)
        steps = sum(map(self.steps_of, self._results)) + sum(run.step for run in running)
        self._first = self._first or (time.monotonic(), steps)
        of_steps = sum(map(self.steps_of, self.cells))
        spent, expected = self._cost(running)
        return Snapshot(
            cells=len(self.cells),
            results=dict(self._results),
            fresh=fresh,
            running=running,
            steps=steps,
            of_steps=of_steps,
            spent=spent,
            expected=expected,
            left=self._seconds_left(steps, of_steps, len(running), spent, expected),
        )

    def steps_of(self, key: RunId) -> int:
        """Optimizer steps of a complete run."""
        if key.method in REFERENCES:
            return 0
        return self.study.total_steps(self.study.recipes[key.method])

    def _read_run(self, key: RunId) -> Running | None:
        run_folder = self.folder.cell(key)
        if run_folder.running is None:
            return None
        if key not in self._running:
            path = run_folder.path / "metrics.jsonl"
            lines = JsonlTail(path, run_folder.hint, metrics_error)
            self._running[key] = Running(key, self.steps_of(key), lines)
        run = self._running[key]
        run.read()
        run.findings = run_folder.findings
        return run

    def _cost(self, running: Sequence[Running]) -> tuple[Spent, Spent | None]:
        """The cost so far, and the expected cost of the complete study."""
        predicted = self.folder.predicted
        costs = {key: predicted.get(key.pair, {}).get(key.method) for key in self.cells}
        ended = total(map(Spent.read, self._results.values()))
        so_far = [(costs[run.cell] or Spent()) * run.share for run in running]
        unfinished = [costs[key] for key in self.cells if key not in self._results]
        known = [cost for cost in unfinished if cost is not None]
        expected = total([ended, *known]) if len(known) == len(unfinished) else None
        return total([ended, *so_far]), expected

    def _seconds_left(
        self, steps: int, of_steps: int, running: int, spent: Spent, expected: Spent | None
    ) -> float | None:
        """Time left at the speed since the first snapshot; until then, as predicted."""
        assert self._first
        started, steps_then = self._first
        if steps_then < steps < of_steps:
            elapsed = time.monotonic() - started
            return elapsed * (of_steps - steps) / (steps - steps_then)
        if expected and running and steps < of_steps:
            return max(0.0, expected.seconds - spent.seconds) / running
        return None
