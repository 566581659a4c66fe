"""The audit as files: audit.html with the verdict and the matrix, audit.json for programs.

One self-contained page in the report's style, without script. It computes nothing: `audit` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill.audit import ALL, CLEAN, Entry, Rate, matrix, summary, verdicts
from potstill.config import Study
from potstill.faults import FAULTS
from potstill.provenance import provenance
from potstill.store import to_json, write_text


def write_audit(base: Study, path: Path, faults: Sequence[str]) -> dict[str, Any]:
    """Write audit.html and audit.json into the audit's folder and return what the latter holds.

    Args:
        base: the audited study, without faults.
        path: the audit's folder.
        faults: those that are taken apart.
    """
    entries = matrix(base, path, faults)
    judged = verdicts(entries, faults)
    found = {**summary(base, entries, judged), "provenance": provenance()}
    write_text(path / "audit.json", to_json(found) + "\n")
    write_text(path / "audit.html", _page(base, entries, faults, found))
    return found


def _page(
    base: Study, entries: Sequence[Entry], faults: Sequence[str], found: dict[str, Any]
) -> str:
    from jinja2 import Environment, StrictUndefined

    folder = files("potstill.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "audit.html.j2").read_text(encoding="utf-8"))
    fields = {(e.pair, e.method, e.variant): e for e in entries}
    columns = [CLEAN, ALL, *(f"{kind}-{fault}" for fault in faults for kind in ("only", "without"))]
    return template.render(
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        study=base,
        verdict=found["verdict"],
        judged=found["faults"],
        known=FAULTS,
        columns=columns,
        pairs=list(base.models),
        methods=list(base.recipes),
        fields=fields,
        shade=shade,
        rate=lambda told: str(Rate(told["collapsed"], told["runs"])),
        provenance=found["provenance"],
    )


def shade(entry: Entry) -> str:
    """Background of a field: the redder, the more runs collapsed."""
    share = entry.collapsed / entry.runs if entry.runs else 0.0
    return f"background: rgb(213 94 0 / {0.55 * share:.2f})"
