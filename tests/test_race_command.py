"""Races through the command line: their folder, kills, budgets, refusals and the report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from conftest import toy_table
from launching import Gate, wait_for
from potstill.errors import PotstillError
from potstill.study.loading import read_study
from potstill.study.race import RaceFolder, Rules, planned_runs, raced
from potstill.study.storage import RunFolder, RunId, StudyFolder, runs_of
from studies import rewrite
from test_cli import call, refused
from test_study import content


def stuck_table(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two methods that learn the toy task, and one that makes a single step."""
    recipe = {"stuck": {"from": "on_policy_gkd", "budget": 0.05}}
    methods = ["on_policy_gkd", "kl_anchored", "stuck"]
    return toy_table(folder, methods=methods, recipe=recipe, **changes)


def words(file: Path, out: Path, *more: object) -> list[str]:
    options = ["--looks", "1,3", "--fresh", "3", "--no-preflight", "--no-figures"]
    return ["race", str(file), "--out", str(out), *options, *map(str, more)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study file and the folder of an uninterrupted race."""
    tmp = tmp_path_factory.mktemp("race")
    file = tmp / "toy.toml"
    file.write_text(tomli_w.dumps(stuck_table(tmp)))
    assert call(*words(file, tmp / "out", "--workers", 2)) == 0
    return file, tmp / "out"


def test_a_race_has_the_runs_that_it_asked_for_and_no_others(whole: tuple[Path, Path]) -> None:
    folder = StudyFolder(whole[1])
    written = json.loads((whole[1] / "race.json").read_text())
    assert written["deciding"] == [0, 1, 2] and written["fresh"] == [3, 4, 5]
    (pair,) = written["pairs"].values()
    first, second = pair["looks"]
    assert not first["dropped"] and pair["ended"] == "last look"
    assert second["dropped"]["stuck"]["reason"] == "below leader"
    assert pair["finalists"] == ["on_policy_gkd", "kl_anchored"]
    planned = planned_runs(folder, folder.study)
    ran = [run for run in runs_of(folder.study) if folder.cell(run).result]
    assert ran == planned and len(ran) == 2 + 3 * 3 + 2 * 3
    assert RunId("toy", "stuck", 3) not in ran and folder.study.seeds == tuple(range(6))


def test_run_again_does_nothing(whole: tuple[Path, Path]) -> None:
    def times() -> dict[Path, int]:
        files = [*whole[1].rglob("result.json"), whole[1] / "study.toml"]
        return {p: p.stat().st_mtime_ns for p in files if p.name == "result.json"}

    before, race = times(), (whole[1] / "race.json").read_bytes()
    assert len(before) == 17
    assert call(*words(*whole)) == 0
    assert times() == before and (whole[1] / "race.json").read_bytes() == race


@pytest.mark.slow
def test_killed_at_any_look_and_resumed_it_decides_the_same(
    whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the first look, in the second, and on fresh seeds; race.json is lost each time."""
    out, gate = tmp_path / "out", Gate(tmp_path, monkeypatch)
    line = [sys.executable, "-m", "potstill", *words(whole[0], out, "--workers", 2)]
    gate.close(7)
    for seeds in ((0,), (1, 2), (3, 4, 5)):
        process = subprocess.Popen(line, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for(lambda seeds=seeds: any(list(out.glob(f"cells/*/*/{s}/.running")) for s in seeds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        gate.open()
        (out / "race.json").write_text("")  # as after a crash of the machine
    assert not (out / "report.html").exists()
    assert call(*words(whole[0], out)) == 0
    assert content(out) == content(whole[1])
    assert (out / "race.json").read_bytes() == (whole[1] / "race.json").read_bytes()


def test_a_screen_runs_first_with_a_quarter_of_the_steps(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(*words(whole[0], out, "--screen")) == 0
    captured = capsys.readouterr()
    assert captured.err.index("toy, screen: dropped none") < captured.err.index("look at 1 seed")
    screen = StudyFolder(out / "screen")
    assert screen.study.train.steps == 3 and screen.study.seeds == (0,)
    assert len(screen.results(runs_of(screen.study))) == 2 + 3
    assert not list((out / "screen").rglob("student"))
    spent = StudyFolder(out).ledger(screen.study).spent()
    both = [json.loads(p.read_text())["seconds"] for p in out.rglob("result.json")]
    assert spent.seconds == pytest.approx(sum(both)) and len(both) > 20
    (pair,) = json.loads((out / "results.json").read_text())["race"].values()
    assert pair["screen"]["seeds"] == 1 and pair["cost"]["runs"] == 15 + 3


def test_a_spent_budget_stops_a_race_and_a_larger_one_continues_it(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(*words(whole[0], out, "budget.tokens=8000")) == 1
    captured = capsys.readouterr()
    assert "stopped: the budget is spent" in captured.err and "has not ended" in captured.out
    assert call(*words(whole[0], out, "budget.tokens=1e9")) == 0
    kept, other = content(out), content(whole[1])
    assert kept == other


def test_other_rules_and_other_kinds_of_folder_are_refused(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = whole
    before = content(out)
    refused(capsys, call("race", file, "--out", out, "--looks", "1,3,5"), "looks: (1, 3) ->")
    refused(capsys, call("race", file, "--out", out, "--looks", "1,3", "--within", 2), "within")
    refused(capsys, call("study", file, "--out", out), "holds a race")
    assert call("study", file, "--out", tmp_path / "grid", "--no-preflight", "--no-figures",
                "seeds=0", "methods=on_policy_gkd") == 0  # fmt: skip
    capsys.readouterr()
    refused(capsys, call(*words(file, tmp_path / "grid")), "is not a race")
    assert content(out) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--looks", "1,2,3"], "two seeds allow no verdict"),
        (["--looks", "3,1"], "numbers of seeds that grow"),
        (["--looks", "1"], "the last look has at least 3 seeds, got 1"),
        (["--looks", "0,3"], "looks are 1 seed or more"),
        (["--looks", "one"], 'lists numbers of seeds, got "one"'),
        (["--looks", ""], 'lists numbers of seeds, got ""'),
        (["--alpha", "0"], "alpha is above 0 and below 0.5, got 0.0"),
        (["--within", "0"], "within is above 0"),
        (["--within", "nan"], "within"),
        (["--fresh", "-1"], "fresh is 0 or more, got -1"),
        (["methods=hybrid"], "at least two methods, got hybrid"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, call("race", "--out", tmp_path / "out", *more), message)
    assert not (tmp_path / "out").exists()


def test_seeds_are_the_studys_own_and_then_the_next_numbers(tmp_path: Path) -> None:
    study = read_study(toy_table(tmp_path, seeds=[7, 2]))
    rules = Rules(looks=(1, 3), fresh=2)
    assert raced(study, rules).seeds == (7, 2, 8, 9, 10)
    assert rules.deciding(raced(study, rules).seeds) == (7, 2, 8)
    many = read_study(toy_table(tmp_path, seeds=list(range(20))))
    assert raced(many, rules).seeds == (0, 1, 2, 3, 4)


def test_a_damaged_race_file_has_a_way_out(whole: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "out")
    (tmp_path / "out" / "race.json").write_text('{"rules"')
    with pytest.raises(PotstillError, match="damaged"):
        RaceFolder(StudyFolder(tmp_path / "out")).courses(StudyFolder(tmp_path / "out").study)
    assert call(*words(whole[0], tmp_path / "out")) == 0
    assert (tmp_path / "out/race.json").read_bytes() == (whole[1] / "race.json").read_bytes()


def test_the_report_has_the_race_and_the_finalists_on_fresh_seeds(
    whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole[1]
    assert call("report", out) == 0
    printed = capsys.readouterr().out
    assert "dropped stuck (below leader: 0.0 %" in printed and "17 of 17 runs done" in printed
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["table"]] == [
        *("untrained", "teacher", "on_policy_gkd", "kl_anchored")
    ]
    assert [row["seeds"] for row in results["table"][2:]] == [[3, 4, 5]] * 2
    assert len(results["cells"]) == 17  # costs and findings are of all runs
    race = results["race"]["toy"]
    assert race["rules"]["looks"] == [1, 3] and race["finalists"] == [
        "on_policy_gkd",
        "kl_anchored",
    ]
    assert race["cost"]["runs"] == 15 and race["cost"]["fresh"] == 6
    assert race["cost"]["grid_runs"] == 9
    seconds = [row["seconds"] for row in results["cells"] if row["seed"] is not None]
    assert race["cost"]["seconds"] == pytest.approx(sum(seconds))
    page = (out / "report.html").read_text()
    assert "The race" in page and "which decided nothing" in page and "below leader" in page
    assert "a race over up to 6 seeds" in page
    assert call("report", out, "--markdown") == 0
    assert "| `stuck` | toy | 3 seeds | below leader: " in capsys.readouterr().out


def test_results_of_fresh_seeds_do_not_depend_on_deciding_ones(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    """A lucky deciding seed changes no reported number."""
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    nothing = dict.fromkeys(("strict", "flexible"), "0" * 20)
    rewrite(RunFolder(out / "cells/toy/on_policy_gkd/1"), outcomes=nothing)
    assert call("report", out) == 0

    def row(path: Path) -> dict[str, Any]:
        table = json.loads((path / "results.json").read_text())["table"]
        (row,) = [row for row in table if row["method"] == "on_policy_gkd"]
        return {key: row[key] for key in ("seeds", "accuracy", "against_untrained")}

    assert call("report", whole[1]) == 0
    assert row(out) == row(whole[1])


def test_what_reads_a_study_reads_a_race(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole[1]
    shutil.copytree(out, tmp_path / "copy")
    assert call("watch", out, "--once") == 0
    assert "17 done" in capsys.readouterr().out
    assert call("diagnose", out) == 0
    assert call("compare", out, tmp_path / "copy", "--out", tmp_path / "compare.html") == 0
    assert call("track", out, "--to", "tensorboard") == 0
    assert "tensorboard: complete" in capsys.readouterr().out
    assert list((out / "cells/toy/stuck").iterdir()) and not (out / "cells/toy/stuck/3").exists()


def test_a_race_with_one_finalist_recommends_it(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    """The verdict is from fresh seeds, on which the finalist is better than the untrained."""
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    for seed in range(3):  # as bad as stuck while the race decided, and never again
        nothing = dict.fromkeys(("strict", "flexible"), "0" * 20)
        rewrite(RunFolder(out / f"cells/toy/kl_anchored/{seed}"), outcomes=nothing)
    assert call("report", out) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["race"]["toy"]["ended"] == "one left"
    verdict = results["verdict"]["toy"]
    assert verdict["head"] == "Use on_policy_gkd: the race dropped every other method."
    assert "Dropped by the race: kl_anchored and stuck." in verdict["lines"]


def test_an_unfinished_race_reports_what_it_has(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    for seed in (2, 3, 4, 5):
        for path in out.glob(f"cells/toy/*/{seed}"):
            shutil.rmtree(path)
    assert call("report", out) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["race"]["toy"]["ended"] == "" and len(results["race"]["toy"]["looks"]) == 1
    assert {row["method"] for row in results["table"]} >= {"stuck", "kl_anchored"}
    assert sum(row["status"] == "missing" for row in results["cells"]) == 3
