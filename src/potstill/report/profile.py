"""Where a run's time went, from what every run records: mean seconds by activity of each method."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.report.data import StudyData
from potstill.types import ACTIVITIES


@dataclass(frozen=True)
class Part:
    """One activity of a method's runs."""

    activity: str
    seconds: float  # mean over runs
    share: float  # of the run


@dataclass(frozen=True)
class Profile:
    """One method's runs."""

    method: str
    seconds: float  # mean over runs
    parts: tuple[Part, ...]  # every activity of the pair, in the order of `ACTIVITIES`


def profiles(data: StudyData, pair: str) -> list[Profile]:
    """The profile of each method that has a finished run on the pair."""
    spent: dict[str, dict[str, float]] = {}
    for method in data.recipes:
        records = [run.record for run in data.of(pair, method) if run.status == "done"]
        if done := [found for record in records if (found := record.get("activity"))]:
            names = {name for activity in done for name in activity}
            spent[method] = {n: sum(a.get(n, 0.0) for a in done) / len(done) for n in names}
    names = {name for mine in spent.values() for name in mine}
    shown = [name for name in ACTIVITIES if name in names]
    shown += sorted(names - set(ACTIVITIES))  # an earlier version's
    found = []
    for method, mine in spent.items():
        total = sum(mine.values()) or 1.0
        parts = (Part(n, mine.get(n, 0.0), mine.get(n, 0.0) / total) for n in shown)
        found.append(Profile(method, sum(mine.values()), tuple(parts)))
    return found
