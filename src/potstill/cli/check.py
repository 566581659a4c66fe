"""`potstill check`: validate a study, show its grid, run pre-flight, predict its cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli.app import RUN, command
from potstill.cli.options import AsJson, Preflight, Words, study_of
from potstill.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from potstill.settings import Price
    from potstill.study.schema import Study
    from potstill.tasks import Task
    from potstill.training.spending import Spent

# Keys of the plan as people read them.
LABELS = {
    "cells": "runs, with baselines",
    "sampled tokens, at most": "sampled tokens",
    "graded on": "evaluation",
}


@command(
    "check",
    RUN,
    "potstill check mine.toml",
    "potstill check studies/full.toml seeds=0,1 --no-preflight",
)
def check(words: Words = None, preflight: Preflight = True, as_json: AsJson = False) -> None:
    """Validate a study file and show what it would run.

    Pre-flight opens the models and tests that a training step follows the recipe, that the sampler
    uses the newest weights, that the teacher beats the student, and more; then it predicts time,
    tokens and cost. Nothing is trained and no file is written.
    """
    from potstill.cli.launch import afford, checked, predict, records, refuse
    from potstill.study.run import prepare
    from potstill.study.storage import StudyFolder, runs_of

    study = study_of(words)
    facts = plan(study, prepare(study))
    if not as_json:
        print_table([{"setting": k, "value": v} for k, v in readable(facts).items()])
    preflight_checks = checked(study) if preflight else {}
    checks, spending = records(preflight_checks), predict(preflight_checks)
    predicted = prediction(study, spending)
    if as_json:
        print_json({**facts, "checks": checks, "prediction": predicted})
    elif checks:
        print()
        print_table(checks)
        print()
        print_table([labelled(row, hours_of(study)) for row in predicted])
    refuse(checks)
    afford(study, StudyFolder(Path("runs") / study.name), spending, runs_of(study))


def plan(study: Study, task: Task) -> dict[str, Any]:
    """A study's grid and its upper bounds, from its settings alone."""
    from potstill.study.storage import runs_of

    steps = {name: study.total_steps(recipe) for name, recipe in study.recipes.items()}
    total = len(study.models) * len(study.seeds) * sum(steps.values())
    return {
        "study": study.name,
        "task": f"{task.name}: {len(task.train)} training, {len(task.test)} held-out problems",
        "engine": study.engine.name,
        "pairs": ", ".join(study.models),
        **{f"context of {name}": str(context) for name, context in study.contexts.items()},
        "methods": ", ".join(f"{name} ({n} steps)" for name, n in steps.items()),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells": len(runs_of(study)),
        "optimizer steps": total,
        "sampled tokens, at most": total * study.train.batch_size * study.train.max_tokens,
        "learning rate": study.train.learning_rate,
        "graded on": f"{study.eval.problems} problems every {study.eval.every} steps",
    }


def readable(facts: Mapping[str, Any]) -> dict[str, str]:
    """A plan with the words and digits that people read."""
    texts = {key: f"{v:,}" if isinstance(v, int) else str(v) for key, v in facts.items()}
    texts["sampled tokens, at most"] = f"at most {texts['sampled tokens, at most']}"
    return {LABELS.get(key, key): text for key, text in texts.items()}


def prediction(study: Study, predicted: Mapping[str, Mapping[str, Spent]]) -> list[dict[str, Any]]:
    """The predicted cost of the grid, by pair and in all, from the times of pre-flight."""
    from potstill.study.storage import runs_of
    from potstill.training.spending import total

    runs = [run for run in runs_of(study) if run.pair in predicted]
    costs = {run: predicted[run.pair][run.method] for run in runs}
    rows = [
        _spent_row(pair, total(costs[run] for run in runs if run.pair == pair), study.price)
        for pair in predicted
    ]
    if len(rows) > 1:
        rows.append(_spent_row("in all", total(costs.values()), study.price))
    return rows


def _spent_row(name: str, spent: Spent, price: Price) -> dict[str, Any]:
    priced = any(price.model_dump().values())
    return {
        "predicted": name,
        "hours that cells compute": f"{spent.seconds / 3600:.2g}",
        "tokens": f"{spent.count():.3g}",
        "FLOPs": "unknown" if spent.flops is None else f"{spent.flops:.3g}",
        "USD": f"{spent.usd(price):.3g}" if priced else "no price is set",
    }


def labelled(row: Mapping[str, Any], hours: str) -> dict[str, Any]:
    """A row of the prediction for people: unknown amounts are empty."""
    name, seconds, tokens, flops, usd = row.values()
    return {
        "prediction": name,
        hours: seconds,
        "tokens": tokens,
        "FLOPs": "" if flops == "unknown" else flops,
        "USD": usd if usd != "no price is set" else "",
    }


def hours_of(study: Study) -> str:
    """The unit of computing time on this machine; of a service, hours are spent waiting."""
    if study.engine.name == "tinker":
        return "hours"
    models = [getattr(study.engine, role, None) for role in ("student", "teacher")]
    on_cpu = all(model is None or model.device == "cpu" for model in models)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    gpu = not (on_cpu or hidden) and any(Path("/dev").glob("nvidia[0-9]*"))
    return "GPU-hours" if gpu else "CPU-hours"
