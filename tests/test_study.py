"""Studies: what is on disk, resuming to the same bytes, failures, two processes on one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import toy_table
from launching import Gate, command, run_study, wait_for
from potstill.digests import sealed
from potstill.engines.fake import FakeEngine
from potstill.errors import NonFinite, PotstillError, StorageError
from potstill.study.files import write_text
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunFolder, RunId, StudyFolder, runs_of
from potstill.training import checkpoint
from potstill.types import Prompt, Trajectory

KEPT = ("metrics.jsonl", "examples.jsonl")


def content(folder: Path) -> dict[str, object]:
    """Everything of a study that must not depend on clocks: metrics, completions, outcomes."""
    files: dict[str, object] = {}
    for path in sorted((folder / "cells").rglob("*")):
        if path.name in KEPT:
            files[str(path.relative_to(folder))] = path.read_bytes()
        elif path.name == "result.json":
            record = json.loads(path.read_text())
            keep = ("status", "steps", "accuracy", "flexible", "outcomes", "tokens")
            files[str(path.relative_to(folder))] = {key: record.get(key) for key in keep}
    return files


def part(study: Study, whole: Path) -> dict[str, object]:
    """The content of a whole study, limited to the runs of a smaller one."""
    folders = {f"cells/{key}" for key in runs_of(study)}
    return {n: c for n, c in content(whole).items() if n.rpartition("/")[0] in folders}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The table and the folder of an uninterrupted study: nine methods, two seeds."""
    tmp = tmp_path_factory.mktemp("whole")
    table = toy_table(tmp)
    run_study(read_study(table), tmp / "out")
    return table, tmp / "out"


def test_the_folder_is_as_documented(whole: tuple[dict, Path]) -> None:
    table, path = whole
    keys = runs_of(read_study(table))
    assert len(keys) == 2 + 9 * 2
    for key in keys:
        run = StudyFolder(path).cell(key)
        assert run.result is not None and run.result["status"] == "done", run.result
        assert run.running is None and not (run.path / "checkpoints").exists()
        if key.seed is not None:
            assert [row["step"] for row in run.metrics] == list(range(run.result["steps"] + 1))
            assert run.texts[0]["teacher"]
            assert (run.path / "student").is_dir()
            assert len(run.result["outcomes"]["strict"]) == 20
    settings = StudyFolder(path).settings
    assert settings is not None
    assert {"torch", "revision", "python"} <= settings["provenance"].keys()
    assert not [p for p in path.rglob("*") if ".partial" in p.name or p.name.startswith(".result")]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_do_not_change_the_numbers(
    whole: tuple[dict, Path], tmp_path: Path, workers: int
) -> None:
    """Two workers, one, and this process. All nine methods are in the test that kills a study."""
    table, path = whole
    study = read_study({**table, "methods": ["replay_buffer", "teacher_seeded"]})
    run_study(study, tmp_path / "other", workers)
    expected = part(study, path)
    assert len(expected) == 3 * 6 and content(tmp_path / "other") == expected


def test_run_again_does_nothing(whole: tuple[dict, Path]) -> None:
    table, path = whole
    before = {p: p.stat().st_mtime_ns for p in (path / "cells").rglob("result.json")}
    assert len(before) == 20
    run_study(read_study(table), path)
    assert {p: p.stat().st_mtime_ns for p in (path / "cells").rglob("result.json")} == before


def test_the_grid_may_grow_but_settings_may_not_change(tmp_path: Path) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd"], seeds=[0])
    run_study(read_study(table), tmp_path / "out", workers=0)
    first = content(tmp_path / "out")
    run_study(read_study({**table, "seeds": [0, 1]}), tmp_path / "out", workers=0)
    grown = content(tmp_path / "out")
    assert len(grown) == len(first) + 3 and first.items() <= grown.items()
    for change, says in (
        ({"train": {**table["train"], "steps": 13}}, "train.steps: 12 -> 13"),
        ({"seeds": [1]}, "seeds lost"),
        ({"pair": {"toy": {"student": "a", "teacher": "c"}}}, "pair.toy"),
    ):
        other = read_study({**table, "seeds": [0, 1], **change})
        with pytest.raises(PotstillError, match=says):
            StudyFolder(tmp_path / "out").open(other)
    assert content(tmp_path / "out") == grown


