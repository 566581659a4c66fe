"""A study's folder as tables, figures and one page that works offline.

Reads what is on disk and writes beside it: results.json, table.csv, report.html and, where asked
for, figures/. It runs no model and imports neither the loop nor an engine; plotly, matplotlib and
scipy load when needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.report.stats import Row

__all__ = ["Report", "as_markdown", "as_text", "write_report"]


@dataclass(frozen=True)
class Report:
    """What a report wrote, and what it is about."""

    study: str
    html: Path
    results: Path  # results.json
    csv: Path
    figures: tuple[Path, ...]
    rows: tuple[Row, ...]  # the method table
    table: tuple[dict[str, Any], ...]  # the same as plain columns, those of table.csv
    cells: int  # of the whole grid
    done: int
    failed: int
    missing: int
    faults: tuple[str, ...] = ()  # deviations that were switched on
    findings: tuple[str, ...] = ()  # what broke, a line each
    verdict: tuple[str, ...] = ()  # which method to use, a line a pair
    routes: str = ""  # accuracy by teacher as Markdown tables, where a pair has several
    likeness: str = ""  # text against capability as a Markdown table, where a pair has a context
    remarks: tuple[str, ...] = ()  # on similarity scores and on teachers that read hints

    def to_json(self) -> dict[str, Any]:
        """What a program may want to know."""
        files = {key: str(getattr(self, key)) for key in ("html", "results", "csv")}
        counts = {key: getattr(self, key) for key in ("cells", "done", "failed", "missing")}
        drawn = [str(path) for path in self.figures]
        told = {"study": self.study, "faults": list(self.faults)}
        told |= {"findings": list(self.findings), "remarks": list(self.remarks)}
        told |= {"verdict": list(self.verdict)}
        return {**told, **counts, **files, "figures": drawn, "table": list(self.table)}


def as_markdown(report: Report) -> str:
    """The method table to paste into a page."""
    from potstill.report.table import faults_line, to_markdown

    told = (*report.findings, *report.remarks)
    found = "".join(f"\n- {line.strip()}" for line in told)
    more = (report.routes, report.likeness)
    tables = to_markdown(report.rows) + "".join(text and f"\n{text}" for text in more)
    return faults_line(report.faults) + tables + (found and f"{found}\n")


def as_text(report: Report) -> str:
    """The method tables and the count of cells, for a terminal."""
    from potstill.report.table import faults_line, to_text

    counts = f"{report.done} of {report.cells} cells done"
    counts += f", {report.failed} failed" if report.failed else ""
    counts += f", {report.missing} missing" if report.missing else ""
    found = "".join(f"{line}\n" for line in (*report.findings, *report.remarks))
    found += "".join(f"{line}\n" for line in report.verdict)
    tables = f"{faults_line(report.faults)}{to_text(report.rows)}\n{found}"
    return f"{tables}{report.study}: {counts}"


def write_report(path: Path, *, figures: bool = False) -> Report:
    """Write the report of a study into its folder; a study in work is reported as far as it is.

    Args:
        path: the study's folder.
        figures: also write SVG, PDF and PNG files.

    Raises:
        PotstillError: the folder holds no study, or the disk refuses.
    """
    from potstill.report import data, findings, page, palette, routes, summary, table, trap
    from potstill.study.storage import to_json, write_text

    path = Path(path)
    found = data.load(path)
    looks = palette.looks(found.known, found.recipes)
    html, results, csv = path / "report.html", path / "results.json", path / "table.csv"
    groups = findings.grouped(found)
    chosen = summary.choices(found, groups)
    told = {**table.to_results(found), "verdict": summary.as_record(chosen)}
    write_text(results, to_json(told) + "\n")
    write_text(csv, table.to_csv(found))
    write_text(html, page.render(found, looks, groups, chosen))
    drawn: tuple[Path, ...] = ()
    if figures:
        from potstill.report.figures import write_figures

        drawn = write_figures(found, looks, path / "figures")
    counts, likeness = found.counts, trap.measured(found)
    return Report(
        study=found.study.name,
        html=html,
        results=results,
        csv=csv,
        figures=drawn,
        rows=tuple(found.rows),
        table=tuple(table.flat(found, row) for row in found.rows),
        cells=len(found.runs),
        done=counts["done"],
        failed=counts["failed"],
        missing=counts["missing"],
        faults=found.study.faults,
        findings=tuple(findings.lines(groups)),
        verdict=tuple(summary.as_lines(chosen)),
        routes=routes.to_markdown(routes.routes(found, pair) for pair in found.study.models),
        likeness=trap.to_markdown(likeness) if found.study.contexts else "",
        remarks=(*trap.lines(likeness), *trap.ceilings(found)),
    )
