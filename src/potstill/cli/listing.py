"""What the command line shows without running a study: lists, a study's plan, a model's grade,
the zoo.

Each function returns plain records; printing is the command line's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import SHAPES
from potstill.diagnostics.diagnosis import SIGNALS, diagnose, failure, meaning
from potstill.diagnostics.faults import FAULTS
from potstill.engines import zoo
from potstill.errors import PotstillError, did_you_mean
from potstill.settings import Pair, Price
from potstill.study.loading import parse_value
from potstill.study.schema import Study
from potstill.study.storage import CellFolder, cells_of, to_json
from potstill.study.tracking.registry import TRACKERS
from potstill.study.validation import check_model
from potstill.tasks import TASKS, Task, load_task
from potstill.training.spending import Spent, total
from potstill.types import Evaluation, Finding, Role


def _methods() -> list[dict[str, Any]]:
    return [{"method": r.name, **recipe_row(r)} for r in METHODS.values()]


def recipe_row(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields as short text."""
    return {
        "on_policy": str(recipe.on_policy),
        "prefix": str(recipe.prefix),
        "student_loss": str(recipe.student_loss) if recipe.uses_student else "-",
        "teacher_loss": str(recipe.teacher_loss) if recipe.uses_teacher else "-",
        "anchor": recipe.anchor or "-",
        "replay": recipe.replay.capacity if recipe.replay else "-",
        "budget": recipe.budget,
        "hypothesis": recipe.hypothesis,
    }


def _engines() -> list[dict[str, Any]]:
    from potstill.engines.registry import ENGINES

    return [
        {"engine": name, "what": info.summary, "losses": ", ".join(sorted(info.losses))}
        for name, info in ENGINES.items()
    ]


def _pairs() -> list[dict[str, Any]]:
    return [
        {"pair": name, "what": what, "context": ", ".join(zoo.CONTEXTS.get(name, ())) or "-"}
        for name, what in zoo.PAIRS.items()
    ]


def _losses() -> list[dict[str, Any]]:
    from potstill.algorithms.losses import CROSSING, FAULTY, LOSSES

    needs = {
        "tokens": "tokens",
        "row": "the teacher's whole row",
        "token_scores": "the teacher's log-probability of each token",
    }
    return [
        {
            "loss": name,
            "needs": "a teacher of another tokenizer" if name in CROSSING else needs[need],
        }
        for name, need in LOSSES.items()
        if name not in FAULTY
    ]


def _faults() -> list[dict[str, Any]]:
    return [
        {
            "fault": fault.name,
            "what": fault.what,
            "where": fault.where,
            "published": "yes" if fault.published else "-",
        }
        for fault in FAULTS.values()
    ]


LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "pairs": _pairs,
    "tasks": lambda: [{"task": name, "what": what} for name, (_, _, what) in TASKS.items()],
    "engines": _engines,
    "losses": _losses,
    "faults": _faults,
    "trackers": lambda: [{"tracker": n, "what": t.summary} for n, t in TRACKERS.items()],
    "schedules": lambda: [{"schedule": kind} for kind in SHAPES],
}


def listing(what: str) -> list[dict[str, Any]]:
    """Records of one of `LISTS`."""
    return LISTS[what]()


def plan(study: Study, task: Task) -> dict[str, Any]:
    """A study's grid and its upper bounds, from its settings alone."""
    steps = {name: study.total_steps(recipe) for name, recipe in study.recipes.items()}
    runs = len(study.models) * len(study.seeds)
    total = runs * sum(steps.values())
    return {
        "study": study.name,
        "task": f"{task.name}: {len(task.train)} training, {len(task.test)} held-out problems",
        "engine": study.engine.name,
        "pairs": ", ".join(study.models),
        **{f"context of {name}": str(context) for name, context in study.contexts.items()},
        "methods": ", ".join(f"{name} ({n} steps)" for name, n in steps.items()),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells": len(cells_of(study)),
        "optimizer steps": total,
        "sampled tokens, at most": total * study.train.batch_size * study.train.max_tokens,
        "learning rate": study.train.learning_rate,
        "graded on": f"{study.eval.problems} problems every {study.eval.every} steps",
    }


