"""Checkpoints: step, replay buffer, token counts and the engine's state, written atomically.

A checkpoint is written under a temporary name and renamed when it is complete. The newest complete
one is loaded. Older ones are deleted, except the last one before any symptom of a collapse. Random
state is not saved: every random number comes from (seed, step).
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

_PREFIX = "step-"
_FLOATS = ("logprobs", "behavior_logprobs")  # float32 survives JSON exactly; old files have one


def save(
    folder: Path,
    step: int,
    engine: Engine,
    buffer: Sequence[Trajectory],
    extra: dict[str, Any],
    good: int | None = None,
) -> None:
    """Write the checkpoint after `step` optimizer steps and delete older ones.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps made so far.
        engine: the engine to save.
        buffer: entries of the replay buffer.
        extra: token counts and seconds.
        good: the newest checkpoint up to this step is kept too, so that a run can roll back to it.
    """
    partial, final = folder / f"partial-{step:08d}", folder / f"{_PREFIX}{step:08d}"
    state = {"step": step, "extra": extra, "buffer": [_to_json(entry) for entry in buffer]}
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        engine.save(partial)
        (partial / "state.json").write_text(json.dumps(state))
        for path in partial.iterdir():
            _fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _fsync(folder)
    keep = {final, *_until(folder, step if good is None else good)[-1:]}
    for path in folder.iterdir():
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def load(
    folder: Path, engine: Engine, problems: Sequence[Problem]
) -> tuple[int, list[Trajectory], dict[str, Any]] | None:
    """Restore the newest complete checkpoint, or return None if there is none.

    Args:
        folder: the run's checkpoints.
        engine: the engine to restore.
        problems: the training problems of the run.

    Returns:
        The optimizer steps made, the entries of the replay buffer, and `extra` as it was saved.
    """
    complete = points(folder)
    if not complete:
        return None
    state = json.loads((complete[-1] / "state.json").read_text())
    engine.load(complete[-1])
    by_id = {problem.id: problem for problem in problems}

    def prompt_of(problem: str) -> Prompt:
        return engine.prompt(by_id[problem])

    buffer = [_from_json(entry, prompt_of) for entry in state["buffer"]]
    return state["step"], buffer, state["extra"]


def roll_back(folder: Path, engine: Engine, step: int) -> int:
    """Load the newest checkpoint up to `step` into the engine and return its step."""
    path = _until(folder, step)[-1]
    engine.load(path)
    return step_of(path)


def points(folder: Path) -> list[Path]:
    """Paths of the complete checkpoints, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def step_of(path: Path) -> int:
    """Optimizer steps made before a checkpoint."""
    return int(path.name.removeprefix(_PREFIX))


def _until(folder: Path, step: int) -> list[Path]:
    """Paths of the complete checkpoints up to a step, oldest first."""
    return [path for path in points(folder) if step_of(path) <= step]


def _to_json(entry: Trajectory) -> dict[str, Any]:
    return {
        **entry.__dict__,
        "prompt": entry.prompt.__dict__,
        **{name: [float(x) for x in entry.__dict__[name]] for name in _FLOATS},
    }


def _from_json(entry: dict[str, Any], prompt_of: Callable[[str], Prompt]) -> Trajectory:
    fields = {
        **entry,
        "completion": tuple(entry["completion"]),
        **{name: np.array(entry[name], np.float32) for name in _FLOATS if name in entry},
    }
    if "problem" in fields:  # the format of versions that saved the student's ids only
        fields["prompt"] = prompt_of(fields.pop("problem"))
    else:
        ids: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in entry["prompt"].items()
        }
        fields["prompt"] = Prompt(**ids)
    return Trajectory(**fields)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
