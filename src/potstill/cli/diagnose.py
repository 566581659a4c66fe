"""`potstill diagnose`: what went wrong in recorded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.app import READ, command
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo
from potstill.errors import Errors, PotstillError

if TYPE_CHECKING:
    from potstill.study.storage import RunFolder

# Signals in the order in which a narrow terminal goes without them.
SPARE = (
    "length",
    "distinct",
    "loop",
    "kl_early",
    "kl_late",
    "teacher_entropy",
    "reading_loss",
    "repetition",
    "copy",
    "end",
    "truncated",
)


@command(
    "diagnose",
    READ,
    "potstill diagnose runs/quick",
    "potstill diagnose runs/quick/cells/tiny-qwen/hybrid/0 --signals",
)
def diagnose(
    place: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL",
            help="A study's folder or the folder of one of its runs, or a URL of either (copied to "
            "runs/mirrors/ first).",
        ),
    ],
    signals: Annotated[
        bool, typer.Option("--signals", help="Also print the signals of every probe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain what went wrong in a run: since which step, why, and what to do.

    It reads recorded metrics, of finished and of running runs, and opens no model.
    """
    from potstill.diagnostics.notes import SPOILT
    from potstill.study.remote import source

    runs = diagnosis(source(place)[1])
    if as_json:
        print_json(runs)
        return
    for run in runs:
        _print_run(run)
        if signals:
            echo(f"\n{run['run']}")
            print_table(_signal_rows(run["signals"]), spare=SPARE)
    sound = sum(
        all(f["kind"] == "note" and f["cause"] not in SPOILT for f in run["findings"])
        for run in runs
    )
    echo(f"{sound} of {len(runs)} runs without a finding")


def _print_run(run: Mapping[str, Any]) -> None:
    from potstill.diagnostics.diagnosis import VERBS, ended

    for finding in run["findings"]:
        verb = VERBS[finding["kind"]]
        step, detected = finding["step"], finding["found"]
        echo(f"{run['run']} {verb} from step {step} on (detected at step {detected})")
        echo(f"  cause:    {finding['cause']}: {finding['meaning']}")
        echo(f"  evidence: {finding['evidence']}")
        echo(f"  advice:   {finding['advice']}")
    if run["ended"]:
        echo(f"  {ended(run['ended'])}")


def _signal_rows(signals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Signals under short names, three digits."""
    return [
        {
            name.split("/")[-1]: "-" if value is None else f"{value:.3g}"
            for name, value in row.items()
        }
        for row in signals
    ]


def diagnosis(path: Path) -> list[dict[str, Any]]:
    """The diagnosis of a run's folder, or of every run in a study's folder.

    Raises:
        PotstillError: there is no run in the folder, or none with signals.
    """
    from potstill.study.storage import RunFolder

    whole = sorted(place for place in path.glob("cells/*/*/*") if place.is_dir())
    errors, runs = Errors(), []
    for run in map(RunFolder, whole or [path]):
        with errors:
            run.check_files(run.result or {})
            if run.metrics:
                runs.append(run)
    errors.check()
    if not runs:
        raise PotstillError(
            f'"{path}" holds no run with metrics', "give the folder of a study or of a run"
        )
    if old := [run for run in runs if "signal/teacher_loss" not in run.metrics[0]]:
        raise PotstillError(
            f'"{old[0].path}" was recorded without signals', "run it again with this version"
        )
    return [{"run": "/".join(run.path.parts[-3:]), **_diagnosed(run)} for run in runs]


def _diagnosed(run: RunFolder) -> dict[str, Any]:
    from dataclasses import asdict

    from potstill.diagnostics.diagnosis import SIGNALS, diagnose, failure, meaning

    rows, result = run.metrics, run.result or {}
    finished = result.get("status") == "done" and not result.get("ended")
    findings = diagnose(rows, finished=finished)
    if broken := failure(str(result.get("cause", "")), int(result.get("steps", 0))):
        findings = [broken, *findings]
    return {
        "steps": rows[-1]["step"],
        "ended": result.get("ended"),
        "findings": [{**asdict(f), "meaning": meaning(f.cause)} for f in findings],
        "signals": [
            {"step": row["step"], **{name: row.get(name) for name in SIGNALS}}
            for row in rows
            if row.get("signal/teacher_loss") is not None
        ],
    }
