"""What a study's folder shows at this moment: for the live view, which draws it.

It reads the folder and nothing else, so it sees cells of any number of processes, and of another
machine's where the folder is shared or mirrored. Of growing files only what is new is read; a cell
that has ended is read once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, Cell, Lines, StudyFolder
from potstill.training.spending import Spent, total


@dataclass
class Running:
    """A cell that is being worked on."""

    cell: Cell
    total: int  # optimizer steps when it is whole; 0 for a reference row
    lines: Lines
    step: int = 0
    accuracy: list[float] = field(default_factory=list)  # of gradings so far, shares
    score: list[float] = field(default_factory=list)  # similarity with the teacher, in [0, 1]
    findings: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        """Take up the rows that are new."""
        for row in self.lines.new():
            if row["step"] <= self.step:  # it went back to a resume point
                self.accuracy, self.score = [], []
            self.step = row["step"]
            for name, kept in (("eval/accuracy", self.accuracy), ("train/score", self.score)):
                if row.get(name) is not None:
                    kept.append(row[name])

    @property
    def share(self) -> float:
        """How much of it is done."""
        return min(1.0, self.step / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    cells: int
    results: dict[Cell, dict[str, Any]]  # of cells that have ended
    fresh: list[Cell]  # those that ended since the last look
    running: list[Running]
    steps: int  # made so far, in all
    of_steps: int
    spent: Spent  # by what has ended, and by what runs as far as it was predicted
    expected: Spent | None  # in all; None where nothing was predicted
    left: float | None  # seconds; None where nothing tells

    @property
    def failed(self) -> int:
        return sum(result["status"] == "failed" for result in self.results.values())

    @property
    def whole(self) -> bool:
        """Whether every cell has ended."""
        return len(self.results) == self.cells


class Watcher:
    """Looks at some cells of a folder, again and again."""

    def __init__(self, study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> None:
        self.study, self.folder, self.cells = study, folder, list(cells)
        self._results: dict[Cell, dict[str, Any]] = {}
        self._running: dict[Cell, Running] = {}
        self._begun: tuple[float, int] | None = None  # clock and steps at the first look

    def look(self) -> Snapshot:
        """What there is now."""
        fresh, running = [], []
        for cell in self.cells:
            if cell in self._results:
                continue
            result = self.folder.cell(cell).result
            if result is not None:
                self._results[cell] = result
                self._running.pop(cell, None)
                fresh.append(cell)
            elif (found := self._look_at(cell)) is not None:
                running.append(found)
        steps = sum(map(self.steps_of, self._results)) + sum(one.step for one in running)
        self._begun = self._begun or (time.monotonic(), steps)
        spent, expected = self._spent(running)
        of_steps = sum(map(self.steps_of, self.cells))
        return Snapshot(
            cells=len(self.cells),
            results=dict(self._results),
            fresh=fresh,
            running=running,
            steps=steps,
            of_steps=of_steps,
            spent=spent,
            expected=expected,
            left=self._left(steps, of_steps, len(running), spent, expected),
        )

    def steps_of(self, cell: Cell) -> int:
        """Optimizer steps of a whole cell."""
        if cell.method in REFERENCES:
            return 0
        return self.study.total_steps(self.study.recipes[cell.method])

    def _look_at(self, cell: Cell) -> Running | None:
        place = self.folder.cell(cell)
        if place.running is None:
            return None
        if cell not in self._running:
            lines = Lines(place.path / "metrics.jsonl")
            self._running[cell] = Running(cell, self.steps_of(cell), lines)
        found = self._running[cell]
        found.read()
        found.findings = place.findings
        return found

    def _spent(self, running: Sequence[Running]) -> tuple[Spent, Spent | None]:
        """What is spent so far, and what will have been in the end."""
        told = self.folder.predicted
        one = {cell: told.get(cell.pair, {}).get(cell.method) for cell in self.cells}
        ended = total(map(Spent.read, self._results.values()))
        parts = [(one[run.cell] or Spent()) * run.share for run in running]
        open_cells = [one[cell] for cell in self.cells if cell not in self._results]
        known = [spent for spent in open_cells if spent is not None]
        expected = total([ended, *known]) if len(known) == len(open_cells) else None
        return total([ended, *parts]), expected

    def _left(
        self, steps: int, of_steps: int, running: int, spent: Spent, expected: Spent | None
    ) -> float | None:
        """Seconds left: by the pace since the first look, before there is one by prediction."""
        assert self._begun
        then, before = self._begun
        if steps > before and steps < of_steps:
            return (time.monotonic() - then) * (of_steps - steps) / (steps - before)
        if expected and running and steps < of_steps:
            return max(0.0, expected.seconds - spent.seconds) / running
        return None
