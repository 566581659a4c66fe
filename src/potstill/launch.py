"""From a study to a filled folder: what is refused first, pre-flight, then workers under the live
view.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from potstill import zoo
from potstill.config import Study
from potstill.cost import Spent, excess, total
from potstill.errors import PotstillError
from potstill.pool import Pool, allowed, preflight_study
from potstill.preflight import Check
from potstill.store import Cell, StudyFolder, cells_of
from potstill.study import prepare
from potstill.track.follow import following
from potstill.view import View


def checked(study: Study) -> dict[str, list[Check]]:
    """Pre-flight of every pair, under a line that says so."""
    with Console(stderr=True).status("pre-flight"):
        return preflight_study(study)


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


def fill(
    study: Study,
    path: Path,
    workers: int,
    preflight: bool,
    retry_failed: bool = False,
    cache: Path | None = None,
) -> dict[Cell, dict[str, Any]]:
    """Run what is missing of a study under the live view."""
    prepare(study)
    folder, cells = StudyFolder(path, cache), cells_of(study)
    folder.check(study)
    if preflight and len(folder.results(cells)) < len(cells):
        found = checked(study)
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
    if not workers:
        threads = max(1, getattr(study.engine, "threads", 1))
        tiny = all(name in zoo.PAIRS for name in study.models)
        workers = max(1, (len(allowed()) or os.cpu_count() or 1) // threads) if tiny else 1
    with View(study, folder, cells) as view:
        view.tick()
        with following(folder, study.track):
            results = Pool(study, folder, workers, cells).run(view.tick)
        view.tick()
        return results
