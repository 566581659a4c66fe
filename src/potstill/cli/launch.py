"""From a study to a filled folder: validation, pre-flight, then workers under the live view."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from potstill.cli.checking import CheckView
from potstill.cli.live import View
from potstill.cli.terminal import echo
from potstill.diagnostics.preflight import Check
from potstill.engines.host import one_of_several
from potstill.errors import PotstillError
from potstill.study.executors.base import Executor, Results
from potstill.study.executors.local import LocalExecutor
from potstill.study.executors.ray import check_address, open_cluster
from potstill.study.inputs import Inputs, inputs_of
from potstill.study.race import is_race
from potstill.study.remote import Mirror
from potstill.study.run import prepare
from potstill.study.schema import Study
from potstill.study.settling import settled
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.study.tracking.exporter import following
from potstill.training.spending import Spent, excess, total

LOCAL = "local"  # the executor on this machine, without Ray

log = logging.getLogger(__name__)


def checked(
    study: Study, executor: Executor | None = None, *, repeat: bool = False
) -> dict[str, list[Check]]:
    """Run pre-flight of every pair on an executor, by default on this machine.

    Args:
        study: the settings.
        executor: default: processes of this machine.
        repeat: make the checks whose results are kept again.
    """
    begin = time.monotonic()
    with CheckView() as view:
        checks = (executor or LocalExecutor()).preflight(study, view, repeat=repeat)
    log.info("pre-flight of %s took %.1f s", ", ".join(checks), time.monotonic() - begin)
    return checks


def records(checks: Mapping[str, Sequence[Check]]) -> list[dict[str, str]]:
    """The checks of all pairs as rows of a table."""
    keys = ("name", "status", "evidence", "hint", "cause")
    return [
        {"pair": pair, **{key: getattr(check, key) for key in keys}}
        for pair, results in checks.items()
        for check in results
    ]


def predict(checks: Mapping[str, Sequence[Check]]) -> dict[str, dict[str, Spent]]:
    """The cost of one run by pair and method, as pre-flight timed it.

    "teacher" and "untrained" are the baselines, one evaluation each. A pair that pre-flight could
    not time is left out.
    """
    predicted = {}
    for pair, results in checks.items():
        numbers = next((check.numbers for check in results if check.numbers), None)
        if numbers:
            runs = {name: Spent.read(run) for name, run in numbers["runs"].items()}
            roles = {"untrained": "student", "teacher": "teacher"}
            made = numbers["gradings"]
            baselines = {n: Spent.read(made[role]) for n, role in roles.items() if role in made}
            predicted[pair] = {**runs, **baselines}
    return predicted


def afford(
    study: Study,
    folder: StudyFolder,
    predicted: Mapping[str, Mapping[str, Spent]],
    runs: Sequence[RunId],
) -> None:
    """Refuse a study whose missing runs would exceed its budget, before the first one begins.

    Raises:
        PotstillError: with the predicted total and the limit.
    """
    ended = folder.results(runs)
    missing = [run for run in runs if run not in ended]
    if not all(run.method in predicted.get(run.pair, {}) for run in missing):
        return
    spent = folder.ledger(study).spent()
    cost = total(predicted[run.pair][run.method] for run in missing)
    if limit := excess(study.budget, study.price, spent + cost):
        raise PotstillError(
            f"the {len(missing)} missing runs would take the study to {limit}",
            "raise the budget, or run fewer seeds, methods or steps; --no-preflight starts it all "
            "the same and stops at the limit",
        )


def refuse(checks: Sequence[Mapping[str, str]]) -> None:
    """Raise one error with the evidence of every check that failed."""
    failed = [check for check in checks if check["status"] == "refused"]
    if failed:
        causes = ", ".join(dict.fromkeys(check["cause"] for check in failed if check["cause"]))
        named = f" ({causes})" if causes else ""
        reasons = dict.fromkeys(f"{c['pair']}, {c['name']}: {c['evidence']}" for c in failed)
        hints = dict.fromkeys(check["hint"] for check in failed)
        raise PotstillError(
            f"the study fails pre-flight{named}\n  " + "\n  ".join(reasons),
            "; ".join(hints) + "; --no-preflight skips these tests",
        )


def one_engine(study: Study, workers: int) -> int:
    """The number of workers: one where the processes of torchrun are one engine.

    Raises:
        PotstillError: several workers under torchrun, or an engine that cannot be sharded.
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
    """Execute the missing runs of a study under the live view.

    Args:
        study: its settings.
        path: its folder on this machine.
        workers: processes, or most runs of a cluster at a time; 0: as many as fit.
        preflight: run pre-flight first, where a run is missing.
        retry_failed: run failed runs again.
        cache: folder of teacher completions; None: the study's own.
        on: executor: local, ray, or a cluster's address.
        mirror: the study's folder behind a URL; `path` is then its copy.
    """
    study = settled(study)
    folder, runs = StudyFolder(path, cache), runs_of(study)

    def check() -> None:
        if is_race(folder):
            raise PotstillError(
                f'"{path}" holds a race', "continue it with `potstill race`, or use another --out"
            )

    with opened(study, folder, runs, check, workers, preflight, on, mirror) as execute:
        if retry_failed:
            reset_failed(folder, runs)
        return execute(runs)


