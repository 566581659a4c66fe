"""From a study to a filled folder: what is refused first, pre-flight, then workers under the live
view.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from potstill import zoo
from potstill.config import Study
from potstill.errors import PotstillError
from potstill.pool import Pool, preflight_study
from potstill.store import Cell, StudyFolder, cells_of
from potstill.study import prepare
from potstill.view import View


def preflight_records(study: Study) -> list[dict[str, str]]:
    """Pre-flight of every pair as records, under a line that says so."""
    with Console(stderr=True).status("pre-flight"):
        found = preflight_study(study)
    return [{"pair": pair, **asdict(check)} for pair, checks in found.items() for check in checks]


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
        checks = preflight_records(study)
        refuse(checks)
        for check in checks:
            if check["status"] == "warning":
                print(f"warning: {check['name']}: {check['evidence']}", file=sys.stderr)
    folder.open(study)
    for cell, result in folder.results(cells).items():
        if retry_failed and result["status"] == "failed":
            folder.cell(cell).reset()
    if not workers:
        threads = max(1, getattr(study.engine, "threads", 1))
        tiny = all(name in zoo.PAIRS for name in study.models)
        workers = max(1, (os.cpu_count() or 1) // threads) if tiny else 1
    with View(study, folder, cells) as view:
        view.tick()
        return Pool(study, folder, workers, cells).run(view.tick)
