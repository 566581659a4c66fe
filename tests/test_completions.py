"""Completions that the data have: their ids, who wrote them, and what reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast as Fast

from checkpoints import BOS, CHATML, EOS, TURN, tokenizer_of
from potstill.algorithms.methods import METHODS, SFT
from potstill.algorithms.recipe import Recipe, Replay
from potstill.engines import zoo
from potstill.engines.completions import CompletionEncoder
from potstill.engines.fake import answer
from potstill.engines.protocol import Engine
from potstill.engines.registry import open_engine
from potstill.engines.torch.thoughts import decoder_of
from potstill.errors import PotstillError, PotstillErrors
from potstill.problems import Grade, Problem
from potstill.report import write_report
from potstill.report.data import load as load_report
from potstill.settings import Eval, Pair, Train
from potstill.study.inputs import inputs_of
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair, prepare, run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, runs_of
from potstill.tasks import Task, load_task
from potstill.training import checkpoint
from potstill.training.filtering import RolloutFilter
from potstill.training.given import chosen
from potstill.training.loop import train
from potstill.training.metering import Metered, Usage
from potstill.training.objective import build
from potstill.training.rollout import collect, draw, epochs, generator
from potstill.types import Limits, Sample

PAIRS = ("tiny-qwen", "tiny-llama", "tiny-cross")
LIMIT, COLD = 32, 0.05


@dataclass
class Given:
    """A task whose training problems have completions."""

    task: Task
    train: Sequence[Problem]
    test: Sequence[Problem]
    name: str = "given"

    def grade(self, problem: Problem, text: str) -> Grade:
        return self.task.grade(problem, text)


def sampled(engine: Engine, problems: Sequence[Problem], temperature: float) -> list[Sample]:
    prompts = [engine.prompt(problem) for problem in problems]
    rng = generator(0, 0, "file")
    return engine.sample("teacher", prompts, [LIMIT] * len(prompts), temperature, rng)


def written(engine: Engine, task: Task, count: int, temperature: float = COLD) -> Given:
    """The first problems with the teacher's completions as their only ones."""
    problems = task.train[:count]
    texts = [engine.decode(sample.tokens) for sample in sampled(engine, problems, temperature)]
    pairs = zip(problems, texts, strict=True)
    return Given(task, [replace(p, completions=(text,)) for p, text in pairs], task.test[:4])


@pytest.mark.parametrize("pair", PAIRS)
def test_what_the_teacher_wrote_is_read_back_as_its_ids(pair: str) -> None:
    task = load_task("arithmetic")
    engine = open_engine("torch", pair, task=task)
    problems = task.train[:200]
    samples = sampled(engine, problems, 1.0)
    texts = [engine.decode(sample.tokens) for sample in samples]
    engine.expect([replace(p, completions=(t,)) for p, t in zip(problems, texts, strict=True)])
    same = ended = 0
    for problem, sample, text in zip(problems, samples, texts, strict=True):
        ids = engine.encode_completion(engine.prompt(problem), text)
        assert engine.decode(ids) == text and ids[-1] in engine.eos
        if sample.tokens[-1] in engine.eos:
            ended += 1
            same += ids == sample.tokens
    print(pair, same, ended)
    assert ended >= 190 and same >= ended - 2


SETTINGS = Train(
    steps=3,
    batch_size=4,
    max_tokens=LIMIT,
    learning_rate=1e-3,
    warmup=0,
    teacher_temperature=1e-3,  # greedy: the file has the same completions
)
EVAL = Eval(every=2, problems=4, probe=2, probe_every=2)


def metrics_of(engine: Engine, recipe: Recipe, task: Task, **changes: Any) -> list[dict[str, Any]]:
    settings = SETTINGS.model_copy(update=changes)
    try:
        trained = train(recipe, engine, task, settings, EVAL, seed=1)
        return [{**row, "spent": trained.spent} for row in trained.recorder.metrics]
    finally:
        engine.close()


