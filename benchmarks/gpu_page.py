"""The page of `benchmarks.gpu`: results of sections as Markdown. Needs nothing but Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED, RUNNING = "passed", "FAILED", "skipped", "running"
LONGEST = 600  # characters of a reason; the log has the rest


@dataclass
class Result:
    """A section's result, as far as it has come.

    Args:
        name: short, for `--only`.
        title: the section's heading.
        status: one of the constants above; empty: not started.
        seconds: used so far.
        limit: seconds after which it is ended.
        blocks: paragraphs and tables in their order.
        failed: (what, why) of everything that went wrong.
        skipped: (what, why) of everything that was not run.
    """

    name: str
    title: str
    status: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    blocks: list[dict[str, Any]] = field(default_factory=list)
    failed: list[list[str]] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Take over what the section's process has written; it may have written nothing."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        self.blocks, self.failed, self.skipped = (
            list(found.get(key, ())) for key in ("blocks", "failed", "skipped")
        )


@dataclass(frozen=True)
class Heading:
    """The first lines of a page.

    Args:
        card: name of the GPU, or of what the sections ran on.
        facts: date, commit and command.
        minutes: used, and the limit.
        sizes: tiny sizes or those of a card.
    """

    card: str
    facts: Mapping[str, str]
    minutes: tuple[float, float]
    tiny: bool


def page(heading: Heading, results: Sequence[Result]) -> str:
    """The whole page."""
    lines = [f"# potstill on {heading.card}", ""]
    lines += [f"- {key}: {value}" for key, value in heading.facts.items()]
    used, limit = heading.minutes
    lines += [f"- time: {used:.1f} of {limit:g} minutes", "", counted(results), ""]
    if heading.tiny:
        lines += [
            "The sizes are tiny: this run shows that the command works, and nothing about speed.",
            "",
        ]
    lines += table(
        ["", "section", "result", "seconds", "limit"],
        [
            [str(i), r.title, r.status or "not run", f"{r.seconds:.0f}", f"{r.limit:.0f}"]
            for i, r in enumerate(results, 1)
        ],
    )
    for i, result in enumerate(results, 1):
        lines += ["", f"## {i}. {result.title}", "", *section(result)]
    return "\n".join(lines).rstrip() + "\n"


def counted(results: Sequence[Result]) -> str:
    """How many sections passed, failed and were skipped, in words."""
    kinds = [(PASSED, "passed"), (FAILED, "failed"), (SKIPPED, "skipped"), (RUNNING, "running")]
    parts = [f"{sum(r.status == kind for r in results)} {word}" for kind, word in kinds]
    waiting = sum(not r.status for r in results)
    parts += [f"{waiting} not run"] if waiting else []
    shown = [part for part in parts if not part.startswith("0 ")]
    return f"{len(results)} sections: {', '.join(shown)}."


def section(result: Result) -> list[str]:
    """The lines of one section below its heading."""
    status = result.status or "not run"
    lines = [f"{status[0].upper()}{status[1:]}, {result.seconds:.0f} s."]
    for block in result.blocks:
        if block["kind"] == "text":
            lines += ["", block["text"]]
        elif block["rows"]:
            lines += ["", *([block["title"], ""] if block["title"] else [])]
            lines += table(block["heads"], block["rows"])
    for word, reasons in (("Failed", result.failed), ("Skipped", result.skipped)):
        lines += ["", f"{word}:", ""] if reasons else []
        lines += [f"- {what}: {shortened(why)}" for what, why in reasons]
    return lines


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; columns of figures are set to the right."""
    texts = [[cell_text(value) for value in row] for row in rows]
    columns = list(zip(*texts, strict=True)) if texts else [()] * len(heads)
    marks = ["--:" if column and all(map(numeric, column)) else "---" for column in columns]
    lines = [heads, *texts]
    rendered = [f"| {' | '.join(line)} |" for line in lines]
    return [rendered[0], f"|{'|'.join(marks)}|", *rendered[1:]]


def cell_text(value: Any) -> str:
    """A value in a table: no line ends, no bars, figures with three digits.

    >>> [cell_text(v) for v in (0.01234567, 1234567.0, 3, "a|b", None, True)]
    ['0.0123', '1,234,567', '3', 'a/b', '', 'yes']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return rounded(value)
    return " ".join(str(value).replace("|", "/").split())


def rounded(value: float) -> str:
    """A figure with three digits.

    >>> rounded(0.5), rounded(123.4), rounded(2e-6), rounded(0.0)
    ('0.5', '123', '2e-06', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def numeric(text: str) -> bool:
    """Whether a text in a table is a figure, perhaps with a range or a unit after it."""
    return text[:1].isdigit() or text[:1] in ("-", "") or text[:1] == "."


def shortened(text: str) -> str:
    """A reason on one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ... (see log.txt)"
