"""Running one cell of a study, from its settings to its recorded result.

A cell that fails is a result with its cause, and the study goes on; a disk that refuses is not the
cell's fault and stops it. Which cells run where is `where`'s business.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics import faults
from potstill.diagnostics.monitor import Monitor
from potstill.diagnostics.preflight import Check, Rehearsal, preflight
from potstill.engines.cached_teacher import CachedTeacher, fingerprint
from potstill.engines.protocol import Engine
from potstill.engines.registry import open_engine
from potstill.errors import NonFinite, PotstillError, StorageError, writing
from potstill.study.budget import Ledger
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, Cell, CellFolder, StudyFolder, example
from potstill.study.validation import check_routes, check_window
from potstill.tasks import Task, check_disjoint, load_task
from potstill.tasks.context.builder import Briefing
from potstill.training.evaluation import TeacherCompletions, evaluate
from potstill.training.loop import train
from potstill.training.metering import Metered, Usage
from potstill.training.run import RunSpec
from potstill.training.spending import BudgetReached
from potstill.types import Evaluation, ModelSpec, Role


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
    graded = task.test[: study.eval.problems]
    check_disjoint(task, graded)
    for pair in study.models.values():
        if pair.route:
            check_routes(pair.route, pair.teachers, task, graded)
    for name, context in study.contexts.items():
        briefing = Briefing(context, task)
        briefing.check(graded)
        if study.engine.name != "fake":
            tokens = max(study.train.max_tokens, study.graded_tokens)
            spec = study.engine.teacher if study.engine.name == "torch" else ModelSpec()
            for teacher in (study.models[name].teacher, *study.models[name].teachers.values()):
                check_window(briefing, teacher, graded, tokens, spec.trust_remote_code)
    return task


def run_cell(
    study: Study,
    folder: StudyFolder,
    cell: Cell,
    task: Task | None = None,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Run one cell to its end and record the result, failure included.

    Returns:
        The record that result.json holds.

    Raises:
        BudgetReached: the study has spent what it may; the cell goes on another time.
        StorageError: the disk refuses.
    """
    reference = None if cell.method in REFERENCES else read_reference(folder, cell.pair)
    texts = reference.by_problem if reference else None
    place = folder.cell(cell, teacher=texts, examples=study.eval.examples, ledger=ledger)
    record: dict[str, Any] = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
    place.mark_running(True)
    try:
        task = task or load_task(**study.task)
        outcome = _run(study, folder, place, cell, task, reference)
        record |= {"status": "done", **outcome}
    except (StorageError, BudgetReached):
        place.mark_running(False)
        raise
    except Exception as error:  # whatever it was, it is this cell's result; the study goes on
        record |= _failure(error, place)
    record["provenance"] = provenance()
    place.finish(record)
    place.mark_running(False)
    return record


def _run(
    study: Study,
    folder: StudyFolder,
    place: CellFolder,
    cell: Cell,
    task: Task,
    reference: TeacherCompletions | None,
) -> dict[str, Any]:
    if reference is None and cell.method not in REFERENCES:
        raise PotstillError(f"the teacher row of {cell.pair} failed", "see its result.json")
    engine = open_study_engine(study, cell, task, place.path, folder.cache)
    recipe = study.recipes.get(cell.method) or Recipe(name=cell.method)
    asked = RunSpec(recipe, engine, task, cell.seed or 0)
    run = faults.apply(study.faults, asked)
    try:
        if cell.method in REFERENCES:
            return _reference(study, engine, place, cell, run.task)
        trained = train(
            run.recipe,
            run.engine,
            run.task,
            study.train,
            study.eval,
            seed=run.seed,
            teacher_completions=reference,
            recorder=place,
            monitor=partial(Monitor, asked, study.train, study.eval),
        )
        if study.train.save:
            with writing(place.path / "student"):
                engine.export(place.path / "student")
        return {
            "steps": trained.steps,
            "ended": trained.ended,
            "findings": place.findings,
            **_accuracy(trained.evaluation),
            **_routes(study, cell.pair, run.task),
            "tokens": trained.spent["tokens"],
            "flops": trained.spent["flops"],
            "seconds": round(sum(trained.spent["seconds"].values()), 3),
            "devices": engine.devices,
            "peak_bytes": engine.memory()[0],
            "activity": {k: round(v, 3) for k, v in trained.spent["seconds"].items()},
            "notes": list(engine.notes),
        }
    finally:
        run.engine.close()