def same_as_teacher(pair: str, recipe: Recipe, name: str = "torch") -> list[dict[str, Any]]:
    """Train from the teacher, and from a file of its completions; returns the rows of the file's
    run, whose metrics are those of the other's."""
    task = load_task("arithmetic")
    engine = open_engine(name, pair, task=task)
    from_file = written(engine, task, 12, 0.0)
    asked = Given(task, [replace(p, completions=()) for p in from_file.train], from_file.test)
    rows = metrics_of(engine, recipe, asked)
    others = metrics_of(open_engine(name, pair, task=from_file), recipe, from_file)
    assert len(rows) == len(others) == SETTINGS.steps
    for row, other in zip(rows, others, strict=True):
        a, b = ({k: v for k, v in x.items() if k not in ("spent", "tokens")} for x in (row, other))
        # a span of the two tokenizers may begin in the prefix, whose probability is not known
        if pair == "tiny-cross" and recipe.name == "teacher_seeded":
            a, b = ({k: v for k, v in x.items() if v is not None} for x in (a, b))
            assert a == pytest.approx(b, rel=1e-5)
        else:
            assert a == b
    return others


@pytest.mark.parametrize("method", ["off_policy", "mixture", "teacher_seeded"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_file_of_the_teachers_completions_trains_the_same_student(pair: str, method: str) -> None:
    recipe = METHODS[method]
    if pair == "tiny-cross":
        recipe = replace(recipe, student_loss="reverse_kl_sampled")
    rows = same_as_teacher(pair, recipe)
    spent = rows[-1]["spent"]
    assert spent["tokens"]["teacher_sampled"] == 0 and "teacher sampling" not in spent["seconds"]
    assert sum(spent["sources"].values()) == spent["tokens"]["trained"] > 0
    expected = {"off_policy": {"file"}, "mixture": {"file", "student"}}.get(method, {"student"})
    assert {source for source, count in spent["sources"].items() if count} == expected


def encoder_of(
    template: str = "", ends: Sequence[int] = (EOS,), extra: Sequence[str] = (), post: str = "$A"
) -> CompletionEncoder:
    return CompletionEncoder(tokenizer_of(template, post, extra), frozenset(ends), None, None)


THINKS = ("[THINK]", "[/THINK]")
OSS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")
OSS_THOUGHT = "<think>analysissoassistantfinal</think>7"  # as its ids are decoded


@pytest.mark.parametrize(
    ("options", "prompt", "text", "read", "end"),
    [
        ({}, "", "7", "7</s>", EOS),
        ({"post": "<s> $A </s>"}, "", "7", "7</s>", EOS),  # no BOS, one EOS
        ({"template": CHATML, "ends": (EOS, TURN)}, "", "7", "7<|im_end|>", TURN),
        ({"template": CHATML}, "", "7", "7</s>", EOS),  # what closes an answer ends none
        ({"ends": (TURN,)}, "", "7", "7<|im_end|>", TURN),
        ({}, "", "<s> is a <|im_start|> b", "<s> is a <|im_start|> b</s>", EOS),
        ({}, "", " 7 \n", " 7 \n</s>", EOS),
        ({}, "x<think>\n", "<think>\nso</think>7", "so</think>7</s>", EOS),
        ({}, "x<think>\n", "so</think>7", "so</think>7</s>", EOS),
        ({}, "x", "<think>so</think>7", "<think>so</think>7</s>", EOS),
        ({"extra": THINKS}, "", "<think>so</think>7", "[THINK]so[/THINK]7</s>", EOS),
        ({"extra": THINKS}, "", "7", "7</s>", EOS),
        (
            {"extra": OSS},
            "",
            OSS_THOUGHT,
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant"
            "<|channel|>final<|message|>7</s>",
            EOS,
        ),
        ({"extra": OSS}, "", "7", "<|channel|>final<|message|>7</s>", EOS),
        ({"extra": OSS}, "", "<think>final</think>7", "<|channel|>final<|message|>7</s>", EOS),
    ],
)
def test_a_completion_is_written_as_the_model_would(
    options: dict[str, Any], prompt: str, text: str, read: str, end: int
) -> None:
    encoder = encoder_of(**options)
    (ids,) = encoder.ways(text, prompt)
    assert encoder.tokenizer.decode(ids) == read and ids[-1] == end
    assert not {BOS, EOS, TURN} & {*ids[:-1]}
    if "\n" not in prompt and options.get("extra") != OSS:
        assert decoder_of(encoder.tokenizer)(ids) == text


@pytest.mark.parametrize(
    ("prompt", "text", "message"),
    [
        ("", "", "a completion has text, got none"),
        ("", " \n", "a completion has text, got none"),
        ("", "7</s>", "ends with the name of the end token, </s>"),
        ("", "7</s>\n", "ends with the name of the end token, </s>"),
        ("x<think>\n", "7", "opens a thought .* does not close it: '?\"?7"),
    ],
)
def test_completions_that_cannot_be_meant_are_refused(prompt: str, text: str, message: str) -> None:
    with pytest.raises(PotstillError, match=message) as caught:
        encoder_of().ways(text, prompt)
    assert caught.value.hint


def test_characters_without_a_token_are_refused_and_normalized_ones_are_counted() -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, "<unk>"))
    unknown = Fast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(PotstillError, match=r"cannot write a completion: .*b.* becomes .*<unk>"):
        CompletionEncoder(unknown, frozenset({2}), None, None).ways("b")
    encoder = encoder_of()
    assert not encoder.changes("e\u0301")
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert encoder.changes("e\u0301") and not encoder.changes("e")
    with pytest.raises(PotstillError, match=r"has . \(id \d+\), the student has 8 rows"):
        CompletionEncoder(tokenizer_of(), frozenset({EOS}), 8, None).ways("z")


