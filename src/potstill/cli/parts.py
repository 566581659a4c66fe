"""What the commands share: the app, options that several have, and printing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.errors import PotstillError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distil language models: every method on one loop, studies you can trust.",
    epilog="Start with [bold]potstill study[/]: nine methods, two tiny pairs, minutes.",
)
zoo_app = typer.Typer(no_args_is_help=True, help="The embedded pairs: list them, rebuild them.")
app.add_typer(zoo_app, name="zoo")

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[STUDY] [KEY=VALUE]...", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Study folder; default: runs/NAME.")]
OutOrUrl = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER|URL",
        help="Study folder; default: runs/NAME. With --on also a URL that fsspec reaches, such as "
        "s3://bucket/x: cells work in scratch of their node, a copy is kept in runs/mirrors/.",
    ),
]
On = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        help="Where cells run: local; ray (the Ray that runs here, or one that is started); "
        "ray://HOST:10001 or HOST:6379 (a Ray cluster; --workers: most cells at a time).",
    ),
]
StudyPlace = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|URL", help="A study's folder; a URL is copied to runs/mirrors/ first."
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes; 0: one a core for embedded pairs, else one.")
]
Preflight = Annotated[bool, typer.Option(help="Open the models and check the run before step 0.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


def study_of(words: list[str] | None, default: dict[str, Any] | None = None) -> Any:
    """The study that the words on the command line ask for, or the default."""
    from potstill.study.loading import load_study, read_study
    from potstill.study.schema import QUICK

    files = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(files) > 1:
        raise PotstillError(
            f"one study at a time, got {', '.join(files)}", "overrides are written key=value"
        )
    if files:
        return load_study(files[0], overrides)
    table = default or QUICK
    return read_study(table, overrides, table["name"])


def show_report(report: Any, as_json: bool) -> None:
    from potstill.report import as_text

    if as_json:
        print(json.dumps(report.to_json(), indent=1))
        return
    print(as_text(report))
    print(f"\nreport: {report.html}")


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for n, key in enumerate(rows[0] if rows else ()):
        table.add_column(key, overflow="fold", no_wrap=n == 0)  # names stay whole
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 240  # a file or a pipe: one line a row, for grep
    console.print(table)
