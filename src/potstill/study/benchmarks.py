"""Measures of forgetting: tasks of lm-evaluation-harness, and the loss on a text.

Both are measured on the untrained and on each trained student. Outcomes are kept per document and
per piece of the text, so that students are compared document by document.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from potstill.engines.protocol import Engine
from potstill.errors import PotstillError, did_you_mean, shown
from potstill.fields import brief
from potstill.settings import Eval
from potstill.tasks.reading import read_text
from potstill.types import Ids, Prompt

Entry = dict[str, Any]  # metric, outcomes, mean

PIECE = 512  # tokens of a piece of a text, at most
LARGEST = 2**26  # bytes of a text
TEXT_HINT = "eval.drift names a text in UTF-8, such as drift.txt"


def check_benchmarks(settings: Eval, engine: str) -> None:
    """Raise `PotstillError` if what a study file names cannot be measured. Reads no task."""
    if settings.drift and not read_text(settings.drift, TEXT_HINT, LARGEST).strip():
        raise PotstillError(f"eval.drift is a text, {settings.drift} is empty", TEXT_HINT)
    if not settings.lm_eval:
        return
    if engine != "torch":
        raise PotstillError(
            f'eval.lm_eval reads full-vocabulary log-probs, engine "{engine}" has none',
            'use engine = "torch", or run lm_eval on the exported student',
        )
    for name in settings.lm_eval:
        if is_file(name) and not Path(name).expanduser().is_file():
            raise PotstillError(
                f"eval.lm_eval names {brief(name)}, and there is no such file",
                "give the path of a task's YAML file, or the name of a task of lm-eval",
            )
    if not importlib.util.find_spec("lm_eval"):
        raise PotstillError(
            "eval.lm_eval needs lm_eval, which is not installed",
            "pip install 'potstill[lm-eval]', or leave it out of [eval]",
        )


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Tasks of lm-eval by their own names; their data sets are read.

    Raises:
        PotstillError: there is no such task, or its data cannot be read.
    """
    with _quiet():
        manager = _manager(all(map(is_file, names)))
        for name in names:
            if not is_file(name) and not manager.match_tasks([name]):
                raise PotstillError(
                    f"eval.lm_eval: lm-eval has no task {brief(name)}",
                    did_you_mean(name, manager.all_tasks, "tasks")
                    + "; a YAML file's name ends with .yaml",
                )
        tasks: dict[str, Any] = {}
        for name in names:
            try:
                loaded = manager.load([_config(Path(name)) if is_file(name) else name])
            except Exception as error:  # of the data set's reader, or of the file's own functions
                raise PotstillError(
                    shown(
                        f"eval.lm_eval: {name} cannot be read: {type(error).__name__}: "
                        f"{_first_line(error)}"
                    ),
                    "check the task's file and that its data set can be reached",
                ) from error
            if again := tasks.keys() & loaded["tasks"].keys():
                raise PotstillError(
                    f"eval.lm_eval names task {brief(min(again))} twice", "name each task once"
                )
            tasks |= loaded["tasks"]
    return tasks


@lru_cache(2)
def _manager(files_alone: bool) -> Any:
    """The tasks that lm-eval has; to list them takes it seconds, and files do not need it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not files_alone)


def is_file(name: str) -> bool:
    """True if a task is named by its file."""
    return name.endswith((".yaml", ".yml"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _config(path: Path) -> dict[str, Any]:
    """A task of a YAML file; its data files are relative to it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = path.expanduser()
    config: dict[str, Any] = load_yaml(path, resolve_func=True)
    config.setdefault("task", path.stem)
    options = config.get("dataset_kwargs")
    if isinstance(options, dict) and "data_files" in options:
        config["dataset_kwargs"] = {**options, "data_files": _near(options["data_files"], path)}
    return config


def _near(files: Any, path: Path) -> Any:
    if isinstance(files, dict):
        return {split: _near(value, path) for split, value in files.items()}
    if isinstance(files, list):
        return [_near(value, path) for value in files]
    local = path.parent / str(files)
    return str(local) if local.exists() else files


