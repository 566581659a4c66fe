"""Folders that an earlier version wrote (revision 682a3e3) are still read, continued and reported.

`data/quick` is a part of the quick study on an embedded pair; `data/interrupted` a study on the
fake engine whose second seed was killed after three steps, with a budget and a tracker.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launching import run_study
from potstill.errors import PotstillError
from potstill.report import write_report
from potstill.report.data import load
from potstill.study.executors.base import unfinished
from potstill.study.loading import load_study, read_study
from potstill.study.schema import QUICK
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.study.tracking.follower import Follower, troubles
from test_cli import call

DATA = Path(__file__).parent / "data"
KEY = RunId("toy", "on_policy_gkd", 0)
KILLED = RunId("toy", "on_policy_gkd", 1)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    shutil.copytree(DATA / "interrupted", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")  # its problems are named by relative paths
    return StudyFolder(tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.suffix}


def test_an_interrupted_study_continues(interrupted: StudyFolder) -> None:
    study = load_study(interrupted.path / "study.toml")
    assert unfinished(interrupted, runs_of(study)) == [KILLED]
    killed = interrupted.ledger(study).spent()
    before = files(interrupted.cell(KEY).path)
    assert before.keys() == {"examples.jsonl", "metrics.jsonl", "result.json"}
    run_study(study, interrupted.path)
    assert not unfinished(interrupted, runs_of(study))
    assert files(interrupted.cell(KEY).path) == before
    run = interrupted.cell(KILLED)
    assert run.result is not None and run.result["status"] == "done", run.result
    assert [row["step"] for row in run.metrics] == list(range(7))
    recorded = interrupted.cell(KEY).metrics
    assert recorded  # today's rows have more signals
    assert all(a.keys() <= b.keys() for a, b in zip(recorded, run.metrics, strict=True))
    assert run.running is None
    lost = json.loads((run.path / ".spent").read_text())["lost"]  # three steps were made twice
    assert 0 < lost["tokens"]["trained"] < run.result["tokens"]["trained"]
    assert interrupted.ledger(study).spent().count() > killed.count()


def test_a_tracker_continues_its_runs(interrupted: StudyFolder) -> None:
    study = interrupted.study
    assert study.track == ("tensorboard",)
    follower = Follower(study, interrupted, "tensorboard")
    before = follower.note(KILLED)
    assert (before.sent, before.ended) == (3, False) and follower.note(KEY).ended
    run_study(study, interrupted.path, workers=0)
    follower.update(now=True)
    follower.close()
    assert not troubles(interrupted, [KILLED])
    after = follower.note(KILLED)
    assert (after.id, after.sent, after.ended) == (before.id, 6, True)


def test_todays_quick_study_takes_the_folder(tmp_path: Path) -> None:
    """The same file means the same settings, and the grid may grow."""
    shutil.copytree(DATA / "quick", tmp_path / "out")
    folder = StudyFolder(tmp_path / "out")
    changes = ["train.steps=30", "train.save=false"]
    for seeds in ("seeds=0", "seeds=0,1"):
        study = read_study(QUICK, [*changes, seeds])
        folder.open(study)
    done = set(runs_of(study)) - set(unfinished(folder, runs_of(study)))
    pair = "tiny-qwen"
    assert done == {RunId(pair, "untrained"), RunId(pair, "teacher"), RunId(pair, "hybrid", 0)}


def test_a_report_reads_the_folder(
    interrupted: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DATA / "quick", tmp_path / "quick")
    quick = load(tmp_path / "quick")
    assert quick.level("tiny-qwen", "teacher") == 0.998
    assert len(quick.runs[RunId("tiny-qwen", "hybrid", 0)].metrics) == 31
    for path in (tmp_path / "quick", interrupted.path):
        assert write_report(path).html.stat().st_size > 10_000
        assert call("diagnose", path) == 0 and call("watch", path, "--once") == 0
    assert "1 of 1 runs without a finding" in capsys.readouterr().out


def test_a_folder_with_the_old_default_of_attention_is_the_same_study(tmp_path: Path) -> None:
    """ "sdpa" was the default; another implementation is another study."""
    study = read_study({"pairs": ["tiny-qwen"], "methods": ["hybrid"]})
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    file = folder.path / "study.toml"
    text = file.read_text()
    assert text.count('attention = "auto"') == 2
    file.write_text(text.replace('attention = "auto"', 'attention = "sdpa"'))
    folder.check(study)
    file.write_text(text.replace('attention = "auto"', 'attention = "eager"'))
    with pytest.raises(PotstillError, match="holds a study with other settings"):
        folder.check(study)
