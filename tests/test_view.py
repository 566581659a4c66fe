"""The live view: its lines without a terminal, its screen at any size, and when it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import toy_table
from potstill.cli import app
from potstill.cli.live import View, running
from potstill.errors import PotstillError
from potstill.study.executors.local import LocalScheduler
from potstill.study.loading import read_study
from potstill.study.progress import Watcher
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.training.spending import Spent
from studies import small_study, write_study


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyFolder]:
    root = tmp_path_factory.mktemp("watched")
    study = read_study(toy_table(root, methods=["on_policy_gkd", "hybrid"]))
    folder = StudyFolder(root / "out")
    folder.open(study)
    LocalScheduler(study, folder, 1).run(lambda: None, every=0.02)
    return study, folder


def test_a_finished_study_is_shown_and_left(done: tuple[Study, StudyFolder]) -> None:
    study, folder = done
    shown = CliRunner().invoke(app, ["watch", str(folder.path)])
    assert shown.exit_code == 0, shown.output
    assert "on_policy_gkd" in shown.stdout and "hybrid" in shown.stdout
    assert f"{study.name}: {len(runs_of(study))} done" in shown.stdout


def test_once_shows_what_is_running(done: tuple[Study, StudyFolder], tmp_path: Path) -> None:
    study, folder = done
    cell = RunId("toy", "hybrid", 1)
    half = StudyFolder(tmp_path / "half")
    half.open(study)
    place, source = half.cell(cell), folder.cell(cell)
    place.mark_running(True)
    lines = (source.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place.path / "metrics.jsonl").write_text("".join(lines[:6]))
    (row,) = running(study, half, runs_of(study))
    assert row["running"] == "toy/hybrid/1" and row["step"] == "5 of 12"
    accuracy = [
        r["eval/accuracy"] for r in source.metrics[:6] if r.get("eval/accuracy") is not None
    ]
    assert row["accuracy"].endswith(f"{accuracy[-1]:.0%}") and row["accuracy"][0] in "▁▂▃▄▅▆▇█"
    shown = CliRunner().invoke(app, ["watch", str(half.path), "--once"])
    assert "running\tstep\taccuracy\tscore\ntoy/hybrid/1\t5 of 12\t" in shown.stdout
    with View(study, half, runs_of(study)) as view:
        view.tick()
        assert not view.whole


def test_other_processes_are_watched_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two updates a worker process does half of the study."""
    study = read_study(toy_table(tmp_path, methods=["on_policy_gkd"]))
    folder, runs = StudyFolder(tmp_path / "out"), runs_of(study)
    folder.open(study)
    halves = [runs[:2], runs[2:]]

    def sleep(seconds: float) -> None:
        assert seconds == 0.1
        LocalScheduler(study, folder, 1, halves.pop(0)).run(lambda: None, every=0.02)

    monkeypatch.setattr("potstill.cli.watch.sleep", sleep)
    shown = CliRunner().invoke(app, ["watch", str(folder.path), "--every", "0.1"])
    assert shown.exit_code == 0, shown.output
    assert halves == []
    lines = [line.split(":")[0] for line in shown.stderr.splitlines()]
    assert lines == [f"{number}/4 {run}" for number, run in enumerate(runs, 1)]
    assert "toy: 4 done" in shown.stdout


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="holds no study"):
        CliRunner().invoke(app, ["watch", str(tmp_path)], catch_exceptions=False)


