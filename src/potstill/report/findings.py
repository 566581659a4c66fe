"""Findings of all runs, grouped: one group for the seeds of a method that share a cause.

It judges nothing: the findings are those that the runs recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.diagnostics.diagnosis import ended, failure, meaning
from potstill.report.data import RunData, StudyData
from potstill.types import Finding


@dataclass(frozen=True)
class FindingGroup:
    """One kind of finding with one cause in one method's runs on one pair."""

    pair: str
    method: str
    runs: tuple[RunData, ...]  # those that have it, by seed
    of: int  # runs of the method that were watched
    findings: tuple[Finding, ...]  # one a run, in the same order

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @property
    def collapse(self) -> bool:
        """True for a collapse, False for a deviation from the recipe."""
        return self.first.kind == "collapse"

    @property
    def what(self) -> str:
        return "collapsed" if self.collapse else "deviates"

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.cell.seed) for run in self.runs)

    @property
    def onset(self) -> str:
        """Steps at which it began."""
        return _range([finding.step for finding in self.findings])

    @property
    def seen(self) -> str:
        """Steps at which the monitor reported it."""
        return _range([finding.found for finding in self.findings])

    @property
    def meaning(self) -> str:
        return meaning(self.first.cause)

    @property
    def ended(self) -> list[str]:
        """How runs were stopped early."""
        return [
            f"seed {run.cell.seed} {ended(run.record['ended'])}"
            for run in self.runs
            if self.collapse and run.record.get("ended")
        ]

    @property
    def extent(self) -> str:
        """How many runs, since which step, and the cause."""
        return (
            f"{len(self.runs)} of {self.of} runs, from step {self.onset} on: {self.first.cause} "
            f"({self.meaning})"
        )

    @property
    def sentence(self) -> str:
        """The group as a line for people."""
        return f"{self.what}: {self.pair} {self.method}, {self.extent}"


def grouped(data: StudyData) -> list[FindingGroup]:
    """All findings, collapses first, then in table order."""
    members: dict[tuple[str, str, str, str], list[tuple[RunData, Finding]]] = {}
    for cell, run in data.runs.items():
        for finding in findings(data, run):
            key = (cell.pair, cell.method, finding.kind, finding.cause)
            members.setdefault(key, []).append((run, finding))
    recorded = Counter((c.pair, c.method) for c, run in data.runs.items() if run.metrics)
    groups = []
    for (pair, method, _, _), group in members.items():
        group.sort(key=lambda member: member[0].cell.seed or 0)
        runs, found = zip(*group, strict=True)
        total = max(recorded[pair, method], len(runs))
        groups.append(FindingGroup(pair, method, runs, total, found))
    return sorted(groups, key=lambda group: not group.collapse)


def findings(data: StudyData, run: RunData) -> list[Finding]:
    """Findings of one run so far; a run whose loss became non-finite has one of its own."""
    recorded = run.record.get("findings")
    if recorded is None:
        recorded = data.folder.cell(run.cell).findings
    known = [Finding(**record) for record in recorded]
    broken = failure(run.cause, run.steps)
    return [broken, *known] if broken else known


def lines(groups: Sequence[FindingGroup]) -> list[str]:
    """One line a group, for a terminal."""
    return [line for group in groups for line in (group.sentence, *(f"  {e}" for e in group.ended))]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
