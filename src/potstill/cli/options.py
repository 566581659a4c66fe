"""Arguments and options that several commands take, and reading a study from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli import completion
from potstill.errors import PotstillError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY] [KEY=VALUE]...",
        show_default=False,
        help="A study file (TOML; default: the embedded quick study), then settings that override "
        "it, such as train.steps=50 or seeds=0,1.",
        autocompletion=completion.words,
    ),
]
StudyPlace = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|URL",
        help="A study's folder, such as runs/quick, or its URL (copied to runs/mirrors/ first).",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Study folder. [default: runs/NAME]")
]
OutOrUrl = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER|URL",
        help="Study folder; with --on also a URL that fsspec reaches, such as s3://bucket/x: runs "
        "then work in scratch space of their node, and a copy is kept in runs/mirrors/. "
        "[default: runs/NAME]",
    ),
]
Figures = Annotated[
    bool, typer.Option("--figures/--no-figures", help="Also write SVG, PDF and PNG figures.")
]
On = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        help="Where runs are executed: local, ray (attach to a running local cluster, or start "
        "one), or a cluster's address, ray://HOST:10001 or HOST:6379.",
        autocompletion=completion.places,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Processes at a time; on a cluster, most runs at a time. 0: one per core for embedded "
        "pairs, otherwise one.",
    ),
]
Preflight = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help="Open the models and test the training step before step 0.",
    ),
]
PairName = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="PAIR",
        help="Pair. [default: the study's first]",
        autocompletion=completion.pairs,
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


def study_of(words: list[str] | None, default: dict[str, Any] | None = None) -> Any:
    """The study that a command line describes.

    Args:
        words: at most one study file, and overrides `key=value`.
        default: the table that is read without a file; None: the quick study's.
    """
    from potstill.study.loading import load_study, read_study
    from potstill.study.schema import QUICK
    from potstill.study.settling import settled

    files = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(files) > 1:
        raise PotstillError(
            f"one study at a time, got {', '.join(files)}", "overrides are written key=value"
        )
    if files:
        return settled(load_study(files[0], overrides))
    table = default or QUICK
    return settled(read_study(table, overrides, table["name"]))
