"""Engines by name, and how one is opened on a pair."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill.algorithms.losses import LOSSES
from potstill.engines import zoo
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError, did_you_mean
from potstill.tasks.context import Context, read_context
from potstill.tasks.context.builder import Briefing


@dataclass(frozen=True)
class EngineInfo:
    """What can be known of an engine without importing it."""

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
        "LoRA on a training service: hosted Tinker, or a server of your own",
        frozenset({"cross_entropy", "reverse_kl_sampled"}),
    ),
    "fake": EngineInfo(
        "potstill.engines.fake",
        "a bigram table in numpy, for tests of everything else",
        frozenset({"cross_entropy", "reverse_kl", "reverse_kl_sampled"}),
    ),
}


def open_engine(
    name: str, pair: Any, *, seed: int = 0, task: Any = None, **settings: Any
) -> Engine:
    """Open an engine by name on a pair.

    Args:
        name: one of `ENGINES`.
        pair: an embedded pair's name, or what has `.student` and `.teacher`: hub names or folders.
        seed: for weights that are made at random (LoRA adapters).
        task: whose problems a pair's context is about; needed where the pair has one.
        settings: the engine's own settings, see its class.
    """
    if name not in ENGINES:
        raise PotstillError(f'unknown engine "{name}"', did_you_mean(name, ENGINES, "engines"))
    more: dict[str, Any] = {}
    if isinstance(pair, str):
        if pair not in zoo.PAIRS:
            raise PotstillError(f'unknown pair "{pair}"', did_you_mean(pair, zoo.PAIRS, "pairs"))
        models = (zoo.folder(pair, "student"), zoo.folder(pair, "teacher"))
        context, route = zoo.CONTEXTS.get(pair), ""
    else:
        models = (pair.student, pair.teacher)
        context, route = getattr(pair, "context", None), getattr(pair, "route", "")
        more = {"teachers": pair.teachers} if getattr(pair, "teachers", None) else {}
    if (context or route) and task is None:
        raise PotstillError(
            "what the teacher of this pair reads depends on a task's problems",
            'write open_engine(..., task=load_task("arithmetic"))',
        )
    build: Callable[..., Engine] = importlib.import_module(ENGINES[name].module).ENGINE
    engine = build(*models, seed=seed, **more, **settings)
    if context or route:
        known = context if isinstance(context, Context) else None
        if context and known is None:
            known = read_context(context)
        engine.inform(Briefing(known, task) if known else None, route)
    return engine
