"""What the teacher alone reads: each kind of context, and what is refused before a model opens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from conftest import monitored, prompt_of, toy_table, write_toy
from potstill.algorithms.losses import REVERSE_KL
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.cli.ls import listing
from potstill.engines import zoo
from potstill.engines.fake import FakeEngine
from potstill.engines.protocol import bare
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError, PotstillErrors
from potstill.problems import Problem
from potstill.settings import Eval, Pair, Train
from potstill.study.loading import read_study
from potstill.study.run import prepare
from potstill.tasks import load_task
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.context.kinds import FewShot
from potstill.tasks.context.retrieval import Search
from potstill.tasks.rendering import render
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Limits

TASK = Arithmetic(train_size=200, test_size=60)
HINT = {"hint": {"template": "Hint:\n{hint}\n{question}"}}


def documents(folder: Path) -> str:
    place = folder / "documents"
    place.mkdir(exist_ok=True)
    for name, text in (
        ("a", "apples grow on trees"),
        ("b", "coins are money"),
        ("c", "a {question}"),
    ):
        (place / f"{name}.txt").write_text(text)
    return str(place)


def tell(table: dict, problem: Problem, task: Any = TASK) -> tuple[tuple[str, str], ...]:
    return PromptBuilder(read_context(table), task).conversation(problem)


def test_each_kind_says_its_text(tmp_path: Path) -> None:
    problem = replace(TASK.train[0], question="Who has {documents} coins?")
    assert tell({"system": "Be brief."}, problem) == (
        ("system", "Be brief."),
        ("user", problem.question),
    )
    cot = tell({"chain_of_thought": "{question}\nGo slowly."}, problem)
    assert cot == (("user", f"{problem.question}\nGo slowly."),)
    hint = tell({"hint": {"template": "<{hint}> {question}"}}, problem)
    assert hint == (("user", f"<{problem.solution}> {problem.question}"),)  # braces stay
    assert tell({"hint": "answer"}, problem)[0][1].count(problem.answer)
    found = tell({"retrieval": {"path": documents(tmp_path), "k": 2}}, problem)
    assert found == (("user", f"coins are money\n\napples grow on trees\n\n{problem.question}"),)


@pytest.mark.parametrize("by", ["seed", "similarity"])
def test_examples_are_training_problems_and_never_the_problem_itself(by: str) -> None:
    table, questions = {"few_shot": {"n": 3, "by": by}}, {p.question for p in TASK.train}
    for problem in (*TASK.train[:40], *TASK.test[:10]):
        *turns, last = tell(table, problem)
        assert last == ("user", problem.question)
        shown = [text for role, text in turns if role == "user"]
        assert len(shown) == 3 and problem.question not in shown and {*shown} <= questions
        solutions = {p.question: p.solution for p in TASK.train}
        answers = [text for role, text in turns if role == "assistant"]
        assert answers == [solutions[question] for question in shown]


def test_similar_examples_are_nearer_than_any() -> None:
    asked = replace(TASK.test[0], question="Mia has 12 stamps, sells 3.")
    shown = [t for r, t in tell({"few_shot": {"n": 4, "by": "similarity"}}, asked) if r == "user"]
    assert all({"Mia", "stamps"} & {*text.split()} or "stamps" in text for text in shown[:-1])
    seeds = [tell({"few_shot": {"n": 4, "seed": seed}}, asked) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_search_is_bm25_and_breaks_ties_by_order() -> None:
    index = Search(["red fish", "blue fish fish", "red fish", "green bird", ""])
    assert index.nearest("RED fish!", 2) == [0, 2]
    assert index.nearest("nothing known", 3) == [0, 1, 2]
    assert index.nearest("bird", 1) == [3]


def test_a_hybrid_keeps_its_order(tmp_path: Path) -> None:
    problem, path = TASK.train[3], documents(tmp_path)
    parts = [
        {"system": "First."},
        {"few_shot": 2},
        {"retrieval": {"path": path, "k": 1, "template": "[{documents}] {question}"}},
        {"hint": {"template": "<{hint}> {question}"}},
        {"system": "Second."},
        {"chain_of_thought": "{question} Think."},
    ]
    system, *turns, last = tell({"hybrid": parts}, problem)
    assert system == ("system", "First.\nSecond.") and len(turns) == 4
    text = last[1]
    assert text.startswith("[") and text.index("[") < text.index(f"<{problem.solution}>")
    assert text.endswith(f"{problem.question} Think.")
    assert str(read_context({"hybrid": parts[:2]})) == "system, then few_shot"


@pytest.mark.parametrize(
    ("table", "says", "hint"),
    [
        ({"few_shots": 3}, 'unknown context "few_shots"', "few_shot"),
        ({"few_shot": {"m": 3}}, 'unknown key "m"', "n"),
        ({"few_shot": 0}, "n is a whole number, at least 1, got 0", "usual"),
        ({"few_shot": "many"}, "n is a whole number, at least 1, got 'many'", "usual"),
        ({"few_shot": {"by": "magic"}}, "'seed' or 'similarity', got 'magic'", "'seed'"),
        ({"system": " "}, "not empty", "instruction"),
        ({"system": 3}, "valid string, got 3", "studies/"),
        ({"system": "a", "hint": {}}, "one kind", "hybrid"),
        ({"chain_of_thought": "no place"}, "{question}", "place"),
        ({"hint": {"template": "{question}"}}, "{hint}", "place"),
        ({"retrieval": {}}, "path is required, got nothing", "keys: path"),
        ({"retrieval": {"path": "x", "k": 0}}, "at least 1", "usual"),
        ({"hint": {"graded": "perhaps"}}, "graded: input should be a valid boolean", "True"),
        ({"hybrid": []}, "list of contexts", "write"),
        ({"hybrid": [{"hybrid": [{"system": "a"}]}]}, "holds a hybrid", "one list"),
        ({"hybrid": ["few_shot"]}, "a table", "few_shot"),
    ],
)
def test_wrong_tables_are_refused(table: dict, says: str, hint: str) -> None:
    with pytest.raises(PotstillError, match=says) as refused:
        read_context(table, "pair.x.context")
    assert hint in refused.value.hint and "pair.x.context" in str(refused.value)


def test_all_errors_of_a_context_are_reported_together() -> None:
    parts = [{"system": ""}, {"few_shot": {"n": 0, "m": 1}}, 3, {"hint": {}}, {"hunt": {}}]
    with pytest.raises(PotstillErrors, match=r"^5 errors\n") as refused:
        read_context({"hybrid": parts}, "pair.x.context")
    rules = [str(error) for error in refused.value.errors]
    for rule, place in zip(
        rules, ("[0].system", "[1].few_shot", "[1].few_shot", "", "[4]"), strict=True
    ):
        assert rule.startswith(f"pair.x.context.hybrid{place}: ") and rule in str(refused.value)
    with pytest.raises(PotstillError, match="few_shot: n is a whole number"):
        FewShot(n=0)


def jsonl(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"few_shot": {"n": 60}}, "shows 60 examples"),
        ({"few_shot": {"n": 1, "path": "test.jsonl"}}, "examples are never graded"),
        ({"few_shot": {"n": 1, "path": "gone.jsonl"}}, "cannot read"),
        ({"few_shot": {"n": 2, "answer": "rationale"}}, 'shows "rationale"'),
        ({"hint": {}}, 'a hint needs "solution"'),
        ({"hint": "rationale"}, "40 of 60 lack it"),
        ({"retrieval": "empty"}, "holds no document"),
        ({"retrieval": "docs.jsonl"}, "documents hold no graded problem"),
        ({"retrieval": {"path": "few.jsonl"}}, "shows 3 documents"),
        ({"retrieval": {"path": "marks.jsonl", "k": 1}}, "none of the texts"),
        ({"retrieval": {"path": "docs.jsonl", "key": "body"}}, '"body" must be text'),
    ],
)
def test_what_the_data_lack_is_refused_before_a_model_opens(
    table: dict, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    pair = {"toy": {"student": "a", "teacher": "b", "context": table}}
    study = read_study(toy_table(tmp_path, pair=pair))
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    jsonl(tmp_path, "docs.jsonl", [{"text": f"see {row['question']} and more"} for row in rows])
    jsonl(tmp_path, "few.jsonl", [{"text": "one document"}])
    jsonl(tmp_path, "marks.jsonl", [{"text": "..."}])
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    marked = [{**json.loads(line), "rationale": "r"} for line in lines[:20]]
    jsonl(tmp_path, "train.jsonl", marked + [json.loads(line) for line in lines[20:]])
    with pytest.raises(PotstillError, match=says) as refused:
        prepare(study)
    assert refused.value.hint


def test_a_hint_may_leave_the_graded_problems_alone() -> None:
    known = replace(TASK.test[0])
    for graded in (True, False):
        context = read_context({"hint": {"graded": graded}})
        told = PromptBuilder(context, TASK).conversation(known)[0][1]
        assert (known.solution in told) == graded == context.ceiling
        assert (
            TASK.train[0].solution in PromptBuilder(context, TASK).conversation(TASK.train[0])[0][1]
        )


def test_a_context_that_does_not_fit_is_refused_and_one_that_does_is_not(models: Path) -> None:
    folder = str(models / "qwen" / "student")  # a window of 256
    table = {
        "engine": "torch",
        "task": {"name": "arithmetic", "train_size": 50, "test_size": 20},
        "eval": {"problems": 20},
        "train": {"learning_rate": 1e-3, "max_tokens": 24},
    }
    for n, fits in ((1, True), (8, False)):
        pair = {"student": folder, "teacher": folder, "context": {"few_shot": n}}
        study = read_study({**table, "pair": {"one": pair}})
        if fits:
            prepare(study)
            continue
        with pytest.raises(PotstillError, match=r"fits the teacher's window.* has 256") as refused:
            prepare(study)
        assert "fewer" in refused.value.hint


def test_a_template_that_takes_no_system_text_says_so() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("tiny-qwen", "student"))
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert render(tokenizer, "2+2?") == render(tokenizer, (("user", "2+2?"),))
    with pytest.raises(
        PotstillError, match="does not accept a conversation of system, user"
    ) as refused:
        render(tokenizer, (("system", "a"), ("user", "b")))
    assert "chain_of_thought" in refused.value.hint


def test_a_pair_with_a_context_asks_for_its_task() -> None:
    with pytest.raises(PotstillError, match="a task's problems"):
        open_engine("torch", "tiny-context")
    pair = Pair(student="a", teacher="b", context={"system": "Hello."})
    with pytest.raises(PotstillError, match="a task's problems"):
        open_engine("fake", pair)


class Hints:
    """One question three times, each time with another hint and another teacher."""

    name = "hints"
    train = tuple(
        Problem(f"train-{n}", "2 + 2?", "4", f"hint {n}", {"subject": subject})
        for n, subject in enumerate(("", "code", "law"))
    )
    test: tuple[Problem, ...] = ()


def test_problems_with_one_question_have_each_its_own_hint_and_teacher() -> None:
    engine = FakeEngine()
    engine.inform(PromptBuilder(read_context({"hint": {}}), Hints()), "subject")
    prompts = [engine.prompt(problem) for problem in Hints.train]
    assert len({prompt.student for prompt in prompts}) == 1
    for n, prompt in enumerate(prompts):
        assert f"hint {n}" in engine.decode(prompt.teacher) and prompt.problem == f"train-{n}"
    assert [p.reader("teacher") for p in prompts] == ["teacher", "teacher:code", "teacher:law"]
    assert {p.reader("student") for p in prompts} == {"student"}


def test_a_question_may_begin_another() -> None:
    engine = FakeEngine()
    engine.inform(PromptBuilder(read_context({"system": "7"}), TASK))
    short, long = (prompt_of(engine, text) for text in ("a1", "a1b2"))
    assert bare(engine) is engine
    for prompt, text in ((short, "a1"), (long, "a1b2")):
        assert prompt.read_by("student") == engine.encode(text)
        assert prompt.read_by("teacher") == engine.encode((("system", "7"), ("user", text)))
    begun = short.then((3, 4))
    assert begun.read_by("teacher") == (*short.read_by("teacher"), 3, 4)


def test_studies_choose_pairs_with_contexts_by_name_alone(tmp_path: Path) -> None:
    assert list(read_study({}).models) == ["tiny-qwen", "tiny-llama"]
    study = read_study({"pairs": ["tiny-context", "tiny-format"]})
    assert {str(c) for c in study.contexts.values()} == {"hint", "system"}
    assert read_study(study.to_toml()).models == study.models
    assert {"tiny-context", "tiny-format"} <= {row["pair"] for row in listing("pairs")}
    with pytest.raises(PotstillError, match=r"pair\.mine\.context: unknown context"):
        pair = {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}
        read_study({"pair": {"mine": {**pair, "context": {"hunt": {}}}}})


def test_the_fake_engine_reads_contexts_too(tmp_path: Path) -> None:
    task = load_task(**write_toy(tmp_path))
    engine, memory = FakeEngine(), Memory()
    engine.inform(PromptBuilder(read_context({"few_shot": 2}), task))
    settings = Train(steps=10, batch_size=10, max_tokens=24, learning_rate=0.3)
    data = build(
        Recipe(name="x"),
        collect(Recipe(name="x"), engine, task.train[:4], 0, 0, 0, Limits(8, 1, 1)),
        engine,
    )
    assert all(datum.terms[0].loss == REVERSE_KL for datum in data)
    grading = Eval(every=5, problems=20, probe=8)
    monitored(METHODS["mixture"], engine, task, settings, grading, recorder=memory)
    assert memory.metrics[-1]["eval/accuracy"] > 0.3
