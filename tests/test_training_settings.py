"""Settings of training: samplers, optimizer, schedules, length, names of other libraries."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_scheduler
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from conftest import prompt_of, toy_table
from potstill.algorithms.losses import CROSS_ENTROPY, ReverseKLSampled
from potstill.engines.cached_teacher import CachedTeacher
from potstill.engines.fake import CLOSED_FORMS, FakeEngine, log_softmax
from potstill.engines.tinker.client import adam_of
from potstill.engines.tinker.engine import TinkerEngine
from potstill.engines.torch import sampling
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.truncation import truncated
from potstill.errors import PotstillError
from potstill.settings import Adam, Lora, Train
from potstill.study.loading import read_study
from potstill.study.settling import settled
from potstill.types import Datum, Prompt, Sample, Term, Truncation

CUTS = [
    Truncation(top_k=k, top_p=p, min_p=m)
    for k, p, m in itertools.product((0, 1, 2, 3, 100), (1.0, 0.9, 0.75, 0.5, 1e-9), (0.0, 0.25))
]
HALVES = np.array([0.5, 0.25, 0.125, 0.125])  # exact in floats: sums meet top_p exactly
TIES = np.array([0.25, 0.25, 0.25, 0.25])
WITH_TIES = np.array([0.125, 0.25, 0.125, 0.25, 0.25])


def by_transformers(logits: torch.Tensor, temperature: float, cut: Truncation) -> np.ndarray:
    """What `generate` of transformers samples from, in its order."""
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(cut.top_k)] if cut.top_k else []
    warpers += [TopPLogitsWarper(cut.top_p)] if cut.top_p < 1 else []
    warpers += [MinPLogitsWarper(cut.min_p)] if cut.min_p else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits.double().softmax(-1).numpy()


def tables() -> dict[str, torch.Tensor]:
    drawn = torch.randn(6, 11, generator=torch.Generator().manual_seed(1)) * 3
    exact = {"halves": HALVES, "ties": TIES, "with ties": WITH_TIES}
    return {"random": drawn, "ties of bf16": drawn.bfloat16().float()} | {
        name: torch.tensor(p, dtype=torch.float32).log()[None] for name, p in exact.items()
    }


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("name", tables())
def test_truncated_distributions_are_those_of_transformers(name: str, temperature: float) -> None:
    logits = tables()[name]
    for cut in CUTS:
        want = by_transformers(logits, temperature, cut)
        scaled = (logits.double() / temperature).log_softmax(-1).numpy()
        got = np.exp(truncated(scaled, cut))
        np.testing.assert_allclose(got, want, atol=1e-6, err_msg=str(cut))
        np.testing.assert_allclose(got.sum(-1), 1)
        assert ((got > 0) == (want > 0)).all(), cut


@pytest.mark.parametrize("name", tables())
def test_the_sampler_draws_from_the_truncated_distribution(name: str) -> None:
    """Every uniform number on a fine grid: how often a token comes is its probability."""
    for cut, temperature in itertools.product(CUTS[::3], (1.0, 0.5)):
        row = tables()[name][:1]
        want = by_transformers(row, temperature, cut)[0]
        grid = (torch.arange(4096) + 0.5) / 4096
        logp = row.log_softmax(-1).expand(len(grid), -1)
        drawn, behavior = sampling._draw(logp, temperature, grid, sampling._warpers(cut))
        counts = np.bincount(drawn.numpy(), minlength=len(want)) / len(grid)
        np.testing.assert_allclose(counts, want, atol=1 / 2048)
        np.testing.assert_allclose(behavior.exp().numpy(), want[drawn.numpy()], rtol=1e-5)


CUT = Truncation(top_k=5, top_p=0.8, min_p=0.05)


def test_the_torch_engine_knows_the_probability_of_each_token(models: Path) -> None:
    folder = models / "qwen"
    engine = TorchEngine(str(folder / "student"), str(folder / "teacher"), threads=1)
    prompts = [prompt_of(engine, text) for text in ("Tom has 3", "7")] * 3
    for role in ("student", "teacher"):
        rng = np.random.default_rng(0)
        whole = engine.sample(role, prompts, [6] * 6, 0.7, rng)
        samples = engine.sample(role, prompts, [6] * 6, 0.7, np.random.default_rng(0), CUT)
        assert [s.tokens for s in samples] != [s.tokens for s in whole]
        for prompt, sample in zip(prompts, samples, strict=True):
            rows = engine.rows(role, prompt, sample.tokens)
            at = np.arange(len(rows)), list(sample.tokens)
            scaled = rows / 0.7
            scaled -= np.log(np.exp(scaled).sum(-1, keepdims=True))
            want = truncated(scaled, CUT)[at]
            np.testing.assert_allclose(sample.behavior_logprobs, want, atol=2e-4)
            np.testing.assert_allclose(sample.logprobs, rows[at], atol=2e-4)
            assert (sample.behavior_logprobs > sample.logprobs).any()
    engine.close()


def test_the_fake_engine_too_and_greedy_stays_greedy() -> None:
    engine, prompts = FakeEngine(), [Prompt.of((5,))] * 200
    rng = np.random.default_rng(0)
    drawn = engine.sample("student", prompts, [1] * 200, 2.0, rng, Truncation(top_k=3))
    assert len({sample.tokens for sample in drawn}) == 3
    assert sum(
        np.exp(float(s.behavior_logprobs[0])) for s in {s.tokens: s for s in drawn}.values()
    ) == (pytest.approx(1))
    greedy = [engine.sample("student", prompts[:1], [4], 0.0, rng, cut)[0].tokens for cut in CUTS]
    assert len(set(greedy)) == 1


def test_the_expectation_of_a_truncated_sample_is_over_its_support() -> None:
    """The sum over all tokens of s(y) times the gradient for y, against what the docs claim: the
    gradient of sum over the support of p (log p - log q), which is not the whole reverse KL's."""
    engine, cut = FakeEngine(), Truncation(top_p=0.6)
    p, q = (log_softmax(engine._tables[role][[7]]) for role in ("student", "teacher"))
    s = truncated(log_softmax(p / 0.8), cut)
    support = np.flatnonzero(s[0] > -np.inf)
    loss, total = ReverseKLSampled(), 0.0
    for y in support:
        scores = [np.array([row[0, y]], np.float32) for row in (p, s, q)]
        datum = Datum(
            *(Prompt.of((7,)), (y,), (y,), (Term(loss, np.ones(1, np.float32)),), "student"),
            logprobs=scores[0],
            behavior_logprobs=scores[1],
            teacher_logprobs=scores[2],
        )
        total = total + np.exp(s[0, y]) * CLOSED_FORMS[ReverseKLSampled](loss, datum, p, q)[1][0]
    weight = np.exp(p[0]) * (p[0] - q[0])
    ones = np.eye(p.shape[1])
    claimed = sum(weight[y] * (ones[y] - np.exp(p[0])) for y in support)
    whole = sum(weight[y] * (ones[y] - np.exp(p[0])) for y in range(p.shape[1]))
    np.testing.assert_allclose(total, claimed, atol=1e-5)
    assert np.abs(whole - claimed).max() > 1e-3  # the bias


