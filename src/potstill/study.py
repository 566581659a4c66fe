"""Running a study: the grid of cells, what is missing of it, and worker processes that fill it
in.

A cell that fails is a recorded result and the study goes on. Workers share nothing but the
folder: each takes the first cell that is missing, ready and not held by another process, so
several studies may work on one folder. A worker that dies is replaced; its cell goes on from its
checkpoint once, then counts as failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill.config import Study, read_study
from potstill.engines import Engine, open_engine
from potstill.errors import NonFinite, PotstillError, StorageError, writing
from potstill.evaluate import Reference, evaluate
from potstill.loop import train
from potstill.provenance import provenance
from potstill.store import (
    REFERENCES,
    Cell,
    CellFolder,
    StudyFolder,
    cells_of,
    example,
)
from potstill.tasks import Task, check_disjoint, load_task
from potstill.types import Evaluation, Role

DEATHS = 2  # a cell whose worker died this often has failed


def prepare(study: Study) -> Task:
    """Read the task and refuse what only its problems show. Opens no model."""
    task = load_task(**study.task)
    for what, wanted, have in (
        ("eval.problems", study.eval.problems, len(task.test)),
        ("eval.probe", study.eval.probe, len(task.train)),
    ):
        if wanted > have:
            raise PotstillError(
                f"{what} asks for {wanted} problems, the task has {have}", f"lower {what}"
            )
    check_disjoint(task, task.test[: study.eval.problems])
    return task


def run_cell(
    study: Study, folder: StudyFolder, cell: Cell, task: Task | None = None
) -> dict[str, Any]:
    """Run one cell to its end and record the result, failure included.

    Returns:
        The record that result.json holds.
    """
    reference = None if cell.method in REFERENCES else read_reference(folder, cell.pair)
    texts = reference.texts if reference else None
    place = folder.cell(cell, teacher=texts, examples=study.eval.examples)
    record: dict[str, Any] = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
    place.mark_running(True)
    try:
        outcome = _run(study, place, cell, task or load_task(**study.task), reference)
        record |= {"status": "done", **outcome}
    except StorageError:
        raise
    except Exception as error:  # whatever it was, it is this cell's result; the study goes on
        record |= _failure(error, place)
    record["provenance"] = provenance()
    place.finish(record)
    place.mark_running(False)
    return record


def _run(
    study: Study, place: CellFolder, cell: Cell, task: Task, reference: Reference | None
) -> dict[str, Any]:
    engine = open_study_engine(study, cell)
    try:
        if cell.method in REFERENCES:
            return _reference(study, engine, place, cell, task)
        if reference is None:
            raise PotstillError(f"the teacher row of {cell.pair} failed", "see its result.json")
        recipe = study.recipes[cell.method]
        assert cell.seed is not None
        trained = train(
            recipe,
            engine,
            task,
            study.train,
            study.eval,
            seed=cell.seed,
            reference=reference,
            recorder=place,
        )
        if study.train.save:
            with writing(place.path / "student"):
                engine.export(place.path / "student")
        return {
            "steps": trained.steps,
            **_accuracy(trained.evaluation),
            "tokens": trained.tokens,
            "seconds": round(sum(trained.seconds.values()), 3),
            "activity": {k: round(v, 3) for k, v in trained.seconds.items()},
            "notes": list(engine.notes),
        }
    finally:
        engine.close()


def open_study_engine(study: Study, cell: Cell) -> Engine:
    """The engine of one cell, with the study's settings."""
    settings: dict[str, Any] = {}
    if study.engine.name == "torch":
        settings = {
            "lora_rank": study.train.lora_rank,
            "max_grad_norm": study.train.max_grad_norm,
            "student_spec": study.engine.student,
            "teacher_spec": study.engine.teacher,
            "batch_tokens": study.engine.batch_tokens,
            "gradient_checkpointing": study.engine.gradient_checkpointing,
            "threads": study.engine.threads,
        }
    return open_engine(study.engine.name, study.models[cell.pair], seed=cell.seed or 0, **settings)


def _reference(
    study: Study, engine: Engine, place: CellFolder, cell: Cell, task: Task
) -> dict[str, Any]:
    """Grade the teacher or the untrained student; the teacher also writes the probe's texts."""
    start = time.perf_counter()
    role: Role = "teacher" if cell.method == "teacher" else "student"
    place.rewind(-1)
    graded = evaluate(engine, role, task, task.test[: study.eval.problems], study.graded_tokens)
    rows = list(graded.rows)
    if role == "teacher":
        probed = task.train[: study.eval.probe]
        rows += evaluate(engine, role, task, probed, study.graded_tokens).rows
    place.show([example(0, row) for row in rows])
    return {
        "steps": 0,
        **_accuracy(graded),
        "tokens": {},
        "seconds": round(time.perf_counter() - start, 3),
        "activity": {},
        "notes": list(engine.notes),
    }


