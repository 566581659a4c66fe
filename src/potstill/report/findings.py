"""Findings of all runs, grouped: one group for the seeds of a method that share a cause.

It judges nothing: the findings are those that the runs recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.diagnostics.diagnosis import VERBS, ended, failure, meaning
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
    def verb(self) -> str:
        return VERBS[self.first.kind]

    @property
    def meaning(self) -> str:
        return meaning(self.first.cause)

    @property
    def ended(self) -> list[str]:
        """Lines about runs that were stopped early."""
        stopped = [run for run in self.runs if self.collapse and run.record.get("ended")]
        return [f"seed {run.cell.seed} {ended(run.record['ended'])}" for run in stopped]

    def steps(self, name: str) -> str:
        """The steps of that name: `step`, where it began, or `found`, where it was reported."""
        values = [getattr(finding, name) for finding in self.findings]
        low, high = min(values), max(values)
        return str(low) if low == high else f"{low} to {high}"

    @property
    def extent(self) -> str:
        """How many runs, since which step, and the cause."""
        runs, since = f"{len(self.runs)} of {self.of} runs", self.steps("step")
        return f"{runs}, from step {since} on: {self.first.cause} ({self.meaning})"

    @property
    def sentence(self) -> str:
        """The group as a line for people."""
        return f"{self.verb}: {self.pair} {self.method}, {self.extent}"


def grouped(data: StudyData) -> list[FindingGroup]:
    """Collapses first, then deviations in table order."""
    groups = [group for group in _groups(data) if group.first.kind != "note"]
    return sorted(groups, key=lambda group: not group.collapse)


def notes(data: StudyData) -> list[FindingGroup]:
    """Notes on sound runs, in table order."""
    return [group for group in _groups(data) if group.first.kind == "note"]


def _groups(data: StudyData) -> list[FindingGroup]:
    members: dict[tuple[str, str, str, str], list[tuple[RunData, Finding]]] = {}
    for cell, run in data.runs.items():
        for finding in findings(data, run):
            key = (cell.pair, cell.method, finding.kind, finding.cause)
            members.setdefault(key, []).append((run, finding))
    recorded = Counter((c.pair, c.method) for c, run in data.runs.items() if run.metrics)
    groups = []
    for (pair, method, _, _), group in members.items():
        group.sort(key=lambda member: member[0].cell.seed or 0)
        runs, group_findings = zip(*group, strict=True)
        total = max(recorded[pair, method], len(runs))
        groups.append(FindingGroup(pair, method, runs, total, group_findings))
    return groups


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