@contextlib.contextmanager
def opened(
    study: Study,
    folder: StudyFolder,
    runs: Sequence[RunId],
    check: Callable[[], None],
    workers: int,
    preflight: bool,
    on: str = LOCAL,
    mirror: Mirror | None = None,
) -> Iterator[Callable[[Sequence[RunId]], Results]]:
    """Validate a study, open its folder and an executor for it.

    Args:
        study, workers, preflight, on, mirror: as for `fill`.
        folder: the study's folder on this machine.
        runs: those that are known to be needed; pre-flight is skipped if none is missing.
        check: raises if the folder holds something else; called when it is up to date.

    Yields:
        A function that executes those of the given runs that have not ended, under the live view.
    """
    check_out(on, mirror)
    task = prepare(study)
    inputs = inputs_of(study, task)
    if note := getattr(task, "note", ""):
        echo(note)
    if on == LOCAL:
        check_devices(study)
    workers = one_engine(study, workers)
    if mirror:
        mirror.remote.check()
        mirror.pull()
    check()
    folder.check(study, inputs)
    ended = folder.results(runs, study)
    tidy(folder, ended)
    log.info("%s: %d runs, %d of them ended, in %s", study.name, len(runs), len(ended), folder.path)
    with place_of(on, study, workers, mirror) as executor:
        if preflight and len(ended) < len(runs):
            _preflight(study, folder, executor, runs, inputs)
        folder.open(study, inputs)

        def execute(runs: Sequence[RunId]) -> Results:
            with View(study, folder, runs) as view:
                view.tick()
                with following(folder, study.track):
                    results = executor.run(study, folder, runs, view.tick)
                view.tick()
                return results

        yield execute


def tidy(folder: StudyFolder, runs: Iterable[RunId]) -> None:
    """Remove what killed processes have left in the folders of runs that have ended."""
    for run in map(folder.cell, runs):
        with run.lock() as locked:
            if locked:
                run.tidy()


def check_devices(study: Study) -> None:
    """Check that this machine has the devices of a study, unless its runs need a cluster's GPUs."""
    if study.engine.name != "torch" or study.ray.gpus:
        return
    for spec in (study.engine.student, study.engine.teacher):
        if spec.device not in ("auto", "cpu"):  # torch is imported for another device only
            from potstill.engines.torch.devices import check_device

            check_device(spec.device)


def reset_failed(folder: StudyFolder, runs: Sequence[RunId]) -> None:
    """Remove the results of failed runs, so that they are executed again."""
    for run, result in folder.results(runs).items():
        if result["status"] == "failed":
            folder.cell(run).reset()


def _preflight(
    study: Study, folder: StudyFolder, executor: Executor, runs: Sequence[RunId], inputs: Inputs
) -> None:
    """Refuse a study that fails pre-flight or its budget; keep what the runs are predicted to cost.

    Warnings go to stderr.
    """
    checks = checked(study, executor)
    rows, predicted = records(checks), predict(checks)
    refuse(rows)
    for check in rows:
        if check["status"] == "warning":
            echo(f"warning: {check['name']}: {check['evidence']}", file=sys.stderr)
    afford(study, folder, predicted, runs)
    folder.open(study, inputs)
    folder.predicted = predicted


def check_out(on: str, mirror: Mirror | None) -> None:
    """Refuse an unknown executor, and a URL for runs on this machine."""
    check_address(on)
    if mirror and on == LOCAL:
        raise PotstillError(
            f'runs on this machine need a folder, --out is "{mirror.remote.url}"',
            "give a folder, or add --on ray",
        )


@contextlib.contextmanager
def place_of(on: str, study: Study, workers: int, mirror: Mirror | None) -> Iterator[Executor]:
    """Open the executor that --on names."""
    if on == LOCAL:
        log.info("executor: processes of this machine, --workers %d", workers)
        yield LocalExecutor(workers)
        return
    with open_cluster(on, study, workers, mirror) as cluster:
        log.info("executor: Ray at %s", on)
        yield cluster
