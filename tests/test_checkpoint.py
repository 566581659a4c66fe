"""Checkpoints: what is kept, what is deleted, and what comes back."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError, StorageError
from potstill.problems import Problem
from potstill.training import checkpoint
from potstill.types import Prompt, Trajectory

PROMPT = Prompt((1, 2), (1, 2, 3), problem="p", route="maths", begun=(4,), foreign=(7, 8))
PLAIN = Prompt((5,), (5,), problem="q")


def entry(prompt: Prompt) -> Trajectory:
    scores = np.array([-0.1, -1 / 3, -2.5], np.float32)
    return Trajectory(prompt, (6, 7, 8), scores, "teacher", 2, 11, scores * np.float32(1.5))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(folder: Path, *steps: int, good: int | None = None, engine: FakeEngine | None = None):  # type: ignore[no-untyped-def]
    for step in steps:
        checkpoint.save(folder, step, engine or FakeEngine(), [], {}, good)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    engine, other = FakeEngine(), FakeEngine()
    engine._tables["student"] += 1.0
    extra = {"tokens": {"trained": 3}, "seconds": {"other": 0.1}}
    buffer = [entry(PROMPT), entry(PLAIN)]
    checkpoint.save(tmp_path / "new" / "run", 12, engine, buffer, extra)
    restored = checkpoint.load(tmp_path / "new" / "run", other, [])
    assert restored is not None
    step, entries, found = restored
    assert (step, found) == (12, extra)
    assert np.array_equal(other._tables["student"], engine._tables["student"])
    for before, after in zip(buffer, entries, strict=True):
        assert after.prompt == before.prompt and hash(after.prompt) == hash(before.prompt)
        assert (after.completion, after.source, after.prefix, after.version) == (
            (6, 7, 8),
            "teacher",
            2,
            11,
        )
        assert after.logprobs.tolist() == before.logprobs.tolist()
        assert after.behavior_logprobs.tolist() == before.behavior_logprobs.tolist()
    (tmp_path / "empty").mkdir()
    assert checkpoint.load(tmp_path / "empty", other, []) is None
    assert checkpoint.load(tmp_path / "nowhere", other, []) is None


def test_entries_of_the_first_format_are_read_by_their_problem(tmp_path: Path) -> None:
    """It had the problem's name and the student's ids only: the engine renders the prompt anew."""
    engine, problems = FakeEngine(), [Problem("q", "a3", "k"), Problem("r", "a4", "k")]
    checkpoint.save(tmp_path, 1, engine, [entry(PLAIN)], {})
    file = tmp_path / "step-00000001" / "state.json"
    state = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("digest", "files")}
    for old in state["buffer"]:
        old["problem"] = "r"
        del old["prompt"]
    file.write_text(json.dumps(state))
    restored = checkpoint.load(tmp_path, engine, problems)
    assert restored is not None and restored[1][0].prompt == engine.prompt(problems[1])


@pytest.mark.parametrize(
    ("good", "kept"),
    [
        (None, ["step-00000020", "step-00000030"]),
        (30, ["step-00000020", "step-00000030"]),
        (29, ["step-00000020", "step-00000030"]),
        (20, ["step-00000020", "step-00000030"]),
        (19, ["step-00000010", "step-00000020", "step-00000030"]),
        (9, ["step-00000020", "step-00000030"]),  # none was good
    ],
)
def test_the_newest_the_one_before_and_the_last_good_one_are_kept(
    tmp_path: Path, good: int | None, kept: list[str]
) -> None:
    save(tmp_path, 10, 20, good=10)
    if good == 20 or good == 29:
        save(tmp_path, 20, good=20)
    (tmp_path / "partial-00000029").mkdir()  # of a process that was killed
    save(tmp_path, 30, good=good)
    assert names(tmp_path) == kept


def test_the_same_step_is_written_again_over_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "partial-00000003").mkdir()
    (tmp_path / "partial-00000003" / "rubbish").touch()
    for value in (1, 2):
        checkpoint.save(tmp_path, 3, FakeEngine(), [], {"value": value})
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None and restored[2] == {"value": 2}
    assert names(tmp_path) == ["step-00000003"]
    assert "rubbish" not in names(tmp_path / "step-00000003")


def test_going_back_loads_the_newest_one_up_to_a_step(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        engine = FakeEngine()
        engine._tables["student"] += step
        save(tmp_path / "one", step, engine=engine)
        (tmp_path / "one" / f"step-{step:08d}").rename(tmp_path / f"step-{step:08d}")
    assert [checkpoint.step_of(path) for path in checkpoint.points(tmp_path)] == [5, 20, 100]
    plain = FakeEngine()._tables["student"]
    for limit, step in ((20, 20), (99, 20), (19, 5), (1000, 100)):
        engine = FakeEngine()
        assert checkpoint.roll_back(tmp_path, engine, limit) == step
        assert np.allclose(engine._tables["student"], plain + step)
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None and restored[0] == 100


def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    real = checkpoint._fsync

    def spy(path: Path) -> None:
        synced.append((path.name, names(tmp_path)))
        real(path)

    monkeypatch.setattr(checkpoint, "_fsync", spy)
    save(tmp_path, 1)
    files = names(tmp_path / "step-00000001")
    assert sorted(name for name, _ in synced[:-1]) == files and "state.json" in files
    assert all(there == ["partial-00000001"] for _, there in synced[:-1])
    assert synced[-1] == (tmp_path.name, ["step-00000001"])


def test_a_file_that_is_no_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    save(tmp_path, 1, 2)
    assert names(tmp_path) == ["notes.txt", "step-00000001", "step-00000002"]
    (tmp_path / "step-more").touch()
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None and restored[0] == 2


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        save(tmp_path / "file", 1)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 16
    elif how == "zero":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    elif how == "cut":
        del data[len(data) // 2 :]
    file.write_bytes(data)
    if how == "gone":
        file.unlink()


@pytest.mark.parametrize("how", ["flip", "zero", "cut", "gone"])
@pytest.mark.parametrize("name", ["state.json", "engine.safetensors"])
def test_a_damaged_one_is_left_out_and_that_is_said(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        engine = FakeEngine()
        engine._tables["student"] += step
        save(tmp_path, step, engine=engine)
    damage(tmp_path / "step-00000020" / name, how)
    other = FakeEngine()
    restored = checkpoint.load(tmp_path, other, [])
    assert restored is not None and restored[0] == 10
    assert np.allclose(other._tables["student"], FakeEngine()._tables["student"] + 10)
    assert names(tmp_path) == ["step-00000010"]
    assert "step-00000020 is damaged" in caplog.text and len(caplog.records) == 1
    assert "step-00000020 is damaged" in other.notes[0]
    damage(tmp_path / "step-00000010" / "state.json", "cut")
    assert checkpoint.load(tmp_path, FakeEngine(), []) is None and names(tmp_path) == []


def test_a_damaged_one_without_digests_is_left_out_too(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    file = tmp_path / "step-00000020" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({k: state[k] for k in ("step", "extra", "buffer")}))
    (other,) = (p for p in file.parent.iterdir() if p != file)
    damage(other, "cut")
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None and restored[0] == 10


def test_a_rollback_needs_a_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-00000010" / "state.json", "flip")
    with pytest.raises(PotstillError, match="no sound checkpoint up to step 15"):
        checkpoint.roll_back(tmp_path, FakeEngine(), 15)
    assert checkpoint.roll_back(tmp_path, FakeEngine(), 20) == 20


def test_values_that_are_not_finite_come_back_as_they_were(tmp_path: Path) -> None:
    scores = np.array([-np.inf, np.nan], np.float32)
    odd = Trajectory(PLAIN, (6, 7), scores, "teacher", 0, 0, scores)
    checkpoint.save(tmp_path, 1, FakeEngine(), [odd], {})
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None
    assert np.array_equal(restored[1][0].logprobs, scores, equal_nan=True)


def test_what_says_nothing_about_a_checkpoint_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, or no memory for one without digests, as an older version wrote it."""
    save(tmp_path, 10)

    def busy(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "file_digest", busy)
        with pytest.raises(StorageError, match="Too many open files"):
            checkpoint.load(tmp_path, FakeEngine(), [])
    file = tmp_path / "step-00000010" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({k: state[k] for k in ("step", "extra", "buffer")}))

    def full(self: FakeEngine, folder: Path) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "load", full)
        with pytest.raises(RuntimeError, match="allocate"):
            checkpoint.load(tmp_path, FakeEngine(), [])
    restored = checkpoint.load(tmp_path, FakeEngine(), [])
    assert restored is not None and restored[0] == 10