def benchmarks(engine: Engine, settings: Eval) -> dict[str, Entry]:
    """Outcomes of the student on each task of `eval.lm_eval`."""
    if not settings.lm_eval:
        return {}
    from lm_eval import simple_evaluate

    from potstill.study.lm_eval_adapter import EngineModel

    model = EngineModel(engine)
    tasks = load_tasks(settings.lm_eval)
    with _quiet():
        results: Any = simple_evaluate(
            model=model,
            tasks=list(tasks.values()),
            task_manager=_manager(all(map(is_file, settings.lm_eval))),
            limit=settings.lm_eval_limit or None,
            bootstrap_iters=0,
            apply_chat_template=settings.lm_eval_chat_template,
        )
    entries = {name: _entry(name, task, results["samples"][name]) for name, task in tasks.items()}
    for entry in entries.values():
        if model.cut:
            entry["cut"] = model.cut  # prompts of all tasks that lost tokens on the left
    return entries


def _entry(name: str, task: Any, samples: Sequence[dict[str, Any]]) -> Entry:
    """The outcomes of a task's first metric that each document has, by its first filter."""
    first = samples[0]["filter"] if samples else ""
    rows = sorted((s for s in samples if s["filter"] == first), key=lambda s: s["doc_id"])
    higher = task.higher_is_better()
    for metric in rows[0]["metrics"] if rows else ():
        values = [row[metric] for row in rows]
        if all(isinstance(value, bool | int | float | np.number) for value in values):
            outcomes = [float(value) for value in values]
            if all(map(math.isfinite, outcomes)):
                return {
                    "metric": metric if first == "none" else f"{metric},{first}",
                    "higher_is_better": bool(higher.get(metric, True)),
                    "outcomes": outcomes,
                    "mean": float(np.mean(outcomes)),
                    "documents": [row["doc_hash"][:16] for row in rows],
                }
    raise PotstillError(
        f"eval.lm_eval: {name} has no metric with a number for each document",
        "leave it out: students are compared document by document",
    )


def drift(engine: Any, settings: Eval) -> Entry:
    """The student's loss on the text of `eval.drift`, in nats per token, by piece.

    The text is divided into pieces of equal length, at most `PIECE` tokens or the student's window.
    In each, a token that begins a text, where the student's tokenizer has one, and the piece's
    first token are context, and the others are scored.
    """
    if not settings.drift:
        return {}
    text = read_text(settings.drift, TEXT_HINT, LARGEST)
    tokenizer = getattr(engine, "tokenizer", None)
    ids: Ids = tuple(
        tokenizer.encode(text, add_special_tokens=False) if tokenizer else engine.encode(text)
    )
    if len(ids) < 2:
        raise PotstillError(
            f"eval.drift has {len(ids)} tokens, which predict nothing", "use a longer text"
        )
    bos = tokenizer.bos_token_id if tokenizer else None
    start: Ids = () if bos is None else (bos,)
    window = getattr(engine, "windows", {}).get("student")
    longest = min(PIECE, (window.tokens if window else 0) or PIECE) - len(start)
    pieces = [tuple(part.tolist()) for part in np.array_split(ids, math.ceil(len(ids) / longest))]
    readings = [(Prompt.of((*start, piece[0])), piece[1:]) for piece in pieces]
    outcomes = [-float(np.mean(s, dtype=float)) for s in engine.score("student", readings)]
    return {
        "metric": "nats per token",
        "higher_is_better": False,
        "outcomes": outcomes,
        "mean": float(np.mean(outcomes)),
        "tokens": len(ids),
    }


def forgotten(engine: Engine, settings: Eval) -> dict[str, Any]:
    """The record's part on what the student has forgotten: `benchmarks` and `drift`."""
    record: dict[str, Any] = {}
    if tasks := benchmarks(engine, settings):
        record["benchmarks"] = tasks
    if text := drift(engine, settings):
        record["drift"] = text
    return record


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval reports its progress at every step, and git that there is no repository."""
    from lm_eval import evaluator

    logger = logging.getLogger("lm_eval")
    level, commit = logger.level, evaluator.get_git_commit_hash
    logger.setLevel(logging.ERROR)
    evaluator.get_git_commit_hash = lambda: None
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        evaluator.get_git_commit_hash = commit
