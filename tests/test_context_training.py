"""Contexts in training: scores under the teacher's own prompt, resuming, studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import monitored
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe, Replay
from potstill.engines import zoo
from potstill.engines.registry import open_engine
from potstill.engines.torch.engine import TorchEngine
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.training import checkpoint
from potstill.training.evaluation import evaluate
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect, draw
from potstill.types import Limits, Prompt

TASK = Arithmetic(train_size=200, test_size=60)


HINT = {"hint": {"template": "Hint:\n{hint}\n{question}"}}


SETTINGS = Train(steps=4, batch_size=4, max_tokens=24, learning_rate=1e-3, checkpoint_every=2)


GRADING = Eval(every=4, problems=4, probe=2, probe_every=4)


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