def open_study_engine(
    study: Study, cell: Cell, task: Task, scratch: Path, cache: Path | None = None
) -> Engine:
    """The engine of one cell, with the study's settings; faulty teachers go to `scratch`, what
    the teacher writes to `cache`."""
    settings: dict[str, Any] = {}
    if study.engine.name != "fake":
        train = study.train
        settings = {"lora_rank": train.lora_rank, "max_grad_norm": train.max_grad_norm}
        settings["settings"] = study.engine
    pair = study.models[cell.pair]
    teacher = faults.teacher_for(study.faults, pair.teacher, scratch)
    models = pair.model_copy(update={"teacher": teacher, "context": study.contexts.get(cell.pair)})
    engine = open_engine(study.engine.name, models, seed=cell.seed or 0, task=task, **settings)
    if cache:
        # the student has a say too: ids that both heads have, and what ends a text
        placed = getattr(study.engine, "teacher", None)
        where: tuple[Any, ...] = (pair.student, sorted(engine.eos), placed)
        where += tuple((key, fingerprint(name)) for key, name in sorted(pair.teachers.items()))
        key = fingerprint(
            teacher, study.engine.name, *where, getattr(study.engine, "sample_tokens", None)
        )
        engine = CachedTeacher(engine, key, cache)
    return engine


def preflight_pair(study: Study, pair: str, only: Collection[str] = ()) -> list[Check]:
    """Checks of a pair's runs before step 0: opens the models, trains nothing.

    Args:
        study: the settings.
        pair: one of its pairs.
        only: names of checks, see `preflight.CHECKS`; default: all.
    """
    task, cell = load_task(**study.task), Cell(pair, "preflight", study.seeds[0])
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as scratch:
        engine = open_study_engine(study, cell, task, Path(scratch))

        def wire(inner: Engine, recipe: Recipe) -> RunSpec:
            return faults.apply(study.faults, RunSpec(recipe, inner, task, study.seeds[0]))

        recipes = list(study.recipes.values())
        rehearsal = Rehearsal(wire, engine, recipes, study.seeds[0], study.train, study.eval)
        try:
            return list(preflight(rehearsal, only))
        finally:
            engine.close()


def _reference(
    study: Study, engine: Engine, place: CellFolder, cell: Cell, task: Task
) -> dict[str, Any]:
    """Grade the teacher or the untrained student; the teacher also writes the probe's texts."""
    start = time.perf_counter()
    role: Role = "teacher" if cell.method == "teacher" else "student"
    place.rewind(-1)
    usage = Usage(engine)
    counted = Metered(engine, usage, "evaluation")
    graded = evaluate(counted, role, task, task.test[: study.eval.problems], study.graded_tokens)
    rows = list(graded.rows)
    if role == "teacher":
        probed = task.train[: study.eval.probe]
        rows += evaluate(counted, role, task, probed, study.graded_tokens).rows
    place.show([example(0, row) for row in rows])
    return {
        "steps": 0,
        **_accuracy(graded),
        **_routes(study, cell.pair, task),
        "tokens": dict(+usage.tokens),
        "flops": usage.flops,
        "seconds": round(time.perf_counter() - start, 3),
        "devices": engine.devices,
        "activity": {},
        "peak_bytes": engine.memory()[0],
        "notes": list(engine.notes),
    }


def read_reference(folder: StudyFolder, pair: str) -> TeacherCompletions | None:
    """The teacher's texts of a pair, or None where its row failed."""
    place = folder.cell(Cell(pair, "teacher"))
    if (place.result or {}).get("status") != "done":
        return None
    return TeacherCompletions({row["problem"]: row["text"] for row in place.texts})


def _accuracy(graded: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": graded.strict,
        "flexible": graded.flexible,
        "format": graded.format,
        "problems": len(graded.rows),
        "outcomes": graded.outcomes,
    }


def _routes(study: Study, pair: str, task: Task) -> dict[str, Any]:
    """Of each graded problem the key that chooses its teacher, where there are several."""
    route = study.models[pair].route
    graded = task.test[: study.eval.problems]
    return {"routes": [problem.text(route) for problem in graded]} if route else {}


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
