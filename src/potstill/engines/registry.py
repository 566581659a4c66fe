"""The engines by name, and a function that opens one on a pair."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.algorithms.losses import LOSSES
from potstill.engines import zoo
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError, did_you_mean
from potstill.tasks import Task
from potstill.tasks.context import Context, read_context
from potstill.tasks.context.builder import PromptBuilder


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine that are known without importing it."""

    module: str
    summary: str
    losses: frozenset[str]


ENGINES: dict[str, EngineInfo] = {
    "torch": EngineInfo(
        "potstill.engines.cross_tokenizer.engine",
        "any Hugging Face pair on this machine: CPU or GPU",
        frozenset(LOSSES),
    ),
    "tinker": EngineInfo(
        "potstill.engines.tinker.engine",
        "LoRA on a training service: hosted Tinker or your own server",
        frozenset({"cross_entropy", "reverse_kl_sampled"}),
    ),
    "fake": EngineInfo(
        "potstill.engines.fake",
        "a bigram table in numpy, for tests",
        frozenset({"cross_entropy", "reverse_kl", "reverse_kl_sampled"}),
    ),
}


def open_engine(
    name: str, pair: Any, *, seed: int = 0, task: Task | None = None, **settings: Any
) -> Engine:
    """Open an engine by name on a pair.

    Args:
        name: one of `ENGINES`.
        pair: name of an embedded pair, or an object with `.student` and `.teacher` (hub names or
            folders; a teacher of "" is none) and optionally `.context`, `.route` and `.teachers`.
        seed: seed of randomly initialized weights (LoRA adapters).
        task: the task of the problems; required if the pair has a context or a route.
        settings: settings of the engine, see its class.
    """
    if name not in ENGINES:
        raise PotstillError(f'unknown engine "{name}"', did_you_mean(name, ENGINES, "engines"))
    teachers: Mapping[str, str] | None = None
    if isinstance(pair, str):
        if pair not in zoo.PAIRS:
            raise PotstillError(f'unknown pair "{pair}"', did_you_mean(pair, zoo.PAIRS, "pairs"))
        models = (zoo.folder(pair, "student"), zoo.folder(pair, "teacher"))
        context, route = zoo.CONTEXTS.get(pair), ""
    else:
        models = (pair.student, pair.teacher)
        context, route = getattr(pair, "context", None), getattr(pair, "route", "")
        teachers = getattr(pair, "teachers", None)
    if teachers:
        settings["teachers"] = teachers
    if (context or route) and task is None:
        raise PotstillError(
            "the teacher's prompt of this pair depends on a task's problems, got no task",
            'write open_engine(..., task=load_task("arithmetic"))',
        )
    build: Callable[..., Engine] = importlib.import_module(ENGINES[name].module).ENGINE
    engine = build(*models, seed=seed, **settings)
    if task is not None and (context or route):
        engine.inform(_builder(context, task), route)
    if task is not None:
        engine.expect(task.train)
    return engine


def _builder(context: Context | Mapping[str, Any] | None, task: Task) -> PromptBuilder | None:
    """Return the builder of the teacher's prompts; None if the pair has no context."""
    if not context:
        return None
    return PromptBuilder(context if isinstance(context, Context) else read_context(context), task)
