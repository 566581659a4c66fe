"""The experiment trackers that a study can name, and whether they are installed here.

Names and refusals alone, so that a study file is checked without importing any of them; the
sending is in `track`. Keys and addresses come from each tracker's own environment variables:
potstill has no setting for them, so that none can end up in a study's folder.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.errors import PotstillError, did_you_mean

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)


@dataclass(frozen=True)
class TrackerInfo:
    """What can be known of a tracker without importing it."""

    module: str  # holds `open_run`
    needs: tuple[str, ...]  # packages that must be importable
    summary: str


TRACKERS: dict[str, TrackerInfo] = {
    "wandb": TrackerInfo(
        "potstill.study.tracking.wandb",
        ("wandb",),
        "Weights & Biases, hosted or offline; a group a study",
    ),
    "tensorboard": TrackerInfo(
        "potstill.study.tracking.tensorboard", ("tensorboard",), "event files; a folder a study"
    ),
    "trackio": TrackerInfo(
        "potstill.study.tracking.trackio",
        ("trackio",),
        "a local database or a Space; a project a study",
    ),
    "mlflow": TrackerInfo(
        "potstill.study.tracking.mlflow",
        ("mlflow", "sqlalchemy", "alembic"),
        "a server or a local database; an experiment a study",
    ),
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown, named twice or not installed.

    Raises:
        PotstillError: with the choices, or with what to install.
    """
    for name in names:
        if name not in TRACKERS:
            raise PotstillError(
                f'unknown tracker "{name}"', did_you_mean(name, TRACKERS, "trackers")
            )
        missing = [need for need in TRACKERS[name].needs if not importlib.util.find_spec(need)]
        if missing:
            raise PotstillError(
                f'tracker "{name}" needs {", ".join(missing)}, which is not installed',
                f"pip install 'potstill[{name}]', or leave it out of track",
            )


def without_secrets(text: str) -> str:
    """A message of a tracker without the keys of this process and the passwords of addresses.

    >>> without_secrets("no answer from https://me:hunter2@host/api")
    'no answer from https://...@host/api'
    """
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 4:
            text = text.replace(value, "...")
    return re.sub(r"(?<=://)[^/@\s]+(?=@)", "...", text)
