"""Several teachers by problem: each row is read by its own, whatever asks."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import monitored, toy_table
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.engines import zoo
from potstill.engines.registry import open_engine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.report import as_markdown, write_report
from potstill.report.data import load
from potstill.report.routes import routes
from potstill.settings import Eval, Pair, Train
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair, prepare, run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks import Task, load_task
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Limits, Prompt
from studies import small_study, write_study

LIMITS = Limits(8, 1.0, 1.0)


def write_task(folder: Path, **changes: str) -> dict[str, str]:
    """Problems with and without a subject, in turns."""
    for split, lead in (("train", ""), ("test", "x")):
        rows = [
            {"question": f"{lead}Tom has {n} apples", "answer": "1", "solution": f"{n} it is"}
            | ({"subject": "code"} if n % 2 else {})
            for n in range(12)
        ]
        rows[3] |= changes
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {f"{split}_path": str(folder / f"{split}.jsonl") for split in ("train", "test")}
    return {"name": "jsonl", "match": "numeric", **paths}


def pair_of(models: Path, **more: object) -> Pair:
    folder = models / "qwen"
    return Pair(
        student=str(folder / "student"),
        teacher=str(folder / "teacher"),
        route="subject",
        teachers={"code": zoo.folder("tiny-qwen", "student")},
        **more,
    )


def open_routed(models: Path, task: Task, **more: object) -> TorchEngine:
    engine = open_engine("torch", pair_of(models, **more), task=task, threads=1)
    assert isinstance(engine, TorchEngine)
    return engine


def alone(prompt: Prompt) -> Prompt:
    """The same prompt for an engine with one teacher."""
    return dataclasses.replace(prompt, route="")


def teacher_alone(models: Path, subject: str) -> TorchEngine:
    pair = pair_of(models)
    return TorchEngine(pair.student, pair.teachers.get(subject, pair.teacher), threads=1)


def test_each_row_is_read_by_its_own_teacher(models: Path, tmp_path: Path) -> None:
    task = load_task(**write_task(tmp_path))
    engine = open_routed(models, task)
    batch = collect(Recipe(name="x"), engine, task.train, 0.0, 0, 0, LIMITS)
    rows = [(t.prompt, t.completion) for t in batch]
    scores, looks = engine.score("teacher", rows), engine.inspect("teacher", rows)
    plain = [(alone(prompt), completion) for prompt, completion in rows]
    single = {key: teacher_alone(models, key).score("teacher", plain) for key in ("", "code")}
    for n, (problem, score, look) in enumerate(zip(task.train, scores, looks, strict=True)):
        mine, other = single[problem.text("subject")][n], single["" if n % 2 else "code"][n]
        np.testing.assert_allclose(score, mine, atol=1e-4)
        np.testing.assert_allclose(look.logprobs, mine, atol=1e-4)
        assert not np.allclose(mine, other, atol=1e-2)
        own = engine.rows("teacher", *rows[n])[np.arange(len(mine)), list(rows[n][1])]
        np.testing.assert_allclose(own, mine, atol=1e-4)


def test_a_step_is_told_by_every_teacher_at_once(models: Path, tmp_path: Path) -> None:
    """The loss of a mixed batch is the weighted sum of what each teacher alone would tell."""
    task = load_task(**write_task(tmp_path))
    engine = open_routed(models, task)
    recipe = Recipe(name="x", on_policy=0.5, teacher_loss="forward_kl", anchor=0.1)
    batch = collect(recipe, engine, task.train, 0.0, 0, 0, LIMITS)
    data = build(recipe, batch, engine)
    assert {datum.prompt.route for datum in data} == {"", "code"}
    wanted = sum(
        teacher_alone(models, key)
        .measure(
            [dataclasses.replace(d, prompt=alone(d.prompt)) for d in data if d.prompt.route == key]
        )
        .loss
        for key in ("", "code")
    )
    assert engine.measure(data).loss == pytest.approx(wanted, rel=1e-4)
    assert engine.step(data, 1e-3).loss == pytest.approx(wanted, rel=1e-4)


def test_what_a_teacher_writes_is_its_own(models: Path, tmp_path: Path) -> None:
    task = load_task(**write_task(tmp_path))
    engine = open_routed(models, task)
    prompts = [engine.prompt(problem) for problem in task.train]
    rng = np.random.default_rng(0)
    found = engine.sample("teacher", prompts, [6] * len(prompts), 0.0, rng)
    for key in ("", "code"):
        mine = [n for n, p in enumerate(task.train) if p.text("subject") == key]
        single = teacher_alone(models, key).sample(
            "teacher", [alone(prompts[n]) for n in mine], [6] * len(mine), 0.0, rng
        )
        assert [found[n].tokens for n in mine] == [sample.tokens for sample in single]


def test_contexts_and_several_teachers_go_together(models: Path, tmp_path: Path) -> None:
    task = load_task(**write_task(tmp_path))
    hint = {"hint": {"template": "{hint}. {question}"}}
    engine, plain = open_routed(models, task, context=hint), teacher_alone(models, "code")
    problem = task.train[1]
    prompt = engine.prompt(problem)
    read = plain.encode(f"{problem.solution}. {problem.question}")
    assert prompt.read_by("teacher") == read and prompt.reader("teacher") == "teacher:code"
    (score,) = engine.score("teacher", [(prompt, (5, 6, 7))])
    (want,) = plain.score("teacher", [(Prompt.of(read), (5, 6, 7))])
    np.testing.assert_allclose(score, want, atol=1e-4)
    memory = Memory()
    settings = Train(steps=3, batch_size=6, max_tokens=8, learning_rate=1e-3)
    grading = Eval(every=3, problems=4, probe=2, probe_every=3)
    monitored(METHODS["mixture"], engine, task, settings, grading, recorder=memory)
    assert not [c for row in memory.metrics for c in row.get("checks", ())]


def test_a_study_with_them_passes_preflight_and_runs(models: Path, tmp_path: Path) -> None:
    table = {
        "task": write_task(tmp_path),
        "pair": {"mine": pair_of(models).model_dump()},
        "methods": ["mixture"],
        "train": {"steps": 2, "batch_size": 4, "max_tokens": 8, "learning_rate": 1e-3},
        "eval": {"problems": 4, "probe": 2},
    }
    study, folder = read_study(table), StudyFolder(tmp_path / "study")
    assert prepare(study).train and read_study(study.to_toml()).models == study.models
    refused = [c for c in preflight_pair(study, "mine") if c.status == "refused"]
    assert not refused
    assert run_cell(study, folder, RunId("mine", "teacher"))["status"] == "done"
    record = run_cell(study, folder, RunId("mine", "mixture", 0))
    assert record["status"] == "done" and '"subject" selects the teacher' in record["notes"][-1]


def test_the_report_tells_accuracy_by_teacher(tmp_path: Path) -> None:
    """Made-up outcomes: problems of one teacher right, half of the other's."""
    pair = {
        "student": "tiny-qwen/student",
        "teacher": "tiny-qwen/student",
        "route": "first",
        "teachers": {"gain": "tiny-qwen/teacher", "loss": "tiny-qwen/student"},
    }
    study = small_study(engine="torch", pairs=["mine", "tiny-qwen"], pair={"mine": pair})
    folder, turn = write_study(tmp_path, study), itertools.count()
    values = [p.text("first") for p in load_task("arithmetic").test[: study.eval.problems]]
    for seed in study.seeds:
        place = folder.cell(RunId("mine", "hybrid", seed))
        right = "".join(str(int(v == "gain" or next(turn) % 2)) for v in values)
        told = {
            **(place.result or {}),
            "routes": values,
            "outcomes": {"strict": right, "flexible": right},
        }
        place.finish({**told, "accuracy": right.count("1") / len(right)})
    assert routes(load(tmp_path), "tiny-qwen") is None  # one teacher
    found = routes(load(tmp_path), "mine")
    assert found and (found.pair, found.key) == ("mine", "first")
    assert [(v.value, v.problems) for v in found.values] == list(Counter(values).most_common())
    gain, loss = found.rows["hybrid"]
    assert gain and gain.mean == 1.0 and loss and loss.mean == pytest.approx(0.5, abs=0.1)
    report = write_report(tmp_path)
    assert "| mine, by first | gain (" in as_markdown(report)
    page = report.html.read_text()
    assert page.count("By teacher") == 1 and "tiny-qwen/teacher (embedded)" in page
    assert zoo.folder("tiny-qwen", "teacher") not in page.split('id="settings"')[0]


