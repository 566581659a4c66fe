"""What happens on a node: one attempt at one cell, told by an outcome.

The cell works where it belongs if the study's folder is shared by all nodes, else in scratch of
this node (see `loan`). Expected endings are values, as an exception of ours would have to be
known wherever it is read; what dies without a word shows in Ray.
"""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from potstill.diagnostics.preflight import Check
from potstill.errors import PotstillError, StorageError
from potstill.study.executors.base import take
from potstill.study.executors.ray.lease import Loan, Lost
from potstill.study.loading import read_study
from potstill.study.remote import Remote, named
from potstill.study.run import preflight_pair, run_cell
from potstill.study.schema import Study
from potstill.study.storage import Cell, StudyFolder
from potstill.training.spending import BudgetReached


@dataclass(frozen=True)
class Job:
    """One attempt at a cell, as it is sent to a node."""

    study: dict[str, Any]
    cell: Cell
    folder: str  # a folder that all nodes share, or a URL
    url: bool = False
    driver: str = ""  # who sends it, and a name of an attempt that is known to be gone: see `Loan`
    abandoned: str = ""
    version: str = version("potstill")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; a cell that failed is done."""

    kind: Literal["done", "held", "spent", "storage", "wrong"]
    host: str
    text: str = ""
    hint: str = ""


def attempt(job: Job) -> Outcome:
    """Run a cell here, to its end or to what stops it."""
    host = platform.node()
    try:
        check_version(job.version)
        study = read_study(job.study)
        done = _away(study, job) if job.url else _in_place(study, job)
        return Outcome("done" if done else "held", host)
    except Lost:
        return Outcome("held", host)
    except BudgetReached:
        return Outcome("spent", host)
    except StorageError as error:
        return Outcome("storage", host, f"{host}: {error}", error.hint)
    except PotstillError as error:
        return Outcome("wrong", host, f"{host}: {error}", error.hint)


def preflight(table: dict[str, Any], pair: str, expected: str) -> list[Check]:
    """Pre-flight of a pair on this node."""
    check_version(expected)
    return preflight_pair(read_study(table), pair)


def check_version(expected: str) -> None:
    """Refuse to run a study that another version of potstill has read."""
    mine = version("potstill")
    if mine != expected:
        raise PotstillError(
            f"this node has potstill {mine}, the study was started with {expected}",
            "install the same version on every node",
        )


def _in_place(study: Study, job: Job) -> bool:
    folder = StudyFolder(Path(job.folder))
    if folder.settings is None:
        raise PotstillError(
            f'this node does not see the study in "{job.folder}"',
            "give an --out that every node has under the same path, or a URL such as s3://...",
        )
    return take(study, folder, job.cell, None, folder.ledger(study))


def _away(study: Study, job: Job) -> bool:
    folder = StudyFolder(scratch(job.folder))
    with folder.cell(job.cell).claim() as alone:  # of this node's processes
        if not alone:
            return False
        with Loan(Remote(job.folder), job.cell, folder, job.driver, job.abandoned) as loan:
            if loan.mine:
                ledger = folder.ledger(study, loan.told)
                if over := ledger.over():
                    raise BudgetReached(over)
                run_cell(study, folder, job.cell, None, ledger)
            return loan.mine


def scratch(url: str) -> Path:
    """This node's folder for cells of a study behind a URL; nobody else may write to it."""
    path = Path(tempfile.gettempdir()) / f"potstill-{os.getuid()}-{named(url)}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise StorageError(f'"{path}" belongs to another user', "set TMPDIR on the nodes")
    return path
