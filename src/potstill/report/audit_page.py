"""The audit as files: audit.html with the verdict and the matrix, audit.json for programs.

One self-contained page in the report's style, without script. It computes nothing: `audit` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill.diagnostics.faults import FAULTS
from potstill.report.audit import ALL, CLEAN, Entry, Rate, Verdict, matrix, summary, verdicts
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage import to_json, write_text


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
    columns = [CLEAN, ALL, *_variants(faults)]
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


def to_markdown(base: Study, entries: Sequence[Entry], judged: Sequence[Verdict]) -> str:
    """The matrix to paste: accuracy in per cent (collapsed runs of all).

    First a row a method, over all pairs, with the faults that suffice or are necessary; then a
    table a pair with a row a variant, where a field that another one stands for is left empty.
    """
    strong = [v.fault for v in judged if v.suffices or v.necessary]
    order = [*strong, *(v.fault for v in judged if v.fault not in strong)]
    fields = {(e.pair, e.method, e.variant): e for e in entries}
    methods, pairs = list(base.recipes), list(base.models)

    def told(places: Sequence[str], method: str, variant: str) -> str:
        found = [fields.get((pair, method, variant)) for pair in places]
        return _field([e for e in found if e and e.ran_as == variant])

    few, every = ([CLEAN, ALL, *_variants(faults)] for faults in (strong, order))
    rows = [[f"`{m}`", *(told(pairs, m, variant) for variant in few)] for m in methods]
    tables = [_table([", ".join(pairs), *few], rows)]
    for pair in pairs:
        rows = [[f"`{v}`", *(told([pair], method, v) for method in methods)] for v in every]
        tables.append(_table([pair, *methods], rows))
    return "\n".join(tables)


def _variants(faults: Sequence[str]) -> list[str]:
    return [f"{kind}-{fault}" for fault in faults for kind in ("only", "without")]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _field(entries: Sequence[Entry]) -> str:
    """Entries of one method and variant, pooled over pairs."""
    runs, known = sum(e.runs for e in entries), [e.accuracy for e in entries if e.accuracy]
    if not entries:
        return ""
    if not runs:
        return "missing"
    mean = f"{100 * sum(a.mean for a in known) / len(known):.1f} " if known else ""
    return f"{mean}({sum(e.collapsed for e in entries)}/{runs})"
