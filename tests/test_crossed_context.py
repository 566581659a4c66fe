"""A teacher with a tokenizer of its own that reads a context: the same bytes of the completion are
scored under the teacher's own template of the context, whatever the student reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import monitored
from potstill.algorithms.losses import GOLD, loss
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.engine import CrossEngine
from potstill.engines.registry import open_engine
from potstill.settings import Eval, Pair, Train
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.tasks import load_task
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Limits, Trajectory

SAMPLED = "reverse_kl_sampled"
TASK = load_task("arithmetic")
CONTEXTS = {"hint": zoo.CONTEXTS["tiny-context"], "system": zoo.CONTEXTS["tiny-format"]}
MODELS = {
    "student": zoo.folder("tiny-llama", "student"),
    "teacher": zoo.folder("tiny-context", "teacher"),  # reads hints
}


def open_with(name: str | None) -> CrossEngine:
    pair = Pair(**MODELS, context=CONTEXTS[name] if name else {})
    opened = open_engine("torch", pair, task=TASK, threads=1)
    assert isinstance(opened, CrossEngine)
    return opened


def batch_of(engine: CrossEngine, recipe: Recipe) -> list[Trajectory]:
    return collect(recipe, engine, TASK.train[:5], 0.0, 0, 0, Limits(32, 1.0, 1.0))


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_text_has_the_probability_that_a_plain_teacher_gives_it(name: str) -> None:
    engine = open_with(name)
    batch = batch_of(engine, Recipe(name="x", student_loss=loss(SAMPLED)))
    found = engine.score("teacher", [(t.prompt, t.completion) for t in batch])
    bare, builder = open_with(None), PromptBuilder(read_context(CONTEXTS[name]), TASK)
    alone = [bare.prompt(problem) for problem in TASK.train[: len(batch)]]
    without = bare.score("teacher", [(p, t.completion) for p, t in zip(alone, batch, strict=True)])
    model = AutoModelForCausalLM.from_pretrained(MODELS["teacher"], dtype=torch.float32)
    mine, its = (AutoTokenizer.from_pretrained(MODELS[r]) for r in ("student", "teacher"))
    for problem, t, scores, plain in zip(TASK.train, batch, found, without, strict=False):
        said = [{"role": r, "content": x} for r, x in builder.conversation(problem)]
        asked = its.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        lead = its(asked, add_special_tokens=False).input_ids
        text = mine.decode(t.completion, skip_special_tokens=True)
        ids = its(text, add_special_tokens=False).input_ids
        ids += [its.eos_token_id] * (t.completion[-1] == mine.eos_token_id)
        with torch.no_grad():
            rows = model(torch.tensor([[*lead, *ids]])).logits[0].log_softmax(-1)
        want = rows[len(lead) - 1 : -1].gather(1, torch.tensor(ids)[:, None]).sum()
        assert scores.sum() == pytest.approx(want.item(), rel=1e-4)
        assert abs(scores.sum() - plain.sum()) > 1e-3  # the context is read


@pytest.mark.parametrize("recipe", METHODS.values(), ids=lambda r: r.name)
def test_every_method_trains(recipe: Recipe) -> None:
    which = GOLD(0.5) if recipe.name in ("hybrid", "mixture") else loss(SAMPLED)
    recipe = dataclasses.replace(recipe, student_loss=which, budget=1.0)
    settings = Train(steps=3, batch_size=6, max_tokens=32, learning_rate=1e-4)
    memory = Memory()
    engine = open_with("hint")
    monitored(recipe, engine, TASK, settings, Eval(every=3, problems=8, probe=4), recorder=memory)
    rows = memory.metrics[1:]
    assert len(rows) == 3 and all(row["train/grad_norm"] > 0 for row in rows)
    assert not memory.findings  # every loss was worked out a second time
    assert recipe.uses_student == any(row["train/on_policy_loss"] is not None for row in rows)


def study(**changes: Any) -> Any:
    small = {"train": {"batch_size": 8}, "eval": {"problems": 16}}
    pairs = {"x": {**MODELS, "context": CONTEXTS["hint"]}}
    return read_study({"pair": pairs, "methods": ["mixture"], **small, **changes})


def test_preflight_passes_and_refuses_a_fault() -> None:
    chosen: tuple[object, ...] = (SAMPLED, {"gold": 0.5})
    for which in chosen:
        checks = preflight_pair(study(student_loss=which), "x")
        assert {check.status for check in checks} == {"passed"}, checks
        names = {check.name for check in checks}
        assert {"alignment", "mixture: student tokens", "mixture: teacher tokens"} <= names
    faulty = study(student_loss=SAMPLED, faults=["unshifted_targets"])
    refused = [c for c in preflight_pair(faulty, "x") if c.status == "refused"]
    assert [(c.name, c.cause) for c in refused] == [
        ("mixture: teacher tokens", "unshifted_targets")
    ]


def test_preflight_sees_a_context_that_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(engine: CrossEngine, role: str, rows: list) -> list:
        """Scores as if the teacher had read the problem alone."""
        problems = {problem.id: problem for problem in TASK.train}
        plain = [
            (
                dataclasses.replace(
                    p, foreign=engine.encode(problems[p.problem].question, "teacher")
                ),
                completion,
            )
            for p, completion in rows
        ]
        return score(engine, role, plain if role == "teacher" else rows)

    score = CrossEngine.score
    monkeypatch.setattr(CrossEngine, "score", unread)
    checks = preflight_pair(study(student_loss=SAMPLED), "x")
    assert "mixture: student tokens" in [c.name for c in checks if c.status == "refused"]