def read_reference(folder: StudyFolder, pair: str) -> Reference | None:
    """The teacher's texts of a pair, or None where its row failed."""
    place = folder.cell(Cell(pair, "teacher"))
    if (place.result or {}).get("status") != "done":
        return None
    return Reference({row["problem"]: row["text"] for row in place.texts})


def _accuracy(graded: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": graded.strict,
        "flexible": graded.flexible,
        "problems": len(graded.rows),
        "outcomes": graded.outcomes,
    }


def _failure(error: Exception, place: CellFolder) -> dict[str, Any]:
    """A failed cell's record: the cause in a line, where it was, and the end of the traceback."""
    metrics = place.metrics
    step = metrics[-1]["step"] if metrics else 0
    kinds = {"OutOfMemoryError": "out of memory", "MemoryError": "out of memory"}
    kind = kinds.get(type(error).__name__, type(error).__name__)
    if isinstance(error, NonFinite):
        kind = "not a number"
    trace = "".join(traceback.format_exception(error)[-6:])
    return {
        "status": "failed",
        "cause": f"{kind} at step {step + 1}: {error}".strip(),
        "steps": step,
        "traceback": trace,
    }


class Pool:
    """The worker processes of one `potstill study` and what is left to do."""

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        workers: int,
        cells: Sequence[Cell] | None = None,
    ) -> None:
        self.study, self.folder, self.workers = study, folder, workers
        self.cells = list(cells or cells_of(study))
        self.deaths: Counter[Cell] = Counter()
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []

    def run(self, tick: Callable[[], None], every: float = 0.5) -> dict[Cell, dict[str, Any]]:
        """Fill in the grid; `tick` is called between looks, to draw progress.

        Raises:
            StorageError: the disk refuses; what is finished is kept.
        """
        try:
            while missing := self.missing():
                self._tend(len(missing))
                tick()
                time.sleep(every)
        finally:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                process.join()
        tick()
        return self.folder.results(self.cells)

    def missing(self) -> list[Cell]:
        """Cells without a result."""
        return [cell for cell in self.cells if self.folder.cell(cell).result is None]

    def _tend(self, missing: int) -> None:
        """Replace workers that are gone while there is work."""
        for process in [p for p in self._processes if not p.is_alive()]:
            self._processes.remove(process)
            if process.exitcode == _DISK:
                self._raise_storage()
            if process.exitcode:
                self._bury(process)
        while len(self._processes) < min(self.workers, missing):
            process = self._context.Process(
                target=_work,
                args=(self.study.to_toml(), str(self.folder.path), self.cells, os.getpid()),
            )
            process.start()
            self._processes.append(process)

    def _bury(self, process: Any) -> None:
        """Note the death of a worker; a cell that costs two workers has failed."""
        for cell in self.missing():
            place = self.folder.cell(cell)
            if (place.running or {}).get("pid") != process.pid:
                continue
            self.deaths[cell] += 1
            if self.deaths[cell] >= DEATHS:
                code = process.exitcode
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                cause = f"its worker process died {DEATHS} times ({how}); memory may have run out"
                steps = len(place.metrics)
                place.finish(
                    {
                        "pair": cell.pair,
                        "method": cell.method,
                        "seed": cell.seed,
                        "status": "failed",
                        "cause": cause,
                        "steps": steps,
                        "provenance": provenance(),
                    }
                )

    def _raise_storage(self) -> None:
        note = self.folder.path / ".storage-error"
        text = note.read_text() if note.exists() else "the disk refused a write"
        raise StorageError(
            text, "free space, then run the same command again: what is finished is kept"
        )


_DISK = 74  # a worker's exit code when the disk refuses (EX_IOERR)


def _work(table: dict[str, Any], path: str, cells: Sequence[Cell], parent: int) -> None:
    """A worker process: run cells until none is left to take."""
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    study, folder = read_study(table), StudyFolder(Path(path))
    task = load_task(**study.task)
    try:
        while True:
            missing = [c for c in cells if folder.cell(c).result is None]
            if not missing:
                return
            if not _take_one(study, folder, missing, task):
                time.sleep(0.2)  # what is left is held by others or waits for a teacher row
    except StorageError as error:
        with contextlib.suppress(OSError):  # the disk may be full; the exit code says it
            (folder.path / ".storage-error").write_text(str(error))
        os._exit(_DISK)


def _take_one(study: Study, folder: StudyFolder, missing: Sequence[Cell], task: Task) -> bool:
    """Run the first of the missing cells that can be had; False where none can."""
    for cell in missing:
        teacher = Cell(cell.pair, "teacher")
        if cell.method not in REFERENCES and folder.cell(teacher).result is None:
            continue
        place = folder.cell(cell)
        with place.claim() as mine:
            if mine and place.result is None:
                run_cell(study, folder, cell, task)
                return True
    return False


def _leave_with(parent: int) -> None:
    """End this process when the study that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
