"""Everything that a report shows, read once from a study's folder.

Reads settings, records and metrics. It opens no model and needs none, so that a folder can be
reported on another machine. A running, a failed and a missing run are all ordinary data.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.errors import Errors
from potstill.report.results import Row, family, table
from potstill.stats.comparisons import Comparisons
from potstill.stats.metric import Metric, metrics_of
from potstill.study.file_schemas import metrics_error, order_error
from potstill.study.files import damaged, read_text, rows_of
from potstill.study.race import Course, courses_of, runs_in
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunFolder, RunId, StudyFolder, runs_of

Status = Literal["done", "failed", "missing"]

ROWS = 600  # of each kind, about, that are kept of a run's metrics
KEPT = ("step", "tokens", "train/", "eval/", "signal/teacher_loss")  # what a report reads
STEP = re.compile(r'\{"step": (\d{1,12})\b')


@dataclass(frozen=True, eq=False)
class RunData:
    """One run with its records."""

    cell: RunId
    record: Mapping[str, Any]  # result.json, empty where there is none
    metrics: Sequence[Mapping[str, Any]]  # one row a step, thinned where there are very many
    total: int  # optimizer steps of the whole run; 0 for untrained and teacher

    @property
    def status(self) -> Status:
        """Missing until there is a result, however many steps were made."""
        if not self.record:
            return "missing"
        return "done" if self.record.get("status") == "done" else "failed"

    @property
    def steps(self) -> int:
        """Optimizer steps made so far."""
        return int(self.record.get("steps") or (self.metrics[-1]["step"] if self.metrics else 0))

    @property
    def cause(self) -> str:
        """Why the run failed."""
        return str(self.record.get("cause") or "") if self.status == "failed" else ""


@dataclass(frozen=True, eq=False)
class StudyData:
    """A study as a report sees it."""

    folder: StudyFolder
    study: Study
    provenance: Mapping[str, str]  # where the study was started
    runs: Mapping[RunId, RunData]  # every run of the grid, or of the race so far
    rows: Sequence[Row]
    race: Mapping[str, Course]  # by pair; empty for a grid
    metrics: tuple[Metric, ...]  # the numbers of its evaluations
    _families: dict[tuple[str, str], Comparisons] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The number by which methods are compared."""
        return self.metrics[0]

    def measured(self, name: str) -> Metric | None:
        """The metric of that name, if the study has it."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def recipes(self) -> dict[str, Recipe]:
        return self.study.recipes

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Methods in the order that gives them their colours: the same in every study."""
        return tuple(dict.fromkeys([*METHODS, *self.recipes]))

    @cached_property
    def problems(self) -> int:
        """Evaluated problems of a run; before there is one, the most that there can be."""
        sizes = [run.record.get("problems") or 0 for run in self.runs.values()]
        return max(sizes, default=0) or self.study.eval.problems

    @cached_property
    def counts(self) -> Counter[str]:
        """Runs by status."""
        return Counter(run.status for run in self.runs.values())

    @property
    def watched(self) -> int:
        """Runs that recorded the monitor's signals."""
        first = [run.metrics[0] for run in self.runs.values() if run.metrics]
        return sum("signal/teacher_loss" in row for row in first)

    def of(self, pair: str, method: str, status: Status | None = None) -> list[RunData]:
        """Runs of one method on one pair, by seed; with a status, only those."""
        runs = [r for c, r in self.runs.items() if c.pair == pair and c.method == method]
        runs = [run for run in runs if status in (None, run.status)]
        return sorted(runs, key=lambda run: run.cell.seed or 0)

    def done(self, pair: str, method: str) -> dict[int | None, Mapping[str, Any]]:
        """Records of the finished runs of one method on one pair, by seed.

        Those on which a race decided are left out once it has fresh ones.
        """
        runs = [r for r in self.of(pair, method, "done") if _reported(self.race, r.cell)]
        return {run.cell.seed: run.record for run in runs}

    @property
    def seeds(self) -> int:
        """Seeds of the results: those of the grid, or of a race's method with most of them."""
        rows = max((len(row.seeds) for row in self.rows), default=0)
        return rows if self.race else len(self.study.seeds)

    def family(self, pair: str, metric: Metric | None = None) -> Comparisons:
        """The methods of a pair that have finished runs, with all their differences.

        Args:
            pair: its name.
            metric: one of `metrics`; default: the first.
        """
        chosen = metric or self.metric
        if (pair, chosen.name) not in self._families:
            known = {m: self.done(pair, m) for m in [*REFERENCES, *self.recipes]}
            self._families[pair, chosen.name] = family(known, chosen)
        return self._families[pair, chosen.name]

    def level(self, pair: str, method: str) -> float | None:
        """The metric of the untrained student or the teacher; None where it has no result."""
        run = self.runs.get(RunId(pair, method))
        return self.metric.of(run.record) if run else None

    @cached_property
    def binary(self) -> bool:
        """True where every outcome is right or wrong."""
        records = [run.record for run in self.runs.values() if run.record.get("outcomes")]
        return all(isinstance(r["outcomes"].get(self.metric.key), str) for r in records)

    def references(self, pair: str) -> list[str]:
        """The baselines of a pair: one without a teacher has no teacher's."""
        return [role for role in REFERENCES if RunId(pair, role) in self.runs]


