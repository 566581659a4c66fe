"""What a student has forgotten: tasks of lm-evaluation-harness, and its loss on a text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import toy_table
from potstill.engines import zoo
from potstill.engines.fake import FakeEngine
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError
from potstill.settings import Eval, Pair
from potstill.study import benchmarks
from potstill.study.benchmarks import PIECE, drift, forgotten, load_tasks
from potstill.study.inputs import inputs_of
from potstill.study.loading import read_study
from potstill.study.run import prepare, run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.types import Prompt

HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HARNESS, reason="the extra lm-eval is not installed")


def text_file(folder: Path, text: str) -> str:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- the loss on a text ---


@pytest.mark.parametrize("length", [2, 5, PIECE, PIECE + 1, 3 * PIECE - 7])
def test_drift_is_the_mean_loss_of_each_piece(tmp_path: Path, length: int) -> None:
    engine = FakeEngine()
    text = "".join("abcdefg1 ."[(i * i) % 10] for i in range(length))
    found = drift(engine, Eval(drift=text_file(tmp_path, text)))
    ids = engine.encode(text)
    pieces = np.array_split(ids, -(-length // PIECE))
    assert max(map(len, pieces)) <= PIECE and len(found["outcomes"]) == len(pieces)
    for piece, outcome in zip(pieces, found["outcomes"], strict=True):
        rows = engine.rows("student", Prompt.of(tuple(piece[:1])), tuple(piece[1:]))
        expected = -rows[np.arange(len(piece) - 1), piece[1:]].mean()
        assert outcome == pytest.approx(expected, rel=1e-6)
    assert found["mean"] == pytest.approx(np.mean(found["outcomes"]))
    assert (found["tokens"], found["higher_is_better"]) == (length, False)


def test_drift_of_a_torch_student_begins_as_its_texts_do(models: Path, tmp_path: Path) -> None:
    folder = models / "qwen"
    pair = Pair(student=str(folder / "student"), teacher=str(folder / "teacher"))
    engine: Any = open_engine("torch", pair, seed=0)
    text = "12 + 34 = 46. " * 100
    found = drift(engine, Eval(drift=text_file(tmp_path, text)))
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    bos = engine.tokenizer.bos_token_id
    start = () if bos is None else (bos,)
    assert found["tokens"] == len(ids)
    longest = min(PIECE, engine.windows["student"].tokens) - len(start)
    piece = tuple(np.array_split(ids, -(-len(ids) // longest))[0].tolist())
    (scores,) = engine.score("student", [(Prompt.of((*start, piece[0])), piece[1:])])
    assert found["outcomes"][0] == pytest.approx(-scores.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read"), (b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe1", "UTF-16")],
)
def test_a_text_that_cannot_be_measured_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PotstillError) as error:
        read_study(toy_table(tmp_path, eval={"drift": str(path)}))
    assert words in str(error.value)


def test_a_single_token_predicts_nothing(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="has 1 tokens, which predict nothing"):
        drift(FakeEngine(), Eval(drift=text_file(tmp_path, "a")))


def test_records_have_the_drift_before_and_after_training(tmp_path: Path) -> None:
    text = text_file(tmp_path, "a1b2c3d4" * 200)
    study = read_study(toy_table(tmp_path, eval={"drift": text}))
    task, folder = prepare(study), StudyFolder(tmp_path / "study")
    folder.open(study)
    records = {
        method: run_cell(study, folder, RunId("toy", method, seed), task)
        for method, seed in (("untrained", None), ("teacher", None), ("on_policy_gkd", 0))
    }
    assert "drift" not in records["teacher"] and "benchmarks" not in records["untrained"]
    before, after = (records[name]["drift"] for name in ("untrained", "on_policy_gkd"))
    assert len(before["outcomes"]) == len(after["outcomes"]) == 4
    assert before["outcomes"] != after["outcomes"]
    assert records["on_policy_gkd"]["tokens"]["graded_student_scored"] >= 4 * (PIECE // 2)
    known = inputs_of(study, task, [])
    (tmp_path / "text.txt").write_text("another text")
    assert inputs_of(study, task, []).changes(known) == ["text of eval.drift"]


# --- lm-evaluation-harness ---


def test_without_the_extra_a_study_is_refused_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        benchmarks.importlib.util, "find_spec", lambda n, *a: None if n == "lm_eval" else find(n)
    )
    with pytest.raises(PotstillError, match="lm_eval, which is not installed") as error:
        read_study({"pairs": ["tiny-qwen"], "eval": {"lm_eval": ["ifeval"]}})
    assert "pip install 'potstill[lm-eval]'" in error.value.hint


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"engine": "fake"}, 'engine "fake" has none'),
        ({"eval": {"lm_eval": ["nothing.yaml"]}}, "there is no such file"),
        ({"eval": {"lm_eval": [""]}}, "eval.lm_eval"),
        ({"eval": {"lm_eval": ["ifeval"], "lm_eval_limit": -1}}, "eval.lm_eval_limit"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(table: dict[str, Any], words: str) -> None:
    plain = {"pairs": ["tiny-qwen"], "eval": {"lm_eval": ["ifeval"]}}
    with pytest.raises(PotstillError) as error:
        read_study({**plain, **table})
    assert words in f"{error.value} {error.value.hint}"


CHOICE = """
task: sums_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: docs.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{[answer, wrong]}}"
doc_to_target: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
GENERATE = r"""
task: sums_generate
dataset_path: json
dataset_kwargs:
  data_files:
    test: docs.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["?"]
  max_gen_toks: 32
filter_list:
  - name: after_hashes
    filter:
      - function: regex
        regex_pattern: "#### (\\-?[0-9.,]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def yaml_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(12):
        a, b, c = 11 + 3 * i, 60 - 2 * i, 17 + 5 * (i % 7)
        question = f"Tom has {a} stamps, gets {b} and gets {c}. How many stamps does Tom have?"
        rows.append({"question": question, "answer": str(a + b + c), "wrong": str(a + b + c + 10)})
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return str(tmp_path / "choice.yaml"), str(tmp_path / "generate.yaml")


def student() -> Any:
    folder = zoo.folder("tiny-qwen", "student")
    return open_engine("torch", Pair(student=folder, teacher=folder), seed=0)


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_outcomes_are_those_of_lm_evals_own_model(yaml_tasks: tuple[str, ...], chat: bool) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    settings = Eval(lm_eval=yaml_tasks, lm_eval_chat_template=chat)
    found = forgotten(student(), settings)["benchmarks"]
    assert [*found] == ["sums_choice", "sums_generate"]
    assert found["sums_choice"]["metric"] == "acc"
    assert found["sums_generate"]["metric"] == "exact_match,after_hashes"
    tasks = load_tasks(yaml_tasks)
    folder = zoo.folder("tiny-qwen", "student")
    with benchmarks._quiet():
        theirs: Any = simple_evaluate(
            model=HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1),
            tasks=list(tasks.values()),
            task_manager=benchmarks._manager(True),
            bootstrap_iters=0,
            apply_chat_template=chat,
        )
    for name, entry in found.items():
        expected = benchmarks._entry(name, tasks[name], theirs["samples"][name])
        assert entry == expected
        assert len(entry["outcomes"]) == 12 and entry["higher_is_better"]
    assert 0 < found["sums_choice"]["mean"] < 1
    if chat:
        assert found["sums_generate"]["mean"] > 0
    assert "cut" not in found["sums_choice"]


@needs_harness
def test_likelihoods_are_those_of_lm_evals_own_model() -> None:
    from lm_eval.models.huggingface import HFLM

    from potstill.study.lm_eval_adapter import EngineModel

    class Request:
        def __init__(self, *words: str) -> None:
            self.args = words

    folder = zoo.folder("tiny-qwen", "student")
    with benchmarks._quiet():
        theirs = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    own = EngineModel(student())
    pairs = [Request("", "Tom has"), Request("Tom has ", "4"), Request("a " * 600, " b")]
    with benchmarks._quiet():
        expected = theirs.loglikelihood(pairs)
    found = own.loglikelihood(pairs)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert own.cut == 1
    texts = [Request("Tom has 48 stamps, gets 56. " * 40), Request("Hello")]
    with benchmarks._quiet():
        expected = theirs.loglikelihood_rolling(texts)
    assert own.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-4)


@needs_harness
@pytest.mark.slow
def test_a_study_records_tasks_before_and_after_training(
    yaml_tasks: tuple[str, ...], tmp_path: Path
) -> None:
    table = {
        "pairs": ["tiny-qwen"],
        "methods": ["off_policy"],
        "train": {"steps": 2, "batch_size": 4, "save": False},
        "eval": {"problems": 4, "probe": 4, "lm_eval": list(yaml_tasks), "lm_eval_limit": 5},
    }
    study = read_study(table)
    task, folder = prepare(study), StudyFolder(tmp_path / "study")
    folder.open(study)
    records = [
        run_cell(study, folder, RunId("tiny-qwen", method, seed), task)
        for method, seed in (("untrained", None), ("teacher", None), ("off_policy", 0))
    ]
    assert [record["status"] for record in records] == ["done"] * 3
    before, teacher, after = (record.get("benchmarks") for record in records)
    assert teacher is None and before and after
    for name in ("sums_choice", "sums_generate"):
        assert len(before[name]["outcomes"]) == len(after[name]["outcomes"]) == 5
        assert before[name]["documents"] == after[name]["documents"]  # paired
    data = inputs_of(study, task, []).data
    assert {"lm-eval task choice.yaml", "lm-eval task generate.yaml"} <= data.keys()


@needs_harness
@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, "lm-eval has no task 'ifevil'", marks=pytest.mark.slow),
        ("task: [", "cannot be read"),
        (CHOICE.replace("docs.jsonl", "absent.jsonl"), "cannot be read"),
        (CHOICE.replace("multiple_choice", "no_such_type"), "cannot be read"),
    ],
)
def test_tasks_that_cannot_be_read_are_errors(
    yaml_tasks: tuple[str, ...], tmp_path: Path, content: str | None, words: str
) -> None:
    name = "ifevil"
    if content is not None:
        name = str(tmp_path / "bad.yaml")
        (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(PotstillError) as error:
        load_tasks([name])
    assert words in str(error.value) and error.value.hint
    with pytest.raises(PotstillError, match="twice"):
        load_tasks([yaml_tasks[0], yaml_tasks[0]])
