"""Gradients in expectation: every token that a sampler can draw, with its probability, has to give
the gradient of the divergence, on every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import prompt_of
from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
    ReverseKLSampled,
)
from potstill.engines.fake import FakeEngine, log_softmax
from potstill.engines.tinker.parts import estimated, row, stats_of
from potstill.engines.torch.engine import TorchEngine
from potstill.training.speculative import with_behavior
from potstill.types import Datum, Limits, Loss, Prompt, Term, Trajectory


def open_torch(models: Path) -> TorchEngine:
    folder = models / "qwen"
    return TorchEngine(str(folder / "student"), str(folder / "teacher"), threads=1)


@pytest.fixture(params=["fake", "torch"])
def engine(request: pytest.FixtureRequest, models: Path) -> Any:
    return FakeEngine() if request.param == "fake" else open_torch(models)


def gradient(engine: Any, data: list[Datum]) -> np.ndarray:
    """The gradient of a step with respect to everything that it would train."""
    if isinstance(engine, FakeEngine):
        table = np.zeros_like(engine._tables["student"])
        engine._forward(data, table)
        return table.ravel()
    engine._stepper._pass(data, backward=True, dropout=False)
    params = list(engine.models.trained.values())
    found = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in params]
    engine.models.optimizer.zero_grad()
    return torch.cat(found).double().numpy()


def moved(engine: Any, prompt: Prompt) -> np.ndarray:
    """Log-probs (V,) of the first token before some steps that change the student a lot."""
    before = engine.rows("student", prompt, (1,))[0]
    weights = np.ones(1, np.float32)
    for token in (3, 5):
        term = Term(CROSS_ENTROPY, weights)
        datum = Datum(prompt, (token,), (token,), (term,), "teacher", -weights)
        for _ in range(3):
            engine.step([datum], 0.3 if isinstance(engine, FakeEngine) else 3e-3)
    return before


def one_token_each(
    engine: Any, prompt: Prompt, loss: Loss, then: np.ndarray, sampler: np.ndarray
) -> list[Datum]:
    """A datum for each id that the sampler can draw, which weighs as much as it is likely."""
    teacher = engine.rows("teacher", prompt, (1,))[0]
    single = np.ones(1, np.float32)
    return [
        Datum(
            prompt,
            (token,),
            (token,),
            (Term(loss, single * np.exp(sampler[token]).astype(np.float32)),),
            "student",
            single * np.float32(then[token]),
            single * np.float32(teacher[token]),
            behavior_logprobs=single * np.float32(sampler[token]),
        )
        for token in range(len(teacher))
    ]


@pytest.mark.parametrize("to", ["teacher", "init"])
@pytest.mark.parametrize(("temperature", "replayed"), [(0.7, False), (1.5, False), (0.7, True)])
def test_the_expected_gradient_of_a_step_is_that_of_the_reverse_kl(
    engine: Any, temperature: float, replayed: bool, to: str
) -> None:
    prompt = prompt_of(engine, "Tom has 3")
    older = moved(engine, prompt)
    then = older if replayed else engine.rows("student", prompt, (1,))[0]
    sampler = log_softmax(then / temperature)
    loss = replace(REVERSE_KL_SAMPLED, to=to)
    got = gradient(engine, one_token_each(engine, prompt, loss, then, sampler))
    datum = one_token_each(engine, prompt, REVERSE_KL, then, sampler)[0]
    whole = Term(replace(REVERSE_KL, to=to), np.ones(1, np.float32))
    want = gradient(engine, [replace(datum, terms=(whole,))])
    scale = np.abs(want).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, want, atol=2e-4 * scale)


def test_the_share_of_clipped_ratios_is_reported(engine: Any) -> None:
    prompt = prompt_of(engine, "Tom has 3")
    then = moved(engine, prompt)
    ratios = np.exp(engine.rows("student", prompt, (1,))[0] - then)
    data = one_token_each(engine, prompt, ReverseKLSampled(clip_ratio=1.5), then, then)
    share = float(np.mean(ratios > 1.5))
    assert 0 < share < 1
    assert engine.measure(data).clipped == pytest.approx(share)
    assert engine.step(data, 0.0).clipped == pytest.approx(share)
    free = one_token_each(engine, prompt, REVERSE_KL_SAMPLED, then, then)
    assert engine.measure(free).clipped is None


@pytest.mark.parametrize("loss", [REVERSE_KL_SAMPLED, replace(REVERSE_KL_SAMPLED, cap=0.5)])
def test_all_engines_estimate_alike(models: Path, loss: ReverseKLSampled) -> None:
    """The torch engine's step, and the rows of a service: -A x p(y) / reference at its weights."""
    engine = open_torch(models)
    prompt = prompt_of(engine, "Tom has 3")
    then, limited = moved(engine, prompt), replace(loss, clip_ratio=2.0)
    data = one_token_each(engine, prompt, limited, then, log_softmax(then / 0.7))
    now = engine.score("student", [(d.prompt, d.completion) for d in data])
    parts = [
        estimated(d, d.terms[0], score, d.teacher_logprobs)  # type: ignore[arg-type]
        for d, score in zip(data, now, strict=True)
    ]
    stats, want = stats_of(parts, now, 0.0), engine.measure(data)
    assert stats.loss == pytest.approx(want.loss, rel=1e-4)
    assert stats.clipped == pytest.approx(want.clipped) and stats.clipped
    part, score = parts[3], now[3]
    assert part.surrogate is not None
    sent = row(part, part.coefficients, part.surrogate.reference)
    value = -float(np.exp(score[0] - sent.logprobs[-1]) * sent.advantages[-1])
    alone = engine.measure([data[3]]).loss
    assert value == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("top", [1, 3])
