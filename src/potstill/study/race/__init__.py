"""A race: seeds go where they decide something, so that a comparison costs less than its grid.

`rules` are the settings, `decision` the decision at one look, `course` the looks of a pair from
its records, `folder` its files and the loop that runs it. A race's runs are ordinary runs of a
study, and its folder is a study's folder with `race.json` in addition. No executor is named here.
"""

from __future__ import annotations

from potstill.study.race.course import Course
from potstill.study.race.decision import Decision, Drop
from potstill.study.race.folder import (
    RaceFolder,
    courses_of,
    is_race,
    planned_runs,
    run_race,
    runs_in,
)
from potstill.study.race.rules import Rules, raced, screening

__all__ = [
    "Course",
    "Drop",
    "Decision",
    "RaceFolder",
    "Rules",
    "courses_of",
    "is_race",
    "planned_runs",
    "raced",
    "run_race",
    "runs_in",
    "screening",
]