def test_a_tokenizer_that_adds_a_space_can_write_an_answer_without_it() -> None:
    engine = open_engine("torch", "tiny-llama")
    encoder = CompletionEncoder(engine.tokenizer, engine.eos, None, None)
    names = engine.tokenizer.convert_ids_to_tokens
    assert [names(ids)[0] for ids in encoder.ways("7")] == ["▁", "7"]
    for text in ("a b", " a", "\n7", "#", "  7"):
        for ids in encoder.ways(text):
            assert engine.decode(ids) == text
    (ids,) = encoder.ways(" a")
    assert names(ids)[:1] != names(encoder.ways("a")[0])[:1]
    engine.close()


def test_the_engine_begins_an_answer_as_its_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("arithmetic")
    engine = open_engine("torch", "tiny-llama", task=task)
    problem = task.train[0]
    prompt, names = engine.prompt(problem), engine.tokenizer.convert_ids_to_tokens
    assert names(engine.encode_completion(prompt, "7"))[0] == "▁"
    monkeypatch.setattr(engine, "score", lambda role, rows: [-np.ones(len(ids)) for _, ids in rows])
    engine._spaceless = None
    assert names(engine.encode_completion(prompt, "7"))[0] == "7"  # the shorter is the likelier
    engine.close()


TEXTS = tuple("abc")
LIMITS = Limits(3, 1.0, 1.0)


def digits(count: int, completions: tuple[str, ...] = TEXTS) -> list[Problem]:
    return [Problem(f"p{i}", f"q{i % 10}", "", completions=completions) for i in range(count)]


def test_over_epochs_every_completion_is_read_equally_often() -> None:
    problems, engine = digits(5), open_engine("fake", "tiny-qwen")
    read: Counter[tuple[str, str]] = Counter()
    for step in range(15):  # 4 x 15 = 12 epochs of 5
        drawn, passes = draw(problems, 4, 3, step), epochs(5, 4, step)
        for t in collect(METHODS["off_policy"], engine, drawn, 0.0, step, 3, LIMITS, None, passes):
            read[t.problem, engine.decode(t.completion)] += 1
    assert read == {(f"p{i}", text): 4 for i in range(5) for text in TEXTS}
    orders = {tuple(chosen(problems[0], seed, epoch) for epoch in range(3)) for seed in range(60)}
    assert len(orders) == 6
    assert len({chosen(problem, 0, 0) for problem in problems}) > 1


