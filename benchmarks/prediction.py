"""How well `potstill check` predicts: pre-flight before a study and again after it, and between
them the study itself, on the same machine with as many workers as are told.

Prints predicted / actual of tokens, operations and seconds, by pair and method. The second
pre-flight says how much of a miss in seconds is the machine's own unrest. Where others compute on
it, the wall clock says little: `--processor` has pre-flight and runs count the seconds of their
processor, one after the other in this process.

    python -m benchmarks.prediction studies/quick.toml seeds=0 --workers 1 --out runs/prediction
    python -m benchmarks.prediction pairs=tiny-qwen seeds=0 train.steps=50 --processor
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import track

from potstill.cli.launch import checked, fill, predict
from potstill.cli.options import study_of
from potstill.cli.tables import print_table
from potstill.study.run import preflight_pair, run_cell
from potstill.study.schema import Study
from potstill.study.storage import StudyFolder, runs_of
from potstill.training.spending import Spent, total

CLOCKS = (
    "potstill.training.metering",
    "potstill.diagnostics.preflight.timing",
    "potstill.engines.torch.stepping",
)
Told = Mapping[str, Mapping[str, Spent]]  # pair -> method -> one run


def compare(
    study: Study, folder: StudyFolder, before: Told, after: Told
) -> Iterator[dict[str, Any]]:
    """Ratios of predictions to means over runs, for each pair and method and for all."""
    results = folder.results(runs_of(study))
    everything: dict[str, list[Spent]] = {"was": [], "before": [], "after": []}
    for pair in study.models:
        for method in study.recipes:
            done = [
                Spent.read(result)
                for cell, result in results.items()
                if (cell.pair, cell.method) == (pair, method) and result["status"] == "done"
            ]
            if done:
                was = total(done) * (1 / len(done))
                yield _row(f"{pair} {method}", was, before[pair][method], after[pair][method])
                everything["was"].append(was)
                everything["before"].append(before[pair][method])
                everything["after"].append(after[pair][method])
    yield _row("in all", *(total(everything[key]) for key in ("was", "before", "after")))


def _row(name: str, was: Spent, before: Spent, after: Spent) -> dict[str, Any]:
    flops = before.flops / was.flops if before.flops and was.flops else None
    return {
        "run": name,
        "tokens": f"{was.count():,.0f}",
        "predicted/actual tokens": f"{before.count() / was.count():.2f}",
        "FLOPs": "unknown" if flops is None else f"{flops:.2f}",
        "seconds": f"{was.seconds:.1f}",
        "predicted/actual seconds": f"{before.seconds / was.seconds:.2f}",
        "after it": f"{after.seconds / was.seconds:.2f}",
    }


def on_the_processor(study: Study, folder: StudyFolder) -> tuple[Told, Told]:
    """Pre-flight, every cell and pre-flight again in this process, by its processor's clock."""
    clock: Any = SimpleNamespace(perf_counter=time.process_time, monotonic=time.monotonic)
    for name in CLOCKS:
        vars(importlib.import_module(name))["time"] = clock
    folder.open(study)

    before = predict({pair: preflight_pair(study, pair) for pair in study.models})
    for cell in track(runs_of(study), "cells", console=Console(stderr=True)):
        if folder.cell(cell).result is None:
            run_cell(study, folder, cell)
    return before, predict({pair: preflight_pair(study, pair) for pair in study.models})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", help="a study file and key=value overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/prediction"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--processor", action="store_true", help="seconds of the processor")
    asked = parser.parse_args()
    study = study_of(asked.words)
    folder = StudyFolder(asked.out)
    if asked.processor:
        before, after = on_the_processor(study, folder)
    else:
        before = predict(checked(study))
        fill(study, asked.out, asked.workers, preflight=False)
        after = predict(checked(study))
    print_table(list(compare(study, folder, before, after)))


if __name__ == "__main__":
    main()
