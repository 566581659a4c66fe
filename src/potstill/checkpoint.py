"""Resume points: step, replay buffer, token counts and the engine's state, whole or not at all.

A checkpoint is written into a folder with another name and renamed when complete; the newest
complete one wins, older ones go. Random numbers need no saving: they come from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.engines import Engine
from potstill.errors import writing
from potstill.types import Trajectory

_NAME = "step-"


def save(
    folder: Path, step: int, engine: Engine, buffer: Sequence[Trajectory], extra: dict[str, Any]
) -> None:
    """Write the resume point after `step` optimizer steps and drop older ones."""
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
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, engine: Engine) -> tuple[int, list[Trajectory], dict[str, Any]] | None:
    """Restore the newest complete resume point into the engine, or return None if there is none."""
    points = sorted(folder.glob(f"{_NAME}*"))
    if not points:
        return None
    state = json.loads((points[-1] / "state.json").read_text())
    engine.load(points[-1])
    return state["step"], [_trajectory(entry) for entry in state["buffer"]], state["extra"]


def _plain(entry: Trajectory) -> dict[str, Any]:
    return {
        **entry.__dict__,
        "logprobs": [float(x) for x in entry.logprobs],  # float32 survives JSON exactly
    }


def _trajectory(entry: dict[str, Any]) -> Trajectory:
    entry = {
        **entry,
        "prompt": tuple(entry["prompt"]),
        "completion": tuple(entry["completion"]),
        "logprobs": np.array(entry["logprobs"], np.float32),
    }
    return Trajectory(**entry)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
