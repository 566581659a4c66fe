"""What broke, for the page, the terminal and Markdown: findings of all runs, one line for the
seeds that share a cause.

It judges nothing: the findings are those that the runs recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.diagnostics.diagnosis import ended, failure, meaning
from potstill.report.data import Run, StudyData
from potstill.types import Finding


@dataclass(frozen=True)
class Grouped:
    """One kind of finding with one cause in one method's runs on one pair."""

    pair: str
    method: str
    runs: tuple[Run, ...]  # those that have it, by seed
    of: int  # runs of the method that were watched
    findings: tuple[Finding, ...]  # one a run, in the same order

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @property
    def what(self) -> str:
        return "collapsed" if self.first.kind == "collapse" else "deviates"

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.cell.seed) for run in self.runs)

    @property
    def onset(self) -> str:
        return _range([finding.step for finding in self.findings])

    @property
    def found(self) -> str:
        return _range([finding.found for finding in self.findings])

    @property
    def meaning(self) -> str:
        return meaning(self.first.cause)

    @property
    def ended(self) -> list[str]:
        """How runs were given up, each in words."""
        return [
            f"seed {run.cell.seed} {ended(run.record['ended'])}"
            for run in self.runs
            if self.first.kind == "collapse" and run.record.get("ended")
        ]

    @property
    def sentence(self) -> str:
        """The group as a line for people."""
        return (
            f"{self.what}: {self.pair} {self.method}, {len(self.runs)} of {self.of} runs, from "
            f"step {self.onset} on: {self.first.cause} ({self.meaning})"
        )


def grouped(data: StudyData) -> list[Grouped]:
    """All findings, collapses first, then in table order."""
    found: dict[tuple[str, str, str, str], list[tuple[Run, Finding]]] = {}
    watched: dict[tuple[str, str], int] = {}
    for cell, run in data.runs.items():
        if run.metrics:
            watched[cell.pair, cell.method] = watched.get((cell.pair, cell.method), 0) + 1
        for finding in findings(data, run):
            key = (cell.pair, cell.method, finding.kind, finding.cause)
            found.setdefault(key, []).append((run, finding))
    groups = []
    for (pair, method, _, _), members in found.items():
        members.sort(key=lambda member: member[0].cell.seed or 0)
        runs, mine = zip(*members, strict=True)
        count = max(watched.get((pair, method), 0), len(runs))
        groups.append(Grouped(pair, method, runs, count, mine))
    return sorted(groups, key=lambda group: group.first.kind != "collapse")


def findings(data: StudyData, run: Run) -> list[Finding]:
    """Of one run: recorded with its result, or so far; a run that blew up has one of its own."""
    recorded = run.record.get("findings")
    if recorded is None:
        recorded = data.folder.cell(run.cell).findings
    known = [Finding(**record) for record in recorded]
    broken = failure(run.cause, run.steps)
    return [broken, *known] if broken else known


def lines(groups: Sequence[Grouped]) -> list[str]:
    """One line a group, for a terminal."""
    return [line for group in groups for line in (group.sentence, *(f"  {e}" for e in group.ended))]


def watched(runs: Mapping[Any, Run]) -> int:
    """Runs that recorded signals."""
    return sum(
        any("signal/teacher_loss" in row for row in run.metrics[:1]) for run in runs.values()
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
