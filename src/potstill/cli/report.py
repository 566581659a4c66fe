"""`potstill report`: the report of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from potstill.cli.app import READ, command
from potstill.cli.options import AsJson, AsMarkdown, StudyPlace
from potstill.cli.tables import show_report
from potstill.cli.terminal import echo, working
from potstill.errors import PotstillError


@command(
    "report",
    READ,
    "potstill report runs/quick --figures",
    "potstill report runs/quick --markdown",
    "potstill report runs/quick --within 2",
)
def report(
    place: StudyPlace,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also write SVG, PDF and PNG figures.")
    ] = False,
    within: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="POINTS",
            help="Recommend the cheapest method whose accuracy is this close to the highest one, "
            "and not significantly below it; without a grader, hundredths of a nat per token.",
        ),
    ] = 1.0,
    markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html, results.json and table.csv of a study, finished or not."""
    from potstill.report import as_markdown, write_report
    from potstill.study.remote import source

    if within > 100:
        raise PotstillError(f"--within is at most 100 points, got {within:g}", "1 is the default")
    mirror, path = source(place)
    with working("writing the report"):
        written = write_report(path, figures=figures, within=within / 100)
    mirror.publish()
    if markdown:
        echo(as_markdown(written))
    else:
        show_report(written, as_json)
