"""What the teacher alone reads: each kind, exactly aligned, through all methods and a resume, and
what is refused before a model opens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import monitored, prompt_of, toy_table, write_toy
from potstill.algorithms.losses import REVERSE_KL
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe, Replay
from potstill.cli.ls import listing
from potstill.engines import zoo
from potstill.engines.fake import FakeEngine
from potstill.engines.protocol import bare
from potstill.engines.registry import open_engine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError, PotstillErrors
from potstill.settings import Eval, Pair, Train
from potstill.study.loading import read_study
from potstill.study.run import prepare, run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks import load_task
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.context.kinds import FewShot
from potstill.tasks.context.retrieval import Search
from potstill.tasks.rendering import render
from potstill.training import checkpoint
from potstill.training.evaluation import evaluate
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect, draw
from potstill.types import Limits, Problem, Prompt

TASK = Arithmetic(train_size=200, test_size=60)
HINT = {"hint": {"template": "Hint:\n{hint}\n{question}"}}
SETTINGS = Train(steps=4, batch_size=4, max_tokens=24, learning_rate=1e-3, checkpoint_every=2)
GRADING = Eval(every=4, problems=4, probe=2, probe_every=4)


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


def embedded(context: dict, lora: int = 0) -> TorchEngine:
    folder = zoo.folder("tiny-context", "student")
    engine = TorchEngine(folder, folder, lora_rank=lora, threads=1, batch_tokens=600)
    engine.inform(PromptBuilder(read_context(context), TASK))
    return engine


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("pair", ["tiny-context", "tiny-format"])
def test_scores_are_those_of_the_completion_under_the_teachers_own_prompt(
    pair: str, lora: int
) -> None:
    """Against transformers alone: another prompt, the same completion, row by row, unpadded; after
    training, and with the teacher's prefix in some texts."""
    engine = embedded(zoo.CONTEXTS[pair], lora)
    recipe = Recipe(name="x", on_policy=0.75, prefix=3, student_loss="reverse_kl_sampled")
    batch = collect(recipe, engine, TASK.train[:8], 0.0, 0, 0, Limits(20, 1.0, 1.0))
    engine.step(build(recipe, batch, engine), 1e-2)  # the teacher must not move with the student
    rows = [(t.prompt, t.completion) for t in batch]
    scores = engine.score("teacher", rows)
    looks = engine.inspect("teacher", rows)

    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(pair, "teacher"))
    model = AutoModelForCausalLM.from_pretrained(zoo.folder(pair, "teacher"), dtype=torch.float32)
    problems = {problem.id: problem for problem in TASK.train}
    for t, score, look in zip(batch, scores, looks, strict=True):
        problem = problems[t.problem]
        if pair == "tiny-context":
            said = [("user", f"Hint:\n{problem.solution}\n{problem.question}")]
        else:
            said = [("system", "Use ####."), ("user", problem.question)]
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": words} for role, words in said],
            tokenize=False,
            add_generation_prompt=True,
        )
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(t.completion)])).logits[0]
        logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = logp.gather(1, torch.tensor(t.completion)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(score, wanted, atol=2e-4)
        np.testing.assert_allclose(look.logprobs, wanted, atol=2e-4)
        own = engine.rows("teacher", t.prompt, t.completion)
        np.testing.assert_allclose(own, logp.double().numpy(), atol=2e-4)
        likelier = (own > own[np.arange(len(own)), list(t.completion)][:, None]).sum(1)
        assert look.rank.tolist() == likelier.tolist()


def test_a_whole_row_loss_reads_the_teachers_prompt_and_the_anchor_the_students() -> None:
    """The step's loss, worked out again from unpadded rows."""
    engine = embedded(HINT)
    recipe = Recipe(name="x", on_policy=0.5, anchor=0.5, teacher_loss="forward_kl")
    batch = collect(recipe, engine, TASK.train[:6], 0.0, 0, 0, Limits(16, 1.0, 1.0))
    engine.step(build(recipe, batch, engine), 1e-2)
    data = build(recipe, batch, engine)
    total = 0.0
    for datum in data:
        p = engine.rows("student", datum.prompt, datum.completion)
        problem = next(p for p in TASK.train if p.id == datum.prompt.problem)
        read = engine.encode(PromptBuilder(read_context(HINT), TASK).conversation(problem))
        q = engine.rows("teacher", Prompt.of(read), datum.completion)
        start = engine.rows("init", datum.prompt, datum.completion)
        main = ((np.exp(p) * (p - q)) if datum.source == "student" else (np.exp(q) * (q - p))).sum(
            1
        )
        anchor = (np.exp(p) * (p - start)).sum(1)
        total += float(datum.terms[0].weights @ main + datum.terms[1].weights @ anchor)
    assert engine.measure(data).loss == pytest.approx(total, rel=1e-4)
    assert anchor.sum() > 0  # the student has moved, step 0 has not


@pytest.mark.parametrize("lora", [0, 4])
def test_one_folder_is_loaded_once(lora: int) -> None:
    engine = embedded(HINT, lora)
    prompt = engine.prompt(TASK.train[0])
    engine.score("teacher", [(prompt, (5, 6))])
    engine.rows("init", prompt, (5, 6))
    kept = set(engine.models.held)
    assert kept == ({"student"} if lora else {"student", "init"})
    other = TorchEngine(zoo.folder("tiny-qwen", "student"), zoo.folder("tiny-qwen", "teacher"))
    assert not other.pair.one_model


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_with_a_context(name: str) -> None:
    engine, memory = embedded(HINT), Memory()
    recipe = replace(METHODS[name], prefix=4) if name == "teacher_seeded" else METHODS[name]
    done = monitored(recipe, engine, TASK, SETTINGS, GRADING, recorder=memory)
    rows = memory.metrics[1:]
    assert done.steps == len(rows) == round(4 * recipe.budget)
    assert all(np.isfinite(row["train/loss"]) and row["train/grad_norm"] > 0 for row in rows)
    assert rows[0]["check/sampler"] < 1e-3 and not [c for r in rows for c in r.get("checks", ())]
    assert {"eval/format", "eval/avg_score"} <= rows[-1].keys()


def test_a_run_goes_on_to_the_same_numbers_from_prompts_it_has_never_rendered(
    tmp_path: Path,
) -> None:
    """The replay buffer hands out prompts of problems that the resumed process has not met."""
    recipe = Recipe(name="x", on_policy=0.5, replay=Replay(4), student_loss="reverse_kl_sampled")
    whole = Memory(checkpoints=tmp_path / "whole")
    monitored(recipe, embedded(HINT), TASK, SETTINGS, GRADING, recorder=whole)
    short = Memory(checkpoints=tmp_path / "short")
    monitored(recipe, embedded(HINT), TASK, SETTINGS, GRADING, recorder=short)
    assert checkpoint.load(tmp_path / "short", embedded(HINT), TASK.train) is not None
    again = Memory(short.metrics, checkpoints=tmp_path / "short")
    engine = embedded(HINT)
    monitored(recipe, engine, TASK, SETTINGS, GRADING, recorder=again)
    assert again.metrics == whole.metrics
    fresh = {p.id for step in (2, 3) for p in draw(TASK.train, 4, 0, step)}
    rendered = {problem.id for problem, _ in engine._prompts.values()}
    probed = {p.id for p in (*TASK.train[: GRADING.probe], *TASK.test)}
    assert rendered and rendered <= fresh | probed  # the buffer's prompts came with the checkpoint


def test_the_teacher_needs_its_context_and_the_student_never_sees_one() -> None:
    strict, flexible = {}, {}
    for pair in zoo.CONTEXTS:
        engine = open_engine("torch", pair, task=Arithmetic(), threads=1)
        for role in ("teacher", "student"):
            graded = evaluate(engine, role, Arithmetic(), Arithmetic().test[:200], 32)
            strict[pair, role], flexible[pair, role] = graded.strict, graded.flexible
        problem = Arithmetic().train[0]
        prompt = engine.prompt(problem)
        assert prompt.read_by("student") == engine.encode(problem.question)
        assert prompt.read_by("student") == prompt.read_by("init") != prompt.read_by("teacher")
    for found in (strict, flexible):  # at least 20 points, by either extractor
        assert found["tiny-context", "teacher"] >= found["tiny-context", "student"] + 0.2
    gap = flexible["tiny-format", "teacher"] - flexible["tiny-format", "student"]
    assert abs(gap) < 0.1 and strict["tiny-format", "student"] < 0.15
    assert strict["tiny-format", "teacher"] > 0.35


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


def test_a_cell_keeps_what_its_teacher_wrote_by_what_it_read(tmp_path: Path) -> None:
    table = {
        "task": {"name": "arithmetic", "train_size": 60, "test_size": 20},
        "methods": ["off_policy"],
        "train": {"steps": 2, "batch_size": 4, "save": False},
        "eval": {"problems": 10, "probe": 2},
    }
    texts = {}
    for pair in zoo.CONTEXTS:
        study, folder = read_study({**table, "pairs": [pair]}), StudyFolder(tmp_path / "study")
        for method in ("teacher", "untrained"):
            assert run_cell(study, folder, RunId(pair, method))["status"] == "done"
        record = run_cell(study, folder, RunId(pair, "off_policy", 0))
        assert record["status"] == "done" and "only the teacher reads" in record["notes"][0]
        texts[pair] = [row["text"] for row in folder.cell(RunId(pair, "teacher")).texts]
        assert record["tokens"]["prompt"] > 0
    assert texts["tiny-context"] != texts["tiny-format"]


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