def load(path: Path) -> StudyData:
    """Read a study's folder.

    Raises:
        PotstillError: it is not a study's folder, or files of it are damaged: all of them.
    """
    folder = StudyFolder(path)
    study, provenance = folder.read()
    race = courses_of(folder, study)
    cells = planned(study, race)
    ended = folder.results(cells, study)
    errors, runs = Errors(), {}
    for cell in cells:
        with errors:
            runs[cell] = _run(study, folder, cell, ended.get(cell, {}))
    errors.check()
    records = {cell: run.record for cell, run in runs.items() if run.record}
    shown = [cell for cell in cells if _reported(race, cell)]
    measured = metrics_of(records.values())
    rows = table(shown, list(study.recipes), records, lambda cell: runs[cell].metrics, measured)
    known = {(cell.pair, cell.method) for cell in shown}
    rows = [row for row in rows if (row.pair, row.method) in known]
    return StudyData(folder, study, provenance, runs, rows, race, measured)


def planned(study: Study, race: Mapping[str, Course]) -> list[RunId]:
    """The runs of a grid, or of a race so far, pair by pair."""
    order = list(study.models)
    runs = runs_in(race.values(), study) if race else runs_of(study)
    return sorted(runs, key=lambda run: order.index(run.pair))


def _reported(race: Mapping[str, Course], cell: RunId) -> bool:
    return not race or race[cell.pair].reports(cell)


def _run(study: Study, folder: StudyFolder, cell: RunId, record: Mapping[str, Any]) -> RunData:
    place = folder.cell(cell)
    trained = cell.method not in REFERENCES
    total = study.total_steps(study.recipes[cell.method]) if trained else 0
    rows = list(_rows(place, study, total)) if trained else []
    return RunData(cell, record, rows, total)


def _rows(place: RunFolder, study: Study, total: int) -> Iterator[dict[str, Any]]:
    """Rows of a run's metrics, thinned by their step alone: equal steps in every seed.

    Evaluations and probes are rarer and are thinned on their own. A line that is left out is not
    parsed, so that 10^5 steps take a second, not a minute.
    """
    path = place.path / "metrics.jsonl"
    strides = [_stride(total, n) for n in (1, study.eval.every, study.eval.probe_every)]
    *lines, _partial = (read_text(path, place.hint) or "").split("\n")
    kept, steps = [], []
    for number, line in enumerate(lines, 1):
        match = STEP.match(line)
        steps += [int(match[1])] if match else []
        thinned = match and number < len(lines) and all(steps[-1] % n for n in strides)
        kept += [] if thinned else [line]
    rows = rows_of(kept, path, place.hint, metrics_error)
    if error := order_error(steps if len(steps) == len(lines) else (row["step"] for row in rows)):
        raise damaged(path, error, place.hint)
    for row in rows:
        yield {key: value for key, value in row.items() if key.startswith(KEPT)}


def _stride(total: int, every: int) -> int:
    """Steps between two kept rows of a kind that comes every so many steps."""
    return every * max(1, math.ceil(total / every / ROWS))