def test_the_teacher_writes_what_the_data_have_not() -> None:
    task, engine = digits(6), open_engine("fake", "tiny-qwen")
    mixed = [replace(p, completions=()) if i % 2 else p for i, p in enumerate(task)]
    usage = Usage(engine)
    batch = collect(METHODS["off_policy"], Metered(engine, usage), mixed, 0.0, 0, 0, LIMITS)
    assert [t.problem for t in batch] == [p.id for p in mixed]
    assert [t.origin for t in batch] == ["file", "model"] * 3
    assert {t.source for t in batch} == {"teacher"}
    sampled_tokens = sum(len(t.completion) for t in batch if t.origin == "model")
    assert usage.tokens["teacher_sampled"] == sampled_tokens > 0
    for t in batch:
        assert np.isnan(t.logprobs).all() == (t.origin == "file")
        assert np.isnan(t.behavior_logprobs).all() == (t.origin == "file")
        assert len(t.logprobs) == len(t.completion)


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 9])
def test_a_long_completion_is_cut_without_an_end(limit: int) -> None:
    engine = open_engine("fake", "tiny-qwen")
    recipe, limits = METHODS["off_policy"], Limits(limit, 1.0, 1.0)
    (t,) = collect(recipe, engine, digits(1, ("abcd",)), 0.0, 0, 0, limits)
    assert engine.decode(t.completion) == "abcd"[:limit]
    assert (t.completion[-1] in engine.eos) == (limit > 4)


def test_a_prefix_is_the_beginning_of_a_completion() -> None:
    engine = open_engine("fake", "tiny-qwen")
    recipe = Recipe(name="x", prefix=2)
    (t,) = collect(recipe, engine, digits(1, ("abcd",)), 0.0, 0, 0, Limits(5, 1.0, 1.0))
    assert engine.decode(t.completion[:2]) == "ab" and t.prefix == 2
    assert (t.source, t.origin) == ("student", "model")
    assert np.isnan(t.logprobs[:2]).all() and np.isfinite(t.logprobs[2:]).all()
    (whole,) = collect(recipe, engine, digits(1, ("a",)), 0.0, 0, 0, Limits(5, 1.0, 1.0))
    assert whole.trained == 0 and whole.completion[-1] in engine.eos


@pytest.mark.parametrize("engine_name", ["fake", "torch"])
def test_unknown_probabilities_reach_no_number(engine_name: str) -> None:
    """A sampled loss on the student's tokens after a prefix from a file, with replay."""
    recipe = Recipe(
        name="x",
        on_policy=0.5,
        prefix=2,
        student_loss="reverse_kl_sampled",
        replay=Replay(capacity=2),
    )
    task = load_task("arithmetic")
    texts = [replace(p, completions=(p.solution,)) for p in task.train[:8]]
    given_task = Given(task, texts, task.test[:4])
    if engine_name == "fake":
        given_task = Given(task, digits(8, ("abcd",)), digits(4))
    engine = open_engine(engine_name, "tiny-qwen", task=given_task)
    for row in metrics_of(engine, recipe, given_task, max_tokens=8):
        for name, value in row.items():
            assert not isinstance(value, float) or np.isfinite(value), name


def test_a_loss_that_needs_the_probability_of_a_token_refuses_one_from_a_file() -> None:
    engine = open_engine("fake", "tiny-qwen")
    recipe = Recipe(name="x", on_policy=0.0, anchor=0.1, anchor_loss="reverse_kl_sampled")
    batch = collect(recipe, engine, digits(2), 0.0, 0, 0, LIMITS)
    with pytest.raises(PotstillError, match=r"a completion of the data has none \(p0\)") as caught:
        build(recipe, batch, engine)
    assert "anchor_loss" in caught.value.hint


def test_a_checkpoint_keeps_what_came_from_a_file(tmp_path: Path) -> None:
    problems, engine = digits(4), open_engine("fake", "tiny-qwen")
    batch = collect(METHODS["mixture"], engine, problems, 0.0, 0, 0, LIMITS)
    usage = Usage(engine)
    Metered(engine, usage).step(build(METHODS["mixture"], batch, engine), 1e-3)
    checkpoint.save(tmp_path, 1, engine, batch, usage.state())
    restored = checkpoint.load(tmp_path, open_engine("fake", "tiny-qwen"), problems)
    assert restored is not None
    for old, new in zip(batch, restored[1], strict=True):
        assert (old.origin, old.completion, old.source) == (new.origin, new.completion, new.source)
        np.testing.assert_array_equal(old.logprobs, new.logprobs)
    again = Usage(engine)
    again.recall(restored[2])
    assert again.sources == usage.sources and again.sources is not None and again.sources["file"]
    again.recall({"tokens": {}, "seconds": {}})  # of a version that did not count them
    assert again.sources is None and "sources" not in again.state()


