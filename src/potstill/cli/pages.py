"""The layout of help pages: usage, text, commands by panel, arguments, options, examples.

Help is plain text: it reads the same in a terminal, where headings are bold, and in a pipe, and
needs no rich. Commands are listed by panel, in the order in which they are registered.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

HEADING = re.compile(r"^(Usage|[A-Z][a-z ]+):", re.MULTILINE)
VERBOSE = ("-v", "--verbose")

_Base: Any = TyperCommand if TYPE_CHECKING else object


class Page(_Base):
    """Help of one command: usage, text, arguments, options, examples.

    The epilog of a command holds its examples, one a line.
    """

    def get_help(self, ctx: Any) -> str:
        return with_bold_headings(super().get_help(ctx))

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


def with_bold_headings(text: str) -> str:
    return HEADING.sub(lambda match: typer.style(match[0], bold=True), text)
