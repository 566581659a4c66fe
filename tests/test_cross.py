"""Two tokenizers: the engine against plain models, every method, resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import monitored
from potstill.algorithms.losses import GOLD, REVERSE_KL_SAMPLED
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.alignment import (
    align,
    match_tokens,
)
from potstill.engines.cross_tokenizer.engine import CrossEngine, TwoTokenizers
from potstill.engines.protocol import bare
from potstill.engines.registry import open_engine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.settings import Eval, Train
from potstill.tasks import load_task
from potstill.training.evaluation import evaluate
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, Prompt, Term, Trajectory

SAMPLED = "reverse_kl_sampled"
TASK = load_task("arithmetic")


@pytest.fixture(scope="module")
def engine() -> CrossEngine:
    """Its weights are never changed."""
    opened = open_engine("torch", "tiny-cross", threads=1)
    assert isinstance(opened, CrossEngine) and bare(opened) is opened
    return opened


def batch_of(engine: CrossEngine, recipe: Recipe, count: int = 6) -> list[Trajectory]:
    return collect(recipe, engine, TASK.train[:count], 0.0, 0, 0, Limits(32, 1.0, 1.0))


def naive(data: list[Datum], shared: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step from two plain models and their tokenizers, row by row."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(zoo.folder("tiny-cross", role), dtype=torch.float32)
        for role in ("student", "teacher")
    )
    tok, its_tok = (
        AutoTokenizer.from_pretrained(zoo.folder("tiny-cross", role))
        for role in ("student", "teacher")
    )
    questions = {tuple(tok(p.question + "\n").input_ids): p.question for p in TASK.train[:50]}
    spell = {id: token.replace("▁", " ").encode() for token, id in tok.get_vocab().items()}
    total, gold_total, gold_count = torch.zeros(()), torch.zeros(()), 0
    for datum in data:
        text = tok.decode(datum.completion, skip_special_tokens=True)
        chat = [{"role": "user", "content": questions[datum.prompt.student]}]
        asked = its_tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        lead = its_tok(asked, add_special_tokens=False).input_ids
        ended = datum.completion[-1] == tok.eos_token_id
        its = its_tok(text, add_special_tokens=False).input_ids
        its += [its_tok.eos_token_id] * ended
        rows = []
        own = datum.prompt.student
        for model, prompt, ids in ((student, own, datum.completion), (teacher, lead, its)):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0]
            rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        p, q = rows[0], rows[1].detach()
        body = datum.completion[: len(datum.completion) - ended]
        mine = [spell[y] for y in body]
        mine[:1] = [mine[0].lstrip(b" ")]  # the space that the tokenizer adds to a text
        theirs = [its_tok.decode([y]).encode() for y in its[: len(its) - ended]]
        spans = align([*mine, *[b"E"] * ended], [*theirs, *[b"E"] * ended])
        assert all(span.aligned for span in spans)
        y = torch.tensor(datum.completion)
        logp = p.gather(1, y[:, None])[:, 0]
        weights = torch.from_numpy(datum.terms[0].weights)
        for span in spans:
            if datum.terms[0].loss.name == SAMPLED:
                right = q.gather(1, torch.tensor(its)[:, None])[span.teacher].sum()
                sampler = torch.from_numpy(datum.logprobs)[span.student]
                ratio = (logp[span.student] - sampler).exp()
                total = total - (weights[span.student] * ratio).sum() * (right - sampler.sum())
            elif datum.terms[0].loss.name == "gold" and span.single and span.student.start:
                at = weights[span.student].gt(0).item()
                pairs = torch.from_numpy(shared)
                gold_total = (
                    gold_total + at * GOLD(0.5).value(p[span.student], q[span.teacher], pairs).sum()
                )
                gold_count += at
        if datum.terms[0].loss.name == "cross_entropy":
            total = total - (weights * logp).sum()
    share = sum(float(d.terms[0].weights.sum()) for d in data if d.terms[0].loss.name == "gold")
    if gold_count:
        total = total + share * gold_total / gold_count
    total.backward()
    return total.item(), {n: p.grad for n, p in student.named_parameters()}


@pytest.mark.parametrize("name", [SAMPLED, {"gold": 0.5}])
def test_a_step_is_that_of_two_plain_models(name: object, engine: CrossEngine) -> None:
    recipe = Recipe(name="x", on_policy=0.5, prefix=5, student_loss=name)
    data = build(recipe, batch_of(engine, recipe), engine)
    want, gradients = naive(data, engine.shared)
    fresh = open_engine("torch", "tiny-cross", max_grad_norm=0.0, batch_tokens=150, threads=1)
    before = {n: p.detach().clone() for n, p in fresh.engine.models.trained.items()}
    assert fresh.measure(data).loss == pytest.approx(want, rel=1e-3, abs=1e-4)
    stats = fresh.step(data, 0.01)
    assert stats.loss == pytest.approx(want, rel=1e-3, abs=1e-4)
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values())).item()
    assert stats.grad_norm == pytest.approx(norm, rel=1e-3)
    for key, old in before.items():  # Adam's first step moves by the gradient's sign
        large = gradients[key].abs() > 1e-3
        moved = (fresh.engine.models.trained[key] - old)[large]
        assert torch.allclose(moved, -0.01 * gradients[key][large].sign(), rtol=1e-2)


def test_what_the_teacher_writes_comes_as_the_students_tokens(engine: CrossEngine) -> None:
    recipe = Recipe(name="x", on_policy=0.0)
    batch = batch_of(engine, recipe, 16)
    assert all(t.completion[-1] in engine.eos for t in batch)
    for t in batch:
        text = engine.student_tokens.decode(t.completion)
        assert (*engine.student_tokens.encode(text), engine.student_tokens.eos_id) == t.completion
        (_, ids), spans = engine.teacher_reading(t.prompt, t.completion)
        assert ids[-1] == engine.teacher_tokens.eos_id and engine.teacher_tokens.decode(ids) == text
        assert spans[-1].single
        score = engine.score("teacher", [(t.prompt, t.completion)])[0]
        np.testing.assert_allclose(score, t.logprobs, atol=1e-4)  # it samples what it scores
    read = [engine.teacher_reading(t.prompt, t.completion)[0] for t in batch]
    inner = engine.engine.score("teacher", [(Prompt.of(lead), ids) for lead, ids in read])
    for t, scores in zip(batch, inner, strict=True):
        assert t.logprobs.sum() == pytest.approx(scores.sum(), abs=1e-4)
    assert evaluate(engine, "teacher", TASK, TASK.test[:40], 32).strict >= 0.9


def test_limits_count_the_students_tokens(engine: CrossEngine) -> None:
    prompts = [engine.prompt(p) for p in TASK.train[:12]]
    whole = engine.sample("teacher", prompts, [40] * 12, 0.0, np.random.default_rng(0))
    for limit in (0, 1, 5, 9, 22):
        cut = engine.sample("teacher", prompts, [limit] * 12, 0.0, np.random.default_rng(0))
        for short, long in zip(cut, whole, strict=True):
            assert short.tokens == long.tokens[:limit]
            assert len(short.logprobs) == len(short.tokens)
    (mixed,) = engine.sample("teacher", prompts[:1], [4], 1.0, np.random.default_rng(3))
    (again,) = engine.sample("teacher", prompts[:1], [4], 1.0, np.random.default_rng(3))
    assert mixed.tokens == again.tokens


def test_seeded_prefixes_end_between_characters(engine: CrossEngine) -> None:
    """A text that the teacher did write, in tokens that split its characters."""
    ids = engine.teacher_tokens.encode("é🚀好".encode())
    scores = np.full(len(ids), -1.0, np.float32)
    ends = set()
    for limit in range(len(ids) + 4):
        sample = engine._to_student(ids, scores, limit)
        engine.student_tokens.decode(sample.tokens).decode()
        assert len(sample.tokens) == len(sample.logprobs) <= limit
        ends.add(len(sample.tokens))
    assert ends == {0, 1, 3, 7, 10}  # the space that is no text, one, two, three characters


def test_broken_characters_are_read_by_the_teacher(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    for text in (b"", b"\xf0\x9f", b"7\xff8", b"\xe5\xa5\xbd"):
        completion = (*engine.student_tokens.encode(text), engine.student_tokens.eos_id)
        (_, ids), spans = engine.teacher_reading(prompt, completion)
        assert engine.teacher_tokens.decode(ids) == text
        (scores,) = engine.score("teacher", [(prompt, completion)])
        lead, ids = engine.teacher_reading(prompt, completion)[0]
        (its,) = engine.engine.score("teacher", [(Prompt.of(lead), ids)])
        assert scores.sum() == pytest.approx(its.sum(), abs=1e-3)
        assert match_tokens(spans, len(completion))[-1] == len(ids) - 1
    assert [len(s) for s in engine.score("teacher", [(prompt, ())])] == [0]


def test_special_tokens_carry_no_advantage(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    bos = engine.engine.tokenizer.bos_token_id
    completion = (
        *engine.student_tokens.encode(b"12"),
        bos,
        *engine.student_tokens.encode(b"3")[1:],
        engine.student_tokens.eos_id,
    )
    datum = build_one(engine, prompt, completion)
    (found,) = engine.translate([datum])
    assert found.match is not None
    (outside,) = np.flatnonzero(found.match.spans < 0)
    assert outside == completion.index(bos)
    only = np.float32(np.arange(len(completion)) == outside)
    alone = dataclasses.replace(datum, terms=(Term(REVERSE_KL_SAMPLED, only),))
    assert engine.measure([alone]).loss == 0 != engine.measure([datum]).loss
    assert bos not in found.views["teacher"][1]


def build_one(engine: CrossEngine, prompt: Prompt, completion: tuple) -> Datum:
    (scores,) = engine.score("student", [(prompt, completion)])
    t = Trajectory(prompt, completion, scores - np.float32(0.5), "student")
    (datum,) = build(Recipe(name="x", student_loss=SAMPLED), [t], engine)
    return datum


def test_a_prompt_has_each_models_own_template(engine: CrossEngine) -> None:
    problem = TASK.train[7]
    prompt = engine.prompt(problem)
    assert prompt.student == engine.encode(problem.question)
    assert prompt.foreign == engine.encode(problem.question, "teacher") != prompt.student
    head = engine.student_tokens.encode(b"12+")
    (lead, ids), _ = engine.teacher_reading(prompt.then(head), ())
    assert lead == prompt.foreign and engine.teacher_tokens.decode(ids) == b"12+"
    with pytest.raises(PotstillError, match="under its own template") as refused:
        engine.score("teacher", [(Prompt.of((5, 5, 5)), (6,))])
    assert "engine.prompt" in refused.value.hint


def test_the_teachers_view_of_a_begun_text(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    whole = (*engine.student_tokens.encode(b"70+86=156"), engine.student_tokens.eos_id)
    (scores,) = engine.score("teacher", [(prompt, whole)])
    for cut in (1, 2, 4):
        (rest,) = engine.score("teacher", [(prompt.then(whole[:cut]), whole[cut:])])
        assert len(rest) == len(whole) - cut
        np.testing.assert_allclose(rest[4:], scores[cut + 4 :], atol=1e-5)


SETTINGS = Train(steps=4, batch_size=6, max_tokens=32, learning_rate=1e-4, checkpoint_every=2)
GRADING = Eval(every=4, problems=8, probe=4, probe_every=2)


def run(recipe: Recipe, memory: Memory) -> Memory:
    opened = open_engine("torch", "tiny-cross", threads=1)
    monitored(recipe, opened, TASK, SETTINGS, GRADING, recorder=memory)
    return memory


@pytest.mark.parametrize("recipe", METHODS.values(), ids=lambda r: r.name)
def test_every_method_trains(recipe: Recipe) -> None:
    which = {"gold": 0.5} if recipe.name in ("hybrid", "mixture") else SAMPLED
    recipe = dataclasses.replace(recipe, student_loss=which, budget=1.0)
    memory = run(recipe, Memory())
    rows = memory.metrics[1:]
    assert len(rows) == 4 and all(np.isfinite(row["train/loss"]) for row in rows)
    assert all(row["train/grad_norm"] > 0 for row in rows)
    assert not [finding for finding in memory.findings if finding.kind != "note"]
    assert recipe.uses_student == any(row["train/on_policy_loss"] is not None for row in rows)
    assert recipe.uses_teacher == any(row["train/off_policy_loss"] is not None for row in rows)


class Killed(Memory):
    """Stops the run before a step is recorded, once."""

    def record(self, metrics: dict, evaluation: object) -> None:
        if metrics["step"] == 4 and not getattr(self, "again", False):
            self.again = True
            raise KeyboardInterrupt
        super().record(metrics, None)


@pytest.mark.parametrize("name", [SAMPLED, {"gold": 0.5}])
def test_a_run_resumes_to_the_same_numbers(name: object, tmp_path: Path) -> None:
    """The buffer holds prompts that the second engine has never rendered."""
    recipe = Recipe(name="x", on_policy=0.5, prefix=4, student_loss=name, replay={"capacity": 3})
    whole = run(recipe, Memory())
    killed = Killed(checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, killed)
    resumed = run(recipe, killed)
    assert resumed.metrics == whole.metrics and len(whole.metrics) == 5


def test_an_open_pair_refuses_what_a_file_did_not_show(engine: CrossEngine, tmp_path: Path) -> None:
    recipe = Recipe(name="x")
    batch = batch_of(engine, recipe, 2)
    for call in (engine.measure, lambda data: engine.step(data, 0.1)):
        with pytest.raises(PotstillError, match="log-probs over the student's vocabulary"):
            call(build(recipe, batch, engine))
    with pytest.raises(PotstillError, match="no log-probs over"):
        engine.rows("teacher", batch[0].prompt, batch[0].completion)
    plain = open_engine("torch", "tiny-llama", threads=1)
    assert isinstance(plain, TorchEngine)
    weights = np.ones(1, np.float32)
    datum = dataclasses.replace(
        build(recipe, batch[:1], engine)[0], completion=(5,), targets=(5,), logprobs=-weights
    )
    term = dataclasses.replace(datum.terms[0], loss=GOLD(0.5), weights=weights)
    with pytest.raises(PotstillError, match="share theirs"):
        plain.measure([dataclasses.replace(datum, terms=(term,))])
    models = (zoo.folder("tiny-llama", "student"), zoo.folder("tiny-qwen", "teacher"))
    with pytest.raises(PotstillError, match="share a tokenizer"):
        TorchEngine(*models)
    assert TwoTokenizers(*models).pair.teacher_tokenizer is not None


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_advantage_of_a_span_is_clipped_as_a_whole(
    engine: CrossEngine, temperature: float
) -> None:
    """A limit of 1 stays 1 at each token of a span of several, and r is the span's product."""
    limit = 1.0
    recipe = Recipe(name="x", student_loss=SAMPLED, clip_advantage=limit)
    limits = Limits(24, temperature, 1.0)
    batch = collect(recipe, engine, TASK.train[:8], 0.0, 0, 0, limits)
    data, reached = build(recipe, batch, engine), 0
    for datum in data:
        (found,) = engine.translate([datum])
        assert found.match is not None
        now = engine.score("student", [(datum.prompt, datum.completion)])[0]
        for number in {*found.match.spans} - {-1}:
            span = np.flatnonzero(found.match.spans == number)
            if len(span) < 2:
                continue
            gap = (datum.teacher_logprobs - now)[span].sum()
            reached += abs(gap) > limit
            want = -np.exp((now - datum.behavior_logprobs)[span].sum()) * np.clip(gap, -1, 1)
            for token in span:
                only = np.float32(np.arange(len(now)) == token)
                term = Term(datum.terms[0].loss, only)
                alone = engine.measure([dataclasses.replace(datum, terms=(term,))])
                assert alone.loss == pytest.approx(want, abs=2e-3)
    assert reached
