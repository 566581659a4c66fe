"""Everything a report shows, read from a study's folder once.

Reads settings, records, metrics and texts; opens no model and asks for none to be there, so that
a folder can be reported on another machine. A cell in work, a failed cell and a missing one are
all ordinary data.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.errors import PotstillError
from potstill.report import stats
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, Cell, StudyFolder, cells_of

Status = Literal["done", "failed", "missing"]

ROWS = 600  # of each kind, about, that are kept of a run's metrics
KEPT = ("step", "tokens", "train/", "eval/", "signal/teacher_loss")  # what a report reads
STEP = re.compile(r'\{"step": (\d+)')


@dataclass(frozen=True, eq=False)
class Run:
    """One cell with what is recorded of it."""

    cell: Cell
    record: Mapping[str, Any]  # result.json, empty where there is none
    metrics: Sequence[Mapping[str, Any]]  # one row a step, thinned where there are very many
    total: int  # optimizer steps when it is whole; 0 for a reference row

    @property
    def status(self) -> Status:
        """Missing until there is a result, however far it has come."""
        if not self.record:
            return "missing"
        return "done" if self.record.get("status") == "done" else "failed"

    @property
    def steps(self) -> int:
        """Optimizer steps made so far."""
        return int(self.record.get("steps") or (self.metrics[-1]["step"] if self.metrics else 0))

    @property
    def cause(self) -> str:
        return str(self.record.get("cause") or "") if self.status == "failed" else ""


@dataclass(frozen=True, eq=False)
class StudyData:
    """A study as a report sees it."""

    folder: StudyFolder
    study: Study
    provenance: Mapping[str, str]  # where the study was started
    runs: Mapping[Cell, Run]  # every cell of the grid
    rows: Sequence[stats.Row]

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        return self.study.recipes

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Methods in the order that gives them their colours: the same in every study."""
        return tuple(dict.fromkeys([*METHODS, *self.recipes]))

    @cached_property
    def counts(self) -> Counter[str]:
        """Cells by status."""
        return Counter(run.status for run in self.runs.values())

    def of(self, pair: str, method: str) -> list[Run]:
        """Runs of one method on one pair, by seed."""
        found = [r for c, r in self.runs.items() if c.pair == pair and c.method == method]
        return sorted(found, key=lambda run: run.cell.seed or 0)

    def accuracy(self, pair: str, method: str) -> float | None:
        """Strict accuracy of a reference row."""
        value = self.runs[Cell(pair, method)].record.get("accuracy")
        return float(value) if value is not None else None


def load(path: Path) -> StudyData:
    """Read a study's folder.

    Raises:
        PotstillError: it is no study's folder, or its settings cannot be read.
    """
    folder = StudyFolder(path)
    settings = folder.settings
    if settings is None:
        raise PotstillError(f'"{path}" holds no study', "give a folder that `potstill study` wrote")
    provenance = settings.pop("provenance", {})
    try:
        study = Study.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PotstillError(
            f'"{path}/study.toml": {where}: {first["msg"]}', "it was written by another version"
        ) from None
    order = list(study.models)
    cells = sorted(cells_of(study), key=lambda cell: order.index(cell.pair))
    runs = {cell: _run(study, folder, cell) for cell in cells}
    results = {cell: run.record for cell, run in runs.items() if run.record}
    rows = stats.table(cells, list(study.recipes), results, lambda cell: runs[cell].metrics)
    return StudyData(folder, study, provenance, runs, rows)


def _run(study: Study, folder: StudyFolder, cell: Cell) -> Run:
    place = folder.cell(cell)
    reference = cell.method in REFERENCES
    total = 0 if reference else study.total_steps(study.recipes[cell.method])
    rows = [] if reference else list(_rows(place.path / "metrics.jsonl", study, total))
    return Run(cell, place.result or {}, rows, total)


def _rows(path: Path, study: Study, total: int) -> Iterator[dict[str, Any]]:
    """Rows of a run's metrics, thinned by their step alone: equal steps in every seed.

    Gradings and probes are thinned by themselves, as they are rarer. A line that is left out is
    not parsed, so that 10^5 steps take a second, not a minute.
    """
    if not path.exists():
        return
    every = [_stride(total, n) for n in (1, study.eval.every, study.eval.probe_every)]
    last = ""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if not line.endswith("\n"):
                break  # torn: it is being written
            found = STEP.match(line)
            if not found or any(int(found[1]) % n == 0 for n in every):
                yield _parsed(line, path)
                last = ""
            else:
                last = line
    if last:
        yield _parsed(last, path)


def _stride(total: int, every: int) -> int:
    """Steps between two kept rows of a kind that comes every so many steps."""
    return every * max(1, math.ceil(total / every / ROWS))


def _parsed(line: str, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return {key: value for key, value in row.items() if key.startswith(KEPT)}
    except (json.JSONDecodeError, AttributeError) as error:
        raise PotstillError(
            f'"{path}" is damaged: {error}',
            f'remove the folder "{path.parent}" to run its cell again',
        ) from None
