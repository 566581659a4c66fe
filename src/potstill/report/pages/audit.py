"""The audit as files: audit.html with the verdict and the matrix, audit.json for programs.

One self-contained page in the report's style, without script. It computes nothing: `audit` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.diagnostics.faults import FAULTS
from potstill.digests import to_json
from potstill.report.audit import (
    ALL,
    CLEAN,
    FaultEffect,
    Rate,
    VariantResult,
    effects,
    matrix,
    summary,
)
from potstill.report.formatting import per_cent
from potstill.report.pages import bundle
from potstill.report.tables.column import markdown
from potstill.study.provenance import provenance
from potstill.study.schema import Study
from potstill.study.storage import write_text


def write_audit(base: Study, path: Path, faults: Sequence[str]) -> dict[str, Any]:
    """Write audit.html and audit.json into the audit's folder; returns the contents of the latter.

    Args:
        base: the audited study, without faults.
        path: the audit's folder.
        faults: those that were tried alone and left out.
    """
    entries = matrix(base, path, faults)
    record = {**summary(base, entries, effects(entries, faults)), "provenance": provenance()}
    write_text(path / "audit.json", to_json(record) + "\n")
    page = bundle.render(
        "audit.html.j2",
        scripts=False,
        study=base,
        audit=record,
        known=FAULTS,
        columns=[CLEAN, ALL, *_variants(faults)],
        fields={(e.pair, e.method, e.variant): e for e in entries},
        shade=shade,
        rate=lambda counted: str(Rate(counted["collapsed"], counted["runs"])),
    )
    write_text(path / "audit.html", page)
    return record


def shade(entry: VariantResult) -> str:
    """Background of a field: the redder, the more runs collapsed."""
    share = entry.collapsed / entry.runs if entry.runs else 0.0
    return f"background: rgb(213 94 0 / {0.55 * share:.2f})"


def to_markdown(
    base: Study, entries: Sequence[VariantResult], judged: Sequence[FaultEffect]
) -> str:
    """The matrix to paste: accuracy in per cent (collapsed runs of all).

    First a row a method, over all pairs, with the faults that suffice or are necessary; then a
    table a pair with a row a variant, where a field that another variant was run for is empty.
    """
    strong = [e.fault for e in judged if e.suffices or e.necessary]
    order = [*strong, *(e.fault for e in judged if e.fault not in strong)]
    fields = {(e.pair, e.method, e.variant): e for e in entries}
    methods, pairs = list(base.recipes), list(base.models)

    def pooled(places: Sequence[str], method: str, variant: str) -> str:
        known = [fields.get((pair, method, variant)) for pair in places]
        return _field([e for e in known if e and e.ran_as == variant])

    few, every = ([CLEAN, ALL, *_variants(faults)] for faults in (strong, order))
    rows = [[f"`{m}`", *(pooled(pairs, m, variant) for variant in few)] for m in methods]
    tables = [markdown([", ".join(pairs), *few], rows)]
    for pair in pairs:
        rows = [[f"`{v}`", *(pooled([pair], method, v) for method in methods)] for v in every]
        tables.append(markdown([pair, *methods], rows))
    return "\n".join(tables)


def _variants(faults: Sequence[str]) -> list[str]:
    return [f"{kind}-{fault}" for fault in faults for kind in ("only", "without")]


def _field(entries: Sequence[VariantResult]) -> str:
    """Results of one method and variant, pooled over pairs."""
    runs, known = sum(e.runs for e in entries), [e.accuracy for e in entries if e.accuracy]
    if not entries:
        return ""
    if not runs:
        return "missing"
    mean = f"{per_cent(sum(a.mean for a in known) / len(known))} " if known else ""
    return f"{mean}({sum(e.collapsed for e in entries)}/{runs})"
