"""Going on from a finished run with more steps: `potstill run --from`.

The longer run takes over the last checkpoint, which is of the step before the last one: the last
step is taken again, as the middle step that it is now. So the metrics equal those of one run of the
new length. That holds if nothing in the run is a function of its progress, which would have another
value at each step of a longer run; other runs are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import schedule
from potstill.errors import PotstillError, writing
from potstill.settings import Train
from potstill.study.inputs import inputs_of
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.settling import settled, task_of
from potstill.study.storage import REFERENCES, RunFolder, RunId, StudyFolder
from potstill.study.storage.study_folder import changes_between
from potstill.training import checkpoint

FORM = "give the folder of a run: runs/NAME/cells/PAIR/METHOD/SEED"
ADDRESSES = ("engine.base_url", "engine.teacher_url")  # a study's folder has no secrets
EPOCHS = ("train.epochs", "train.num_train_epochs")


@dataclass(frozen=True)
class Finished:
    """A run that has ended and has a checkpoint to go on from."""

    folder: StudyFolder
    study: Study
    key: RunId
    record: Mapping[str, Any]

    @property
    def run(self) -> RunFolder:
        """Its folder."""
        return self.folder.cell(self.key)


def finished(path: Path) -> Finished:
    """Read a finished run.

    Raises:
        PotstillError: the folder is none of a run that can go on.
    """
    path = path.expanduser().resolve()
    key = _key_of(path)
    folder = StudyFolder(path.parents[3])
    study, run = folder.study, folder.cell(key)
    if key.pair not in study.models or key.method not in study.recipes:
        raise PotstillError(f'"{path}" is not a run of its study, "{folder.path}"', FORM)
    if running := run.running:
        raise PotstillError(
            f'"{path}" is running: process {running["pid"]} on {running["host"]}',
            "wait until it has ended",
        )
    record = folder.results([key], study).get(key)
    if record is None or record["status"] != "done" or record.get("ended"):
        state = "has not ended" if record is None else "failed"
        state = "ended after a collapse" if record and record.get("ended") else state
        raise PotstillError(
            f'"{path}" {state}: only a run that is done goes on with more steps',
            "run its study again to finish it"
            if record is None
            else "see its result.json, and run it anew",
        )
    inputs = inputs_of(study, task_of(study), [key.pair]).digest(key.pair)
    if record.get("inputs", inputs) != inputs:
        raise PotstillError(
            f'"{path}" was trained on other problems or models than its study.toml names now',
            "restore the files, or start a new run from its student",
        )
    points = map(checkpoint.step_of, checkpoint.points(path / "checkpoints"))
    if "state" not in record or record["state"] not in points:
        student = path / "student"
        raise PotstillError(
            f'"{path}" has no checkpoint to go on from: it was run with train.keep_state = false',
            "run it again with train.keep_state=true, or start a new run from its weights: "
            f'pair.NAME.student = "{student}"',
        )
    return Finished(folder, study, key, record)


def _key_of(path: Path) -> RunId:
    """The run of a folder, from its name alone."""
    parts = path.parts[-4:]
    whole = len(path.parents) > 3 and len(parts) == 4 and parts[0] == "cells"
    if not whole or not (path.parents[3] / "study.toml").is_file() or not path.is_dir():
        raise PotstillError(f'"{path}" is not the folder of a run', FORM)
    _, pair, method, seed = parts
    if method in REFERENCES or not seed.isdecimal():
        raise PotstillError(f'"{path}" is a baseline, which is not trained', FORM)
    return RunId(pair, method, int(seed))


def extended(source: Finished, overrides: Sequence[str]) -> Study:
    """The study of one run that goes on: the finished run's, with more steps.

    Args:
        source: the finished run.
        overrides: of settings, as `key=value`.

    Raises:
        PotstillError: other settings change, the run gets no longer, or it depends on its length.
    """
    key = source.key
    one = {"methods": [key.method], "pairs": [key.pair], "seeds": [key.seed]}
    table = {**source.study.to_toml(), **one}
    secrets = [word for word in overrides if word.strip().startswith(ADDRESSES)]
    before = read_study(table, secrets)
    if any(word.partition("=")[0].strip() in EPOCHS for word in overrides):
        table["train"] = {k: v for k, v in table["train"].items() if k != "steps"}
    study = settled(read_study(table, overrides))
    changes = changes_between(before.to_toml(), study.to_toml())
    if others := [change for change in changes if not change.startswith("train.steps:")]:
        raise PotstillError(
            f"a run goes on with more steps and no other change, got {'; '.join(others)}",
            "leave them out, or start a new run from its student",
        )
    recipe = study.recipes[key.method]
    old, new = before.total_steps(recipe), study.total_steps(recipe)
    if new <= old:
        raise PotstillError(
            f"the run has made {old} steps, and goes on to {new}",
            f"write more, such as train.steps={2 * study.train.steps}",
        )
    if moving := [*_functions_of_progress(recipe, study.train)]:
        raise PotstillError(
            f"{', '.join(moving)} of {key} is a function of progress: in a longer run the first "
            f"{old} steps would have been others",
            f"run it from the start with train.steps={study.train.steps}, or start a new run from "
            "its student",
        )
    return study


def _functions_of_progress(recipe: Recipe, train: Train) -> Iterator[str]:
    if recipe.on_policy.kind != "constant":
        yield f"on_policy ({recipe.on_policy})"
    if recipe.prefix.kind != "constant" and recipe.prefix_over != "success":
        yield f"prefix ({recipe.prefix})"
    if train.schedule != "constant" and not (
        isinstance(train.schedule, dict) and len(set(schedule(train.schedule).range)) == 1
    ):
        yield f"train.schedule ({train.schedule})"
    if 0 < train.warmup < 1:
        yield f"train.warmup ({train.warmup:g} of the run)"


def begin(source: Finished, run: RunFolder) -> None:
    """Copy a finished run's checkpoints and records into a new run, unless that has begun."""
    with run.lock() as locked:  # else another process has begun it
        if locked and not run.ended and not (run.path / "metrics.jsonl").exists():
            _copy(source.run.path, run.path)


def _copy(there: Path, here: Path) -> None:
    """Copy the metrics last: without them nothing was copied."""
    with writing(here):
        shutil.rmtree(here / "checkpoints", ignore_errors=True)
        shutil.copytree(there / "checkpoints", here / "checkpoints")
        for name in ("examples.jsonl", "metrics.jsonl"):
            if (there / name).is_file():  # completions may have been removed to save space
                draft = here / f".{name}.0"
                shutil.copyfile(there / name, draft)
                draft.replace(here / name)