def draw(study: Study, folder: StudyFolder, width: int, height: int) -> list[str]:
    """The screen of a terminal of that size, line by line."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    view = View(study, folder, runs_of(study), console)
    with console.capture() as shown:
        console.print(view.screen(Watcher(study, folder, runs_of(study)).look()))
    return shown.get().splitlines()


def test_a_note_of_step_0_is_printed_once_per_pair(tmp_path: Path) -> None:
    study = small_study()
    folder = write_study(tmp_path, study)
    console = Console(width=200, force_terminal=False)
    view = View(study, folder, runs_of(study), console)
    weak = {"kind": "note", "cause": "weak_teacher", "step": 0, "found": 0}
    late = {"kind": "note", "cause": "still_improving", "step": 5, "found": 20}
    lost = {"kind": "collapse", "cause": "mode_collapse", "step": 5, "found": 10}
    texts = {"evidence": "", "advice": ""}
    with console.capture() as shown:
        for seed in (0, 1):
            findings = [{**f, **texts} for f in (weak, late, lost)]
            view._warn(RunId("tiny-qwen", "hybrid", seed), findings)
    lines = shown.get().splitlines()
    assert [line.split()[0] for line in lines] == ["note", "warning", "warning"]
    assert "weak_teacher" in lines[0] and "mode_collapse" in lines[1]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyFolder]:
    """164 runs: those of two seeds have ended, those of a third are running, the rest waits."""
    from potstill.algorithms.methods import METHODS

    methods = [name for name in METHODS if name != "off_policy"]
    pairs = ["tiny-qwen", "tiny-llama"]
    study = small_study(methods=methods, pairs=pairs, seeds=list(range(10)), price={"hour": 1.2})

    def fate(cell: RunId) -> dict:
        if cell.seed is None or cell.seed < 2:
            return {}
        return {"stop": 12} if cell.seed == 2 else {"skip": True}

    folder = write_study(tmp_path_factory.mktemp("large") / "out", study, fate)
    for cell in runs_of(study):
        if cell.seed == 2:
            folder.cell(cell).mark_running(True)
    one = Spent(50.0, {"trained": 5e5})
    folder.predicted = {
        pair: dict.fromkeys([*methods, "teacher", "untrained"], one) for pair in pairs
    }
    return study, folder


@pytest.mark.parametrize(
    ("width", "height"), [(100, 24), (80, 24), (60, 10), (140, 50), (40, 7), (40, 4)]
)
def test_a_large_study_fits_the_terminal(
    large: tuple[Study, StudyFolder], width: int, height: int
) -> None:
    lines = draw(*large, width, height)
    assert len(lines) < height and all(len(line) <= width for line in lines)
    assert "36 of 164 runs" in lines[0] and "of about" in lines[1]
    runs = [line for line in lines if line.startswith("tiny-")]
    more = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    assert len(runs) + sum(more) == 16 or not runs + more
    assert any("done so far" in line for line in lines) == (height == 50)


def test_a_large_study_shows_what_is_spent_and_expected(large: tuple[Study, StudyFolder]) -> None:
    study, folder = large
    snapshot = Watcher(study, folder, runs_of(study)).look()
    ended = sum(result["seconds"] for result in snapshot.results.values())
    part = sum(50 * run.share for run in snapshot.running)
    assert snapshot.spent.seconds == pytest.approx(ended + part)
    assert snapshot.expected is not None
    assert snapshot.expected.seconds == pytest.approx(ended + 50 * (164 - 36))
    assert f"{snapshot.expected.usd(study.price):.2f} USD" in draw(study, folder, 100, 24)[1]
    steps = sum(map(Watcher(study, folder, []).steps_of, snapshot.results))
    assert len(snapshot.running) == 16 and snapshot.steps == steps + 16 * 12


def test_what_waits_is_not_drawn_and_trends_are(large: tuple[Study, StudyFolder]) -> None:
    lines = draw(*large, 100, 24)
    (row,) = [line for line in lines if line.startswith("tiny-llama/hybrid/2")]
    assert "12/20" in row and row.count("%") == 2 and "▁" <= row.split("%")[0].split()[-2][0] <= "█"
    assert not [line for line in lines if line.split(" ")[0].endswith("/3")]


def test_a_run_that_goes_back_is_drawn_from_there(tmp_path: Path) -> None:
    study = small_study()
    folder = write_study(
        tmp_path / "out", study, lambda cell: {"stop": 12} if cell.seed == 0 else {}
    )
    cell = RunId("tiny-qwen", "hybrid", 0)
    place = folder.cell(cell)
    place.mark_running(True)
    watcher = Watcher(study, folder, [cell])
    (run,) = watcher.look().running
    assert run.step == 12 and len(run.levels) == 1 and len(run.score) == 2
    place.rewind(6)
    (run,) = watcher.look().running
    assert run.step == 6 and run.levels == [] and len(run.score) == 1


def test_a_study_elsewhere_is_watched(
    done: tuple[Study, StudyFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = done
    shutil.copytree(folder.path, tmp_path / "bucket")
    monkeypatch.chdir(tmp_path)  # a copy is kept in runs/mirrors
    shown = CliRunner().invoke(app, ["watch", f"file://{tmp_path}/bucket"])
    assert shown.exit_code == 0, shown.output
    assert f"{study.name}: {len(runs_of(study))} done" in shown.stdout
    with pytest.raises(PotstillError, match="holds no study"):
        CliRunner().invoke(app, ["watch", f"file://{tmp_path}/none"], catch_exceptions=False)
