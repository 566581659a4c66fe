"""The folder of a race, and the loop that runs it.

    race.json    rules, and for each pair its looks: who was dropped, by which bound
    screen/      a study's folder with the screen's shorter runs, if the rules have a screen

Everything else is as in the folder of a study. `race.json` is written after every look; without
it only the rules are lost, since the looks follow from the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from potstill.errors import PotstillError
from potstill.study.budget import SCREEN
from potstill.study.files import DamagedFile, read_record, write_record
from potstill.study.race.course import Course, Records, course
from potstill.study.race.decision import Decision, Drop
from potstill.study.race.rules import Rules, screening
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, references_of, runs_of

FILE = "race.json"
AGAIN = "run the same `potstill race` command again: it is written from the runs"

Courses = dict[str, Course]  # by pair


class RaceFolder:
    """The files of a race in a study's folder.

    Args:
        folder: the study's.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.file = folder.path / FILE

    @property
    def screen(self) -> StudyFolder:
        """The folder of the screen; it shares the teacher's completions."""
        return StudyFolder(self.folder.path / SCREEN, self.folder.cache)

    @property
    def rules(self) -> Rules:
        """The rules in race.json.

        Raises:
            PotstillError: the file is damaged, or there is none.
        """
        return Rules.read(self._read()["rules"], str(self.file))

    def check(self, rules: Rules) -> None:
        """Raise if the folder holds a race with other rules, or a study that is not a race."""
        if "rules" in self._table():
            stored, given = self.rules.model_dump(), rules.model_dump()
            changes = [f"{k}: {stored[k]} -> {given[k]}" for k in given if stored[k] != given[k]]
            if changes:
                raise PotstillError(
                    f'"{self.folder.path}" holds a race with other rules ({"; ".join(changes)})',
                    "use another --out: rules that change after a look void its error rate",
                )
        elif not self.file.exists() and (self.folder.path / "cells").exists():
            raise PotstillError(
                f'"{self.folder.path}" holds a study that is not a race', "use another --out"
            )

    def courses(self, study: Study, rules: Rules | None = None) -> Courses:
        """The race on each pair, as far as its records go."""
        rules = rules or self.rules
        records = self.folder.results(runs_of(study), study)
        screened: Records = {}
        if rules.screen:
            screening_study = screening(study)
            screened = self.screen.results(runs_of(screening_study), screening_study)
        stored = self._stored()
        return {
            pair: course(
                pair,
                list(study.methods),
                study.seeds,
                rules,
                records,
                screened,
                stored,
                references_of(study, pair),
            )
            for pair in study.models
        }

    def write(self, study: Study, rules: Rules, courses: Mapping[str, Course]) -> None:
        """Write race.json atomically."""
        table = {
            "rules": rules.model_dump(mode="json"),
            "deciding": list(rules.deciding(study.seeds)),
            "fresh": list(rules.fresh_of(study.seeds)),
            "pairs": {pair: to_table(course) for pair, course in courses.items()},
        }
        write_record(self.file, table)

    def _read(self) -> dict[str, Any]:
        table = self._table()
        if not isinstance(table.get("rules"), dict):
            raise PotstillError(f'"{self.file}" is missing or damaged', AGAIN)
        return table

    def _table(self) -> dict[str, Any]:
        """The table in race.json; empty where it is missing or damaged."""
        try:
            table, _ = read_record(self.file, AGAIN) or ({}, True)
        except DamagedFile:
            return {}
        return table

    def _stored(self) -> dict[str, Decision]:
        """The looks in race.json by digest; none where the file is missing or damaged."""
        try:
            pairs = self._table().get("pairs", {}).values()
            looks = [look for pair in pairs for look in [pair["screen"], *pair["looks"]] if look]
            return {look["digest"]: _from_table(look) for look in looks}
        except (KeyError, TypeError, AttributeError):  # of another shape
            return {}


def to_table(course: Course) -> dict[str, Any]:
    """A course as JSON values."""
    digests = list(course.digests)
    screen = {**asdict(course.screen), "digest": digests.pop(0)} if course.screen else None
    return {
        "ended": course.ended,
        "finalists": list(course.finalists),
        "screen": screen,
        "looks": [
            {**asdict(look), "digest": digest}
            for look, digest in zip(course.looks, digests, strict=True)
        ],
    }


def _from_table(table: Mapping[str, Any]) -> Decision:
    values = {key: value for key, value in table.items() if key != "digest"}
    dropped = {method: Drop(**drop) for method, drop in table["dropped"].items()}
    return Decision(**{**values, "dropped": dropped})


def is_race(folder: StudyFolder) -> bool:
    """True if a study's folder holds a race."""
    return (folder.path / FILE).exists()


def courses_of(folder: StudyFolder, study: Study) -> Courses:
    """The race in a study's folder by pair; empty if it holds none."""
    return RaceFolder(folder).courses(study) if is_race(folder) else {}


def planned_runs(folder: StudyFolder, study: Study) -> list[RunId]:
    """The runs of a study's folder: the whole grid, or those that its race has asked for."""
    courses = courses_of(folder, study)
    return runs_in(courses.values(), study) if courses else runs_of(study)


def runs_in(courses: Iterable[Course], study: Study) -> list[RunId]:
    """The planned runs of some courses, in execution order."""
    planned = {run for course in courses for run in course.planned}
    return [run for run in runs_of(study) if run in planned]


def run_race(
    race: RaceFolder,
    study: Study,
    rules: Rules,
    execute: Callable[[Sequence[RunId]], object],
    on_looks: Callable[[Courses], None],
) -> Courses:
    """Run a race to its end: decide, run what the next look needs, and so on.

    Args:
        race: its folder, opened for the study.
        study: the settings, with every seed that the race may use.
        rules: of the race.
        execute: runs those of the given runs that have not ended.
        on_looks: called with the courses after each decision, and before the first.

    Returns:
        The courses, each with its finalists' runs.
    """
    while True:
        courses = race.courses(study, rules)
        race.write(study, rules, courses)
        on_looks(courses)
        planned = runs_in(courses.values(), study)
        if len(race.folder.results(planned)) == len(planned):
            return courses
        execute(planned)