def prediction(study: Study, predicted: Mapping[str, Mapping[str, Spent]]) -> list[dict[str, Any]]:
    """What the whole grid will take, by pair and in all, from what pre-flight timed."""
    rows = []
    for pair, runs in predicted.items():
        mine = [cell for cell in cells_of(study) if cell.pair == pair]
        rows.append(_spent_row(pair, total(runs[cell.method] for cell in mine), study.price))
    if len(rows) > 1:
        everything = total(
            predicted[cell.pair][cell.method] for cell in cells_of(study) if cell.pair in predicted
        )
        rows.append(_spent_row("in all", everything, study.price))
    return rows


def _spent_row(name: str, spent: Spent, price: Price) -> dict[str, Any]:
    return {
        "predicted": name,
        "hours that cells compute": f"{spent.seconds / 3600:.2g}",
        "tokens": f"{spent.count():.3g}",
        "FLOPs": "unknown" if spent.flops is None else f"{spent.flops:.3g}",
        "USD": f"{spent.usd(price):.3g}" if price != Price() else "no price is set",
    }


def model_path(name: str) -> str:
    """A model's folder or hub name; `PAIR/ROLE` names an embedded one."""
    place = zoo.place(name)
    if place == name:
        check_model(name, "model")
    return place


def grade_model(
    model: str,
    task_name: str,
    options: Sequence[str],
    problems: int,
    max_tokens: int,
    texts: Path | None,
) -> dict[str, Any]:
    """Grade a model on a task's held-out problems; see `potstill eval --help`."""
    path = model_path(model)
    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise PotstillError(f'a task option is key=value, got "{option}"', "e.g. difficulty=3")
        settings[key.removeprefix("task.")] = parse_value(value)
    task = load_task(task_name, **settings)
    tested = task.test[:problems]
    if len(tested) < problems:
        raise PotstillError(
            f"the task has {len(tested)} problems, asked for {problems}", "lower --problems"
        )
    from scipy.stats import binomtest

    from potstill.engines.registry import open_engine
    from potstill.study.storage import example, write_text
    from potstill.training.evaluation import evaluate

    threads = 1 if path != model else 0  # an embedded model is too small for more
    engine = open_engine("torch", Pair(student=path, teacher=path), threads=threads)
    graded = evaluate(engine, "student", task, tested, max_tokens)
    if texts:
        write_text(texts, "".join(to_json(example(0, row)) + "\n" for row in graded.rows))
    right = sum(row.grade.strict for row in graded.rows)
    interval = binomtest(right, problems).proportion_ci(method="wilson")
    return {
        "model": model,
        "task": task_name,
        "problems": problems,
        "strict": graded.strict,
        "flexible": graded.flexible,
        "interval": [interval.low, interval.high],
    }


def build_zoo(names: Sequence[str], out: Path, seed: int, role: str) -> Iterator[dict[str, Any]]:
    """Train embedded pairs again, with a progress bar; yields each model's accuracy."""
    for name in names:
        if name not in zoo.PAIRS:
            raise PotstillError(f'unknown pair "{name}"', did_you_mean(name, zoo.PAIRS, "pairs"))
    if role not in ("student", "teacher", "both"):
        raise PotstillError(
            f'unknown role "{role}"', did_you_mean(role, ("student", "teacher", "both"), "roles")
        )
    roles: tuple[Any, ...] = ("teacher", "student") if role == "both" else (role,)
    todo = [(pair, one) for pair in names or list(zoo.PAIRS) for one in roles]
    places = {one: out.joinpath(*zoo.model(*one)) for one in todo}  # some share a model
    taken = [place for place in places.values() if place.exists()]
    if taken:
        raise PotstillError(f'"{taken[0]}" exists already', "use another --out")
    from rich.console import Console
    from rich.progress import Progress

    from potstill.engines.zoo.build import build

    for (pair, one), place in places.items():
        if not place.exists():
            with Progress(console=Console(stderr=True)) as bar:
                line = bar.add_task(f"{pair} {one}", total=None)
                build(
                    *zoo.model(pair, one),
                    place,
                    seed,
                    lambda done, of, loss: bar.update(line, completed=done, total=of),  # noqa: B023
                )
        graded = _grade(place, pair, one)
        yield {
            "pair": pair,
            "role": one,
            "accuracy": graded.strict,
            "flexible": graded.flexible,
            "problems": ZOO_PROBLEMS,
        }


