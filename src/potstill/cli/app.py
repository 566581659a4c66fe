"""The app that every command registers with, its own options, and what it prints alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from potstill.cli.pages import VERBOSE, Command, Group, with_bold_headings
from potstill.cli.terminal import Formatter, echo

log = logging.getLogger(__name__)

PROG = "potstill"
RUN, READ, TOOLS, LOOK = "Run a study", "Read the results", "Tools", "Look up"
PANELS = (RUN, READ, TOOLS, LOOK)
SUMMARY = (
    "potstill trains a small language model on a larger one's feedback and tells you whether it "
    "worked."
)
FIRST_STEPS = (
    ("potstill study", "run the embedded quick study, minutes on a CPU"),
    ("potstill check mine.toml", "validate your own study and predict its cost"),
    ("potstill study mine.toml", "run it; run it again to resume it"),
    ("potstill watch runs/mine", "follow it from another terminal"),
    ("potstill report runs/mine", "write its report again"),
)
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    name=PROG,
    cls=Group,
    help=SUMMARY,
    epilog="potstill study\npotstill check mine.toml train.steps=50 seeds=0,1\npotstill ls methods",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings=SETTINGS,
)
zoo_app = typer.Typer(
    name="zoo",
    cls=Group,
    help="List, copy or retrain the embedded pairs.",
    rich_markup_mode=None,
    invoke_without_command=True,
)


def command(
    name: str, panel: str | None, *examples: str, to: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command.

    Args:
        name: the word on the command line.
        panel: the group of commands that help lists it in, if the app has several.
        examples: whole command lines.
        to: the app that gets it.
    """
    epilog = "\n".join(examples)
    return to.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)


def _show_version(flag: bool) -> None:
    if flag:
        echo("\n".join(versions()))
        raise typer.Exit


def versions() -> list[str]:
    """potstill, Python and torch with their versions, without importing torch."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    known = {"Python": python_version()}
    for package in (PROG, "torch"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return [f"{name} {known[name]}" for name in (PROG, "Python", "torch")]


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the versions of potstill, Python and torch, and exit.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(*VERBOSE, help="Log what happens and show tracebacks, for bug reports."),
    ] = False,
) -> None:
    if verbose:
        be_verbose()
    if ctx.invoked_subcommand is None:
        typer.echo(overview(ctx))


@zoo_app.callback()
def zoo(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def overview(ctx: Any) -> str:
    """The text of `potstill` alone: first steps, and the commands by panel."""
    formatter = ctx.make_formatter()
    formatter.write_text(SUMMARY)
    with formatter.section("First steps"):
        formatter.write_dl(FIRST_STEPS)
    with formatter.section("Commands"):
        listed = ctx.command.commands.values()
        panels = [(p, ", ".join(c.name for c in listed if c.rich_help_panel == p)) for p in PANELS]
        formatter.write_dl(panels)
    formatter.write_paragraph()
    formatter.write_text("`potstill -h` describes the commands, `potstill COMMAND -h` one of them.")
    return with_bold_headings(formatter.getvalue().rstrip("\n"))


def be_verbose() -> None:
    """Log to stderr from level INFO on; errors then come with their tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger(PROG).setLevel(logging.INFO)
    log.info("%s on %s: %s", ", ".join(versions()), sys.platform, " ".join(sys.argv[1:]))


def is_verbose() -> bool:
    """True if errors are printed with their tracebacks."""
    return logging.getLogger(PROG).isEnabledFor(logging.INFO)
