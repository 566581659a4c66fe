"""The record of a run: the fields of its result.json.

Every record has `pair`, `method`, `seed`, `status`, `steps`, `settings` (their digest) and
`provenance`. A run that is done adds an evaluation, its cost and facts about its engine; a run
that has failed adds the cause. A baseline adds `prompt`: the first held-out problem as its model
reads it.
"""

from __future__ import annotations

import traceback
from typing import Any

from potstill.engines.protocol import Engine
from potstill.errors import NonFinite
from potstill.problems import Evaluation
from potstill.settings import Train
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, settings_digest
from potstill.tasks import Task
from potstill.tasks.overlap import problem_key
from potstill.training import checkpoint
from potstill.training.completing import held_out
from potstill.training.metering import Usage
from potstill.training.session import Trained

Record = dict[str, Any]

KINDS = {  # of failures, by exception
    "OutOfMemoryError": "out of memory",
    "MemoryError": "out of memory",
    NonFinite.__name__: "not a number",
}


def complete(study: Study, key: RunId, outcome: Record, inputs: str = "") -> Record:
    """A whole record: the key of the run, its outcome, digests of settings and inputs, provenance.

    Args:
        study: the settings.
        key: the run.
        outcome: the run's own part.
        inputs: the digest of its problems and models; "": unknown, as it failed before.
    """
    identity = {"pair": key.pair, "method": key.method, "seed": key.seed}
    digests = {"settings": settings_digest(study, key), "inputs": inputs}
    return {**identity, **outcome, **digests, "provenance": provenance()}


def of_training(trained: Trained, run: RunFolder, settings: Train) -> Record:
    points = checkpoint.points(run.path / "checkpoints") if settings.keep_state else []
    state = {"state": checkpoint.step_of(points[-1])} if points and not trained.ended else {}
    seconds = trained.spent["seconds"]
    return {
        "steps": trained.steps,
        "ended": trained.ended,
        **({"kept": trained.kept} if trained.kept else {}),
        **state,
        "findings": run.findings,
        **of_evaluation(trained.evaluation),
        "tokens": trained.spent["tokens"],
        "token_sources": trained.spent.get("sources"),
        "flops": trained.spent["flops"],
        "seconds": round(sum(seconds.values()), 3),
        "activity": {name: round(value, 3) for name, value in seconds.items()},
        "saved": {name: round(value, 3) for name, value in trained.spent["saved"].items()},
    }


def with_cost(record: Record, more: Usage | None) -> Record:
    """The record of a run with the cost of what was measured after it."""
    if more is None:
        return record
    seconds = more.seconds["evaluation"]
    activity = dict(record["activity"])
    activity["evaluation"] = round(activity.get("evaluation", 0.0) + seconds, 3)
    sums = {
        name: {
            key: record[name].get(key, 0) + added.get(key, 0) for key in {**record[name], **added}
        }
        for name, added in (("tokens", +more.tokens), ("flops", more.flops))
    }
    sums["flops"] = sums["flops"] if record["flops"] and more.flops else {}
    return {
        **record,
        **sums,
        "activity": activity,
        "seconds": round(record["seconds"] + seconds, 3),
    }


def of_evaluation(evaluation: Evaluation) -> Record:
    """Its outcomes by problem and their means, which are null where the task has no grader."""
    graded = evaluation.graded
    record: Record = {
        "accuracy": evaluation.strict if graded else None,
        "flexible": evaluation.flexible if graded else None,
        "format": evaluation.format,
        "problems": evaluation.problems,
        "outcomes": evaluation.outcomes,
    }
    if evaluation.samples > 1:
        record["samples"] = evaluation.samples
    return record | ({"estimator": evaluation.estimator} if evaluation.estimator else {})


def of_problems(study: Study, pair: str, task: Task) -> Record:
    """Facts of the held-out problems that their outcomes do not have.

    `routes`: the key that selects each problem's teacher, if the pair has several. `clusters`: a
    number for each problem, the same for one question, if some question is there twice.
    """
    route = study.models[pair].route
    evaluated = held_out(task, study.eval)
    facts: Record = {"routes": [problem.text(route) for problem in evaluated]} if route else {}
    numbers: dict[bytes, int] = {}
    clusters = [numbers.setdefault(problem_key(problem), len(numbers)) for problem in evaluated]
    return facts | ({"clusters": clusters} if len(numbers) < len(evaluated) else {})


def of_engine(engine: Engine, kept: Record | None = None) -> Record:
    """Facts about the engine, and notes: its own, and which student is kept if not the last."""
    notes = [*engine.notes]
    if kept:
        value = f"validation {kept['by']} {kept['value']:.4g}"
        notes.append(f"the student is that of step {kept['step']}, the best one: {value}")
    return {
        "devices": engine.devices,
        "peak_bytes": engine.memory()[0],
        "notes": notes,
    }


def of_error(error: Exception, run: RunFolder) -> Record:
    """The cause in one line, the step, and the end of the traceback."""
    metrics = run.metrics
    step = metrics[-1]["step"] if metrics else 0
    kind = KINDS.get(type(error).__name__, type(error).__name__)
    return {
        "status": "failed",
        "cause": f"{kind} at step {step + 1}: {error}".strip(),
        "steps": step,
        "traceback": "".join(traceback.format_exception(error)[-6:]),
    }
