"""ENOSPC at every write of a study and of its report: an error, nothing lost, the same numbers."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from damage import Said, recorded, say
from full_disk import FullDisk

from conftest import toy_table
from launching import run_study
from potstill.errors import StorageError
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import StudyFolder, runs_of


def made(place: Path) -> tuple[Study, Path]:
    """A study, and the folder in which it is done."""
    train = {"steps": 3, "checkpoint_every": 2, "on_collapse": "rollback"}
    (place / "task").mkdir()
    table = toy_table(
        place / "task",
        methods=["replay_buffer"],
        seeds=[0],
        train=train,
        budget={"tokens": 10**9},
    )
    study = read_study(table)
    return study, run_study(study, place / "whole" / "out", workers=0).path


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    return made(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def study(whole_study: tuple[Study, Path]) -> Study:
    return whole_study[0]


@pytest.fixture
def whole(whole_study: tuple[Study, Path]) -> Path:
    return whole_study[1]


def full(study: Study, whole: Path, place: Path, at: int, stays: bool) -> str:
    """The outcome when a write fails, and the study is run again later."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    said = "right"
    with FullDisk(place, at, stays).mounted():
        try:
            run_study(study, out, workers=0)
        except StorageError as error:
            assert "No space left" in str(error) and str(place) in str(error), error
            assert error.hint
            said = "refused"
    ended = StudyFolder(out).results(runs_of(study)).values()
    assert all(record["status"] == "done" for record in ended), "the disk is no run's failure"
    run_study(study, out, workers=0)
    now, then = recorded(out), recorded(whole)
    differ = {name: (now.get(name), then.get(name)) for name in now | then}
    assert {name: pair for name, pair in differ.items() if pair[0] != pair[1]} == {}
    assert not [p for p in out.rglob("*") if "partial" in p.name or p.name.startswith(".result")]
    return said


def writes_of(study: Study, place: Path) -> int:
    with FullDisk(place).mounted() as disk:
        run_study(study, place / "count", workers=0)
    return disk.writes


def every_write(study: Study, whole: Path, place: Path, share: int) -> Counter[str]:
    """A failure at each write, or at every so many."""
    total = writes_of(study, place)
    assert total > 60
    counts: Counter[str] = Counter()
    for stays in (True, False):
        for at in range(1 + stays, total + 1, share):
            counts[full(study, whole, place, at, stays)] += 1
    return counts


def test_a_study_stops_with_an_error_and_goes_on_later(
    study: Study, whole: Path, tmp_path: Path
) -> None:
    counts = every_write(study, whole, tmp_path, share=13)
    assert counts["refused"] > 6


@pytest.mark.slow
def test_at_every_write(study: Study, whole: Path, tmp_path: Path) -> None:
    counts = every_write(study, whole, tmp_path, share=1)
    print(dict(counts))
    assert counts["refused"] > 100


def test_a_report_is_written_whole_or_not_at_all(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with FullDisk(tmp_path).mounted() as disk:
        assert say("report", out).code == 0
    page = (out / "report.html").read_bytes()
    ends: list[Said] = []
    for at in range(1, disk.writes + 1):
        with FullDisk(tmp_path, at).mounted():
            ends.append(say("report", out))
        assert (out / "report.html").read_bytes() == page
        assert ends[-1].code in (0, 2), ends[-1].err
        if ends[-1].code == 2:
            assert "error: cannot write" in ends[-1].err and "hint: " in ends[-1].err
    assert sum(said.code == 2 for said in ends) >= 3