def test_interleaved_tokens_have_the_probability_with_which_they_are_drawn(top: int) -> None:
    """A first token is kept if the teacher has it among its likeliest, or else the teacher's."""
    engine, limits = FakeEngine(), Limits(1, 0.7, 1.3)
    prompt = Prompt.of(engine.encode("a3"))
    scores = [engine.rows(role, prompt, (1,))[0] for role in ("student", "teacher")]
    p, q = (np.exp(log_softmax(x / t)) for x, t in zip(scores, (0.7, 1.3), strict=True))
    ids = np.arange(len(p))
    kept = np.array([(scores[1] > scores[1][i]).sum() < top for i in ids])
    want = np.array([p[i] * kept[i] + sum(p[~kept]) * q[i] for i in ids])
    assert want.sum() == pytest.approx(1.0)
    nan = np.full(1, np.nan, np.float32)
    drafts = [Trajectory(prompt, (int(i),), nan, "student", behavior_logprobs=nan) for i in ids]
    found = with_behavior(engine, drafts, top, limits)
    got = np.exp(np.concatenate([t.behavior_logprobs for t in found]))
    np.testing.assert_allclose(got, want, rtol=1e-5)


NEVER = np.full(1, -np.inf, np.float32)


def test_a_token_without_weight_counts_nowhere_whatever_it_would_cost(engine: Any) -> None:
    """A prefix that the teacher calls impossible: 0 x inf changes neither value nor gradient."""
    prompt = prompt_of(engine, "7")
    then = engine.rows("student", prompt, (1,))[0]
    (first, *_), two = one_token_each(engine, prompt, REVERSE_KL_SAMPLED, then, then), (1, 2)
    one = np.float32([0, 1])
    scores = [
        np.concatenate([x, engine.score(role, [(prompt.then((1,)), (2,))])[0]])
        for role, x in (("student", np.zeros(1, np.float32)), ("teacher", NEVER))
    ]
    datum = replace(
        first,
        completion=two,
        targets=two,
        terms=(Term(REVERSE_KL_SAMPLED, one),),
        logprobs=scores[0],
        behavior_logprobs=np.float32([np.nan, scores[0][1]]),
        teacher_logprobs=scores[1],
    )
    clean = replace(datum, teacher_logprobs=scores[0], behavior_logprobs=scores[0])
    clean = replace(clean, teacher_logprobs=np.float32([0, scores[1][1]]))
    assert engine.measure([datum]).loss == pytest.approx(engine.measure([clean]).loss, rel=1e-6)
    np.testing.assert_array_equal(gradient(engine, [datum]), gradient(engine, [clean]))
