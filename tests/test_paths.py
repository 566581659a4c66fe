"""Paths in a study file: relative to the file, absolute in a study's folder, as names elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from launching import run_study
from potstill.engines import zoo
from potstill.errors import PotstillError, PotstillErrors
from potstill.study.loading import load_study, read_study
from potstill.study.run import prepare
from potstill.study.storage import RunId, StudyFolder
from potstill.study.storage.identity import is_digest_of, settings_digest


def rows(*numbers: int) -> str:
    return "".join(json.dumps({"question": f"q{n}", "answer": "a"}) + "\n" for n in numbers)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file with data in its folder; the current folder is another one."""
    (tmp_path / "study" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "study" / "data" / "train.jsonl").write_text(rows(1, 2, 3))
    (tmp_path / "study" / "test.jsonl").write_text(rows(4, 5))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "study"


def study_file(folder: Path, **changes: Any) -> Path:
    table = {
        "engine": "fake",
        "pairs": ["tiny-qwen"],
        "methods": ["off_policy"],
        "train": {"steps": 2, "batch_size": 2, "max_tokens": 4},
        "eval": {"problems": 2, "probe": 2},
        "task": {"name": "jsonl", "train_path": "data/train.jsonl", "test_path": "test.jsonl"},
        **changes,
    }
    (folder / "mine.toml").write_text(tomli_w.dumps(table))
    return folder / "mine.toml"


def test_data_are_relative_to_the_study_file(folder: Path) -> None:
    study = load_study(study_file(folder))
    assert study.task["train_path"] == str(folder / "data" / "train.jsonl")
    assert len(prepare(study).train) == 3


def test_a_relative_path_of_the_study_file_itself(folder: Path) -> None:
    study_file(folder)
    assert load_study("../study/mine.toml").task["test_path"].endswith("/study/test.jsonl")


def test_lists_of_files_data_sets_graders_and_contexts(folder: Path) -> None:
    (folder / "set").mkdir()
    task = {"name": "data", "train_path": ["data", "test.jsonl"], "test_path": "test.jsonl"}
    context = {"hybrid": [{"retrieval": {"path": "data"}}, {"few_shot": {"path": "test.jsonl"}}]}
    own = {"mine": {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}}
    file = study_file(
        folder, task=task, pair={"mine": {**own["mine"], "context": context}}, pairs=["mine"]
    )
    study = load_study(file)
    assert study.task["train_path"] == [str(folder / "data"), str(folder / "test.jsonl")]
    assert study.pair["mine"].student == "tiny-qwen/student"
    parts = study.pair["mine"].context["hybrid"]
    assert parts[0]["retrieval"]["path"] == str(folder / "data")
    assert parts[1]["few_shot"]["path"] == str(folder / "test.jsonl")
    for name, absolute in (("set", str(folder / "set")), ("openai/gsm8k", "openai/gsm8k")):
        task = {"name": "data", "dataset": name}
        assert load_study(study_file(folder, task=task)).task["dataset"] == absolute


def test_a_model_is_a_folder_only_where_there_is_one(folder: Path) -> None:
    student = Path(zoo.folder("tiny-qwen", "student"))
    (folder / "models").symlink_to(student.parent)
    pair = {"student": "models/student", "teacher": "tiny-qwen/teacher"}
    changes = {"pair": {"mine": pair}, "pairs": ["mine"], "train": {"learning_rate": 1e-4}}
    study = load_study(study_file(folder, engine="torch", **changes))
    assert study.models["mine"].student == str(folder / "models" / "student")
    assert study.models["mine"].teacher == zoo.folder("tiny-qwen", "teacher")
    pair["teacher"] = "owner/name"
    study = load_study(study_file(folder, engine="torch", **changes))
    assert study.models["mine"].teacher == "owner/name"


def test_overrides_are_relative_to_the_current_folder(folder: Path) -> None:
    Path("other.jsonl").write_text(rows(7, 8, 9, 10))
    study = load_study(study_file(folder), ["task.train_path=other.jsonl"])
    assert study.task["train_path"] == str(Path.cwd() / "other.jsonl")
    assert study.task["test_path"] == str(folder / "test.jsonl")
    assert len(prepare(study).train) == 4


@pytest.mark.parametrize("key", ["task.test_path", "pair.mine.student"])
def test_a_path_that_is_in_the_current_folder_alone_is_named(folder: Path, key: str) -> None:
    Path("only").mkdir()
    pair = {"student": "only" if "pair" in key else "tiny-qwen/student", "teacher": "a/b"}
    task = {"name": "jsonl", "train_path": "data/train.jsonl", "test_path": "test.jsonl"}
    task |= {"test_path": "only"} if "task" in key else {}
    file = study_file(folder, task=task, pair={"mine": pair}, pairs=["mine"], seeds=[0, 0])
    with pytest.raises(PotstillErrors) as caught:  # with the other errors of the file
        load_study(file)
    texts = [str(error) for error in caught.value.errors]
    assert any(f"{key} is relative to the study file, and '{folder}/only'" in t for t in texts)
    assert any("seeds lists" in text for text in texts)
    assert f"write '{Path.cwd()}/only'" in caught.value.hint


def test_a_file_that_is_nowhere_is_named_by_its_whole_path(folder: Path) -> None:
    (folder / "test.jsonl").unlink()
    with pytest.raises(PotstillError, match=f'cannot read "{folder}/test.jsonl"'):
        prepare(load_study(study_file(folder)))


def test_the_settings_in_a_study_s_folder_are_absolute(folder: Path) -> None:
    out = run_study(load_study(study_file(folder)), Path("out"), workers=0)
    again = load_study(out.path / "study.toml")
    assert again.task["train_path"] == str(folder / "data" / "train.jsonl")
    assert prepare(again).test


def test_a_folder_of_a_version_that_kept_paths_as_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    table = {
        "engine": "fake",
        "pairs": ["tiny-qwen"],
        "methods": ["off_policy"],
        "train": {"steps": 2, "batch_size": 2, "max_tokens": 4},
        "eval": {"problems": 2, "probe": 2},
        "task": {"name": "jsonl", "train_path": "data/train.jsonl", "test_path": "test.jsonl"},
    }
    out = run_study(read_study(table), folder / "out", workers=0)
    key = RunId("tiny-qwen", "off_policy", 0)
    then = out.results([key])[key]["settings"]
    study = load_study(study_file(folder))
    assert settings_digest(study, key) != then and is_digest_of(then, study, key)
    StudyFolder(folder / "out").open(study)
    assert out.results([key], study)[key]["settings"] == then
    other = load_study(study_file(folder), ["task.test_path=data/train.jsonl"])
    assert not is_digest_of(then, other, key)
    with pytest.raises(PotstillError, match="other settings"):
        StudyFolder(folder / "out").open(other)


def test_a_path_that_an_override_replaces_need_not_exist(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    (other / "here").mkdir()
    monkeypatch.chdir(other)
    study = folder / "old.toml"
    study.write_text('pair.mine = { student = "here", teacher = "tiny-qwen/teacher" }\n')
    with pytest.raises(PotstillError, match="is relative to the study file"):
        load_study(study, ["train.learning_rate=1e-4"])
    replaced = ["train.learning_rate=1e-4", "pair.mine.student=tiny-qwen/student"]
    assert load_study(study, replaced).models["mine"].student.endswith("student")