def test_a_strange_folder_is_left_alone(tmp_path: Path, toy: Study) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(PotstillError, match="not a study folder"):
        StudyFolder(tmp_path / "mine").open(toy)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_folder_that_another_study_is_opening_is_no_strange_folder(
    tmp_path: Path, toy: Study
) -> None:
    """Between the first byte of study.toml and its name, and after a kill in that moment."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".study.toml.123").write_text("na")
    StudyFolder(tmp_path / "out").open(toy)
    assert StudyFolder(tmp_path / "out").settings is not None


def start(words: list[str]) -> subprocess.Popen:
    """A study in a process group of its own, so that it can be killed with its workers."""
    return subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen, out: Path) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists()


def steps(out: Path) -> list[int]:
    """The steps of each run in progress."""
    marks = out.glob("cells/*/*/*/.running")
    runs = [RunFolder(mark.parent) for mark in marks]
    return [run.steps for run in runs if run.path.parent.name not in REFERENCES]


def test_killed_in_mid_run_and_resumed_gives_the_same_bytes(
    whole: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after a run's first checkpoint, and when other runs have ended."""
    table, out, gate = whole[0], tmp_path / "out", Gate(tmp_path, monkeypatch)
    order = ["extended_on_policy", "replay_buffer"]
    methods = [*order, *(name for name in read_study(table).recipes if name not in order)]
    words = command({**table, "methods": methods}, tmp_path / "toy.toml", out, "--workers", 2)
    for at in (3, 7, 21):
        gate.close(at)
        process = start(words)
        wait_for(lambda at=at: steps(out).count(at) == 2)
        kill(process, out)
    assert len(list(out.rglob("result.json"))) == 2 + 8
    gate.open()
    run_study(read_study({**table, "methods": methods}), out, workers=0)
    assert content(out) == content(whole[1])


def kill_and_resume(table: dict, tmp_path: Path, moments: list[int]) -> dict[str, object]:
    """SIGKILL the study and its workers whenever so many metric lines exist, then let it finish."""
    out = tmp_path / "killed"
    words = command(table, tmp_path / "toy.toml", out, "--workers", 2)
    for lines in moments:
        process = start(words)

        def enough(lines: int = lines) -> bool:
            files = list(out.glob("cells/*/*/*/metrics.jsonl"))
            return sum(file.read_bytes().count(b"\n") for file in files) >= lines

        wait_for(enough)
        kill(process, out)
    subprocess.run(words, check=True, capture_output=True)
    return content(out)


@pytest.mark.slow
def test_killed_and_resumed_on_the_torch_engine(tmp_path: Path) -> None:
    """The same on an embedded pair: weights, optimizer and replay buffer come back exactly."""
    table = {
        "name": "torch",
        "pairs": ["tiny-llama"],
        "methods": ["replay_buffer", "hybrid"],
        "train": {"steps": 12, "batch_size": 6, "checkpoint_every": 3},
        "eval": {"problems": 20, "every": 6, "probe_every": 4},
    }
    run_study(read_study(table), tmp_path / "whole")
    assert kill_and_resume(table, tmp_path, [8, 17]) == content(tmp_path / "whole")


