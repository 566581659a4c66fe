"""A problem keeps its name: from the renderer through sampling, scoring and training to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from conftest import write_toy
from potstill.algorithms.losses import REVERSE_KL
from potstill.algorithms.recipe import Recipe
from potstill.engines.fake import FakeEngine
from potstill.engines.prompts import addressed, by_reader
from potstill.tasks import load_task
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.training import checkpoint
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, Prompt, Term

LIMITS = Limits(8, 1.0, 1.0)


def test_each_model_reads_its_own_ids_and_then_the_same_completion() -> None:
    prompt = Prompt((1, 2), (7, 8, 9), "train-3", "code").then((4,)).then((5,))
    assert prompt.read_by("student") == prompt.read_by("init") == (1, 2, 4, 5)
    assert prompt.read_by("teacher") == prompt.read_by("teacher:code") == (7, 8, 9, 4, 5)
    assert prompt.reader("teacher") == "teacher:code" and prompt.reader("init") == "init"
    assert prompt.then(()) is prompt


def test_calls_are_split_by_teacher_and_come_back_in_order() -> None:
    prompts = [Prompt((n,), (n,), route=route) for n, route in enumerate(("", "b", "a", "", "b"))]
    calls: list[tuple[str, list[int]]] = []

    def call(reader: str, rows: list[int]) -> list[str]:
        calls.append((reader, rows))
        return [f"{reader}-{n}" for n in rows]

    results = by_reader("teacher", prompts, call)
    assert results == ["teacher-0", "teacher:b-1", "teacher:a-2", "teacher-3", "teacher:b-4"]
    assert calls == [("teacher", [0, 3]), ("teacher:b", [1, 4]), ("teacher:a", [2])]
    calls.clear()
    assert by_reader("student", prompts, call) == [f"student-{n}" for n in range(5)]
    assert calls == [("student", [0, 1, 2, 3, 4])]
    assert by_reader("teacher", [], call) == [] and calls[-1] == ("teacher", [])


def test_losses_name_the_teacher_that_reads_the_datum() -> None:
    weights = np.ones(1, np.float32)
    anchor = Term(Recipe(name="x", anchor=0.1).losses[-1], weights)
    for route, to in (("", "teacher"), ("code", "teacher:code")):
        prompt = Prompt((1,), (2,), route=route)
        datum = Datum(prompt, (3,), (3,), (Term(REVERSE_KL, weights), anchor), "student", weights)
        assert [term.loss.to for term in addressed(datum).terms] == [to, "init"]
        assert addressed(datum).read_by(to) == ((2,), (3,))


def test_a_trajectory_and_its_datum_have_the_prompt_of_their_problem(tmp_path: Path) -> None:
    engine, task = FakeEngine(), load_task(**write_toy(tmp_path))
    engine.inform(PromptBuilder(read_context({"system": "7"}), task))
    recipe = Recipe(name="x", on_policy=0.5, prefix=2)
    batch = collect(recipe, engine, task.train[:6], 0.0, 0, 0, LIMITS)
    data = build(recipe, batch, engine)
    assert len(batch) == 6 and data
    prompts = {problem.id: engine.prompt(problem) for problem in task.train}
    for entry in (*batch, *data):
        assert entry.prompt == prompts[entry.prompt.problem]
        assert entry.prompt.student != entry.prompt.teacher


def test_checkpoints_keep_prompts_and_older_ones_are_read(tmp_path: Path) -> None:
    """An earlier version kept the student's ids and the problem's id: the prompt is rendered."""
    engine, task = FakeEngine(), load_task(**write_toy(tmp_path))
    engine.inform(PromptBuilder(read_context({"system": "7"}), task))
    batch = collect(Recipe(name="x", prefix=1), engine, task.train[:4], 0.0, 0, 0, LIMITS)
    checkpoint.save(tmp_path / "points", 3, engine, batch, {})
    loaded = checkpoint.load(tmp_path / "points", FakeEngine(), task.train)
    assert loaded is not None and [t.prompt for t in loaded[1]] == [t.prompt for t in batch]
    (state,) = (tmp_path / "points").glob("*/state.json")
    table = json.loads(state.read_text())
    for entry in table["buffer"]:
        entry["problem"], entry["prompt"] = entry["prompt"]["problem"], entry["prompt"]["student"]
    state.write_text(json.dumps(table))
    older = checkpoint.load(tmp_path / "points", engine, task.train)
    assert older is not None and [t.prompt for t in older[1]] == [t.prompt for t in batch]
    assert [t.completion for t in older[1]] == [t.completion for t in batch]
