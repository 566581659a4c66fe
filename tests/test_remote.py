"""A study behind a URL: what is copied, who has a cell, and that an attempt goes on elsewhere."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import toy_table
from potstill.digests import to_json
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError, StorageError
from potstill.study.executors.ray import lease, worker
from potstill.study.executors.ray.lease import Lease, LeaseLost
from potstill.study.loading import read_study
from potstill.study.remote import Mirror, Remote, source
from potstill.study.remote import url as url_module
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, StudyFolder
from potstill.training import checkpoint
from potstill.training.spending import BudgetReached

CELL = RunId("toy", "on_policy_gkd", 0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "far").as_uri()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors go to runs/ of the working folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://study", "does not support shared writes"),
        ("https://host/study", "does not support shared writes"),
        ("sthree://bucket/study", "Protocol not known"),
    ],
)
def test_a_url_that_cannot_hold_a_study_is_refused(url: str, says: str) -> None:
    with pytest.raises(PotstillError, match=says) as refused:
        Remote(url)
    assert refused.value.hint


def test_files_are_replaced_whole_and_may_be_absent(url: str, tmp_path: Path) -> None:
    remote = Remote(url)
    assert remote.tree() == {} and remote.read("a/b") is None
    assert not remote.download("a/b", tmp_path / "b")
    remote.write("a/b", b"1")
    remote.write("a/b", b"22")
    assert list(remote.tree()) == list(remote.tree("a")) == ["a/b"] and remote.read("a/b") == b"22"
    assert remote.download("a/b", tmp_path / "x" / "b")
    assert (tmp_path / "x" / "b").read_bytes() == b"22"
    remote.upload(tmp_path / "x" / "b", "c/d")
    remote.remove("a")
    remote.remove("a")
    assert list(remote.tree()) == ["c/d"]
    remote.write("a/b", b"3")  # the folder has to be made again
    with pytest.raises(FileNotFoundError):
        remote.upload(tmp_path / "nowhere", "e")
    assert sorted(remote.tree()) == ["a/b", "c/d"]


def test_two_writers_of_one_file_do_not_disturb_each_other(url: str) -> None:
    """Two attempts at one run may both write its lease for a moment."""
    remotes = [Remote(url), Remote(url)]

    def write(number: int) -> int:
        for _ in range(50):
            remotes[number].write("a/b", str(number).encode())
        return number

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, (0, 1))) == [0, 1]
    assert list(remotes[0].tree()) == ["a/b"] and remotes[0].read("a/b") in (b"0", b"1")


def test_a_place_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot be used") as refused:
        Remote((tmp_path / "file").as_uri()).check()
    assert "run the same command again" in refused.value.hint


def test_a_mirror_has_what_reports_read_and_nothing_else(url: str, tmp_path: Path) -> None:
    remote, mirror = Remote(url), Mirror(url)
    for name in ("study.toml", "cells/p/m/0/metrics.jsonl", "cells/p/m/0/.running"):
        remote.write(name, b"{}\n")
    remote.write("cells/p/m/0/student/model.safetensors", b"large")
    remote.write("cells/p/m/0/checkpoints/step-00000003/state.json", b"{}")
    mirror.pull()
    assert mirror.path.is_relative_to(Path("runs") / "mirrors")
    here = {str(p.relative_to(mirror.path)) for p in mirror.path.rglob("*") if p.is_file()}
    assert here == {"study.toml", "cells/p/m/0/metrics.jsonl", "cells/p/m/0/.running"}
    remote.write("cells/p/m/0/metrics.jsonl", b"{}\n{}\n")
    remote.remove("cells/p/m/0/.running")
    mirror.pull()
    assert (mirror.path / "cells/p/m/0/metrics.jsonl").read_bytes() == b"{}\n{}\n"
    assert not (mirror.path / "cells/p/m/0/.running").exists()
    (mirror.path / "report.html").write_text("<p>")
    mirror.publish()
    assert remote.read("report.html") == b"<p>"


def test_what_reads_a_study_takes_its_url_or_a_runs_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="holds no study"):
        source(url)
    assert not list(Path().iterdir())
    Remote(url).write("study.toml", b"")
    Remote(url).write("cells/p/m/0/metrics.jsonl", b"{}\n")
    _, path = source(f"{url}/cells/p/m/0/")
    assert path.parts[-4:] == ("cells", "p", "m", "0") and (path / "metrics.jsonl").exists()
    assert source(str(tmp_path))[1] == tmp_path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0]))


def lend(url: str, scratch: Path, driver: str = "me", expired: str = "") -> Lease:
    folder = StudyFolder(scratch)
    folder.cell(CELL).path.mkdir(parents=True, exist_ok=True)
    return Lease(Remote(url), CELL, folder, driver, expired)


def mark(url: str) -> dict:
    return json.loads(Remote(url).read(f"cells/{CELL}/.running") or b"{}")


def test_a_run_has_one_attempt_and_a_dead_one_is_followed(url: str, tmp_path: Path) -> None:
    with pytest.raises(LeaseLost), lend(url, tmp_path / "1") as first:
        assert first.acquired and mark(url)["driver"] == "me"
        with lend(url, tmp_path / "2", driver="other") as second:
            assert not second.acquired
        with lend(url, tmp_path / "3") as third:
            assert third.acquired  # of the same driver, which knows that the first is dead
            with pytest.raises(LeaseLost):
                first._beat()
    name = {"attempt": "gone", "driver": "another", "beat": 0}
    Remote(url).write(f"cells/{CELL}/.running", json.dumps(name).encode())
    with lend(url, tmp_path / "4") as fourth:
        assert not fourth.acquired
    with lend(url, tmp_path / "5", expired="gone") as fifth:
        assert fifth.acquired and mark(url)["driver"] == "me"
    Remote(url).write(f"cells/{CELL}/result.json", b"{}")
    with lend(url, tmp_path / "6") as late:
        assert not late.acquired
    assert mark(url) == {}


def test_an_attempt_that_lost_its_run_writes_nothing_and_says_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    remote, place = Remote(url), StudyFolder(tmp_path / "1").cell(CELL)
    lost = threading.Event()
    with pytest.raises(LeaseLost), lend(url, tmp_path / "1") as first:
        taken = {**mark(url), "attempt": "another", "driver": "other"}
        remote.write(f"cells/{CELL}/.running", json.dumps(taken).encode())
        while not lost.wait(0.01):
            try:
                first.budget_limit()
            except LeaseLost:
                lost.set()
        place.record({"step": 1}, None)
    assert remote.read(f"cells/{CELL}/metrics.jsonl") is None
    assert mark(url)["attempt"] == "another"


def test_an_interrupted_run_goes_on_elsewhere_to_the_same_bytes(
    study: Study, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scratch of two nodes; the first attempt dies without a word after its copies."""
    whole = StudyFolder(tmp_path / "whole")
    for cell in (RunId("toy", "teacher"), CELL):
        run_cell(study, whole, cell)
    shutil.copytree(
        whole.cell(RunId("toy", "teacher")).path, tmp_path / "far/cells/toy/teacher/all"
    )
    job = worker.Job(study.to_toml(), CELL, url, True, "me")
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node 1")
    monkeypatch.setattr(lease, "UPLOAD", 0.01)
    step, calls, copied = FakeEngine.step, [], threading.Event()

    def dying(self: FakeEngine, data: object, learning_rate: float) -> object:
        calls.append(1)
        while len(calls) == 10 and not Remote(url).read(
            f"cells/{CELL}/checkpoints/step-00000008/state.json"
        ):
            copied.wait(0.01)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return step(self, data, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        worker.execute_job(job)
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node 2")
    assert worker.execute_job(job).kind == "done"
    assert len(calls) == 10 + 12 - 8  # what the first resume point saved
    far, place = tmp_path / "far" / "cells" / str(CELL), whole.cell(CELL).path
    assert (far / "metrics.jsonl").read_bytes() == (place / "metrics.jsonl").read_bytes()
    assert (far / "examples.jsonl").read_bytes() == (place / "examples.jsonl").read_bytes()
    assert (far / "student").is_dir() and not (far / "checkpoints").exists()
    assert not (far / ".running").exists()
    assert {p.name for p in (tmp_path / "node 2/cells/toy/on_policy_gkd/0").iterdir()} <= {".lock"}


def test_students_of_steps_and_the_state_are_kept_behind_the_url(
    study: Study, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of before an interruption too, which the second node does not make again."""
    kept = study.train.model_copy(update={"save_every": 3, "keep_state": True})
    study = study.model_copy(update={"train": kept})
    teacher = RunId("toy", "teacher")
    run_cell(study, StudyFolder(tmp_path / "whole"), teacher)
    shutil.copytree(
        StudyFolder(tmp_path / "whole").cell(teacher).path, tmp_path / "far/cells/toy/teacher/all"
    )
    job = worker.Job(study.to_toml(), CELL, url, True, "me")
    monkeypatch.setattr(lease, "UPLOAD", 0.01)
    far, step = tmp_path / "far" / "cells" / str(CELL), FakeEngine.step

    def dying(self: FakeEngine, *words: object) -> object:
        while self._steps == 9 and not (far / "checkpoints/step-00000008/state.json").exists():
            threading.Event().wait(0.01)
        if self._steps == 9 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise KeyboardInterrupt
        return step(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeEngine, "step", dying)
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node 1")
    with pytest.raises(KeyboardInterrupt):
        worker.execute_job(job)
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node 2")
    assert worker.execute_job(job).kind == "done"
    assert {p.name for p in far.glob("students/*")} == {f"step-{n}" for n in (3, 6, 9, 12)}
    assert (far / "checkpoints/step-00000011/state.json").is_file()
    assert (far / "student").is_dir()


def test_a_resume_point_that_is_ahead_of_its_metrics_is_not_used(url: str, tmp_path: Path) -> None:
    """What an attempt leaves that writes its last, older metrics after another has begun."""
    far = tmp_path / "far" / "cells" / str(CELL)
    for at in (4, 8):
        checkpoint.save(tmp_path / "points", at, FakeEngine(), [], {}, good=4)
    shutil.copytree(tmp_path / "points", far / "checkpoints")
    (far / "checkpoints" / "step-00000012").mkdir()  # half copied
    rows = [{"step": at} for at in range(8)]
    (far / "metrics.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    with lend(url, tmp_path / "1"):
        points = checkpoint.points(StudyFolder(tmp_path / "1").cell(CELL).path / "checkpoints")
        assert [point.name for point in points] == ["step-00000004"]


def test_a_note_that_the_budget_is_spent_stops_a_run_at_its_next_step(
    study: Study, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node")
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    run_cell(study, StudyFolder(tmp_path / "far"), RunId("toy", "teacher"))
    step, remote = FakeEngine.step, Remote(url)

    def spending(self: FakeEngine, data: object, learning_rate: float) -> object:
        remote.write(".stop", b"3 USD of budget.usd = 3")
        beats = mark(url)["beat"]
        while mark(url)["beat"] < beats + 2:  # until it has been read
            pass
        return step(self, data, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", spending)
    job = worker.Job(study.to_toml(), CELL, url, True, "me")
    assert worker.execute_job(job).kind == "budget"
    place = RunFolder(tmp_path / "far" / "cells" / str(CELL))
    assert place.result is None and place.steps == 1 and place.running is None
    assert [point.name for point in checkpoint.points(place.path / "checkpoints")] == [
        "step-00000001"
    ]
    assert worker.execute_job(job).kind == "budget"  # nothing begins while it stands
    remote.remove(".stop")
    monkeypatch.setattr(FakeEngine, "step", step)
    assert worker.execute_job(job).kind == "done"


@pytest.mark.parametrize(("silent", "kind"), [(0.0, "storage"), (1000.0, "done")])
def test_a_place_may_be_silent_for_a_moment_and_not_for_long(
    study: Study,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent: float,
    kind: str,
) -> None:
    monkeypatch.setattr(worker, "scratch", lambda url: tmp_path / "node")
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    monkeypatch.setattr(url_module, "GRACE", silent)
    run_cell(study, StudyFolder(tmp_path / "far"), RunId("toy", "teacher"))
    training, refused, answered = threading.Event(), threading.Event(), threading.Event()
    step, read = FakeEngine.step, Remote.read

    def refusing(self: Remote, name: str) -> bytes | None:
        if training.is_set() and not refused.is_set():
            refused.set()
            raise StorageError("no answer")
        if refused.is_set():
            answered.set()
        return read(self, name)

    def waiting(self: FakeEngine, data: object, learning_rate: float) -> object:
        training.set()
        refused.wait()
        if silent:
            answered.wait()
        return step(self, data, learning_rate)

    monkeypatch.setattr(Remote, "read", refusing)
    monkeypatch.setattr(FakeEngine, "step", waiting)
    outcome = worker.execute_job(worker.Job(study.to_toml(), CELL, url, True, "me"))
    assert outcome.kind == kind and ("no answer" in outcome.text) == (kind == "storage")


def test_a_node_that_cannot_take_the_run_says_why(study: Study, tmp_path: Path) -> None:
    here = StudyFolder(tmp_path / "out")
    job = worker.Job(study.to_toml(), CELL, str(here.path))
    missing = worker.execute_job(job)
    assert missing.kind == "error" and "does not see the study" in missing.text and missing.hint
    here.open(study)
    other = worker.execute_job(worker.Job(study.to_toml(), CELL, str(here.path), version="0.0"))
    assert other.kind == "error" and "the study was started with 0.0" in other.text
    with here.cell(CELL).lock():
        assert worker.execute_job(job).kind == "held"


def test_the_ledger_of_a_run_that_is_away_hears_what_others_say(
    study: Study, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "out")
    assert folder.ledger(study).over() == ""
    assert folder.ledger(study, lambda: "spent").over() == "spent"
    with pytest.raises(BudgetReached, match="spent"):
        run_teacher_first(study, folder)


def run_teacher_first(study: Study, folder: StudyFolder) -> None:
    run_cell(study, folder, RunId("toy", "teacher"))
    run_cell(study, folder, CELL, None, folder.ledger(study, lambda: "spent"))
