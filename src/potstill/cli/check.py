"""`potstill check`: validate a study, show its grid, run pre-flight, predict its cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.app import RUN, command
from potstill.cli.options import AsJson, Preflight, Words, study_of
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo

if TYPE_CHECKING:
    from potstill.settings import Price
    from potstill.stats.comparisons import Comparisons
    from potstill.stats.power import Power
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
    "potstill check mine.toml --pilot runs/small",
)
def check(
    words: Words = None,
    preflight: Preflight = True,
    pilot: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL",
            help="A study with at least two seeds: the smallest difference that this one can show "
            "is computed from its variances. [default: typical variances]",
        ),
    ] = None,
    repeat: Annotated[
        bool,
        typer.Option("--repeat", help="Repeat the checks whose results are kept."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a study file and show what it would run.

    Pre-flight opens the models and tests that a training step follows the recipe, that the sampler
    uses the newest weights, that the teacher beats the student, and more; then it predicts time,
    tokens and cost. Results are kept, and used again for the same models, settings and versions.
    It also states the smallest difference between methods that the study can show. Nothing is
    trained.
    """
    from potstill.cli.launch import afford, check_devices, checked, predict, records, refuse
    from potstill.report.sentences import power_record
    from potstill.study.run import prepare
    from potstill.study.storage import StudyFolder, runs_of

    study = study_of(words)
    task = prepare(study)
    check_devices(study)
    facts, able = plan(study, task), powers(study, task, pilot)
    if not as_json:
        print_table([{"setting": k, "value": v} for k, v in readable(facts).items()])
        print_powers(able)
    preflight_checks = checked(study, repeat=repeat) if preflight else {}
    checks, spending = records(preflight_checks), predict(preflight_checks)
    predicted = prediction(study, spending)
    if as_json:
        shown = {pair: power_record(one) for pair, one in able.items()}
        print_json({**facts, "power": shown, "checks": checks, "prediction": predicted})
    elif checks:
        echo()
        print_table(checks)
        echo()
        print_table([labelled(row, hours_of(study)) for row in predicted])
    refuse(checks)
    afford(study, StudyFolder(Path("runs") / study.name), spending, runs_of(study))


def plan(study: Study, task: Task) -> dict[str, Any]:
    """A study's grid and its upper bounds, from its settings alone."""
    from potstill.study.storage import runs_of

    steps = {name: study.total_steps(recipe) for name, recipe in study.recipes.items()}
    evaluated = min(study.eval.problems, len(task.test))
    runs = len(study.models) * len(study.seeds)
    total = runs * sum(steps.values())
    writing = [r.name for r in study.recipes.values() if r.uses_student or not r.from_data]
    sampling = runs * sum(steps[name] for name in writing)
    return {
        "study": study.name,
        "task": f"{task.name}: {len(task.train)} training, {len(task.test)} held-out problems",
        **({"grader": grader} if (grader := _grader(task)) else {}),
        **({"left out": note} if (note := getattr(task, "note", "")) else {}),
        "engine": study.engine.name,
        "pairs": ", ".join(study.models),
        **{f"context of {name}": str(context) for name, context in study.contexts.items()},
        "methods": ", ".join(f"{name} ({n} steps)" for name, n in steps.items()),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells": len(runs_of(study)),
        "optimizer steps": total,
        "sampled tokens, at most": sampling * study.train.batch_size * study.train.max_tokens,
        "learning rate": study.train.learning_rate,
        "graded on": f"{evaluated} problems every {study.eval.every} steps",
    }


def _grader(task: Task) -> str:
    """The name of a task's grader; empty for a task with one of its own."""
    from potstill.tasks import is_graded

    if not is_graded(task):
        return "none: held-out KL instead of grades"
    return str(getattr(getattr(task, "graded_by", None), "name", ""))


def powers(study: Study, task: Task, pilot: str | None) -> dict[str, Power]:
    """The differences that the study can show on each pair.

    Raises:
        PotstillError: the pilot holds no study, no method with two seeds, or other numbers.
    """
    from potstill.stats.comparisons import Comparisons
    from potstill.stats.metric import ACCURACY, KL
    from potstill.stats.power import power
    from potstill.tasks import is_graded
    from potstill.tasks.overlap import problem_key
    from potstill.training.completing import held_out

    known = _pilot(pilot, graded=is_graded(task)) if pilot else {}
    questions = {problem_key(p) for p in held_out(task, study.eval)}
    return {
        pair: power(
            known.get(pair) or next(iter(known.values()), Comparisons({})),
            methods=len(study.recipes) + 1,
            seeds=len(study.seeds),
            problems=len(questions),
            metric=ACCURACY if is_graded(task) else KL,
        )
        for pair in study.models
    }


def _pilot(place: str, *, graded: bool) -> dict[str, Comparisons]:
    from potstill.errors import PotstillError
    from potstill.report.data import load
    from potstill.stats.power import components
    from potstill.study.remote import source

    data = load(source(place)[1])
    families = {pair: data.family(pair) for pair in data.study.models}
    known = {pair: family for pair, family in families.items() if components(family)}
    if not known:
        hint = "give a study with a method that has finished at least two seeds"
        raise PotstillError(f'"{place}" has no method with two seeds to plan with', hint)
    if data.metric.share != graded:
        raise PotstillError(
            f'"{place}" is measured by {data.metric.label}, this study by another number',
            "plan with a study that has a grader like this one, or none like this one",
        )
    return known


def print_powers(able: Mapping[str, Power]) -> None:
    """One paragraph, or one a pair where they differ."""
    from potstill.report.sentences import ability

    texts = {pair: " ".join(ability(one)) for pair, one in able.items()}
    if len(set(texts.values())) == 1:
        texts = {"": next(iter(texts.values()))}
    echo()
    for pair, text in texts.items():
        echo(f"{pair}: {text}" if pair else text)


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