def test_an_orphaned_worker_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL the study process alone: its workers notice and end; the folder stays resumable."""
    gate, out = Gate(tmp_path, monkeypatch), tmp_path / "out"
    gate.close(1)
    table = toy_table(tmp_path, methods=["on_policy_gkd"])
    words = command(table, tmp_path / "toy.toml", out, "--workers", 1)
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: steps(out) == [1])
    (mark,) = out.glob("cells/toy/on_policy_gkd/*/.running")
    pid = json.loads(mark.read_text())["pid"]
    assert Path(f"/proc/{pid}/fd").exists()
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{pid}/fd").exists(), 15)
    assert StudyFolder(out).settings is not None


def test_two_studies_on_one_folder_share_the_work(
    whole: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, out = Gate(tmp_path, monkeypatch), tmp_path / "out"
    gate.close(5)
    table = {**whole[0], "methods": ["extended_on_policy", "hybrid", "kl_anchored"]}
    words = command(table, tmp_path / "toy.toml", out, "--workers", 1)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(words, **quiet) for _ in range(2)]
    wait_for(lambda: steps(out) == [5, 5])  # each has taken a run
    gate.open()
    assert [process.wait() for process in both] == [0, 0]
    expected = part(read_study(table), whole[1])
    assert len(expected) == 3 * 8 and content(out) == expected


def test_a_held_run_is_not_run_twice(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock() as locked:
        assert locked
        code = (
            "import sys; from pathlib import Path; from potstill.study.storage import RunFolder\n"
            "with RunFolder(Path(sys.argv[1])).lock() as locked: print(locked)"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code, str(run.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == "False"


@pytest.mark.parametrize("how", ["nan", "memory", "exception"])
def test_a_failing_run_is_recorded_with_its_cause(
    toy: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = StudyFolder(tmp_path / "out")
    folder.open(toy)
    run_cell(toy, folder, RunId("toy", "teacher"))
    step, calls = FakeEngine.step, []

    def broken(self: FakeEngine, data: object, learning_rate: float) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise {
                "nan": NonFinite("loss nan, gradient norm nan"),
                "memory": MemoryError("no more"),
                "exception": RuntimeError("boom"),
            }[how]
        return step(self, data, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", broken)
    cell = RunId("toy", "hybrid", 0)
    record = run_cell(toy, folder, cell)
    says = {"nan": "not a number", "memory": "out of memory", "exception": "RuntimeError"}[how]
    assert record["status"] == "failed" and record["cause"].startswith(f"{says} at step 7")
    assert folder.cell(cell).result == record
    assert [row["step"] for row in folder.cell(cell).metrics] == list(range(7))
    assert "traceback" in record


def test_a_learning_rate_that_explodes_fails_the_run_and_not_the_study(tmp_path: Path) -> None:
    table = toy_table(
        tmp_path, methods=["on_policy_gkd"], seeds=[0], train={"learning_rate": 1e308}
    )
    folder = run_study(read_study(table), tmp_path / "out")
    results = folder.results(runs_of(read_study(table)))
    assert [r["status"] for r in results.values()] == ["done", "done", "failed"]
    assert "not a number" in list(results.values())[-1]["cause"]


def test_storage_that_fails_stops_the_study_and_keeps_what_is_finished(
    whole: tuple[dict, Path], tmp_path: Path
) -> None:
    """Real workers whose files cannot grow past 16 kB: two lines, code 2, and nothing is lost."""
    out = tmp_path / "out"
    table = {**whole[0], "methods": ["extended_on_policy", "hybrid"]}
    words = command(table, tmp_path / "toy.toml", out, "--workers", 2)
    limited = ["bash", "-c", 'ulimit -f 16; trap "" XFSZ; exec "$@"', "bash", *words]
    failed = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert failed.returncode == 2, failed.stderr
    assert "error: cannot write" in failed.stderr and "hint: free space" in failed.stderr
    kept = content(out)
    ended = [name for name in kept if name.endswith("result.json")]
    assert ended and not (out / "report.html").exists()
    run_study(read_study(table), out, workers=0)
    again = content(out)
    assert again == part(read_study(table), whole[1])
    assert {name: again[name] for name in ended} == {name: kept[name] for name in ended}


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_torn_lines_are_not_read(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert place.metrics == [{"step": 1}, {"step": 2}]
    place.rewind(1)
    assert place.metrics == [{"step": 1}]
    assert (tmp_path / "metrics.jsonl").read_text() == sealed({"step": 1}) + "\n"


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    engine = FakeEngine()
    import numpy as np

    entry = Trajectory(
        Prompt((1,), (1, 9), "p", "code"),
        (2, 3),
        np.array([-0.1, -1 / 3], np.float32),
        "student",
        1,
        4,
    )
    checkpoint.save(tmp_path, 4, engine, [entry], {"tokens": {"trained": 3}})
    (tmp_path / "partial-00000008").mkdir()
    found = checkpoint.load(tmp_path, engine, [])
    assert found is not None
    step, (again,), extra = found
    assert (step, extra) == (4, {"tokens": {"trained": 3}})
    assert again.logprobs.tobytes() == entry.logprobs.tobytes()
    assert (again.prompt, again.completion, again.prefix) == (entry.prompt, (2, 3), 1)
    checkpoint.save(tmp_path, 8, engine, [], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000008"]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    place.record({"step": 1, "train/loss": float("nan"), "x": [float("inf")]}, None)
    assert place.metrics == [{"step": 1, "train/loss": None, "x": [None]}]


@pytest.mark.slow
def test_all_methods_killed_and_resumed_on_the_torch_engine(tmp_path: Path) -> None:
    """Minutes: the nine methods, with LoRA, killed five times."""
    table = {
        "name": "torch",
        "pairs": ["tiny-qwen"],
        "train": {"steps": 10, "batch_size": 6, "checkpoint_every": 3, "lora_rank": 4},
        "eval": {"problems": 20, "every": 5, "probe_every": 4},
    }
    run_study(read_study(table), tmp_path / "whole")
    killed = kill_and_resume(table, tmp_path, [10, 25, 40, 60, 80])
    assert killed == content(tmp_path / "whole")


def test_a_folder_of_an_earlier_version_takes_todays_defaults(toy: Study, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "old")
    folder.open(toy)
    file = folder.path / "study.toml"
    text = file.read_text()
    assert 'on_collapse = "warn"\n' in text
    file.write_text(text.replace('on_collapse = "warn"\n', ""))
    folder.check(toy)
    changed = toy.train.model_copy(update={"on_collapse": "stop"})
    with pytest.raises(PotstillError, match="on_collapse"):
        folder.check(toy.model_copy(update={"train": changed}))
