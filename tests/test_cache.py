"""A teacher's text is written once: hits give what a miss would have given."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import toy_table

from potstill.engines.cached_teacher import CachedTeacher, fingerprint
from potstill.engines.fake import FakeEngine
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.training.metering import Metered, Usage
from potstill.training.spending import Spent
from potstill.types import Prompt


class Asked(FakeEngine):
    """Counts who is asked for texts."""

    def __init__(self) -> None:
        super().__init__()
        self.roles: list[str] = []

    def sample(self, role, prompts, max_tokens, temperature, rng, *cut):  # type: ignore[no-untyped-def]
        self.roles.append(role)
        return super().sample(role, prompts, max_tokens, temperature, rng, *cut)


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
        assert (a.behavior_logprobs == b.behavior_logprobs).all()


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


class Slow(Asked):
    """A teacher that takes a while."""

    def sample(self, role, prompts, max_tokens, temperature, rng, *cut):  # type: ignore[no-untyped-def]
        time.sleep(0.05)
        return super().sample(role, prompts, max_tokens, temperature, rng, *cut)


def test_what_a_hit_saved_is_no_merit_of_the_run(tmp_path: Path) -> None:
    """The second run is faster, and would have cost alone as much as the first."""
    usages = []
    for _ in range(2):
        engine = CachedTeacher(Slow(), "q", tmp_path)
        usage = Usage(engine)
        ask(Metered(engine, usage)), ask(Metered(engine, usage), role="student")  # type: ignore[arg-type]
        usages.append(usage)
    first, second = usages
    assert first.saved == {} and first.seconds["teacher sampling"] > 0.05
    assert second.seconds["teacher sampling"] < 0.04 < second.saved["teacher sampling"]
    assert first.tokens == second.tokens
    costs = [
        Spent.read({"seconds": sum(usage.seconds.values()), "saved": usage.saved})
        for usage in usages
    ]
    assert costs[0].saved == 0 and costs[0].alone == costs[0]
    assert costs[1].alone.seconds == pytest.approx(costs[0].seconds, abs=0.02)
    assert (costs[1] + costs[1]).saved == pytest.approx(2 * costs[1].saved) == (costs[1] * 2).saved
    resumed = Usage(engine)
    resumed.recall(second.state())
    assert resumed.saved == second.saved


def test_the_report_counts_what_a_run_would_have_cost_alone(tmp_path: Path) -> None:
    from potstill.report.costs import costs
    from potstill.report.data import load
    from potstill.report.results import table

    study = read_study(toy_table(tmp_path, methods=["off_policy"], seeds=[0], price={"hour": 3600}))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    for cell in runs_of(study):
        run_cell(study, folder, cell)
    place = folder.cell(RunId("toy", "off_policy", 0))
    record = place.result
    assert record is not None and record["saved"] == {}
    place.finish({**record, "seconds": 2.0, "saved": {"teacher sampling": 3.0}})
    (row,) = costs(load(folder.path), "toy")
    assert (row.spent.seconds, row.saved, row.usd, row.device_seconds) == (5.0, 3.0, 5.0, 5.0)
    done = folder.results(runs_of(study))
    *_, trained = table(runs_of(study), ["off_policy"], done, lambda _: [])
    assert (trained.method, trained.seconds) == ("off_policy", 5.0)
    place.finish({key: value for key, value in record.items() if key != "saved"})  # an older one
    (row,) = costs(load(folder.path), "toy")
    assert row.saved is None and row.spent.seconds == record["seconds"]


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
