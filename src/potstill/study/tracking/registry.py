"""The experiment trackers that a study can name.

Only names and checks, so that a study file is validated without importing a tracker. Keys and
addresses come from each tracker's own environment variables: potstill has no setting for them, so
that they cannot end up in a study's folder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.errors import PotstillError, did_you_mean


@dataclass(frozen=True)
class TrackerInfo:
    """Facts about a tracker that are known without importing it."""

    module: str  # has `open_run`, see `protocol`
    needs: tuple[str, ...]  # packages that must be importable
    summary: str


TRACKERS: dict[str, TrackerInfo] = {
    "wandb": TrackerInfo(
        "potstill.study.tracking.wandb",
        ("wandb",),
        "Weights & Biases, hosted or offline; one group per study",
    ),
    "tensorboard": TrackerInfo(
        "potstill.study.tracking.tensorboard",
        ("tensorboard",),
        "event files; one folder per study",
    ),
    "trackio": TrackerInfo(
        "potstill.study.tracking.trackio",
        ("trackio",),
        "a local database or a Space; one project per study",
    ),
    "mlflow": TrackerInfo(
        "potstill.study.tracking.mlflow",
        ("mlflow", "sqlalchemy", "alembic"),
        "a server or a local database; one experiment per study",
    ),
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and are installed.

    Raises:
        PotstillError: with the choices, or with the command that installs a tracker.
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
