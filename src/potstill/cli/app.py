"""The app that every command registers with, and the layout of its help pages.

Help is plain text: it reads the same in a terminal, where headings are bold, and in a pipe, and
needs no rich. Commands are listed by panel, in the order in which they are registered.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

log = logging.getLogger(__name__)

PROG = "potstill"
RUN, READ, TEST, LOOK = "Run a study", "Read the results", "Test and measure", "Look up"
PANELS = (RUN, READ, TEST, LOOK)
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
HEADING = re.compile(r"^(Usage|[A-Z][a-z ]+):", re.MULTILINE)
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
VERBOSE = ("-v", "--verbose")

_Base: Any = TyperCommand if TYPE_CHECKING else object


class Page(_Base):
    """Help of one command: usage, text, arguments, options, examples.

    The epilog of a command holds its examples, one a line.
    """

    def get_help(self, ctx: Any) -> str:
        return HEADING.sub(lambda found: typer.style(found[0], bold=True), super().get_help(ctx))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        words = ["[OPTIONS]", *(_metavar(param) for param in _arguments(self, ctx))]
        words += ["COMMAND [ARGS]..."] if isinstance(self, TyperGroup) else []
        formatter.write_usage(ctx.command_path, " ".join(words))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        if isinstance(self, Group):
            self.format_commands(ctx, formatter)
        arguments = [(_metavar(param), param.help or "") for param in _arguments(self, ctx)]
        records = (param.get_help_record(ctx) for param in self._options(ctx))
        options = [record for record in records if record]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _options(self, ctx: Any) -> Iterator[Any]:
        """The command's own options, then --verbose, which every command takes."""
        own = [param for param in self.get_params(ctx) if param.param_type_name == "option"]
        root = ctx.find_root().command.params
        shared = [param for param in root if param.name == "verbose" and param not in own]
        yield from (*own[:-1], *shared, *own[-1:])  # --help is the last one

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"  {line}\n")


class Command(Page, TyperCommand):
    """A command with a page of its own."""


class Group(Page, TyperGroup):
    """Several commands, listed by panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.commands))
        for name, one in self.commands.items():
            rows = panels.setdefault(getattr(one, "rich_help_panel", None) or "Commands", [])
            rows.append((name.ljust(width), first_sentence(one.help)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept --verbose anywhere on the line, as people write it last."""
        flags = [word for word in args if word in VERBOSE]
        return super().parse_args(ctx, [*flags[:1], *(w for w in args if w not in VERBOSE)])


def _arguments(command: Any, ctx: Any) -> list[Any]:
    return [param for param in command.get_params(ctx) if param.param_type_name == "argument"]


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def first_sentence(text: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


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


def _show_version(wanted: bool) -> None:
    if wanted:
        print("\n".join(versions()))
        raise typer.Exit


def versions() -> list[str]:
    """potstill, Python and torch with their versions, without importing torch."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = {"Python": python_version()}
    for package in (PROG, "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return [f"{name} {found[name]}" for name in (PROG, "Python", "torch")]


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
    """What `potstill` alone prints: first steps, and the commands by panel."""
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
    text = formatter.getvalue().rstrip("\n")
    return HEADING.sub(lambda found: typer.style(found[0], bold=True), text)


def be_verbose() -> None:
    """Log to stderr from level INFO on; errors then come with their tracebacks."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger(PROG).setLevel(logging.INFO)
    log.info("%s on %s: %s", ", ".join(versions()), sys.platform, " ".join(sys.argv[1:]))


def is_verbose() -> bool:
    """Whether tracebacks are wanted."""
    return logging.getLogger(PROG).isEnabledFor(logging.INFO)
