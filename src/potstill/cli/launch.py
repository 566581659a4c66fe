"""From a study to a filled folder: what is refused first, pre-flight, then workers under the live
view.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from potstill.cli.live import View
from potstill.diagnostics.preflight import Check
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError
from potstill.study.executors.base import Place, Results
from potstill.study.executors.local import Processes
from potstill.study.executors.ray import check_place, opened
from potstill.study.remote import Mirror
from potstill.study.run import prepare
from potstill.study.schema import Study
from potstill.study.storage import StudyFolder, cells_of
from potstill.study.tracking.exporter import following
from potstill.training.spending import Spent, excess, total

LOCAL = "local"  # the place that is this machine, without Ray


def checked(study: Study, place: Place | None = None) -> dict[str, list[Check]]:
    """Pre-flight of every pair where its cells run, here unless told, under a line that says so."""
    with Console(stderr=True).status("pre-flight"):
        return (place or Processes()).preflight(study)


def records(found: Mapping[str, Sequence[Check]]) -> list[dict[str, str]]:
    """The checks for a terminal: each with its pair."""
    keys = ("name", "status", "evidence", "hint", "cause")
    return [
        {"pair": pair, **{key: getattr(check, key) for key in keys}}
        for pair, checks in found.items()
        for check in checks
    ]


def predict(found: Mapping[str, Sequence[Check]]) -> dict[str, dict[str, Spent]]:
    """What pre-flight timed: pair -> method -> one run; and under "teacher" and "untrained" one
    grading each. Empty where it could not time."""
    predicted = {}
    for pair, checks in found.items():
        numbers = next((check.numbers for check in checks if check.numbers), None)
        if numbers:
            runs = {name: Spent.read(run) for name, run in numbers["runs"].items()}
            rows = {"untrained": "student", "teacher": "teacher"}
            graded = {row: Spent.read(numbers["gradings"][role]) for row, role in rows.items()}
            predicted[pair] = {**runs, **graded}
    return predicted


def afford(study: Study, folder: StudyFolder, predicted: Mapping[str, Mapping[str, Spent]]) -> None:
    """Refuse a study whose missing cells would exceed its budget, before any of them begins.

    Raises:
        PotstillError: with what was predicted, and what it may be.
    """
    cells = cells_of(study)
    left = [cell for cell in cells if cell not in folder.results(cells)]
    if not all(cell.method in predicted.get(cell.pair, {}) for cell in left):
        return
    before = folder.ledger(study).spent()
    more = total(predicted[cell.pair][cell.method] for cell in left)
    if over := excess(study.budget, study.price, before + more):
        raise PotstillError(
            f"the {len(left)} cells that are left would take the study to {over}",
            "raise the budget, or run fewer seeds, methods or steps; --no-preflight starts it all "
            "the same and stops at the limit",
        )


def refuse(checks: list[dict[str, str]]) -> None:
    """Raise where pre-flight refuses, with every reason."""
    bad = [check for check in checks if check["status"] == "refused"]
    if bad:
        causes = ", ".join(dict.fromkeys(check["cause"] for check in bad if check["cause"]))
        named = f" ({causes})" if causes else ""
        reasons = dict.fromkeys(f"{c['pair']}, {c['name']}: {c['evidence']}" for c in bad)
        hints = dict.fromkeys(check["hint"] for check in bad)
        raise PotstillError(
            f"pre-flight refuses this run{named}\n  " + "\n  ".join(reasons),
            "; ".join(hints) + "; --no-preflight runs it all the same",
        )


def one_engine(study: Study, workers: int) -> int:
    """How many workers: one where several processes of torchrun are one engine.

    Raises:
        PotstillError: more are asked for, or an engine that several processes cannot be.
    """
    if not one_of_several():
        return workers
    if study.engine.name != "torch":
        raise PotstillError(
            f'torchrun is for the torch engine, got "{study.engine.name}"',
            "run it without torchrun",
        )
    if workers > 1:
        raise PotstillError(
            f"under torchrun all processes are one engine, got --workers {workers}",
            "leave out --workers, or run without torchrun",
        )
    return 1


def fill(
    study: Study,
    path: Path,
    workers: int,
    preflight: bool,
    retry_failed: bool = False,
    cache: Path | None = None,
    on: str = LOCAL,
    mirror: Mirror | None = None,
) -> Results:
    """Run what is missing of a study under the live view.

    Args:
        study: its settings.
        path: its folder here.
        workers: processes, or most cells of a cluster at a time; 0: what fits.
        preflight: whether models are checked before.
        retry_failed: whether failed cells are run again.
        cache: teachers' texts, if not in the folder.
        on: where cells run: local, ray, or a cluster's address.
        mirror: where the study's folder is behind a URL; `path` is then its copy.
    """
    check_out(on, mirror)
    prepare(study)
    workers = one_engine(study, workers)
    folder, cells = StudyFolder(path, cache), cells_of(study)
    if mirror:
        mirror.remote.check()
        mirror.pull()
    folder.check(study)
    with place_of(on, study, workers, mirror) as place:
        if preflight and len(folder.results(cells)) < len(cells):
            found = checked(study, place)
            refuse(records(found))
            for check in records(found):
                if check["status"] == "warning":
                    print(f"warning: {check['name']}: {check['evidence']}", file=sys.stderr)
            afford(study, folder, predict(found))
            folder.open(study)
            folder.predicted = predict(found)
        folder.open(study)
        for cell, result in folder.results(cells).items():
            if retry_failed and result["status"] == "failed":
                folder.cell(cell).reset()
        with View(study, folder, cells) as view:
            view.tick()
            with following(folder, study.track):
                results = place.run(study, folder, cells, view.tick)
            view.tick()
            return results


def check_out(on: str, mirror: Mirror | None) -> None:
    """Refuse a place that is none, and a URL for cells that are not spread."""
    check_place(on)
    if mirror and on == LOCAL:
        raise PotstillError(
            f'cells on this machine work in a folder, --out is "{mirror.remote.url}"',
            "give a folder, or add --on ray",
        )


@contextlib.contextmanager
def place_of(on: str, study: Study, workers: int, mirror: Mirror | None) -> Iterator[Place]:
    """Where cells run, for as long as they do."""
    if on == LOCAL:
        yield Processes(workers)
        return
    with opened(on, study, workers, mirror) as cluster:
        yield cluster
