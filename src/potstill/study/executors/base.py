"""Where a study's cells run: what a place of work has to do, and the loop that all places share.

`pool` has worker processes on this machine, `cluster` tasks of a Ray cluster. They differ in how
a cell is handed out and how a death shows; which cells are left, whose turn it is, what a spent
budget means and when a cell is given up is the same, and stands here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from potstill.diagnostics.preflight import Check
from potstill.study.budget import Ledger
from potstill.study.provenance import provenance
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, Cell, StudyFolder
from potstill.tasks import Task
from potstill.training.spending import BudgetReached

Results = dict[Cell, dict[str, Any]]

LEAVING = 10.0  # seconds that a worker may take to leave when all is done


class Place(Protocol):
    """A place that can fill in a study's grid."""

    def preflight(self, study: Study) -> dict[str, list[Check]]:
        """Pre-flight of every pair, where its cells would run."""

    def run(
        self, study: Study, folder: StudyFolder, cells: Sequence[Cell], tick: Callable[[], None]
    ) -> Results:
        """Fill in the grid; see `work`."""


class Crew(Protocol):
    """Those who work on one study at a place."""

    def tend(self, missing: Sequence[Cell]) -> None:
        """Look what became of those at work, and give the missing cells to who is free."""

    def settle(self) -> None:
        """Wait until everyone has stopped by himself, as each does once the budget is spent."""

    def stop(self) -> None:
        """End whoever still works."""


def work(
    crew: Crew,
    study: Study,
    folder: StudyFolder,
    cells: Sequence[Cell],
    tick: Callable[[], None],
    every: float = 0.5,
) -> Results:
    """Fill in the grid; `tick` is called between looks, to draw progress.

    Raises:
        StorageError: the disk refuses; what is finished is kept.
        BudgetReached: the study has spent what it may; what is begun can go on.
    """
    try:
        afford(crew, study, folder, cells)
        while missing := unfinished(folder, cells):
            crew.tend(missing)
            tick()
            time.sleep(every)
    finally:
        crew.stop()
    tick()
    return folder.results(cells)


def unfinished(folder: StudyFolder, cells: Sequence[Cell]) -> list[Cell]:
    """Cells without a result."""
    return [cell for cell in cells if folder.cell(cell).result is None]


def ready(folder: StudyFolder, missing: Sequence[Cell]) -> Iterator[Cell]:
    """Those of the missing cells that can begin: runs need their teacher's row."""
    for cell in missing:
        teacher = folder.cell(Cell(cell.pair, "teacher"))
        if cell.method in REFERENCES or teacher.result is not None:
            yield cell


def afford(crew: Crew, study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> None:
    """Raise where the budget is spent and something is left to do, once nobody works."""
    over = folder.ledger(study).over()
    if not over or not unfinished(folder, cells):
        return
    crew.settle()
    hint = "raise it and run the same command again: what is begun goes on"
    raise BudgetReached(f"the budget is spent: {over}", hint)


def take(study: Study, folder: StudyFolder, cell: Cell, task: Task | None, ledger: Ledger) -> bool:
    """Run a cell here, unless another process holds it or it has ended; says whether it ran.

    Raises:
        BudgetReached: before the cell begins or in its midst.
        StorageError: the disk refuses.
    """
    if over := ledger.over():
        raise BudgetReached(f"the budget is spent: {over}")
    place = folder.cell(cell)
    with place.claim() as mine:
        if mine and place.result is None:
            run_cell(study, folder, cell, task, ledger)
            return True
    return False


def give_up(folder: StudyFolder, cell: Cell, cause: str) -> None:
    """Record a cell as failed whose workers died too often to tell it themselves."""
    place = folder.cell(cell)
    place.path.mkdir(parents=True, exist_ok=True)  # they may have died before it was there
    place.finish(
        {
            "pair": cell.pair,
            "method": cell.method,
            "seed": cell.seed,
            "status": "failed",
            "cause": cause,
            "steps": place.steps,
            "provenance": provenance(),
        }
    )
