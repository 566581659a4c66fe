"""The worker's side of the Ray executor: one attempt at one run, on a node.

The run executes in the study's folder if all nodes share it, else in scratch space of the node
under a lease (see `lease`). Expected endings are returned as an `AttemptOutcome`, because an
exception of ours would have to be importable by whatever reads it. Ray reports crashes.
"""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from potstill.diagnostics.preflight import Check, Progress
from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import run_if_free
from potstill.study.executors.ray.lease import Lease, LeaseLost
from potstill.study.kept import keeper_of
from potstill.study.loading import read_study
from potstill.study.remote import Remote
from potstill.study.remote.mirror import folder_name
from potstill.study.run import preflight_pair, run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder
from potstill.training.spending import BudgetReached


@dataclass(frozen=True)
class Job:
    """One attempt at a run, as it is sent to a node."""

    study: dict[str, Any]
    key: RunId
    folder: str  # a folder that all nodes share, or a URL
    url: bool = False
    driver: str = ""  # name of the scheduler that sends the job, see `Lease`
    expired: str = ""  # name of an attempt whose lease has expired, see `Lease`
    version: str = field(default_factory=lambda: version("potstill"))  # not from a bare checkout


@dataclass(frozen=True)
class AttemptOutcome:
    """The end of an attempt. A run that has failed is done as well."""

    kind: Literal["done", "held", "budget", "storage", "error"]
    host: str
    text: str = ""
    hint: str = ""


def execute_job(job: Job) -> AttemptOutcome:
    """Execute a run on this node until it ends or is stopped."""
    host = platform.node()
    try:
        check_version(job.version)
        study = read_study(job.study)
        done = _execute_leased(study, job) if job.url else _execute_shared(study, job)
        return AttemptOutcome("done" if done else "held", host)
    except LeaseLost:
        return AttemptOutcome("held", host)
    except BudgetReached:
        return AttemptOutcome("budget", host)
    except StorageError as error:
        return AttemptOutcome("storage", host, f"{host}: {error}", error.hint)
    except PotstillError as error:
        return AttemptOutcome("error", host, f"{host}: {error}", error.hint)


def preflight(
    table: dict[str, Any], pair: str, expected: str, repeat: bool = False
) -> tuple[list[Check], list[Progress]]:
    """Run the pre-flight checks of a pair on this node; also returns their progress."""
    check_version(expected)
    study, progress = read_study(table), list[Progress]()
    keeper = keeper_of(study, pair, repeat=repeat)
    return preflight_pair(study, pair, watch=progress.append, keeper=keeper), progress


def check_version(expected: str) -> None:
    """Raise if this node has another version of potstill than the scheduler."""
    installed = version("potstill")
    if installed != expected:
        raise PotstillError(
            f"this node has potstill {installed}, the study was started with {expected}",
            "install the same version on every node",
        )


def _execute_shared(study: Study, job: Job) -> bool:
    """In a folder that all nodes share; False if another process holds the run."""
    folder = StudyFolder(Path(job.folder))
    if folder.settings is None:
        raise PotstillError(
            f'this node does not see the study in "{job.folder}"',
            "give an --out that every node has under the same path, or a URL such as s3://...",
        )
    return run_if_free(study, folder, job.key, None, folder.ledger(study))


def _execute_leased(study: Study, job: Job) -> bool:
    """In scratch space, under a lease; False if another process holds the run."""
    folder = StudyFolder(scratch(job.folder))
    with folder.cell(job.key).lock() as locked:  # against other processes of this node
        if not locked:
            return False
        with Lease(Remote(job.folder), job.key, folder, job.driver, job.expired) as lease:
            if lease.acquired:
                ledger = folder.ledger(study, lease.budget_limit)
                if limit := ledger.over():
                    raise BudgetReached(limit)
                run_cell(study, folder, job.key, None, ledger)
            return lease.acquired


def scratch(url: str) -> Path:
    """This node's folder for runs of a study behind a URL; other users have no access."""
    path = Path(tempfile.gettempdir()) / f"potstill-{os.getuid()}-{folder_name(url)}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise StorageError(f'"{path}" belongs to another user', "set TMPDIR on the nodes")
    return path
