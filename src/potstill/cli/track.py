"""`potstill track`: metrics of a study that a tracker does not have yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli import completion
from potstill.cli.app import TOOLS, command
from potstill.cli.terminal import echo
from potstill.errors import PotstillError


@command("track", TOOLS, "potstill track runs/quick", "potstill track runs/quick --to tensorboard")
def track(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A study's folder, finished or not.")
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Tracker, see `potstill ls trackers`; may be given several times. "
            "[default: the study's]",
            autocompletion=completion.trackers,
        ),
    ] = None,
) -> None:
    """Upload missing metrics, after an outage or to a new tracker."""
    from potstill.study.storage import StudyFolder, runs_of
    from potstill.study.tracking.exporter import following
    from potstill.study.tracking.follower import troubles
    from potstill.study.tracking.registry import check_trackers

    place = StudyFolder(folder)
    study = place.study
    names = to or list(study.track)
    if not names:
        raise PotstillError("the study names no tracker", "name one, for example --to tensorboard")
    check_trackers(names)
    with following(place, names, patience=None):
        pass
    failed = troubles(place, runs_of(study))
    for name in names:
        echo(f"{name}: {failed.get(name, 'complete')}")
    raise typer.Exit(1 if failed.keys() & set(names) else 0)
