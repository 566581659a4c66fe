"""A teacher's text is written once: hits give what a miss would have given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import toy_table

from potstill.engines.cached_teacher import CachedTeacher, fingerprint
from potstill.engines.fake import FakeEngine
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.types import Prompt


class Asked(FakeEngine):
    """Counts who is asked for texts."""

    def __init__(self) -> None:
        super().__init__()
        self.roles: list[str] = []

    def sample(self, role, prompts, max_tokens, temperature, rng):  # type: ignore[no-untyped-def]
        self.roles.append(role)
        return super().sample(role, prompts, max_tokens, temperature, rng)


def ask(engine: CachedTeacher, role: str = "teacher", limit: int = 9, seed: int = 0) -> list:
    prompts = [Prompt.of(engine.encode(text)) for text in ("a3", "b12", "c7")]
    rng = np.random.default_rng(seed)
    return engine.sample(role, prompts, [limit, limit, 0], 1.0, rng)  # type: ignore[arg-type]


def test_a_hit_is_what_a_miss_would_have_given(tmp_path: Path) -> None:
    engine = Asked()
    first, second = (CachedTeacher(engine, "q", tmp_path) for _ in range(2))
    written, read, plain = ask(first), ask(second), ask(CachedTeacher(Asked(), "r", tmp_path))
    assert engine.roles == ["teacher"]
    for a, b, c in zip(written, read, plain, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert b.logprobs.dtype == np.float32
        assert (a.logprobs == b.logprobs).all() and (a.logprobs == c.logprobs).all()


def test_whatever_decides_a_text_is_in_the_key(tmp_path: Path) -> None:
    engine = Asked()
    cached = CachedTeacher(engine, "q", tmp_path)
    ask(cached), ask(cached, limit=8), ask(cached, seed=1)
    ask(CachedTeacher(engine, "another", tmp_path))
    assert engine.roles == ["teacher"] * 4
    ask(cached, role="student"), ask(cached, role="student")
    assert engine.roles[4:] == ["student"] * 2


def test_a_file_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    engine = Asked()
    cached = CachedTeacher(engine, "q", tmp_path)
    whole = ask(cached)
    (file,) = tmp_path.rglob("*.npz")
    for damage in (b"", file.read_bytes()[:60]):
        file.write_bytes(damage)
        assert [s.tokens for s in ask(cached)] == [s.tokens for s in whole]
    assert engine.roles == ["teacher"] * 3
    ask(cached)
    assert len(engine.roles) == 3


def test_a_changed_folder_is_another_teacher(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = fingerprint(str(tmp_path), "torch")
    assert before == fingerprint(str(tmp_path), "torch") != fingerprint(str(tmp_path), "fake")
    weights.write_bytes(b"another")
    assert fingerprint(str(tmp_path), "torch") != before


@pytest.mark.parametrize("method", ["off_policy", "teacher_seeded"])
def test_runs_share_it_and_their_numbers_stay(tmp_path: Path, method: str) -> None:
    study = read_study(toy_table(tmp_path, methods=[method], seeds=[0]))
    metrics, kept = [], 0
    for name in ("first", "second"):
        folder = StudyFolder(tmp_path / name, tmp_path / "shared")
        folder.open(study)
        for cell in runs_of(study):
            assert run_cell(study, folder, cell)["status"] == "done"
        metrics.append(folder.cell(RunId("toy", method, 0)).metrics)
        files = len(list((tmp_path / "shared").rglob("*.npz")))
        assert files and files == (kept or files)
        kept = files
    assert metrics[0] == metrics[1]
