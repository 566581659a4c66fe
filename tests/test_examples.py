"""The studies in examples/ run by the commands that the documents show, with fewer steps."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launching import run_study
from potstill.report import write_report
from potstill.study.loading import load_study
from potstill.study.run import prepare
from potstill.study.storage import RunId, StudyFolder

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = ("seeds=0", "train.steps=2", "train.batch_size=8", "eval.problems=12", "eval.probe=4")
NAMES = ("chat", "prompts", "completions", "sft")


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {*NAMES}


@pytest.fixture(scope="module", params=NAMES)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """The folder of an example's study; the first one is run by its command."""
    out, file = tmp_path_factory.mktemp(request.param) / "out", EXAMPLES / f"{request.param}.toml"
    if request.param != NAMES[0]:
        folder = run_study(load_study(file, SHORT), out, workers=0)
        write_report(folder.path)
        return folder
    command = [sys.executable, "-m", "potstill", "study", str(file), *SHORT, "--out", str(out)]
    ran = subprocess.run(
        [*command, "--no-figures", "--no-preflight"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return StudyFolder(out)


def test_examples_run(done: StudyFolder) -> None:
    study, (pair,) = done.study, done.study.models
    records = done.results([RunId(pair, method, 0) for method in study.methods], study)
    assert [record["status"] for record in records.values()] == ["done"] * len(study.methods)
    assert (done.path / "report.html").stat().st_size > 10_000
    headline = "kl" if study.name == "prompts" else "strict"
    for record in records.values():
        values = [float(value) for value in record["outcomes"][headline]]
        assert len(values) == 12 and len(set(values)) > 1
    has_teacher = bool(done.results([RunId(pair, "teacher")]))
    assert has_teacher == (study.name != "sft")
    sources = {source for record in records.values() for source in record["token_sources"]}
    assert ("file" in sources) == (study.name in ("completions", "sft", "chat"))


def test_the_data_are_what_the_example_says() -> None:
    sizes = {}
    for name in NAMES:
        task = prepare(load_study(EXAMPLES / f"{name}.toml"))
        sizes[name] = len(task.train), len(task.test)
    assert sizes == dict.fromkeys(NAMES, (400, 120))


@pytest.mark.parametrize(
    ("completion", "grade"),
    [
        ("77-28=49\n49+32=81\n#### 81", 1.0),
        ("so it is 81.", 1.0),
        ("77-28=49\n49+32=80\n#### 80", 0.5),
        ("77-28=48\n48+32=80\n#### 80", 0.0),
        ("", 0.0),
    ],
)
def test_the_grader_of_the_example(completion: str, grade: float) -> None:
    spec = importlib.util.spec_from_file_location("own_grader", EXAMPLES / "grader.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first = json.loads((EXAMPLES / "chat-test.jsonl").read_text().splitlines()[0])
    assert module.grade(completion, first["messages"][-1]["content"]) == grade
