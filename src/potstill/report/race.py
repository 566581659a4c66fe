"""The race of a study's folder as values and sentences: who was dropped, at which look, by which
bound, and its cost next to that of the full grid.

The other tables of a report have the finalists on their fresh seeds, see `data`. A study that is
not a race has none of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from potstill.report.data import StudyData
from potstill.report.formatting import duration, finite, listed, per_cent, plural, signed
from potstill.study.race import Course, Decision, Drop, RaceFolder, Rules, screening
from potstill.study.race.folder import to_table
from potstill.study.race.rules import SCREEN
from potstill.study.storage import runs_of

ENDS = {
    "": "The race has not ended",
    "none left": "The race ended: no method is left",
    "one left": "The race ended: one method is left",
    "within": "The race ended: all survivors are within the limit of each other",
    "last look": "The race ended with its last look",
}


@dataclass(frozen=True)
class DropRow:
    """A method that was dropped, for a table."""

    method: str
    look: str  # "1 seed", "screen"
    drop: Drop
    level: float


@dataclass(frozen=True)
class RaceCost:
    """The computing of a race's training runs, and an estimate for the grid that it replaces.

    The grid has every method with the seeds of the last look; a run of it costs the mean of the
    method's runs in the race.
    """

    runs: int
    fresh: int  # of these, the finalists' fresh runs
    seconds: float
    grid_runs: int
    grid_seconds: float | None  # None where a method has no run to go by

    @property
    def share(self) -> float | None:
        """Seconds as a share of the grid's."""
        return self.seconds / self.grid_seconds if self.grid_seconds else None


@dataclass(frozen=True)
class RaceSection:
    """The race on one pair."""

    rules: Rules
    course: Course
    cost: RaceCost
    head: str
    lines: tuple[str, ...]

    @property
    def dropped(self) -> list[DropRow]:
        """Dropped methods in the order of the looks."""
        return [
            DropRow(method, name, drop, look.level)
            for name, look in named_looks(self.course)
            for method, drop in look.dropped.items()
        ]


def named_looks(course: Course) -> list[tuple[str, Decision]]:
    """The screen, if there is one, and the looks, each with its name."""
    screen = [("screen", course.screen)] if course.screen else []
    return [*screen, *((plural(look.seeds, "seed"), look) for look in course.looks)]


def races(data: StudyData) -> dict[str, RaceSection]:
    """The race on each pair; empty for a study that is not a race."""
    return {pair: _section(data, course) for pair, course in data.race.items()}


def _section(data: StudyData, course: Course) -> RaceSection:
    folder = RaceFolder(data.folder)
    rules = folder.rules
    cost = _cost(data, rules, course, folder)
    head = f"{ENDS[course.ended]}{_place(course)}."
    return RaceSection(rules, course, cost, head, (*_outcome(course, rules), *_paid(cost, rules)))


def _cost(data: StudyData, rules: Rules, course: Course, folder: RaceFolder) -> RaceCost:
    """Seconds of the training runs, the screen's included; baselines are needed either way."""
    seconds: dict[str, list[float]] = {method: [] for method in data.recipes}
    for run in course.planned:
        record = data.runs[run].record
        if run.method in seconds and record.get("seconds") is not None:
            seconds[run.method].append(record["seconds"])
    total, runs = sum(map(sum, seconds.values())), sum(map(len, seconds.values()))
    if rules.screen:
        study = screening(data.study)
        for run, record in folder.screen.results(runs_of(study)).items():
            known = run.method in seconds and record.get("seconds") is not None
            if known and run.pair == course.pair:
                total, runs = total + record["seconds"], runs + 1
                seconds[run.method] = seconds[run.method] or [SCREEN * record["seconds"]]
    fresh = sum(run.seed in course.fresh for run in course.planned if data.runs[run].record)
    seeds = rules.looks[-1]
    means = [sum(values) / len(values) for values in seconds.values() if values]
    grid = seeds * sum(means) if len(means) == len(seconds) else None
    return RaceCost(runs, fresh, total, len(seconds) * seeds, grid)


