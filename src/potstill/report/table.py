"""The method table and the cells for programs (CSV, JSON) and people (Markdown, terminal).

Shares stay shares in CSV and JSON and become per cent where people read. What is not known is
empty or null, never 0. Nothing is computed here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from potstill.report.data import Run, StudyData
from potstill.report.numbers import per_cent
from potstill.report.published import column
from potstill.report.stats import Row

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "pair",
    "method",
    "seeds",
    "failed",
    "missing",
    *(f"accuracy{end}" for end in ("", "_low", "_high")),
    *(f"flexible{end}" for end in ("", "_low", "_high")),
    *(f"vs_baseline{end}" for end in ("", "_low", "_high", "_p")),
    *(f"vs_untrained{end}" for end in ("", "_low", "_high", "_p")),
    "gap_closed",
    "equal_tokens",
    "tokens",
    "seconds",
    "published",
)
WIDTH = 160  # characters, at most, of the terminal's table
SHOWN = (
    "method",
    "strict %",
    "95 %",
    "flexible %",
    "vs on_policy_gkd",
    "Holm p",
    "gap closed %",
    "equal tokens %",
    "tokens",
    "seeds",
)


def published(data: StudyData, row: Row) -> float | None:
    """The published study's accuracy of the same method on a pair of the same family."""
    found = column(row.pair, data.study.models[row.pair])
    return found.accuracy.get(row.method) if found else None


def flat(data: StudyData, row: Row) -> dict[str, Any]:
    """A row as the columns of the CSV; None where nothing is known."""
    out: dict[str, Any] = dict.fromkeys(COLUMNS)
    out |= {"pair": row.pair, "method": row.method, "missing": row.missing}
    out |= {"seeds": len(row.seeds), "failed": len(row.failed)}
    for name, value in (
        ("accuracy", row.accuracy),
        ("flexible", row.flexible),
        ("vs_baseline", row.against_baseline),
        ("vs_untrained", row.against_untrained),
    ):
        if value is not None:
            keys = {"mean": name, "low": f"{name}_low", "high": f"{name}_high", "p": f"{name}_p"}
            out |= {keys[key]: _known(number) for key, number in asdict(value).items()}
    for name in ("gap_closed", "equal_tokens", "tokens", "seconds"):
        out[name] = getattr(row, name)
    out["published"] = published(data, row)
    return out


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def to_csv(data: StudyData) -> str:
    """One line a method and pair, shares in [0, 1]."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in data.rows:
        writer.writerow({key: _plain(value) for key, value in flat(data, row).items()})
    return file.getvalue()


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def to_results(data: StudyData) -> dict[str, Any]:
    """What results.json holds: one record a cell of the grid, and the table."""
    return {
        "study": data.study.name,
        "faults": list(data.study.faults),
        "cells": [_cell(run) for run in data.runs.values()],
        "table": [{**asdict(row), "published": published(data, row)} for row in data.rows],
    }


def _cell(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "pair": run.cell.pair,
        "method": run.cell.method,
        "seed": run.cell.seed,
        "status": run.status,
        "cause": run.cause or None,
        "steps": run.steps,
        "accuracy": record.get("accuracy"),
        "flexible": record.get("flexible"),
        "findings": record.get("findings") or [],
        "ended": record.get("ended"),
        "tokens": record.get("tokens") or {},
        "seconds": record.get("seconds"),
        "activity": record.get("activity") or {},
    }


def shown(row: Row) -> list[str]:
    """A row as short text, for people: the columns of `SHOWN`."""
    accuracy, flexible, against = row.accuracy, row.flexible, row.against_baseline
    ranged = accuracy is not None and math.isfinite(accuracy.low)
    return [
        row.method,
        per_cent(accuracy.mean if accuracy else None),
        f"{per_cent(accuracy.low)} to {per_cent(accuracy.high)}" if accuracy and ranged else "",
        per_cent(flexible.mean if flexible else None),
        f"{100 * against.mean:+.1f}" if against else "",
        f"{against.p:.3f}" if against and math.isfinite(against.p) else "",
        per_cent(row.gap_closed),
        per_cent(row.equal_tokens),
        "" if row.tokens is None else f"{row.tokens:,.0f}",
        seeds_done(row),
    ]


def seeds_done(row: Row) -> str:
    """How many of a method's runs are there, in words.

    A reference row is one run without a seed.
    """
    bad, gone = len(row.failed), row.missing
    if row.method in ("untrained", "teacher"):
        return "failed" if bad else "missing" if gone else "done"
    parts = [f"{len(row.seeds)} of {len(row.seeds) + bad + gone}"]
    parts += [f"{bad} failed"] * bool(bad) + [f"{gone} missing"] * bool(gone)
    return ", ".join(parts)


def faults_line(faults: Sequence[str]) -> str:
    """The banner of a study with faults on, as a line of text; nothing where there are none."""
    return f"FAULTS ARE ON IN THIS STUDY: {', '.join(faults)}\n" if faults else ""


def to_markdown(rows: Sequence[Row]) -> str:
    """One table for all pairs, to paste: accuracy with interval, and the gain over `untrained`."""
    pairs = list(dict.fromkeys(row.pair for row in rows))
    heads = [f"{pair} | gain" for pair in pairs]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "--:|--:|" * len(pairs)]
    for method in dict.fromkeys(row.method for row in rows):
        mine = {row.pair: row for row in rows if row.method == method}
        cells = [part for pair in pairs for part in _markdown_cells(mine.get(pair))]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _markdown_cells(row: Row | None) -> list[str]:
    if row is None or row.accuracy is None:
        return ["", ""]
    ranged = f"{per_cent(row.accuracy.low)} to {per_cent(row.accuracy.high)}"
    gain = row.against_untrained
    told = ""
    if gain:
        told = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return [f"{per_cent(row.accuracy.mean)} ({ranged})", told]


def to_text(rows: Sequence[Row]) -> str:
    """The tables of all pairs for a terminal, without colour."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=WIDTH, color_system=None)
    for pair in dict.fromkeys(row.pair for row in rows):
        console.print(_rich([row for row in rows if row.pair == pair], pair))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _rich(rows: Sequence[Row], pair: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(pair), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in SHOWN:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, shown(row)), end_section=row.method == "teacher")
    return table