ZOO_PROBLEMS = 500  # held-out problems behind an accuracy of an embedded model


def _grade(folder: Path, pair: str, role: str) -> Evaluation:
    """Evaluate a stored model on held-out problems, a teacher with its pair's context."""
    from potstill.engines.registry import open_engine
    from potstill.training.evaluation import evaluate

    task = load_task("arithmetic")
    models = Pair(student=str(folder), teacher=str(folder), context=zoo.CONTEXTS.get(pair, {}))
    engine = open_engine("torch", models, task=task)
    which: Role = "teacher" if role == "teacher" else "student"
    return evaluate(engine, which, task, task.test[:ZOO_PROBLEMS], max_tokens=32)


def diagnosis(path: Path) -> list[dict[str, Any]]:
    """What went wrong in a run's folder, or in every run of a study's, from the recorded rows.

    Raises:
        PotstillError: there is no run in the folder, or none with signals.
    """
    if (path / "metrics.jsonl").exists():
        places = [path]
    else:
        places = sorted(file.parent for file in path.glob("cells/*/*/*/metrics.jsonl"))
    runs = [CellFolder(place) for place in places]
    runs = [run for run in runs if run.metrics]
    if not runs:
        raise PotstillError(
            f'"{path}" holds no run with metrics', "give a study's folder or one of its cells"
        )
    if old := [run for run in runs if "signal/teacher_loss" not in run.metrics[0]]:
        raise PotstillError(
            f'"{old[0].path}" was recorded without signals', "run it again with this version"
        )
    return [{"run": "/".join(run.path.parts[-3:]), **_diagnosed(run)} for run in runs]


def _diagnosed(run: CellFolder) -> dict[str, Any]:
    rows, result = run.metrics, run.result or {}
    findings: list[Finding] = diagnose(rows)
    if broken := failure(str(result.get("cause", "")), int(result.get("steps", 0))):
        findings = [broken, *findings]
    return {
        "steps": rows[-1]["step"],
        "ended": result.get("ended"),
        "findings": [{**asdict(f), "meaning": meaning(f.cause)} for f in findings],
        "signals": [
            {"step": row["step"], **{name: row.get(name) for name in SIGNALS}}
            for row in rows
            if row.get("signal/teacher_loss") is not None
        ],
    }


def conformance(url: str, model: str = "") -> tuple[list[dict[str, Any]], bool]:
    """What a training service does, and whether potstill has to refuse it.

    Args:
        url: a server that speaks Tinker's API.
        model: its base model; empty: the one that it serves.
    """
    import sys

    from transformers import AutoConfig

    from potstill.engines.tinker.client import Service
    from potstill.engines.tinker.conformance import ask
    from potstill.engines.tinker.connection import served

    names = served(url)
    if not model and len(names) != 1:
        raise PotstillError(
            f"{url} serves {len(names)} base models", f"choose one with --model: {', '.join(names)}"
        )
    model = model or names[0]
    vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    service = Service(url, model, vocabulary)
    try:
        found = ask(service, tell=lambda words: print(f"asking: {words}", file=sys.stderr))
    finally:
        service.close()
    head = {"question": "server", "answer": f"{url}, {model}, SDK {service.sdk}", "verdict": ""}
    return [head, *(asdict(fact) for fact in found.table)], bool(found.refused)
