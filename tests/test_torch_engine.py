"""What only the torch engine promises: the step equals a naive one, micro-batches, LoRA,
folders, dtypes."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import prompt_of
from potstill.algorithms.losses import CROSS_ENTROPY
from potstill.algorithms.recipe import Recipe
from potstill.engines.torch import lm_head as heads
from potstill.engines.torch import loss_terms as terms
from potstill.engines.torch.batching import micro_batches
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import NonFinite, PotstillError
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, ModelSpec


def open_pair(models: Path, family: str = "qwen", **settings: object) -> TorchEngine:
    folder = models / family
    return TorchEngine(str(folder / "student"), str(folder / "teacher"), **settings)


def batch_of(engine: TorchEngine) -> list[Datum]:
    """A batch with everything in it: both sources, a seeded prefix, an anchor."""
    recipe = Recipe(name="all", on_policy=0.5, prefix=3, anchor=0.1)
    texts = ["Tom has 3", "7", "Ann has 12 pens, buys 5", "Eva"]
    problems = [Problem(str(i), text, "0") for i, text in enumerate(texts)]
    return build(recipe, collect(recipe, engine, problems, 0.0, 0, 0, Limits(9, 1.0, 1.0)), engine)


def naive_step(models: Path, family: str, data: list[Datum]) -> tuple[float, float, dict]:
    """The same loss row by row, unpadded; returns loss, gradient norm, gradients."""
    student, teacher, init = (
        AutoModelForCausalLM.from_pretrained(models / family / role)
        for role in ("student", "teacher", "student")
    )
    total = torch.zeros(())
    for datum in data:
        prompt = datum.prompt.student
        ids = torch.tensor([prompt + datum.completion])
        vocabulary = student.config.vocab_size
        rows = {
            role: model(ids).logits[0, :, :vocabulary].log_softmax(-1)
            for role, model in (("student", student), ("teacher", teacher), ("init", init))
        }
        for term in datum.terms:
            for i, target in enumerate(datum.completion):
                at = len(prompt) + i - 1  # the position before token i predicts it
                p = rows["student"][at]
                if term.loss.name == "cross_entropy":
                    value = -p[target]
                else:
                    value = term.loss.value(p, rows[term.loss.to][at].detach())
                total = total + float(term.weights[i]) * value
    total.backward()
    gradients = {name: p.grad for name, p in student.named_parameters()}
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values())).item()
    return total.item(), norm, gradients


@pytest.mark.parametrize("family", ["qwen", "llama"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(("batch_tokens", "positions"), [(16_384, 10**6), (40, 10**6), (16_384, 3)])
def test_a_step_equals_the_naive_one(
    models: Path,
    family: str,
    batch_tokens: int,
    positions: int,
    plain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Padding, normalisation, slices, blocks and accumulation change neither loss nor gradient,
    whether the head runs apart or the family's logits are more than it."""
    monkeypatch.setattr(heads, "SLICE", positions * 400)
    monkeypatch.setattr(terms, "BLOCK", positions * 400 // 2)
    if not plain:
        monkeypatch.setattr(heads, "PLAIN", frozenset())
    engine = open_pair(models, family, batch_tokens=batch_tokens, max_grad_norm=0.0)
    data = batch_of(engine)
    assert {datum.source for datum in data} == {"student", "teacher"}
    loss, norm, gradients = naive_step(models, family, data)
    before = {name: p.detach().clone() for name, p in engine.models.trained.items()}
    stats = engine.step(data, 0.01)
    assert stats.loss == pytest.approx(loss, rel=1e-5)
    assert stats.grad_norm == pytest.approx(norm, rel=1e-4)
    for name, old in before.items():  # Adam's first step moves by the gradient's sign
        large = gradients[name].abs() > 1e-4
        moved = (engine.models.trained[name] - old)[large]
        assert torch.allclose(moved, -0.01 * gradients[name][large].sign(), rtol=1e-2)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_embeddings_gradient_is_autograds(
    models: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read twice, stands on the padding id, or was there before."""
    tied, ids = torch.nn.Embedding(9, 4, padding_idx=2), torch.tensor([[1, 2, 1], [8, 2, 0]])
    grad, before = torch.randn(2, 3, 4), torch.randn(9, 4)
    tied.weight.grad = before.clone()
    tied(ids).backward(grad)
    wanted, tied.weight.grad = tied.weight.grad, before.clone()
    mine = heads.Embedded(tied, ids)
    mine.out.backward(grad.clone())
    mine.add_gradient()
    assert tied.weight.grad is not None and torch.allclose(tied.weight.grad, wanted)
    used = []
    learn = heads.Embedded.add_gradient
    monkeypatch.setattr(heads.Embedded, "add_gradient", lambda self: used.append(learn(self)))
    engine = open_pair(models, lora_rank=rank)
    data = batch_of(engine)
    engine.measure(data)
    assert not used
    engine.step(data, 0.01)
    assert bool(used) == (rank == 0)  # adapters leave the embedding as it is


@pytest.mark.parametrize("plain", [True, False])
def test_padding_rows_of_a_head_are_never_trained(
    models: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(heads, "PLAIN", frozenset())
    engine = TorchEngine(str(models / "qwen/teacher"), str(models / "qwen/student"))
    head = engine.models.held["student"].lm_head.weight
    before = head.detach().clone()
    assert len(head) == engine.vocabulary + 5
    engine.step(batch_of(engine), 0.01)
    assert torch.equal(head[-5:], before[-5:])
    assert (head[:-5] != before[:-5]).any(1).float().mean() > 0.9


@pytest.mark.parametrize("plain", [True, False])
def test_slices_of_positions_change_no_row(
    models: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a family's logits are more than its head, and the forward pass runs whole."""
    if not plain:
        monkeypatch.setattr(heads, "PLAIN", frozenset())
    engine = open_pair(models)
    rows = [(d.prompt, d.completion) for d in batch_of(engine)]
    whole = engine.score("teacher", rows), engine.inspect("teacher", rows)
    sizes = []
    monkeypatch.setattr(heads, "SLICE", 2 * engine.vocabulary)
    cut = heads.States.log_probs
    monkeypatch.setattr(
        heads.States, "log_probs", lambda *a: sizes.append(len(out := cut(*a))) or out
    )
    scores, expectations = engine.score("teacher", rows), engine.inspect("teacher", rows)
    assert max(sizes) == 2 and sum(sizes) == 2 * sum(len(c) for _, c in rows)
    for i in range(len(rows)):
        np.testing.assert_allclose(scores[i], whole[0][i], atol=1e-5)
        np.testing.assert_allclose(expectations[i].entropy, whole[1][i].entropy, atol=1e-5)
    exact = engine.rows("teacher", *rows[0])
    picked = exact[np.arange(len(rows[0][1])), list(rows[0][1])]
    np.testing.assert_allclose(scores[0], picked, atol=1e-5)


def test_a_model_whose_weights_are_not_numbers_writes_nothing(models: Path) -> None:
    """A last update that overflows must not end as a run whose completions are one token."""
    engine = open_pair(models)
    for parameter in engine.models.trained.values():
        parameter.data.fill_(float("nan"))
    prompt = engine.prompt(Problem("0", "Tom has 3", "3"))
    for temperature in (0.0, 1.0):
        with pytest.raises(NonFinite):
            engine.sample("student", [prompt], [4], temperature, np.random.default_rng(0))


def test_clipping_bounds_the_gradient(models: Path) -> None:
    norms = {}
    for limit in (0.0, 1e-3):
        engine = open_pair(models, max_grad_norm=limit)
        data = batch_of(engine)
        before = torch.cat([p.detach().flatten() for p in engine.models.trained.values()])
        norms[limit] = engine.step(data, 1e-3).grad_norm
        first = next(iter(engine.models.optimizer.state.values()))["exp_avg"].norm()
        if limit:
            assert first <= 0.1 * limit * 1.01
        after = torch.cat([p.detach().flatten() for p in engine.models.trained.values()])
        assert not torch.equal(before, after)
    assert norms[0.0] == pytest.approx(norms[1e-3], rel=1e-5)  # the norm before clipping


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_recomputes_and_changes_no_number(models: Path, rank: int) -> None:
    plain = open_pair(models, lora_rank=rank)
    lean = open_pair(models, lora_rank=rank, gradient_checkpointing=True)
    data = batch_of(plain)
    calls = {plain: 0, lean: 0}
    for engine in calls:
        layer = next(
            m
            for n, m in engine.models.held["student"].named_modules()
            if n.endswith("layers.0.input_layernorm")
        )
        layer.register_forward_hook(
            lambda *_, engine=engine: calls.update({engine: calls[engine] + 1})
        )
    a, b = plain.step(data, 0.01), lean.step(data, 0.01)
    assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-5)
    assert calls[lean] > calls[plain]


@pytest.mark.parametrize("rank", [0, 4])
def test_bfloat16_is_close_to_float32(models: Path, rank: int) -> None:
    spec = ModelSpec(dtype="bfloat16")
    full = open_pair(models, lora_rank=rank)
    half = open_pair(
        models, lora_rank=rank, settings=TorchSettings(threads=0, student=spec, teacher=spec)
    )
    data = batch_of(full)
    a, b = full.step(data, 0.001), half.step(data, 0.001)
    assert b.loss == pytest.approx(a.loss, rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.models.trained.values())


def test_heads_that_differ_in_padding_rows_are_cut(models: Path) -> None:
    engine = open_pair(models)
    tokenizer = AutoTokenizer.from_pretrained(models / "qwen" / "student")
    assert engine.vocabulary == len(tokenizer)
    assert any("rows truncated" in note for note in engine.notes)
    drawn = engine.sample(
        "teacher", [prompt_of(engine, "7")] * 200, [4] * 200, 1.0, np.random.default_rng(0)
    )
    assert max(max(s.tokens) for s in drawn) < engine.vocabulary


def test_other_tokenizers_are_refused(models: Path) -> None:
    with pytest.raises(PotstillError, match="share a tokenizer") as caught:
        TorchEngine(str(models / "qwen/student"), str(models / "llama/teacher"))
    assert "one model family" in caught.value.hint


def test_a_student_without_template_takes_the_teachers(models: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(models / "qwen/student", bare)
    (bare / "chat_template.jinja").unlink()
    engine = TorchEngine(str(bare), str(models / "qwen/teacher"))
    assert engine.encode("7") == open_pair(models).encode("7")
    assert any("teacher's renders" in note for note in engine.notes)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_exported_student_is_an_ordinary_folder(
    models: Path, tmp_path: Path, rank: int
) -> None:
    engine = open_pair(models, lora_rank=rank)
    data = batch_of(engine)
    for _ in range(3):
        engine.step(data, 0.02)
    rows = [(datum.prompt, datum.completion) for datum in data]
    want = np.concatenate(engine.score("student", rows))
    engine.export(tmp_path / "student")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.get_vocab() == engine.tokenizer.get_vocab()
    got = []
    for asked, completion in rows:
        prompt = asked.student
        logp = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        got += [logp[len(prompt) + i - 1, y].item() for i, y in enumerate(completion)]
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (tmp_path / "student" / "adapter" / "adapter_model.safetensors").exists() == (rank > 0)
    assert not list((tmp_path / "student").glob("*.bin"))
    again = TorchEngine(str(tmp_path / "student"), str(models / "qwen/teacher"))
    np.testing.assert_allclose(np.concatenate(again.score("student", rows)), want, atol=1e-4)


def test_lora_leaves_the_base_alone(models: Path) -> None:
    engine = open_pair(models, lora_rank=4)
    assert all("lora" in name for name in engine.models.trained)
    data = batch_of(engine)
    rows = [(datum.prompt, datum.completion) for datum in data]
    base = engine.score("init", rows)
    for _ in range(3):
        engine.step(data, 0.05)
    for a, b in zip(base, engine.score("init", rows), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(np.concatenate(base), np.concatenate(engine.score("student", rows)))


def test_a_device_that_is_not_there_is_refused(models: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(PotstillError, match="no GPU"):
        open_pair(models, settings=TorchSettings(student=ModelSpec(device="cuda:0")))


def test_micro_batches_hold_their_limit_and_lose_nothing() -> None:
    sizes = [5, 30, 7, 7, 12, 1, 90]
    groups = list(micro_batches(range(7), sizes, 40))
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or max(sizes[i] for i in group) * len(group) <= 40


def test_micro_batches_pad_as_little_as_any_way_of_cutting() -> None:
    rng = np.random.default_rng(0)
    for overhead in (0, 5, 1000):
        sizes = sorted(rng.integers(1, 30, 8).tolist(), reverse=True)
        costs = []
        for cuts in itertools.product((False, True), repeat=7):
            ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 8]
            groups = [sizes[a:b] for a, b in itertools.pairwise(ends)]
            if all(len(g) == 1 or g[0] * len(g) <= 90 for g in groups):
                costs.append(sum(g[0] * len(g) + overhead for g in groups))
        found = list(micro_batches(sizes, sizes, 90, overhead))
        assert sum(max(g) * len(g) + overhead for g in found) == min(costs)


def test_sampled_loss_agrees_with_the_exact_one_in_direction(models: Path) -> None:
    """The two reverse KLs move the weights alike, averaged over many samples."""
    moves = {}
    for name in ("reverse_kl", "reverse_kl_sampled"):
        engine = open_pair(models, max_grad_norm=0.0)
        recipe = Recipe(name="x", student_loss=name)
        problems = [Problem(str(i), "7", "0") for i in range(600)]
        batch = collect(recipe, engine, problems, 0.0, 0, 0, Limits(1, 1.0, 1.0))
        engine.step(build(recipe, batch, engine), 0.0)
        moves[name] = torch.cat(
            [
                engine.models.optimizer.state[p]["exp_avg"].flatten()
                for p in engine.models.trained.values()
            ]
        )
    a, b = moves["reverse_kl"], moves["reverse_kl_sampled"]
    assert torch.cosine_similarity(a, b, dim=0) > 0.9
    assert (b.norm() / a.norm()).item() == pytest.approx(1.0, abs=0.2)


def test_teacher_rows_are_only_for_losses_that_need_them(models: Path) -> None:
    engine = open_pair(models)
    recipe = Recipe(name="x", on_policy=0.0)
    problems = [Problem("0", "7", "0")]
    batch = collect(recipe, engine, problems, 0.0, 0, 0, Limits(5, 1.0, 1.0))
    data = build(recipe, batch, engine)
    del engine.models.held["teacher"]
    engine.step(data, 0.01)
    assert "teacher" not in engine.models.held
    assert {term.loss for datum in data for term in datum.terms} == {CROSS_ENTROPY}


def test_a_student_in_float16_is_refused(models: Path) -> None:
    with pytest.raises(PotstillError, match="cannot train in float16"):
        open_pair(models, settings=TorchSettings(student=ModelSpec(dtype="float16")))


def test_both_models_ends_end_a_completion(models: Path, tmp_path: Path) -> None:
    """A base student and an instruct teacher stop at different tokens: both count."""
    import json

    teacher = tmp_path / "teacher"
    shutil.copytree(models / "qwen/teacher", teacher)
    file = teacher / "generation_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "eos_token_id": [config["eos_token_id"], 7]}))
    engine = TorchEngine(str(models / "qwen/student"), str(teacher))
    assert engine.eos == {open_pair(models).tokenizer.eos_token_id, 7}
