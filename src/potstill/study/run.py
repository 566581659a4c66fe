"""Executes one run of a study, from its settings to its recorded result.

A run that fails is recorded with its cause, and the study continues. Unavailable storage stops
the study, and is not recorded as a failure of the run. Executors decide which runs execute where.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics import faults
from potstill.diagnostics.monitor import Monitor
from potstill.diagnostics.preflight import (
    Check,
    Keeper,
    Progress,
    Rehearsal,
    TimeBudget,
    Watch,
    from_keeper,
    preflight,
    unrunnable,
    unwatched,
)
from potstill.engines.protocol import Engine
from potstill.errors import Errors, PotstillError, StorageError, shown, writing
from potstill.problems import Problem
from potstill.settings import Eval
from potstill.study import record
from potstill.study.benchmarks import forgotten, load_tasks
from potstill.study.budget import Ledger
from potstill.study.completions import check_completions
from potstill.study.engine import open_study_engine
from potstill.study.evaluating import check_evaluation
from potstill.study.files import DamagedFile
from potstill.study.inputs import inputs_of
from potstill.study.problems import check_lengths, check_references
from potstill.study.schema import Study
from potstill.study.settling import check_validation, settled, task_of
from potstill.study.storage import REFERENCES, RunFolder, RunId, StudyFolder, example
from potstill.study.validation import check_routes, check_window
from potstill.tasks import Task, check_disjoint
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.graders import GraderError
from potstill.training.completing import complete, held_out
from potstill.training.evaluation import GREEDY, TeacherCompletions, evaluate
from potstill.training.loop import train
from potstill.training.metering import Metered, Usage
from potstill.training.run import RunSpec
from potstill.training.spending import BudgetReached
from potstill.types import Ids, ModelSpec, Role


def prepare(study: Study) -> Task:
    """Load the task and check what depends on its problems. Opens no model."""
    errors, task = Errors(), task_of(study)
    for split in ("train", "test"):
        with errors:
            getattr(task, split)  # reads its files
    errors.check()
    evaluated = held_out(task, study.eval)
    with errors:
        check_disjoint(task, evaluated)
    with errors:
        check_evaluation(study, task, evaluated)
    with errors:
        check_completions(study, task, evaluated)
    with errors:
        check_lengths(study, task, evaluated)
    with errors:
        check_references(study, task)
    with errors:
        check_validation(study, task)
    with errors:
        if study.eval.lm_eval:
            load_tasks(study.eval.lm_eval)  # before a model is trained for hours
    for pair in study.models.values():
        if pair.route:
            with errors:
                check_routes(pair.route, pair.teachers, task, evaluated)
    for name in study.contexts:
        with errors:
            _check_context(study, name, task, evaluated)
    errors.check()
    return task


def _check_context(study: Study, name: str, task: Task, evaluated: Sequence[Problem]) -> None:
    """Check the context of a pair's teachers."""
    prompts = PromptBuilder(study.contexts[name], task)
    prompts.check(evaluated)
    if study.engine.name != "fake":
        tokens = max(study.train.max_tokens, study.graded_tokens)
        spec = study.engine.teacher if study.engine.name == "torch" else ModelSpec()
        for teacher in (study.models[name].teacher, *study.models[name].teachers.values()):
            check_window(prompts, teacher, evaluated, tokens, spec)


