"""Commands that read and train nothing: ls, diagnose, probe, watch, report, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.parts import AsJson, StudyPlace, app, print_table, show_report, zoo_app
from potstill.errors import PotstillError


@app.command("ls")
def ls(
    what: Annotated[
        str,
        typer.Argument(help="methods, pairs, tasks, engines, losses, schedules, faults, trackers"),
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is.

    Example: [bold]potstill ls methods[/]
    """
    from potstill.cli.listing import LISTS, listing

    if what not in LISTS:
        from potstill.errors import did_you_mean

        raise PotstillError(f'nothing to list under "{what}"', did_you_mean(what, LISTS, "lists"))
    rows = listing(what)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)


@app.command()
def diagnose(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL",
            help="A study's folder, or one of its cells; a URL is copied to runs/mirrors/ first.",
        ),
    ],
    signals: Annotated[bool, typer.Option("--signals", help="Also print what was seen.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what went wrong in a run, from which step on, why, and what to do.

    Reads what was recorded, of finished runs and of running ones; opens no model.

    Example: [bold]potstill diagnose runs/quick/cells/tiny-qwen/hybrid/0 --signals[/]
    """
    from potstill.cli.listing import diagnosis
    from potstill.diagnostics.diagnosis import ended
    from potstill.study.remote import source

    found = diagnosis(source(folder)[1])
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for run in found:
        for finding in run["findings"]:
            what = "collapsed" if finding["kind"] == "collapse" else "deviates"
            print(
                f"{run['run']} {what} from step {finding['step']} on (seen at {finding['found']})"
            )
            print(f"  cause:    {finding['cause']}: {finding['meaning']}")
            print(f"  evidence: {finding['evidence']}")
            print(f"  advice:   {finding['advice']}")
        if run["ended"]:
            print(f"  {ended(run['ended'])}")
        if signals:
            print(f"\n{run['run']}")
            print_table(_signal_rows(run["signals"]))
    sound = sum(not run["findings"] for run in found)
    print(f"{sound} of {len(found)} runs without a finding")


def _signal_rows(signals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Signals under short names, three digits."""
    return [
        {
            name.split("/")[-1]: "-" if value is None else f"{value:.3g}"
            for name, value in row.items()
        }
        for row in signals
    ]


@app.command()
def probe(
    url: Annotated[str, typer.Argument(help="A server that speaks Tinker's API.")],
    model: Annotated[str, typer.Option(help="Its base model; default: the one it serves.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask a training service what it really does: who shifts, sum or mean, lengths, samplers.

    Takes about half a minute. Exits with 1 where something is wrong that potstill cannot adapt to.

    Example: [bold]potstill probe http://127.0.0.1:8000[/]
    """
    from potstill.cli.listing import conformance

    rows, refused = conformance(url, model)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)
    if refused:
        raise typer.Exit(1)


@app.command()
def watch(
    folder: StudyPlace,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
) -> None:
    """Watch a study from another terminal or machine: what runs, how far, how well, at what cost.

    It ends with the table when the last cell does; Ctrl-C leaves the study alone.

    Example: [bold]potstill watch runs/quick[/]
    """
    import time

    from potstill.cli.live import View, running
    from potstill.report.data import load
    from potstill.report.table import faults_line, to_text
    from potstill.study.remote import source

    its, path = source(folder)
    found = load(path)
    with View(found.study, found.folder, list(found.runs)) as view:
        view.tick()
        while not (once or view.whole):
            time.sleep(every)
            its.pull()
            view.tick()
    if once and not view.whole:
        print_table(running(found.study, found.folder, list(found.runs)))
    found = load(path)
    counts = ", ".join(f"{n} {status}" for status, n in found.counts.items())
    print(f"{faults_line(found.study.faults)}{to_text(found.rows)}\n{found.study.name}: {counts}")


@app.command()
def track(
    folder: Annotated[Path, typer.Argument(help="A study's folder, finished or not.")],
    to: Annotated[
        list[str] | None, typer.Option(help="Tracker; default: those that the study names.")
    ] = None,
) -> None:
    """Send trackers what they do not have of a study: for one that was out of reach, or is new.

    Example: [bold]potstill track runs/quick --to tensorboard[/]
    """
    from potstill.study.storage import StudyFolder, cells_of
    from potstill.study.tracking.exporter import following, study_in, troubles
    from potstill.study.tracking.registry import check_trackers

    place = StudyFolder(folder)
    study = study_in(place)
    names = to or list(study.track)
    if not names:
        raise PotstillError("the study names no tracker", "say where, for example --to tensorboard")
    check_trackers(names)
    with following(place, names, patience=None):
        pass
    failed = troubles(place, cells_of(study))
    for name in names:
        print(f"{name}: {failed.get(name, 'has it all')}")
    raise typer.Exit(1 if failed.keys() & set(names) else 0)


@app.command()
def report(
    folder: StudyPlace,
    figures: Annotated[bool, typer.Option(help="Also write SVG, PDF and PNG figures.")] = False,
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html, results.json and table.csv of a study, finished or not.

    Example: [bold]potstill report runs/quick --figures[/]
    """
    from potstill.report import as_markdown, write_report
    from potstill.study.remote import source

    its, path = source(folder)
    written = write_report(path, figures=figures)
    its.publish()
    if markdown:
        print(as_markdown(written))
    else:
        show_report(written, as_json)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two studies' folders or more.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold studies against the first one: two engines, two learning rates, before and after.

    Differences are paired by problem where both graded the same ones; settings that differ are
    listed. With --markdown or --json no page is written.

    Example: [bold]potstill compare runs/before runs/after[/]
    """
    from potstill.report.compare import compare as hold
    from potstill.report.compare_page import write_comparison
    from potstill.report.compare_table import to_markdown, to_record
    from potstill.study.storage import to_json

    told = hold(folders)
    if as_json:
        print(json.dumps(json.loads(to_json(to_record(told))), indent=1))
    elif markdown:
        print(to_markdown(told), end="")
    else:
        print(f"{to_markdown(told)}\ncomparison: {write_comparison(told, out)}")


@zoo_app.command("ls")
def zoo_ls(as_json: AsJson = False) -> None:
    """List the embedded pairs."""
    ls("pairs", as_json)
