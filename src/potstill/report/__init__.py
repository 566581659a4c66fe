"""A study's folder as tables, figures and one page that works offline.

Reads files and writes next to them: results.json, table.csv, report.html and, on request,
figures/. It runs no model and imports neither the loop nor an engine; its libraries load when they
are needed. `results` makes the table, `verdict` and `summary` judge it, `tables`,
`charts`, `figures` and `pages` show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.report.results import Row
    from potstill.stats.metric import Metric

__all__ = ["Report", "as_markdown", "write_report"]


@dataclass(frozen=True)
class Report:
    """The files of a report, and its contents for programs and terminals."""

    study: str
    html: Path
    results: Path  # results.json
    csv: Path
    figures: tuple[Path, ...]
    rows: tuple[Row, ...]  # the results table
    table: tuple[dict[str, Any], ...]  # the same as plain columns, those of table.csv
    cells: int  # runs of the whole grid
    done: int
    failed: int
    missing: int
    faults: tuple[str, ...]  # deviations that were switched on
    findings: tuple[str, ...]  # what broke, a line each
    verdict: tuple[str, ...]  # which method to use, a line a pair
    power: tuple[str, ...]  # the smallest difference that can be shown, a line a pair
    remarks: tuple[str, ...]  # on similarity scores and on teachers that read hints
    routes: str  # accuracy by teacher as Markdown tables, where a pair has several
    similarity: str  # the similarity check as a Markdown table, where a pair has a context
    race: tuple[str, ...] = ()  # the course of a race, a line a look
    race_markdown: str = ""  # the same with its dropped methods as a table
    metrics: tuple[Metric, ...] = ()  # of the rows, the one that methods are compared by first
    forgotten: tuple[str, ...] = ()  # what training made worse elsewhere, a sentence each
    tables: str = ""  # of benchmarks and of tokens by who wrote them, in Markdown

    def to_json(self) -> dict[str, Any]:
        """The values that a program may want."""
        files = {key: str(getattr(self, key)) for key in ("html", "results", "csv")}
        counts = {key: getattr(self, key) for key in ("cells", "done", "failed", "missing")}
        words = ("faults", "findings", "remarks", "verdict", "race", "power", "forgotten", "table")
        lists = {key: list(getattr(self, key)) for key in words}
        return {
            "study": self.study,
            **lists,
            **counts,
            **files,
            "figures": [*map(str, self.figures)],
        }


def as_markdown(report: Report) -> str:
    """The results table to paste into a page."""
    from potstill.report.tables.methods import faults_line, to_markdown

    lines = "".join(
        f"\n- {line.strip()}"
        for line in (*report.power, *report.forgotten, *report.findings, *report.remarks)
    )
    more = "".join(
        text and f"\n{text}"
        for text in (report.routes, report.similarity, report.tables, report.race_markdown)
    )
    table = faults_line(report.faults) + to_markdown(report.rows, report.metrics) + more
    return table + (lines and f"{lines}\n")


def write_report(path: Path, *, figures: bool = False, within: float = 0.01) -> Report:
    """Write the report of a study into its folder, as far as the study has come.

    Args:
        path: the study's folder.
        figures: also write SVG, PDF and PNG files.
        within: a method whose mean is this close to the best one's, as a share or in nats per
            token, may be recommended for its cost.

    Raises:
        PotstillError: the folder holds no study, or cannot be written.
    """
    from potstill.digests import to_json
    from potstill.report import data as loading
    from potstill.report import findings, forgotten, race, sentences, similarity, summary
    from potstill.report.charts import charts, palette
    from potstill.report.figures import write_figures
    from potstill.report.pages import study as page
    from potstill.report.routes import routes
    from potstill.report.tables import column, methods, more
    from potstill.report.tables import race as race_tables
    from potstill.study.storage import write_text

    path = Path(path)
    html, results, csv = path / "report.html", path / "results.json", path / "table.csv"
    data = loading.load(path)
    looks, groups = palette.looks(data.known), findings.grouped(data)
    answers = summary.summarize(data, groups, within)
    sections = {pair: charts(data, pair, looks, groups) for pair in data.study.models}
    drawn = {pair: [c for made in sections[pair].values() for c in made] for pair in sections}
    table, verdict = methods.to_records(data), sentences.as_record(answers)
    raced = race.races(data)
    similar = similarity.similarities(data) if data.study.contexts else []
    beyond = {**race.as_record(raced), **forgotten.as_record(data)}
    write_text(results, to_json({**methods.to_results(data), "verdict": verdict, **beyond}) + "\n")
    write_text(csv, column.to_csv(table))
    write_text(html, page.render(data, looks, groups, answers, sections))
    return Report(
        data.study.name,
        html,
        results,
        csv,
        figures=write_figures(drawn, path / "figures") if figures else (),
        rows=tuple(data.rows),
        metrics=data.metrics,
        forgotten=tuple(f"{p}: {line}" for p in sections for line in forgotten.sentences(data, p)),
        tables="\n".join(filter(None, more.elsewhere(data))),
        table=tuple(table),
        cells=len(data.runs),
        **{status: data.counts[status] for status in ("done", "failed", "missing")},
        faults=data.study.faults,
        findings=tuple(findings.lines(groups)),
        verdict=tuple(f"{pair}: {record['head']}" for pair, record in verdict.items()),
        power=tuple(
            f"{pair}: {' '.join(sentences.ability(able))}" for pair, able in answers.power.items()
        ),
        remarks=tuple(sentences.remarks(answers.trust)),
        routes=more.routes_markdown(routes(data, pair) for pair in sections),
        similarity=more.similarity_markdown(similar),
        race=tuple(line for one in raced.values() for line in race.lines(one)),
        race_markdown=race_tables.markdown(list(raced.values())),
    )
