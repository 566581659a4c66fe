"""A study knows its inputs: other problems, graders or models are refused like other settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launching import command, run_study
from potstill.engines import model_digest as digests
from potstill.engines import zoo
from potstill.engines.model_digest import model_digest
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.study.inputs import Inputs, inputs_of, problems_digest
from potstill.study.loading import read_study
from potstill.study.run import prepare, run_cell
from potstill.study.storage import RunId, StudyFolder

DIGIT = "What follows {n}?"


def write_problems(path: Path, numbers: range, answer: str = "k") -> None:
    rows = ({"question": DIGIT.format(n=n), "answer": f"{answer}{n}"} for n in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_study(folder: Path, **changes: Any) -> dict[str, Any]:
    write_problems(folder / "train.jsonl", range(100, 120))
    write_problems(folder / "test.jsonl", range(200, 210))
    return {
        "name": "own",
        "engine": "fake",
        "pairs": ["tiny-qwen"],
        "methods": ["on_policy_gkd", "off_policy"],
        "task": {
            "name": "jsonl",
            "train_path": str(folder / "train.jsonl"),
            "test_path": str(folder / "test.jsonl"),
        },
        "train": {"steps": 2, "batch_size": 2, "max_tokens": 4},
        "eval": {"problems": 10, "every": 2, "probe": 2},
        **changes,
    }


def potstill(words: list[str]) -> tuple[int, str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_a_file_that_is_replaced_between_two_runs_is_refused(tmp_path: Path, file: str) -> None:
    table, out = own_study(tmp_path), tmp_path / "out"
    words = command({**table, "methods": ["on_policy_gkd"]}, tmp_path / "own.toml", out)
    assert potstill(words)[0] == 0
    write_problems(tmp_path / file, range(300, 320), "m")
    code, stderr = potstill(command(table, tmp_path / "own.toml", out))
    name = {"train.jsonl": "training problems", "test.jsonl": "graded problems"}[file]
    assert code == 2
    assert f"holds a study of other inputs: changed since are {name}" in stderr
    assert not (out / "cells" / "tiny-qwen" / "off_policy").exists()
    own_study(tmp_path)  # the files of then
    assert potstill(command(table, tmp_path / "own.toml", out))[0] == 0
    records = StudyFolder(out).results([RunId("tiny-qwen", m, 0) for m in table["methods"]])
    assert len({record["inputs"] for record in records.values()}) == 1


def test_a_file_that_is_replaced_while_a_study_runs_fails_the_run(tmp_path: Path) -> None:
    study = read_study(own_study(tmp_path))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study, inputs_of(study, prepare(study)))
    assert run_cell(study, folder, RunId("tiny-qwen", "teacher"))["status"] == "done"
    write_problems(tmp_path / "test.jsonl", range(300, 310))
    record = run_cell(study, folder, RunId("tiny-qwen", "untrained"))
    assert record["status"] == "failed"
    assert "changed since are graded problems" in record["cause"]


def test_records_of_other_inputs_never_stand_in_one_table(tmp_path: Path) -> None:
    study = read_study(own_study(tmp_path))
    folder = run_study(study, tmp_path / "out", workers=0)  # without inputs.json, as before it
    assert folder.inputs is None
    write_problems(tmp_path / "test.jsonl", range(300, 310))
    shutil.rmtree(folder.path / "cells" / "tiny-qwen" / "off_policy")
    key = RunId("tiny-qwen", "off_policy", 0)
    run_cell(study, folder, key)
    with pytest.raises(PotstillError, match="on other problems or models than the rest"):
        folder.results([RunId("tiny-qwen", "on_policy_gkd", 0), key], study)


@pytest.mark.parametrize("kind", ["retrieval", "few_shot"])
def test_files_of_a_context_are_inputs(tmp_path: Path, kind: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Ann adds.")
    write_problems(tmp_path / "shots.jsonl", range(400, 404))
    kinds = {
        "retrieval": {"path": str(tmp_path / "docs"), "k": 1},
        "few_shot": {"path": str(tmp_path / "shots.jsonl"), "n": 1},
    }
    pair = {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}
    mine = {**pair, "context": {kind: kinds[kind]}}
    table = own_study(tmp_path, pair={"mine": mine}, pairs=["mine"])
    study = read_study({**table, "train": {**table["train"], "learning_rate": 1e-4}})
    before = inputs_of(study, prepare(study))
    (tmp_path / "docs" / "a.txt").write_text("Ben takes away.")
    write_problems(tmp_path / "shots.jsonl", range(500, 504))
    after = inputs_of(study, prepare(study))
    assert after.changes(before) == ["context of mine"]
    assert after.digest("mine") != before.digest("mine")


def test_models_are_inputs(tmp_path: Path) -> None:
    for role in ("student", "teacher"):
        shutil.copytree(zoo.folder("tiny-qwen", role), tmp_path / role)
    pair = {role: str(tmp_path / role) for role in ("student", "teacher")}
    table = own_study(tmp_path, engine="torch", pair={"mine": pair}, pairs=["mine"])
    study = read_study({**table, "train": {**table["train"], "learning_rate": 1e-4}})
    before = inputs_of(study, prepare(study))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study, before)
    weights = tmp_path / "student" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    after = inputs_of(study, prepare(study))
    assert after.changes(before) == ["student of mine"]
    assert after.digest("mine") != before.digest("mine")
    with pytest.raises(PotstillError, match="changed since are student of mine"):
        folder.open(study, after)


def test_a_model_elsewhere_is_the_same_model(tmp_path: Path) -> None:
    source = Path(zoo.folder("tiny-qwen", "student"))
    shutil.copytree(source, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("notes")
    assert model_digest(str(source)) == model_digest(str(tmp_path / "copy"))
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}")
    assert model_digest(str(source)) != model_digest(str(tmp_path / "copy"))


def test_an_adapter_has_the_digest_of_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = json.dumps({"base_model_name_or_path": str(base)})
    (adapter / "adapter_config.json").write_text(config)
    before = model_digest(str(adapter))
    (base / "config.json").write_text('{"a": 1}')
    assert model_digest(str(adapter)) != before


def test_large_files_are_read_once_and_again_when_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "LARGE", 10)
    reads: list[Path] = []

    def read(path: Path) -> str | None:
        reads.append(path)
        return real(path)

    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", read)
    model, kept = tmp_path / "model", tmp_path / "kept"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(b"a" * 100)
    first = model_digest(str(model), kept)
    assert model_digest(str(model), kept) == first
    assert len(reads) == 1
    state = weights.stat()
    weights.write_bytes(b"b" * 100)  # same size, and a clock that was set back
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert model_digest(str(model), kept) != first
    for note in kept.iterdir():
        note.write_text("damaged")
    assert model_digest(str(model), kept) == model_digest(str(model))


@pytest.mark.parametrize(
    "change",
    [
        {"question": "other"},
        {"answer": "other"},
        {"solution": "other"},
        {"extra": {"hint": "other"}},
        {"messages": (("system", "other"), ("user", "q"))},
        {"completions": ("other",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_a_run_reads_of_a_problem_counts(change: dict[str, Any]) -> None:
    fields = {"id": "train-0", "question": "q", "answer": "a"}
    one, other = Problem(**fields), Problem(**{**fields, **change})
    assert problems_digest([one]) != problems_digest([other])
    assert problems_digest([one, other]) != problems_digest([other, one])


def test_pairs_may_be_added_and_none_is_lost() -> None:
    data = {"training problems": "1", "graded problems": "2"}
    first = Inputs(data, {"a": {"student": "3"}})
    second = Inputs(data, {"b": {"student": "4"}})
    assert not second.changes(first)
    assert set(second.with_pairs_of(first).models) == {"a", "b"}
    assert Inputs({**data, "grader": "5"}, first.models).changes(first) == ["grader"]


@pytest.mark.parametrize(
    "record", [{}, {"data": {}}, {"data": {"a": 1}, "models": {}}, {"data": [], "models": {}}]
)
def test_a_damaged_record_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="digests are texts by name"):
        Inputs.from_record(record)
