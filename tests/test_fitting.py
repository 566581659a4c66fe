"""Prompts that are too long, counts that are "up to", and all errors of a study in one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launching import run_study
from potstill.cli.check import plan
from potstill.engines import zoo
from potstill.errors import PotstillError, PotstillErrors
from potstill.study.inputs import inputs_of
from potstill.study.loading import read_study
from potstill.study.problems import study_task
from potstill.study.record import of_problems
from potstill.study.run import prepare
from potstill.study.storage import RunId

QUESTIONS = [f"{n}? " + "x" * (10 * n) for n in range(6)]  # 3 to 53 characters


def study_of(folder: Path, shape: str = "question", **changes: Any) -> dict[str, Any]:
    for name, mark in (("train", "a"), ("test", "b")):
        texts = [mark + question for question in QUESTIONS]
        rows: list[dict[str, Any]] = [{"question": text, "answer": "x"} for text in texts]
        if shape == "messages":
            turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
            user = [{"role": "user", "content": text} for text in texts]
            rows = [{"messages": [*turns, one, turns[1]]} for one in user]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {f"{name}_path": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return {
        "engine": "fake",
        "pairs": ["tiny-qwen"],
        "methods": ["off_policy"],
        "train": {"steps": 1, "batch_size": 2, "max_tokens": 4},
        "task": {"name": "data", **files, "grade": "exact"},
        **changes,
    }


def test_problems_and_probe_are_up_to(tmp_path: Path) -> None:
    study = read_study(study_of(tmp_path))
    assert study.eval.problems == 500 and study.eval.probe == 16
    task = prepare(study)
    assert plan(study, task)["graded on"] == "6 problems every 25 steps"
    folder = run_study(study, tmp_path / "out", workers=0)
    key = RunId("tiny-qwen", "off_policy", 0)
    record = folder.results([key])[key]
    assert record["status"] == "done" and record["problems"] == 6


@pytest.mark.parametrize("name", ["data", "jsonl"])
def test_longer_prompts_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    table = study_of(tmp_path)
    table["train"]["max_prompt_tokens"] = 34
    table["task"]["name"] = name
    study = read_study(table)
    task = prepare(study)
    assert [p.id for p in task.train] == ["train-0", "train-1", "train-2", "train-3"]
    assert [p.id for p in task.test] == ["test-0", "test-1", "test-2", "test-3"]
    note = (
        "2 of 6 training prompts and 2 of 6 held-out prompts have more than 34 tokens and are "
        "left out"
    )
    assert plan(study, task)["left out"] == note
    folder = run_study(study, tmp_path / "out", workers=0)
    key = RunId("tiny-qwen", "off_policy", 0)
    record = folder.results([key])[key]
    assert note in record["notes"] and record["problems"] == 4
    if name == "data":  # also where problems are kept for validation
        table["train"]["validation"] = 1
        kept = read_study(table)
        assert plan(kept, prepare(kept))["left out"] == note
        assert inputs_of(kept, prepare(kept)).data["grader"]
    table["train"]["max_prompt_tokens"] = 2
    with pytest.raises(PotstillError, match="all 6 training prompts have more than 2 tokens"):
        study_task(read_study(table))


@pytest.mark.parametrize("shape", ["question", "messages"])
def test_prompts_are_counted_with_the_student_s_tokenizer(tmp_path: Path, shape: str) -> None:
    table = study_of(tmp_path, shape, engine="torch")
    table["train"]["max_prompt_tokens"] = 40
    study = read_study(table)
    from potstill.engines.torch.checkpoints import Checkpoint
    from potstill.tasks import load_task
    from potstill.tasks.rendering import render

    tokenizer = Checkpoint.find(zoo.folder("tiny-qwen", "student")).tokenizer
    every = load_task(**study.task).train
    short = [p.id for p in every if len(render(tokenizer, p.conversation)) <= 40]
    assert 0 < len(short) < len(every)
    assert [p.id for p in study_task(study).train] == short


def test_prompts_that_fill_the_window_are_refused_with_their_number(tmp_path: Path) -> None:
    table = study_of(tmp_path, engine="torch")
    for name in ("train", "test"):
        file = tmp_path / f"{name}.jsonl"
        row = {"question": name + "y" * 5000, "answer": "x"}
        file.write_text(file.read_text() + 2 * (json.dumps(row) + "\n"))
    with pytest.raises(PotstillErrors) as caught:
        prepare(read_study(table))
    assert "2 of 8 training prompts do not in the" in str(caught.value)
    assert "train.max_prompt_tokens = " in caught.value.hint
    table["train"]["max_prompt_tokens"] = 200
    assert len(prepare(read_study(table)).train) == 6


@pytest.mark.parametrize("recipe", [{"reject_wrong": True}, {"prefix_over": "success"}])
def test_completions_that_are_graded_in_training_have_references(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    table = study_of(tmp_path, methods=["mine"])
    own = (
        {"from": "teacher_seeded", "prefix": {"linear": [3, 0]}}
        if "prefix_over" in recipe
        else {"from": "off_policy"}
    )
    table["recipe"] = {"mine": {**own, **recipe}}
    assert prepare(read_study(table))
    (tmp_path / "train.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    with pytest.raises(PotstillError, match=r"mine grades .* 2 of 2 have no reference .*train-0"):
        prepare(read_study(table))


def test_problems_that_are_the_same_are_one_cluster(tmp_path: Path) -> None:
    table = study_of(tmp_path)
    texts = ["What is it?", "what is  it", "What is that?"]
    rows = [{"question": text, "answer": str(n)} for n, text in enumerate(texts)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = read_study(table)
    task = prepare(study)
    assert of_problems(study, "tiny-qwen", task)["clusters"] == [0, 0, 1]


def test_all_errors_of_a_study_are_in_one_answer(tmp_path: Path) -> None:
    table = study_of(tmp_path, seeds=[0, 0])
    (tmp_path / "train.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    table["train"]["max_tokens"] = 0
    with pytest.raises(PotstillErrors) as caught:
        read_study(table)
    assert "max_tokens" in str(caught.value) and "never graded on" in str(caught.value)
    table["train"]["max_tokens"] = 4
    table["task"]["test_path"] = str(tmp_path / "none.jsonl")
    table["task"]["train_path"] = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(PotstillErrors) as caught:
        read_study(table)
    for part in ("seeds lists", "nowhere.jsonl", "none.jsonl"):
        assert part in str(caught.value)
    table["seeds"] = [0]
    with pytest.raises(PotstillErrors, match=r"nowhere\.jsonl[^$]*none\.jsonl"):
        prepare(read_study(table))


def test_errors_that_depend_on_the_problems_are_in_one_answer(tmp_path: Path) -> None:
    table = study_of(tmp_path, engine="fake")
    (tmp_path / "train.jsonl").write_text((tmp_path / "test.jsonl").read_text())
    own = {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}
    table["pair"] = {
        "hinted": {**own, "context": {"hint": {"field": "note"}}},
        "shown": {**own, "context": {"few_shot": {"n": 9}}},
    }
    table["pairs"] = ["hinted", "shown"]
    with pytest.raises(PotstillErrors) as caught:
        prepare(read_study(table))
    for part in ("never graded on", 'a hint needs "note"', "few_shot shows 9 examples"):
        assert part in str(caught.value)