@pytest.mark.parametrize(
    ("pair", "task", "says"),
    [
        ({"route": "subject", "teachers": {}}, {}, "0 further teachers"),
        ({"route": "", "teachers": {"code": "b"}}, {}, "route = ''"),
        ({"teachers": {"code": "nowhere"}}, {}, "neither a local folder"),
        ({"teachers": {"a:b": "tiny-qwen/student"}}, {}, "without a colon"),
        ({}, {"subject": "music"}, 'subject = "music", for which there is no teacher'),
        ({"route": "topic"}, {}, 'no problem has the key "topic"'),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_opens(
    pair: dict, task: dict, says: str, models: Path, tmp_path: Path
) -> None:
    known = {**pair_of(models).model_dump(), **pair}
    table = {"task": write_task(tmp_path, **task), "pair": {"mine": known}}
    table |= {"train": {"learning_rate": 1e-3}, "eval": {"problems": 4, "probe": 2}}
    with pytest.raises(PotstillError, match=says) as refused:
        prepare(read_study(table))
    assert refused.value.hint


def test_other_engines_hold_one_teacher(tmp_path: Path) -> None:
    pair = {"student": "a", "teacher": "b", "route": "subject", "teachers": {"code": "c"}}
    with pytest.raises(PotstillError, match="holds one"):
        read_study(toy_table(tmp_path, pair={"toy": pair}))
    with pytest.raises(PotstillError, match="depends on a task's problems"):
        open_engine("torch", Pair(**pair))