def _place(course: Course) -> str:
    if not course.looks or course.ended == "none left":
        return ""
    return f" after {plural(course.looks[-1].seeds, 'seed')}"


def _outcome(course: Course, rules: Rules) -> Iterator[str]:
    """Who is left, and how far apart."""
    if not course.looks:
        return
    last = course.looks[-1]
    if course.racing:
        name = "Finalists" if course.ended else "Still racing"
        yield f"{name}: {listed(course.racing)}."
    if finite(last.apart) and len(course.racing) > 1:
        within = f"{rules.within:g} {'point' if rules.within == 1 else 'points'}"
        yield (
            f"The survivors differ by at most {per_cent(last.apart)} points (upper bound; the "
            f"race ends early within {within})."
        )
    if course.finalists and course.fresh:
        yield (
            f"The results are those of the finalists on {plural(len(course.fresh), 'fresh seed')} "
            f"({', '.join(map(str, course.fresh))}), which decided nothing."
        )
    elif course.finalists:
        yield "The race had no fresh seeds: the results are from seeds on which it decided."


def _paid(cost: RaceCost, rules: Rules) -> Iterator[str]:
    """The cost of the race, and that of the full grid."""
    fresh = f", {cost.fresh} of them on fresh seeds" if cost.fresh else ""
    line = f"Cost: {plural(cost.runs, 'training run')}{fresh}, {duration(cost.seconds)}."
    if cost.share is not None:
        line += (
            f" The full grid with {plural(rules.looks[-1], 'seed')} has {cost.grid_runs} runs, "
            f"about {duration(cost.grid_seconds)}: the race took {100 * cost.share:.0f} % of it."
        )
    yield line


def look_line(name: str, look: Decision) -> str:
    """A decision in one line.

    >>> drop = Drop("collapsed", 0.02, "untrained", -0.43)
    >>> look = Decision(1, 0.008, {"a": 0.6, "b": 0.02}, "a", {"b": drop}, None, "one left")
    >>> look_line("1 seed", look)
    'look at 1 seed: dropped b (collapsed: 2.0 %, −43.0 points to untrained); left: a'
    """
    dropped = [f"{method} ({reason(drop)})" for method, drop in look.dropped.items()]
    name = name if name == "screen" else f"look at {name}"
    left = ", ".join(look.survivors) or "none"
    return f"{name}: dropped {', '.join(dropped) or 'none'}; left: {left}"


def reason(drop: Drop) -> str:
    """Why a method was dropped, with the bound that decided it."""
    if drop.reason == "failed":
        return f"failed, {drop.cause}"
    text = f"{drop.reason}: {per_cent(drop.mean)} %, {signed(drop.difference)} points"
    text += f" to {drop.against}"
    return text if drop.upper is None else f"{text}, at most {signed(drop.upper)}"


def lines(section: RaceSection) -> list[str]:
    """The race for a terminal: a line a look, then its outcome and its cost."""
    pair = section.course.pair
    looks = [f"{pair}, {look_line(*look)}" for look in named_looks(section.course)]
    return looks + [f"{pair}: {line}" for line in (section.head, *section.lines)]


def as_record(sections: Mapping[str, RaceSection]) -> dict[str, Any]:
    """The races for results.json, by pair under `race`; empty for a study that is not a race."""
    return {"race": {pair: _record(one) for pair, one in sections.items()}} if sections else {}


def _record(section: RaceSection) -> dict[str, Any]:
    return {
        "rules": section.rules.model_dump(mode="json"),
        **to_table(section.course),
        "cost": asdict(section.cost) | {"share": section.cost.share},
        "fresh": list(section.course.fresh),
        "head": section.head,
        "lines": list(section.lines),
    }
