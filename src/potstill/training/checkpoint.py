"""Checkpoints: step, replay buffer, token counts and the engine's state, written atomically.

A checkpoint is written under a temporary name and renamed when it is complete. It has a digest of
each of its files. The newest one whose files are as they were written is loaded, so that a damaged
disk costs steps and changes no number. The one before is kept for that, and where a run needs them
the last one before any symptom of a collapse and the best one. Random state is not saved: every
random number comes from (seed, step).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.digests import file_digest, seal, unsealed
from potstill.engines.protocol import Engine, bare
from potstill.errors import PotstillError, StorageError, out_of_memory, writing
from potstill.problems import Problem
from potstill.tasks.selecting import finder
from potstill.types import Prompt, Trajectory

_PREFIX = "step-"
_STATE = "state.json"
# Errors of a damaged file. Others, such as too many open files, say nothing about the checkpoint.
_BROKEN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EIO}
_FLOATS = ("logprobs", "behavior_logprobs")  # float32 survives JSON exactly; old files have one

log = logging.getLogger(__name__)


def save(
    folder: Path,
    step: int,
    engine: Engine,
    buffer: Sequence[Trajectory],
    extra: dict[str, Any],
    good: int | None = None,
    keep: Callable[[int], int | None] = lambda step: None,
) -> None:
    """Write the checkpoint after `step` optimizer steps and delete all but the one before.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps made so far.
        engine: the engine to save.
        buffer: entries of the replay buffer.
        extra: token counts and seconds.
        good: the newest checkpoint up to this step is kept too, so that a run can roll back to it.
        keep: the step of a further checkpoint that one of a given step needs, such as the best.
    """
    partial, final = folder / f"partial-{step:08d}", folder / f"{_PREFIX}{step:08d}"
    state = {"step": step, "extra": extra, "buffer": [_to_json(entry) for entry in buffer]}
    before = [path for path in points(folder) if path != final][-1:]
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        engine.save(partial)
        digests = {name: file_digest(partial / name) for name in _files(partial)}
        (partial / _STATE).write_text(
            seal(json.dumps({**state, "files": digests})), encoding="utf-8"
        )
        for path in partial.rglob("*"):
            _fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _fsync(folder)
    kept = {final, *before, *_until(folder, step if good is None else good)[-1:]}
    needed = {keep(step_of(path)) for path in kept}
    kept |= {path for path in points(folder) if step_of(path) in needed}
    for path in folder.iterdir():
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def load(
    folder: Path, engine: Engine, problems: Sequence[Problem], until: int | None = None
) -> tuple[int, list[Trajectory], dict[str, Any]] | None:
    """Restore the newest sound checkpoint, or return None if there is none.

    Damaged ones are removed, with a warning and a note of the engine.

    Args:
        folder: the run's checkpoints.
        engine: the engine to restore.
        problems: the training problems of the run.
        until: leave out checkpoints after this step; None: none.

    Returns:
        The optimizer steps made, the entries of the replay buffer, and `extra` as it was saved.
    """
    problem_of = finder(problems)

    def prompt_of(problem: str) -> Prompt:
        return engine.prompt(problem_of(problem))

    paths = points(folder) if until is None else _until(folder, until)
    state = _restore(paths, engine)
    if state is None:
        return None
    buffer = [_from_json(entry, prompt_of) for entry in state["buffer"]]
    return state["step"], buffer, state["extra"]


def roll_back(folder: Path, engine: Engine, step: int) -> int:
    """Load the newest sound checkpoint up to `step` into the engine and return its step.

    Raises:
        PotstillError: all of them are damaged.
    """
    state = _restore(_until(folder, step), engine)
    if state is None:
        raise PotstillError(
            f'"{folder}" has no sound checkpoint up to step {step} to go back to',
            'run it again, or with on_collapse = "stop"',
        )
    return int(state["step"])


def prune(folder: Path, keep: Collection[int | None]) -> None:
    """Remove all checkpoints but those of some steps."""
    for path in points(folder):
        if step_of(path) not in keep:
            shutil.rmtree(path, ignore_errors=True)


def at(folder: Path, engine: Engine, step: int) -> None:
    """Load the checkpoint of one step into the engine.

    Raises:
        PotstillError: it is not there, or damaged.
    """
    if _restore([path for path in points(folder) if step_of(path) == step], engine) is None:
        raise PotstillError(
            f'"{folder}" has no sound checkpoint of step {step}, the best one',
            "run it again: remove the folder of the run",
        )


def _restore(paths: Sequence[Path], engine: Engine) -> dict[str, Any] | None:
    """Load the newest sound checkpoint into the engine and remove those that are damaged."""
    for path in reversed(paths):
        try:
            state = _checked(path)
            _load(engine, path, state)
        except _Damaged as error:
            note = f"checkpoint {path.name} is damaged ({error}); it is left out"
            log.warning("%s: %s", path.parent.parent, note)
            inner = bare(engine)
            inner.notes = (*inner.notes, note)  # of the engine whose notes the record has
            shutil.rmtree(path, ignore_errors=True)
        else:
            return state
    return None


def _load(engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
    """Load a checkpoint; without digests, any error means that it is damaged."""
    try:
        engine.load(path)
    except Exception as error:
        if "files" in state or out_of_memory(error):
            raise
        raise _Damaged(error) from error


class _Damaged(ValueError):
    """A checkpoint is not what was written."""


def _checked(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written.

    One of a version without digests has to have what a state needs.

    Raises:
        _Damaged: a file is not what was written.
        StorageError: the checkpoint cannot be read now; it is left as it is.
    """
    try:
        state = unsealed((path / _STATE).read_text(encoding="utf-8"))
        needed = {"step", "extra", "buffer"}
        if not needed <= state.keys() or state["step"] != step_of(path):
            raise ValueError(f"{_STATE} is not that of step {step_of(path)}")
        digests = state.get("files", {})
        names = set(_files(path)) - {_STATE}
        if "files" in state and names != digests.keys():
            raise ValueError(f"it has the files {sorted(names)}, not {sorted(digests)}")
        for name, digest in digests.items():
            if file_digest(path / name) != digest:
                raise ValueError(f"{name} has changed since it was written")
    except OSError as error:
        if error.errno in _BROKEN:
            raise _Damaged(error) from None
        raise StorageError(
            f'cannot read "{path}": {error.strerror}', "run the same command again"
        ) from error
    except ValueError as error:
        raise _Damaged(error) from None
    return state


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def points(folder: Path) -> list[Path]:
    """Paths of the complete checkpoints, oldest first."""
    return sorted(folder.glob(_PREFIX + "[0-9]" * 8))


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
