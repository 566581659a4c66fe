"""Where a run's time went: mean seconds by activity of each method, as every run records them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill.report.data import StudyData
from potstill.types import ACTIVITIES


@dataclass(frozen=True)
class Profile:
    """One method's runs on a pair, means over runs."""

    method: str
    seconds: float
    activities: Mapping[str, float]  # seconds of every activity of the pair, in a fixed order

    def share(self, activity: str) -> float:
        """The activity's share of the run."""
        return self.activities[activity] / (self.seconds or 1.0)


def profiles(data: StudyData, pair: str) -> list[Profile]:
    """The profile of each method that has a finished run on the pair."""
    spent: dict[str, dict[str, float]] = {}
    for method in data.recipes:
        records = data.done(pair, method).values()
        if done := [activity for record in records if (activity := record.get("activity"))]:
            names = {name for activity in done for name in activity}
            spent[method] = {n: sum(a.get(n, 0.0) for a in done) / len(done) for n in names}
    names = {name for means in spent.values() for name in means}
    shown = [name for name in ACTIVITIES if name in names]
    shown += sorted(names - set(ACTIVITIES))  # an earlier version's
    return [
        Profile(method, sum(means.values()), {name: means.get(name, 0.0) for name in shown})
        for method, means in spent.items()
    ]