def run_cell(
    study: Study,
    folder: StudyFolder,
    key: RunId,
    task: Task | None = None,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Execute one run and record its result, also if it fails.

    Args:
        study: the settings.
        folder: the study's folder.
        key: the run.
        task: the problems, if they are loaded already.
        ledger: enforces the study's budget; None: there is none.

    Returns:
        The record in result.json.

    Raises:
        BudgetReached: the budget is spent; the run can continue from its checkpoint.
        StorageError: storage is unavailable.
        GraderError: the grader failed on a baseline, so that nothing is trained yet.
    """
    teacher = None
    if key.method not in REFERENCES and study.models[key.pair].teacher:
        teacher = read_completions(folder, key.pair)
    by_problem = teacher.by_problem if teacher else None
    run = folder.cell(key, teacher=by_problem, examples=study.eval.examples, ledger=ledger)
    run.mark_running(True)
    digest = ""
    try:
        try:
            task = task or task_of(study)
            study = settled(study, task)
            inputs = inputs_of(study, task, [key.pair])
            folder.check_inputs(inputs)
            digest = inputs.digest(key.pair)
            outcome = {"status": "done", **_execute(study, folder, run, key, task, teacher)}
        except (StorageError, BudgetReached, DamagedFile):
            raise
        except Exception as error:  # any other error is the result of this run
            if isinstance(error, GraderError) and key.method in REFERENCES:
                raise  # it would fail on every run
            cause = record.of_error(error, run)
            outcome = {k: shown(v) if isinstance(v, str) else v for k, v in cause.items()}
        result = record.complete(study, key, outcome, digest)
        run.finish(result)
        return result
    finally:
        run.mark_running(False)


def _execute(
    study: Study,
    folder: StudyFolder,
    run: RunFolder,
    key: RunId,
    task: Task,
    teacher: TeacherCompletions | None,
) -> dict[str, Any]:
    """Train, or evaluate a baseline; returns the run's part of the record."""
    if teacher is None and key.method not in REFERENCES and study.models[key.pair].teacher:
        raise PotstillError(f"the teacher baseline of {key.pair} failed", "see its result.json")
    engine = open_study_engine(study, key, task, run.path, folder.cache)
    recipe = study.recipes.get(key.method) or Recipe(name=key.method)
    intended = RunSpec(recipe, engine, task, key.seed or 0)
    actual = faults.apply(study.faults, intended)
    try:
        if key.method in REFERENCES:
            return _evaluate_baseline(study, engine, run, key, actual.task)
        trained = train(
            actual.recipe,
            actual.engine,
            actual.task,
            study.train,
            study.eval,
            seed=actual.seed,
            teacher_completions=teacher,
            recorder=run,
            monitor=partial(Monitor, intended, study.train, study.eval),
        )
        if study.train.save:
            with writing(run.path / "student"):
                engine.export(run.path / "student")
        usage = Usage(engine)
        with usage.clock("evaluation"):
            more = forgotten(Metered(engine, usage, "evaluation"), study.eval)
        return {
            **record.with_cost(
                record.of_training(trained, run, study.train), usage if more else None
            ),
            **more,
            **record.of_problems(study, key.pair, actual.task),
            **record.of_engine(engine, trained.kept),
        }
    finally:
        actual.engine.close()


def _evaluate_baseline(
    study: Study, engine: Engine, run: RunFolder, key: RunId, task: Task
) -> dict[str, Any]:
    """Evaluate the untrained student, or the teacher, which also completes the probe problems."""
    start = time.perf_counter()
    role: Role = "teacher" if key.method == "teacher" else "student"
    run.rewind(-1)
    usage = Usage(engine)
    meter = Metered(engine, usage, "evaluation")
    problems, tokens = held_out(task, study.eval), study.graded_tokens
    evaluation = evaluate(meter, role, task, problems, tokens, study.eval)
    examples = [example(0, row) for row in evaluation.rows]
    if role == "teacher":
        if not evaluation.graded:  # the student's loss is measured on exactly these tokens
            examples = [{**e, "ids": r.ids} for e, r in zip(examples, evaluation.rows, strict=True)]
        probe = task.train[: study.eval.probe]
        rows, _, _ = complete(meter, role, task, probe, tokens, GREEDY)
        examples += [example(0, row) for row in rows]
    run.add_completions(examples)
    return {
        "steps": 0,
        **record.of_evaluation(evaluation),
        **(forgotten(meter, study.eval) if role == "student" else {}),
        **record.of_problems(study, key.pair, task),
        "prompt": engine.rendered(engine.prompt(problems[0]), role),
        "tokens": dict(+usage.tokens),
        "flops": usage.flops,
        "seconds": round(time.perf_counter() - start, 3),
        "activity": {},
        **record.of_engine(engine),
    }


def read_completions(folder: StudyFolder, pair: str) -> TeacherCompletions | None:
    """The teacher's completions of a pair; None if its baseline failed.

    Raises:
        DamagedFile: they are not those that the baseline recorded.
    """
    run = folder.cell(RunId(pair, "teacher"))
    result = run.result or {}
    if result.get("status") != "done":
        return None
    run.check_files(result, ("examples.jsonl",))
    texts: dict[str, str] = {}
    tokens: dict[str, list[Ids]] = {}
    for row in run.texts:
        texts.setdefault(row["problem"], row["text"])
        if "ids" in row:
            tokens.setdefault(row["problem"], []).append(tuple(row["ids"]))
    return TeacherCompletions(texts, tokens)


def _as_there_are(settings: Eval, task: Task) -> Eval:
    """The settings of an evaluation with numbers of problems that the task has."""
    problems = min(settings.problems, len(task.test))
    return settings.changed({"problems": problems, "probe": min(settings.probe, len(task.train))})


def preflight_pair(
    study: Study,
    pair: str,
    only: Collection[str] = (),
    budget: TimeBudget | None = None,
    watch: Watch = unwatched,
    keeper: Keeper | None = None,
) -> list[Check]:
    """Run the pre-flight checks of one pair: opens its models, trains nothing.

    Args:
        study: the settings.
        pair: one of its pairs.
        only: names of checks, see `preflight.CHECKS`; default: all.
        budget: the time that they may take; default: a share of the study's predicted time.
        watch: called when a check starts and when it ends.
        keeper: has results of earlier checks, and keeps those of the new ones.
    """
    recipes, first = list(study.recipes.values()), study.seeds[0]
    seeds = len(study.seeds)
    kept = from_keeper(recipes, only, watch, keeper)
    if kept is not None:
        return list(kept)
    task, key = task_of(study), RunId(pair, "preflight", first)
    study = settled(study, task)
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as scratch:
        watch(Progress("models"))
        start = time.perf_counter()
        try:
            engine = open_study_engine(study, key, task, Path(scratch))
        except (PotstillError, OSError):
            raise
        except Exception as error:
            return [unrunnable("models", error)]
        watch(Progress("models", [Check("models", "passed", "")], time.perf_counter() - start))

        def wire(inner: Engine, recipe: Recipe) -> RunSpec:
            return faults.apply(study.faults, RunSpec(recipe, inner, task, first))

        rehearsal = Rehearsal(
            wire, engine, recipes, first, study.train, _as_there_are(study.eval, task), seeds
        )
        rehearsal = replace(rehearsal, budget=budget) if budget else rehearsal
        try:
            return list(preflight(rehearsal, only, watch, keeper))
        finally:
            engine.close()