def test_a_teacher_that_is_loaded_too_scores_the_completions() -> None:
    """forward_kl on the file's tokens, the same as on the teacher's own."""
    same_as_teacher("tiny-qwen", Recipe(name="x", on_policy=0.0, teacher_loss="forward_kl"))


def test_wrong_completions_are_rejected() -> None:
    recipe = Recipe(name="x", on_policy=0.0, reject_wrong=True)
    task = load_task("arithmetic")
    right, wrong = task.train[:2]
    problems = [
        replace(right, completions=(right.solution,)),
        replace(wrong, completions=("#### 1",)),
    ]
    engine = open_engine("torch", "tiny-qwen", task=task)
    fresh = collect(recipe, engine, problems, 0.0, 0, 0, Limits(32, 1.0, 1.0))
    rollouts = RolloutFilter(recipe, engine, Given(task, problems, ()), [])
    assert [t.problem for t in rollouts.keep(fresh)] == [right.id]
    assert rollouts.metrics["train/rejected"] == 1.0
    engine.close()


def study_of(folder: Path, rows: Sequence[dict[str, Any]] = (), **changes: Any) -> Study:
    """A study of `sft` on the fake student alone, whose data are in files."""
    rows = rows or [
        {"prompt": f"q{i}", "completion": [answer(i % 10), answer(i % 10)]} for i in range(20)
    ]
    test = [{"question": f"t{i}", "answer": answer(i)} for i in range(10)]
    for name, lines in (("train", rows), ("test", test)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    paths = {f"{name}_path": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    table: dict[str, Any] = {
        "name": "alone",
        "engine": "fake",
        "methods": ["sft"],
        "pair": {"mine": {"student": "tiny-qwen/student"}},
        "task": {"name": "data", "grade": "exact", **paths},
        "train": {"steps": 6, "batch_size": 4, "max_tokens": 4, "learning_rate": 1.0, "warmup": 0},
        "eval": {"every": 3, "problems": 8, "probe": 4, "probe_every": 3},
    }
    for key, value in changes.items():
        old = table.get(key)
        table[key] = {**old, **value} if isinstance(old, dict) and key != "pair" else value
    return read_study(table)


def whole_study(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Execute all runs of a study; returns their records by method."""
    place, task = StudyFolder(folder), prepare(study)
    place.open(study, inputs_of(study, task))
    return {key.method: run_cell(study, place, key, task) for key in runs_of(study)}


def test_a_study_without_a_teacher_trains_on_the_data(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    assert [key.method for key in runs_of(study)] == ["untrained", "sft"]
    checks = {check.name: check for check in preflight_pair(study, "mine")}
    assert {check.status for check in checks.values()} <= {"passed", "warning"}
    for name in ("completions", "capability gap"):
        assert checks[name].evidence == "left out: the pair has no teacher"
    evidence = checks["data completions"].evidence
    assert evidence.startswith("20 of 20 training problems have 40 completions; 0 of 40 are cut")
    records = whole_study(study, tmp_path / "out")
    assert {record["status"] for record in records.values()} == {"done"}
    record = records["sft"]
    trained = record["tokens"]["trained"]
    assert record["token_sources"] == {"file": trained} and trained == 6 * 4 * 2
    assert not {k for k, n in record["tokens"].items() if n and "teacher" in k}
    assert record["accuracy"] > records["untrained"]["accuracy"]
    rows = StudyFolder(tmp_path / "out").cell(RunId("mine", "sft", 0)).metrics
    assert "signal/teacher_accuracy" not in rows[0] and rows[-1]["train/kl_divergence"] is None
    assert rows[-1]["train/score"] is not None  # with the data's completions
    assert record["findings"] == []
    data = load_report(tmp_path / "out")
    assert [row.method for row in data.rows] == ["untrained", "sft"]
    write_report(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "without a teacher" in page and "← teacher" not in page


NOTHING = [{"prompt": f"q{i}"} for i in range(3)]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["mixture", "on_policy_gkd"], "mixture, on_policy_gkd need a teacher's probabilities of"),
        (["teacher_seeded"], "teacher_seeded needs a teacher's probabilities of the student's"),
        (["forward"], r"forward needs a teacher's probabilities of its tokens \(forward_kl\)"),
        (["interleaved"], "interleaved needs a teacher's ranks of the student's tokens"),
    ],
)
def test_what_needs_a_teacher_is_refused_when_the_study_is_read(
    tmp_path: Path, methods: list[str], message: str
) -> None:
    recipes = {
        "forward": {"from": "off_policy", "teacher_loss": "forward_kl"},
        "interleaved": {"interleave": 5},
    }
    used = {name: table for name, table in recipes.items() if name in methods}
    with pytest.raises(PotstillError, match=message) as caught:
        study_of(tmp_path, methods=[*methods, "sft"], recipe=used, engine="torch")
    assert 'pair "mine" has no teacher' in str(caught.value)
    assert 'methods = ["sft"]' in caught.value.hint


def test_all_that_needs_a_teacher_is_one_answer(tmp_path: Path) -> None:
    pair = {"mine": {"student": "tiny-qwen/student", "context": {"system": "x"}, "route": "r"}}
    with pytest.raises(PotstillErrors) as caught:
        study_of(tmp_path, pair=pair, methods=["hybrid"], faults=["vocab_permuted"])
    for part in ("pair.mine.context is about a teacher", "pair.mine.route is", "hybrid needs"):
        assert part in str(caught.value)
    assert "the fault vocab_permuted is one of a teacher" in str(caught.value)


@pytest.mark.parametrize("method", ["off_policy", "kl_anchored", "copied"])
def test_a_teacher_is_not_needed_for_cross_entropy_on_the_data(tmp_path: Path, method: str) -> None:
    copied = {"copied": {"from": "sft", "budget": 2.0, "reject_wrong": False}}
    study = study_of(tmp_path, methods=[method], recipe=copied if method == "copied" else {})
    record = whole_study(study, tmp_path / "out")[method]
    assert record["status"] == "done" and record["token_sources"].keys() == {"file"}


LETTERS = [{"prompt": f"q{i}", "completion": "b"} for i in range(6)]
HALF = [row if i % 2 else {**row, "completion": None} for i, row in enumerate(LETTERS)]
LONG = [{**row, "completion": "abcdefgh"} for row in LETTERS]
GRADED = [{"question": f"q{i}", "answer": "b", "completion": "zz"} for i in range(6)]
REJECTING = {"right": {"from": "sft", "reject_wrong": True}}
TAUGHT = {"mine": {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}}
SAMPLED = {"anchored": {"from": "sft", "anchor": 0.1, "anchor_loss": "reverse_kl_sampled"}}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (HALF, {}, r"sft trains on completions of the data, and 3 of 6 training problems have no"),
        (
            HALF,
            {"methods": ["off_policy"]},
            r'3 of 6 training problems have no completion, and pair "mine" has no teacher',
        ),
        (HALF, {"pair": TAUGHT}, "sft trains on completions of the data, and 3 of 6"),
        (LONG, {}, "6 of 6 completions reach train.max_tokens = 4: none of them ends"),
        ([*LETTERS, {**LETTERS[0], "prompt": "x", "completion": "é"}], {}, "1 of 7 completions"),
        (
            GRADED,
            {"methods": ["right"], "recipe": REJECTING},
            "all 6 completions are graded wrong, and right trains on right ones alone",
        ),
        (
            LETTERS,
            {"methods": ["anchored"], "recipe": SAMPLED},
            "anchored anchors by reverse_kl_sampled, which needs the probability",
        ),
    ],
)
def test_completions_that_cannot_train_are_refused_before_a_model_loads(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    study = study_of(tmp_path, rows, **changes)
    with pytest.raises(PotstillError, match=message) as caught:
        prepare(study)
    assert caught.value.hint


def test_where_there_is_a_teacher_it_writes_what_is_missing(tmp_path: Path) -> None:
    study = study_of(tmp_path, HALF, pair=TAUGHT, methods=["off_policy"])
    prepare(study)
    checks = {check.name: check.evidence for check in preflight_pair(study, "mine")}
    assert checks["data completions"].startswith("3 of 6 training problems have 3 completions")
    sources = whole_study(study, tmp_path / "out")["off_policy"]["token_sources"]
    assert sources["file"] and sources["teacher"]


def test_the_torch_engine_holds_no_teacher_and_says_so() -> None:
    engine = open_engine("torch", Pair(student=zoo.place("tiny-qwen/student")))
    prompt = engine.prompt(Problem("", "7", ""))
    assert not engine.has_teacher and "the pair has no teacher" in engine.notes
    assert engine.encode_completion(prompt, "7")[-1] in engine.eos
    for use in (
        lambda: engine.score("teacher", [(prompt, (5,))]),
        lambda: engine.sample("teacher", [prompt], [1], 1.0, np.random.default_rng(0)),
        lambda: engine.rows("teacher", prompt, (5,)),
        lambda: engine.size("teacher"),
    ):
        with pytest.raises(PotstillError, match="the pair has none"):
            use()
    assert list(engine.models.held) == ["student"]
    engine.close()


def test_a_sft_study_has_the_digest_of_its_settings_alone(tmp_path: Path) -> None:
    """The new settings are left out of the digest of a study that does not use them."""
    table = study_of(tmp_path).model_dump(mode="json", exclude_defaults=True)
    assert "teacher" not in table["pair"]["mine"]
    assert Recipe(name="x").to_toml() == {} and SFT.to_toml() == {
        "on_policy": 0.0,
        "from_data": True,
    }
    assert "sft" not in Study().methods and len(Study().methods) == 9


def test_a_recipe_of_the_name_sft_stays_the_study_s_own(tmp_path: Path) -> None:
    """A file that was right before there was a method of that name."""
    own = {"sft": {"from": "off_policy", "anchor": 0.1}, "SFT": {"from": "sft"}}
    study = study_of(tmp_path, recipe={"sft": own["sft"]})
    assert study.recipes["sft"].anchor == 0.1 and not study.recipes["sft"].from_data
    study = study_of(tmp_path, recipe={"SFT": own["SFT"]}, methods=["SFT"])
    assert study.recipes["SFT"].from_data
    with pytest.raises(PotstillError, match="one folder where case does not count"):
        study_of(tmp_path, recipe={"SFT": own["SFT"]}, methods=["SFT", "sft"])
    with pytest.raises(PotstillError, match='recipe "sft" starts from itself'):
        study_of(tmp_path, recipe={"sft": {"from": "sft"}})


def test_every_method_reads_the_file_and_nothing_is_a_deviation(tmp_path: Path) -> None:
    """Unknown probabilities are no symptom, in replay, prefixes and sampled losses either."""
    recipes = {
        "sampled": {"from": "teacher_seeded", "student_loss": "reverse_kl_sampled"},
        "replayed": {"from": "replay_buffer", "student_loss": "reverse_kl_sampled"},
    }
    study = study_of(
        tmp_path,
        pair=TAUGHT,
        methods=[*METHODS, "sft", *recipes],
        recipe=recipes,
        train={"checkpoint_every": 1, "max_tokens": 24},
    )
    for name, record in whole_study(study, tmp_path / "out").items():
        assert record["status"] == "done", record.get("cause")
        assert not [f for f in record.get("findings", ()) if f["kind"] == "deviation"], name
        if name in ("untrained", "teacher"):
            continue
        assert record["tokens"]["teacher_sampled"] == 0
        sources = record["token_sources"]
        assert sum(sources.values()) == record["tokens"]["trained"] and "teacher" not in sources
        recipe = study.recipes[name]
        assert ("file" in sources, "student" in sources) == (
            recipe.uses_teacher,
            recipe.uses_student,
        )
