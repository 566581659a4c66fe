"""`potstill race`: a study whose seeds go where they decide something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.app import RUN, command
from potstill.cli.options import (
    AsJson,
    Figures,
    On,
    OutOrUrl,
    Preflight,
    Retry,
    Words,
    Workers,
    study_of,
)
from potstill.cli.tables import show_report
from potstill.cli.terminal import echo
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.study.race import Course, RaceFolder, Rules
    from potstill.study.remote import Mirror
    from potstill.study.schema import Study

LOOKS = "1,3,5,10"


Within = Annotated[
    float,
    typer.Option(
        metavar="POINTS",
        help="End when all survivors are within so many points of each other, shown by an upper "
        "bound.",
    ),
]
Alpha = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Share of races that may drop the truly best method, at most."
    ),
]
Looks = Annotated[
    str,
    typer.Option(
        metavar="SEEDS,...",
        help="Seeds of each method at which the race decides. At one seed only a collapse and an "
        "accuracy clearly below the untrained student drop a method; two seeds allow no verdict.",
    ),
]
Fresh = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Seeds of each finalist that decide nothing: the reported intervals come from these "
        "alone, since a race favours lucky seeds. 3 is the least for a verdict; 0: report the "
        "deciding seeds.",
    ),
]
Screen = Annotated[
    bool,
    typer.Option(
        "--screen/--no-screen",
        help="First train every method for a quarter of the steps, and drop those that collapse "
        "or score clearly below the untrained student.",
    ),
]


@command(
    "race",
    RUN,
    "potstill race",
    "potstill race studies/full.toml --workers 2 --looks 1,3,5 --fresh 3",
    "potstill race mine.toml --within 2 --screen --on ray --out s3://bucket/mine-race",
)
def race(
    words: Words = None,
    within: Within = 1.0,
    alpha: Alpha = 0.05,
    looks: Looks = LOOKS,
    fresh: Fresh = 3,
    screen: Screen = False,
    out: OutOrUrl = None,
    on: On = "local",
    workers: Workers = 0,
    preflight: Preflight = True,
    retry_failed: Retry = False,
    figures: Figures = True,
    as_json: AsJson = False,
) -> None:
    """Compare methods with fewer runs than their grid: drop what is clearly behind.

    All methods get one seed, survivors more at planned looks. A method is dropped when the upper
    bound of its difference to the leader is below zero, at a level that holds over all looks and
    methods. The folder is that of a study (default: runs/NAME-race) with race.json in addition;
    run the command again to resume. Seeds are the study's own, then the next numbers.
    """
    from potstill.report import write_report
    from potstill.study.race import RaceFolder, Rules, raced
    from potstill.study.remote import Mirror, is_url
    from potstill.study.storage import StudyFolder
    from potstill.training.spending import BudgetReached

    table = {"looks": _numbers(looks), "within": within, "alpha": alpha}
    rules = Rules.read({**table, "fresh": fresh, "screen": screen})
    chosen = raced(study_of(words), rules)
    mirror = Mirror(out) if out and is_url(out) else None
    place = StudyFolder(
        mirror.path if mirror else Path(out or Path("runs") / f"{chosen.name}-race")
    )

    def reported() -> Any:
        report = write_report(place.path, figures=figures, within=within / 100)
        if mirror:
            mirror.publish()
        show_report(report, as_json)
        return report

    try:
        _run(RaceFolder(place), chosen, rules, workers, preflight, retry_failed, on, mirror)
    except BudgetReached:
        reported()
        raise
    raise typer.Exit(1 if reported().failed else 0)


def _numbers(text: str) -> list[int]:
    """The numbers of --looks."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PotstillError(
            f'--looks lists numbers of seeds, got "{text}"', f"for example {LOOKS}"
        ) from None


def _run(
    race: RaceFolder,
    study: Study,
    rules: Rules,
    workers: int,
    preflight: bool,
    retry_failed: bool,
    on: str,
    mirror: Mirror | None,
) -> None:
    """Run what is missing of a race, the screen first."""
    from potstill.cli.launch import fill, opened, reset_failed
    from potstill.study.race import planned_runs, run_race, runs_in, screening
    from potstill.study.remote import Mirror

    folder = race.folder
    first = runs_in(race.courses(study, rules).values(), study)
    printed: set[tuple[str, str]] = set()

    def on_looks(courses: dict[str, Course]) -> None:
        if mirror:
            mirror.upload(race.file.name)
        for course in courses.values():
            _print_new(course, printed)

    def check() -> None:
        race.check(rules)

    if rules.screen:
        with opened(study, folder, first, check, workers, preflight, on, mirror):
            race.write(study, rules, race.courses(study, rules))
            if mirror:  # or the next pull removes what is here alone
                mirror.open()
                mirror.upload(race.file.name)
        far = Mirror(mirror.remote.url.below(race.screen.path.name)) if mirror else None
        if far:
            far.path = race.screen.path
        fill(
            screening(study),
            race.screen.path,
            workers,
            preflight=False,
            retry_failed=retry_failed,
            cache=folder.cache,
            on=on,
            mirror=far,
        )
        preflight = False
    with opened(study, folder, first, check, workers, preflight, on, mirror) as execute:
        if retry_failed:
            race.write(study, rules, race.courses(study, rules))
            reset_failed(folder, planned_runs(folder, study))
        run_race(race, study, rules, execute, on_looks)


def _print_new(course: Course, printed: set[tuple[str, str]]) -> None:
    """Print the looks that are new, a line each, to stderr."""
    from potstill.report.race import look_line, named_looks

    for name, look in named_looks(course):
        line = look_line(name, look)
        if (course.pair, line) not in printed:
            printed.add((course.pair, line))
            echo(f"{course.pair}, {line}", file=sys.stderr)
