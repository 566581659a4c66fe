"""Resume points: step, replay buffer, token counts and the engine's state, whole or not at all.

A checkpoint is written into a folder with another name and renamed when complete; the newest
complete one wins; older ones go, but for the last that is surely good. Random numbers need no
saving: they come from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.engines.protocol import Engine
from potstill.errors import writing
from potstill.types import Problem, Prompt, Trajectory

_NAME = "step-"


def save(
    folder: Path,
    step: int,
    engine: Engine,
    buffer: Sequence[Trajectory],
    extra: dict[str, Any],
    good: int | None = None,
) -> None:
    """Write the resume point after `step` optimizer steps and drop older ones.

    Args:
        folder: where resume points are.
        step: optimizer steps made.
        engine: what is saved.
        buffer: the replay buffer.
        extra: token counts.
        good: the newest point up to this step is kept as well, to go back to.
    """
    partial, final = folder / f"partial-{step:08d}", folder / f"{_NAME}{step:08d}"
    state = {"step": step, "extra": extra, "buffer": [_plain(entry) for entry in buffer]}
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        engine.save(partial)
        (partial / "state.json").write_text(json.dumps(state))
        for path in partial.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(folder)
    kept = {final, *_until(folder, step if good is None else good)[-1:]}
    for old in folder.iterdir():
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)


def load(
    folder: Path, engine: Engine, problems: Sequence[Problem]
) -> tuple[int, list[Trajectory], dict[str, Any]] | None:
    """Restore the newest complete checkpoint into the engine, or return None if there is none.

    Args:
        folder: where checkpoints are.
        engine: what is restored.
        problems: those that the run trains on.
    """
    found = points(folder)
    if not found:
        return None
    state = json.loads((found[-1] / "state.json").read_text())
    engine.load(found[-1])
    by_id = {problem.id: problem for problem in problems}

    def prompt_of(name: str) -> Prompt:
        return engine.prompt(by_id[name])

    buffer = [_trajectory(entry, prompt_of) for entry in state["buffer"]]
    return state["step"], buffer, state["extra"]


def back(folder: Path, engine: Engine, step: int) -> int:
    """Load the newest resume point up to `step` into the engine and return its step."""
    point = _until(folder, step)[-1]
    engine.load(point)
    return step_of(point)


def points(folder: Path) -> list[Path]:
    """Complete resume points, oldest first."""
    return sorted(folder.glob(f"{_NAME}*"))


def step_of(point: Path) -> int:
    """Optimizer steps made before a resume point."""
    return int(point.name.removeprefix(_NAME))


def _until(folder: Path, step: int) -> list[Path]:
    """Resume points up to a step, oldest first."""
    return [point for point in points(folder) if step_of(point) <= step]


def _plain(entry: Trajectory) -> dict[str, Any]:
    return {
        **entry.__dict__,
        "prompt": entry.prompt.__dict__,
        "logprobs": [float(x) for x in entry.logprobs],  # float32 survives JSON exactly
    }


def _trajectory(entry: dict[str, Any], prompt_of: Callable[[str], Prompt]) -> Trajectory:
    fields = {
        **entry,
        "completion": tuple(entry["completion"]),
        "logprobs": np.array(entry["logprobs"], np.float32),
    }
    if "problem" in fields:  # written by a version that kept the student's ids alone
        fields["prompt"] = prompt_of(fields.pop("problem"))
    else:
        ids: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in entry["prompt"].items()
        }
        fields["prompt"] = Prompt(**ids)
    return Trajectory(**fields)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
