"""`potstill watch`: the progress of a study that another process runs."""

from __future__ import annotations

from time import sleep
from typing import Annotated

import typer

from potstill.cli.app import RUN, command
from potstill.cli.options import StudyPlace
from potstill.cli.tables import print_methods, print_table
from potstill.cli.terminal import echo


@command(
    "watch",
    RUN,
    "potstill watch runs/quick",
    "potstill watch runs/quick --once",
    "potstill watch s3://bucket/mine --every 30",
)
def watch(
    place: StudyPlace,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Seconds between updates.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the progress once and exit.")] = False,
) -> None:
    """Watch a study run: progress, accuracy, findings and cost.

    It works from another terminal or machine and reads files only. It ends with the table of
    results when the last run ends; Ctrl-C does not stop the study.
    """
    from potstill.cli.live import View, running
    from potstill.report.data import load, planned
    from potstill.study.race import courses_of
    from potstill.study.remote import source
    from potstill.study.storage import StudyFolder

    mirror, path = source(place)
    folder = StudyFolder(path)
    study = folder.study
    runs = planned(study, courses_of(folder, study))
    with View(study, folder, runs) as view:
        view.tick()
        while not (once or view.whole):
            sleep(every)
            mirror.pull()
            view.tick()
    if once and not view.whole:
        print_table(running(study, folder, runs))
    data = load(path)
    print_methods(data.rows, data.study.faults, data.metrics)
    counts = ", ".join(f"{number} {status}" for status, number in data.counts.items())
    echo(f"{data.study.name}: {counts}")
