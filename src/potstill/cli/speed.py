"""Timing a pair with a study's settings, as a share of what the machine allows.

Samples, scores and trains on the task's own prompts at learning rate 0, and compares the seconds
with the least that memory bandwidth and matrix products allow (`engines/torch/roofline.py`). Leaves
out engines that compute elsewhere: their machines cannot be measured from here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import constant
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Train
from potstill.study.engine import open_study_engine
from potstill.study.schema import Study
from potstill.study.settling import task_of
from potstill.study.storage import RunId
from potstill.training.objective import build, losses_for
from potstill.training.rollout import collect, draw, limits_of


@dataclass(frozen=True)
class Speed:
    """One activity of a training step."""

    activity: str
    seconds: float  # median
    low: float
    high: float
    tokens: int  # sampled, scored or trained
    rate: float  # tokens a second
    bound: float | None  # the least seconds; None where it is unknown
    share: float | None  # bound / seconds
    of_step: float | None  # share of a step's seconds; None for what is not part of a step


@dataclass(frozen=True)
class Bench:
    """A pair's speeds."""

    pair: str
    method: str
    batch: int
    prompt: float  # mean tokens
    completion: float
    bandwidth: float  # bytes a second
    matmul: float  # operations a second
    peak: int  # bytes
    speeds: tuple[Speed, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(study: Study, pair: str, repeats: int) -> Bench:
    """Time a training step's parts on a pair.

    Args:
        study: its first method with student completions is the one that is timed.
        pair: one of the study's.
        repeats: timed runs of each part, after one run that is not counted.
    """
    if study.engine.name != "torch":
        raise PotstillError(
            f'bench measures this machine, and engine "{study.engine.name}" computes elsewhere',
            'use engine = "torch"',
        )
    if one_of_several():
        raise PotstillError(
            "bench measures what one process has for itself", "run it without torchrun"
        )
    recipes = list(study.recipes.values())
    chosen = next((r for r in recipes if r.uses_student), recipes[0])
    plain: dict[str, Any] = {"replay": None, "reject_wrong": False, "prefix_over": "time"}
    recipe = replace(chosen, on_policy=constant(1.0), prefix=constant(0), **plain)
    task, cell = task_of(study), RunId(pair, recipe.name, study.seeds[0])
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as scratch:
        engine: Any = open_study_engine(study, cell, task, Path(scratch))
    try:
        problems = draw(task.train, study.train.batch_size, 0, 0)
        times, rows = _measure(engine, recipe, problems, study.train, repeats)
        peak = engine.memory()[0]
        machines, losses = engine.machines(), [loss for loss, _ in losses_for(recipe, "student")]
        targets = {loss.to for loss in losses if loss.needs == "full_logprobs"}
        bounds = engine.bounds(machines, rows, targets)
    finally:
        engine.close()
    aside = {"scoring"} if all(loss.needs != "token_scores" for loss in losses) else set()
    prompt, completion = (sum(row[i] for row in rows) / len(rows) for i in (0, 1))
    return Bench(
        pair=pair,
        method=recipe.name,
        batch=len(rows),
        prompt=prompt,
        completion=completion,
        bandwidth=machines["student"].bandwidth,
        matmul=machines["student"].matmul,
        peak=peak,
        speeds=tuple(_speeds(times, bounds, sum(c for _, c in rows), aside)),
    )


def _measure(
    engine: Any, recipe: Recipe, problems: Sequence[Problem], train: Train, repeats: int
) -> tuple[dict[str, list[float]], list[tuple[int, int]]]:
    """Seconds of each part by repetition, and each row's tokens of prompt and completion."""
    limits = limits_of(train)
    times: dict[str, list[float]] = {}
    rows: list[tuple[int, int]] = []
    screen = Console(stderr=True)
    for turn in track(range(repeats + 1), "timing", console=screen, transient=True):
        sampling, batch = _timed(partial(collect, recipe, engine, problems, 0.0, 0, 0, limits))
        texts = [(t.prompt, t.completion) for t in batch]
        scoring, _ = _timed(partial(engine.score, "teacher", texts))
        training, stats = _timed(partial(engine.step, build(recipe, batch, engine), 0.0))
        rows = [(len(p.student), len(c)) for p, c in texts]
        parts = {"student sampling": sampling, "scoring": scoring}
        parts["forward and backward"] = training - stats.optimizer
        parts["optimizer"] = stats.optimizer
        for name, seconds in parts.items() if turn else ():
            times.setdefault(name, []).append(seconds)
    return times, rows


def _speeds(
    times: dict[str, list[float]], bounds: dict[str, float], tokens: int, aside: set[str]
) -> Iterator[Speed]:
    """Medians with their bounds.

    Args:
        times: seconds by activity.
        bounds: least seconds by activity.
        tokens: of the completions.
        aside: activities that are not part of a step.
    """
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    step = sum(seconds for name, seconds in middle.items() if name not in aside)
    for name, seconds in middle.items():
        yield Speed(
            activity=name,
            seconds=seconds,
            low=min(times[name]),
            high=max(times[name]),
            tokens=tokens,
            rate=tokens / seconds,
            bound=bounds.get(name),
            share=bounds[name] / seconds if name in bounds else None,
            of_step=None if name in aside else seconds / step,
        )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = work()
    return time.perf_counter() - start, out