def test_a_cache_keeps_old_keys_and_tells_truncations_apart(tmp_path: Path) -> None:
    engine = CachedTeacher(FakeEngine(), "q", tmp_path)
    for more in ((), (Truncation(),), (Truncation(top_k=1),), (Truncation(top_k=1),)):
        rng = np.random.default_rng(0)
        engine.sample("teacher", [Prompt.of((20,))], [4], 1.0, rng, *more)
    assert len([*tmp_path.rglob("*.npz")]) == 2


class Served:
    """A server's sampler, which reports log-probabilities of some kind."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def sample(self, ids: Any, *words: Any) -> list[Sample]:
        self.asked.append(words)
        return [Sample((1, 2), np.full(2, -0.5, np.float32)) for _ in ids]

    def score(self, rows: Any) -> list[Any]:
        return [np.full(len(tokens), -1.0, np.float32) for _, tokens in rows]


@pytest.mark.parametrize("raw", [True, False])
def test_a_service_does_not_tell_the_probability_of_a_truncated_sample(raw: bool) -> None:
    engine, served = TinkerEngine.__new__(TinkerEngine), Served()
    engine.vocabulary, engine.eos = 9, frozenset({8})
    engine._raw, engine._samplers = {"student": raw}, {"student": served}  # type: ignore[dict-item]
    rng, cut = np.random.default_rng(0), Truncation(top_k=3, top_p=0.5)
    (sample,) = engine.sample("student", [Prompt.of((1,))], [4], 1.0, rng, cut)
    assert np.isnan(sample.behavior_logprobs).all() and served.asked[0][-1] == cut
    assert sample.logprobs == pytest.approx([-0.5 if raw else -1.0] * 2)
    with pytest.raises(PotstillError, match="top_k and top_p alone, got min_p"):
        engine.sample("student", [Prompt.of((1,))], [4], 1.0, rng, Truncation(min_p=0.1))


def test_adam_as_the_api_names_it() -> None:
    pytest.importorskip("tinker")
    assert adam_of(Adam()) == {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    changed = adam_of(Adam(betas=(0.8, 0.999), weight_decay=0.1))
    assert changed == {"beta1": 0.8, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


# Learning rates.


def rates(total: int, **settings: Any) -> list[float]:
    train = Train(learning_rate=2.0, **settings)
    return [train.rate(step, 0.0, total) for step in range(total)]


def theirs(name: str, warmup: int, total: int, **more: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=more)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_default_rate_is_what_it_was() -> None:
    train = Train(learning_rate=3e-4, on_policy_rate=0.7)
    for step, share in itertools.product(range(12), (0.0, 0.3, 1.0)):
        was = 3e-4 * ((1 - share) + share * 0.7) * min(1.0, (step + 1) / 6)
        assert train.rate(step, share, 12) == was


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("total", [1, 7, 30])
def test_schedules_are_those_of_transformers_after_the_warm_up(warmup: int, total: int) -> None:
    for name in ("linear", "cosine"):
        ours = rates(total, warmup=warmup, schedule=name)
        assert ours[warmup:] == pytest.approx(theirs(name, warmup, total)[warmup:])
    least = rates(total, warmup=warmup, schedule="cosine", min_rate=0.1)
    want = theirs("cosine_with_min_lr", warmup, total, min_lr_rate=0.1)
    assert least[warmup:] == pytest.approx(want[warmup:])
    ramp = rates(total, warmup=warmup, schedule="cosine")[:warmup]
    assert ramp == [2 * (step + 1) / (warmup + 1) for step in range(min(warmup, total))]


def test_a_longer_run_stretches_a_schedule() -> None:
    short, long = rates(10, warmup=0.2, schedule="linear"), rates(20, warmup=0.2, schedule="linear")
    assert short[2:] == pytest.approx(long[4::2])
    table = {"linear": [1, 0.5], "until": 0.5}
    assert rates(4, warmup=0, schedule=table) == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert rates(10, warmup=0.25)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])  # ceil(2.5) steps


# The optimizer.


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in engine.models.trained.items()}


def one_step(engine: TorchEngine) -> None:
    prompt = prompt_of(engine, "Tom has 3")
    terms = (Term(CROSS_ENTROPY, np.full(2, 0.5, np.float32)),)
    engine.step([Datum(prompt, (5, 6), (5, 6), terms, "teacher", np.zeros(2, np.float32))], 0.01)


@pytest.mark.parametrize("rank", [0, 2])
def test_weight_decay_shrinks_weights_but_no_norms_and_no_biases(models: Path, rank: int) -> None:
    folder, ends = models / "qwen", []
    for decay in (0.0, 0.5):
        engine = TorchEngine(
            str(folder / "student"),
            str(folder / "teacher"),
            threads=1,
            lora_rank=rank,
            lora=Lora(rank=rank),
            adam=Adam(weight_decay=decay),
        )
        start = weights(engine)
        one_step(engine)
        ends.append(weights(engine))
        engine.close()
    shrunk = set()
    for name, value in start.items():
        change = ends[1][name] - ends[0][name]
        if "norm" in name or "bias" in name:
            assert not change.any(), name
        else:
            torch.testing.assert_close(change, -0.01 * 0.5 * value, atol=1e-6, rtol=1e-3)
            shrunk |= {name} if change.any() else set()
    assert any(("lora" if rank else "embed_tokens") in name for name in shrunk)


def test_an_adapter_is_trained_further_with_its_own_scale(models: Path, tmp_path: Path) -> None:
    folder = models / "qwen"
    teacher = str(folder / "teacher")
    lora = Lora(rank=2, alpha=8)
    engine = TorchEngine(str(folder / "student"), teacher, threads=1, lora_rank=2, lora=lora)
    one_step(engine)
    engine.export(tmp_path / "student")
    adapter, trained = str(tmp_path / "student" / "adapter"), weights(engine)
    engine.close()
    for alpha in (0, 8):
        lora = Lora(rank=2, alpha=alpha)
        further = TorchEngine(adapter, teacher, threads=1, lora_rank=2, lora=lora)
        for name, value in weights(further).items():
            torch.testing.assert_close(value, trained[name])
        further.close()
    with pytest.raises(PotstillError, match=r"an adapter of lora_alpha 8, train.lora_alpha is 7"):
        TorchEngine(adapter, teacher, threads=1, lora_rank=2, lora=Lora(rank=2, alpha=7))


def test_the_fake_engine_decays_and_takes_other_betas() -> None:
    datum = Datum(
        *(Prompt.of((7,)), (3,), (3,), (Term(CROSS_ENTROPY, np.ones(1, np.float32)),), "teacher"),
        logprobs=np.zeros(1, np.float32),
    )
    ends = []
    for adam in (Adam(), Adam(weight_decay=0.5), Adam(betas=(0.5, 0.6))):
        engine = FakeEngine(adam=adam)
        start = engine._tables["student"].copy()
        engine.step([datum], 0.1), engine.step([], 0.1)
        ends.append(engine._tables["student"])
    quiet = np.arange(len(start)) != 7
    np.testing.assert_allclose(ends[1][quiet], start[quiet] * 0.95**2)
    assert (ends[0][quiet] == start[quiet]).all() and (ends[2] != ends[0]).any()


# Studies.


def study_of(folder: Path, **train: Any) -> Any:
    table = toy_table(folder, seeds=[0], methods=["on_policy_gkd"])
    if "epochs" in train or "num_train_epochs" in train:
        del table["train"]["steps"]
    return read_study({**table, "train": table["train"] | train})


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"), [(1, 10, 4), (1.0, 7, 6), (2.5, 8, 13), (0.01, 10, 1), (3, 40, 3)]
)
def test_epochs_are_passes_over_the_problems(
    tmp_path: Path, epochs: float, batch: int, steps: int
) -> None:
    study = study_of(tmp_path, epochs=epochs, batch_size=batch)
    with pytest.raises(PotstillError, match="depend on the data"):
        study.total_steps(study.recipes["on_policy_gkd"])
    assert read_study(study.to_toml()).train.epochs == epochs
    known = settled(study)
    assert (known.train.steps, known.train.epochs) == (steps, None)
    assert steps == max(1, math.ceil(epochs * 40 / batch))
    assert settled(known) is known and read_study(known.to_toml()).train.steps == steps


def test_epochs_do_not_count_validation_problems(tmp_path: Path) -> None:
    assert settled(study_of(tmp_path, epochs=1, validation=10)).train.steps == 3


def test_too_many_epochs_are_refused_when_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="at most 10,000,000 steps"):
        settled(study_of(tmp_path, epochs=1e6, batch_size=1, max_tokens=1))
    table = toy_table(tmp_path, methods=["replay_buffer"])
    del table["train"]["steps"]
    table["train"] |= {"epochs": 0.1}
    with pytest.raises(PotstillError, match="replays earlier steps"):
        settled(read_study(table))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no nucleus": ({"top_p": 0}, "train.top_p"),
    "too much": ({"top_p": 1.1}, "train.top_p"),
    "negative top_k": ({"top_k": -1}, "train.top_k"),
    "half a token": ({"top_k": 1.5}, "train.top_k"),
    "min_p above 1": ({"min_p": 1.5}, "train.min_p"),
    "the teacher's": ({"teacher_min_p": 1.5}, "train.teacher_min_p"),
    "one beta": ({"betas": [0.9]}, "betas are two numbers from 0 to below 1, got [0.9]"),
    "beta of 1": ({"betas": [0.9, 1.0]}, "betas are two numbers"),
    "betas as text": ({"betas": "0.9,0.95"}, "betas are two numbers"),
    "negative decay": ({"weight_decay": -0.1}, "train.weight_decay"),
    "no epochs": ({"epochs": 0}, "train.epochs"),
    "two lengths": (
        {"epochs": 2, "steps": 3},
        "in steps or in epochs, got steps = 3 and epochs = 2",
    ),
    "part of a step": ({"warmup": 2.5}, "warmup is a number of steps or, below 1, a share"),
    "negative warm-up": ({"warmup": -1}, "train.warmup"),
    "another schedule": ({"schedule": "cosin"}, "schedule is constant, linear, cosine or a table"),
    "a number": ({"schedule": 3}, "schedule is constant, linear, cosine or a table"),
    "zeros": ({"schedule": {"linear": [0, 0]}}, "multiples of the learning rate"),
    "negative rates": ({"schedule": {"linear": [1, -1]}}, "multiples of the learning rate"),
    "one end": ({"schedule": {"linear": [1]}}, "linear takes [start, end]"),
    "no end": ({"min_rate": 0.1}, "min_rate ends a linear or cosine schedule"),
    "best of nothing": ({"keep": "best"}, 'keep = "best" chooses by validation problems'),
    "two choices": (
        {"keep": "best", "validation": 4, "on_collapse": "rollback"},
        "both choose the student of a run",
    ),
    "negative validation": ({"validation": -1}, "train.validation"),
    "negative students": ({"save_every": -1}, "train.save_every"),
    "two names": ({"max_completion_length": 3}, "train.max_completion_length and train.max_tokens"),
    "names of betas": ({"betas": [0.9, 0.9], "adam_beta1": 0.8}, "are one setting, got both"),
    "no warm-up there": ({"lr_scheduler_type": "constant"}, "train.lr_scheduler_type is linear"),
    "their steps": ({"max_steps": 3}, 'unknown key "train.max_steps"'),
    "their batch": ({"per_device_train_batch_size": 3}, "per_device_train_batch_size"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_when_the_study_is_read(tmp_path: Path, name: str) -> None:
    train, says = BAD[name]
    table = toy_table(tmp_path, seeds=[0], methods=["on_policy_gkd"])
    table["train"] = {**table["train"], **train}
    if name not in ("two lengths",):
        table["train"] = {
            k: v for k, v in table["train"].items() if "epochs" not in train or k != "steps"
        }
    with pytest.raises(PotstillError) as caught:
        read_study(table)
    assert says in str(caught.value) and caught.value.hint


def test_names_of_transformers_and_trl_are_ours(tmp_path: Path) -> None:
    table = toy_table(tmp_path, seeds=[0], methods=["on_policy_gkd"], engine="torch")
    table["pair"] = {"toy": {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}}
    train = {
        "num_train_epochs": 2,
        "max_new_tokens": 9,
        "lr_scheduler_type": "cosine",
        "min_lr_rate": 0.1,
        "adam_beta2": 0.999,
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "learning_rate": 1e-3,
    }
    ours = read_study({**table, "train": train}).train
    assert ours == Train(
        epochs=2,
        max_tokens=9,
        schedule="cosine",
        min_rate=0.1,
        betas=(0.9, 0.999),
        lora_rank=4,
        lora_target=("q_proj", "v_proj"),
        learning_rate=1e-3,
    )


TINKER = {
    "engine": {"name": "tinker"},
    "pairs": ["tiny-qwen"],
    "student_loss": "reverse_kl_sampled",
}


@pytest.mark.parametrize(
    ("more", "train", "says"),
    [
        (TINKER, {"min_p": 0.1}, "samples with top_k and top_p alone, got train.min_p = 0.1"),
        (TINKER, {"teacher_min_p": 0.1}, "got train.teacher_min_p"),
        (TINKER, {"top_p": 0.9}, "needs the probability with which each token was drawn"),
        (
            {
                "recipe": {
                    "mixed": {"interleave": 5, "anchor": 1.0, "anchor_loss": "reverse_kl_sampled"}
                },
                "methods": ["mixed"],
                "pairs": ["tiny-qwen"],
            },
            {"top_p": 0.9},
            "interleaves two models and needs the probability of each token",
        ),
    ],
)
def test_unknown_probabilities_are_refused_when_the_study_is_read(
    more: dict[str, Any], train: dict[str, Any], says: str
) -> None:
    train = {"steps": 2, "lora_rank": 4 if "engine" in more else 0, **train}
    table = {"methods": ["on_policy_gkd"], **more}
    read_study({**table, "train": train | {"top_p": 1.0, "min_p": 0.0, "teacher_min_p": 0.0}})
    with pytest.raises(PotstillError, match=says):
        read_study({**table, "train": train})


def test_a_service_may_truncate_where_no_ratio_is_needed() -> None:
    table = {**TINKER, "methods": ["off_policy"], "train": {"lora_rank": 4, "teacher_top_p": 0.9}}
    assert read_study(table).train.teacher_truncation == Truncation(top_p=0.9)
