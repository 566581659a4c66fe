"""The promises of an engine, the same ones for every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from closeness import atol, near, placed, same_steps
from conftest import prompt_of
from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    CROSSED,
    CROSSING,
    LOSSES,
    REVERSE_KL_SAMPLED,
    ReverseKL,
    ReverseKLSampled,
)
from potstill.engines.protocol import Engine
from potstill.engines.registry import ENGINES, open_engine
from potstill.errors import NonFinite, PotstillError
from potstill.settings import Pair
from potstill.types import Datum, Loss, Prompt, Role, Sample, Term, Truncation

Maker = Callable[..., Engine]
CASES = [
    "fake",
    "torch-qwen",
    "torch-llama",
    "torch-lora",
    "torch-cross",
    pytest.param("tinker-qwen", marks=pytest.mark.server),
]


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest, models: Path) -> Iterator[Maker]:
    opened = []

    def open_one(seed: int = 0) -> Engine:
        kind, _, family = request.param.partition("-")
        settings: dict[str, Any] = {}
        if family == "lora":
            family, settings = "qwen", {"lora_rank": 4}
        folder = models / (family or "qwen")
        student, teacher = folder / "student", folder / "teacher"
        if family == "cross":
            student, teacher = models / "llama" / "student", models / "qwen" / "teacher"
        if kind == "tinker":
            servers = request.getfixturevalue("servers")
            settings = {"lora_rank": 4, "base_url": servers.url(student)}
            settings["teacher_url"] = servers.url(teacher)
        if kind == "torch":
            settings |= placed()
        pair = Pair(student=str(student), teacher=str(teacher))
        while opened:  # several processes hold one engine at a time
            opened.pop().close()
        opened.append(open_engine(kind, pair, seed=seed, **settings))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def whole_rows(engine: Engine) -> None:
    """For promises about whole rows: an engine that has none is not asked."""
    if "reverse_kl" not in engine.losses:
        pytest.skip("this engine has no whole rows of its teacher")


def crossed(engine: Engine) -> bool:
    """Whether the teacher has another tokenizer."""
    return engine.losses == CROSSED


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def prompts(engine: Engine) -> list[Prompt]:
    return [prompt_of(engine, text) for text in ("Tom has 3", "7", "Ann has 12 pens, buys 5")]


def samples(engine: Engine, role: Role = "student", seed: int = 0, limit: int = 8) -> list[Sample]:
    return engine.sample(role, prompts(engine), [limit] * 3, 1.0, rng(seed))


def data(engine: Engine, loss: Loss, seed: int = 0) -> list[Datum]:
    drawn = samples(engine, seed=seed)
    total = sum(len(sample.tokens) for sample in drawn)
    rows = [(p, s.tokens) for p, s in zip(prompts(engine), drawn, strict=True)]
    teacher = engine.score("teacher", rows)
    return [
        Datum(
            prompt=prompt,
            completion=tokens,
            targets=tokens,
            terms=(Term(loss, np.full(len(tokens), 1 / total, np.float32)),),
            source="student",
            logprobs=sample.logprobs,
            teacher_logprobs=scores,
        )
        for (prompt, tokens), sample, scores in zip(rows, drawn, teacher, strict=True)
    ]


def losses_of(engine: Engine) -> list[Loss]:
    return [_on_few_ids(LOSSES[name]) for name in sorted(engine.losses)]


def _on_few_ids(loss: Loss) -> Loss:
    """A loss on 4 ids where it has a count of them."""
    numbers = loss.settings
    return loss.with_settings(**numbers | {"k": 4}) if "k" in numbers else loss


def test_lists_the_losses_that_the_registry_states(make: Maker) -> None:
    """But for what only a pair of two tokenizers has, or cannot have."""
    assert make().losses in [CROSSED, *(info.losses - CROSSING for info in ENGINES.values())]


@pytest.mark.parametrize("role", ["student", "teacher", "init"])
def test_score_of_what_was_sampled_equals_the_samplers(make: Maker, role: Role) -> None:
    engine = make()
    drawn = samples(engine, role)
    scores = engine.score(
        role, [(p, s.tokens) for p, s in zip(prompts(engine), drawn, strict=True)]
    )
    for sample, score in zip(drawn, scores, strict=True):
        assert len(sample.tokens) == len(sample.logprobs) == len(score) > 0
        near(score, sample.logprobs, 1e-5)


def test_what_a_model_expects_is_read_off_its_rows(make: Maker) -> None:
    engine = make()
    rows = [(p, s.tokens) for p, s in zip(prompts(engine), samples(engine), strict=True)]
    for role in ("student", "teacher"):
        looks = engine.inspect(role, rows)
        if role == "teacher" and crossed(engine):  # no log-probs over the student's vocabulary
            with pytest.raises(PotstillError, match="no log-probs over the student's vocabulary"):
                engine.rows(role, *rows[0])
            for look, scores in zip(looks, engine.score(role, rows), strict=True):
                np.testing.assert_array_equal(look.logprobs, scores)
            continue
        for look, (prompt, completion) in zip(looks, rows, strict=True):
            logp = engine.rows(role, prompt, completion)
            p, place = np.exp(logp), np.arange(len(completion))
            read = [prompt.read_by(role)[-1], *completion[:-1]]
            ends = p[:, sorted(engine.eos)].sum(1)
            near(look.logprobs, logp[place, list(completion)], 1e-4)
            if not (crossed(engine) or "reverse_kl" in engine.losses):
                assert not len(look.entropy) and not len(look.copy) and not len(look.end)
                continue
            near(look.entropy, -(p * logp).sum(1), 1e-4)
            near(look.copy, p[place, read], 1e-5)
            near(look.end, ends, 1e-5)


def test_measuring_gives_what_a_step_reports_and_trains_nothing(make: Maker) -> None:
    engine = make()
    for loss in losses_of(engine):
        batch = data(engine, loss)
        before = engine.score("student", [(d.prompt, d.completion) for d in batch])
        measured = engine.measure(batch)
        after = engine.score("student", [(d.prompt, d.completion) for d in batch])
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)
        stepped = engine.step(batch, 1e-3)
        near(measured.loss, stepped.loss, 1e-6, 1e-5)
        assert measured.losses.keys() == stepped.losses.keys()
        for source, value in measured.losses.items():
            near(value, stepped.losses[source], 1e-6, 1e-5)


def test_log_probabilities_do_not_depend_on_temperature(make: Maker) -> None:
    engine = make()
    drawn = engine.sample("student", prompts(engine), [6] * 3, 0.5, rng())
    scores = engine.score(
        "student", [(p, s.tokens) for p, s in zip(prompts(engine), drawn, strict=True)]
    )
    for sample, score in zip(drawn, scores, strict=True):
        near(score, sample.logprobs, 1e-5)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
def test_tokens_know_the_distribution_that_they_were_drawn_from(
    make: Maker, temperature: float
) -> None:
    """The log-probability at the temperature, from the model's whole rows."""
    engine = make()
    whole_rows_of_the_student(engine)
    drawn = engine.sample("student", prompts(engine), [6] * 3, temperature, rng())
    for prompt, sample in zip(prompts(engine), drawn, strict=True):
        logp = tempered(engine.rows("student", prompt, sample.tokens), temperature)
        want = logp[np.arange(len(sample.tokens)), list(sample.tokens)]
        near(sample.behavior_logprobs, want, 2e-5)
    (greedy,) = engine.sample("student", prompts(engine)[:1], [6], 0.0, rng())
    assert not greedy.behavior_logprobs.any() and greedy.logprobs.any()


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_samples_follow_the_distribution_at_the_temperature(
    make: Maker, temperature: float
) -> None:
    engine, n = make(), 2000
    whole_rows_of_the_student(engine)
    prompt = prompt_of(engine, "7")
    drawn = engine.sample("student", [prompt] * n, [1] * n, temperature, rng(3))
    counts = np.bincount([s.tokens[0] for s in drawn])
    p = np.exp(tempered(engine.rows("student", prompt, (1,)), temperature)[0])[: len(counts)]
    assert np.minimum(binom.cdf(counts, n, p), binom.sf(counts - 1, n, p)).min() > 1e-7
    flat = np.exp(engine.rows("student", prompt, (1,))[0])[: len(counts)]
    chance = [binom.logpmf(counts, n, x).sum() for x in (p, flat)]
    assert chance[0] > chance[1] + 20  # and not the distribution at temperature 1


def test_truncated_samples_are_the_likeliest_tokens(make: Maker) -> None:
    """Longer completions too, and the log-probabilities stay those of the whole distribution."""
    engine, n, cut = make(), 60, Truncation(top_k=3, top_p=0.9)
    prompt = prompt_of(engine, "7")
    drawn = engine.sample("student", [prompt] * n, [3] * n, 1.5, rng(3), cut)
    scores = engine.score("student", [(prompt, sample.tokens) for sample in drawn])
    for sample, score in zip(drawn, scores, strict=True):
        np.testing.assert_allclose(sample.logprobs, score, atol=1e-3)
    first = {s.tokens[0]: float(s.behavior_logprobs[0]) for s in drawn}
    assert 1 <= len(first) <= 3
    if "reverse_kl" in engine.losses or crossed(engine):  # a service does not tell them
        assert np.exp([*first.values()]).sum() == pytest.approx(1, abs=1e-3)
        rows = engine.rows("student", prompt, (1,))[0]
        assert min(rows[[*first]]) >= np.sort(rows)[-3] - 1e-4
    again = engine.sample("student", [prompt] * n, [3] * n, 1.5, rng(3), cut)
    assert [s.tokens for s in again] == [s.tokens for s in drawn]


def whole_rows_of_the_student(engine: Engine) -> None:
    """For promises about the student's whole rows, which a service does not have."""
    if not (crossed(engine) or "reverse_kl" in engine.losses):
        pytest.skip("this engine has no whole rows of its student")


def tempered(logp: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logp / temperature
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def test_same_numbers_same_samples(make: Maker) -> None:
    engine = make()
    first, again, other = (samples(engine, seed=seed) for seed in (1, 1, 2))
    assert [s.tokens for s in first] == [s.tokens for s in again]
    assert [s.tokens for s in first] != [s.tokens for s in other]


def test_samples_follow_the_models_distribution(make: Maker) -> None:
    """First tokens against exp(score): every id, and total variation, as chance allows."""
    engine = make()
    prompt, n = prompt_of(engine, "7"), 2000 if "reverse_kl" in engine.losses else 400
    drawn = [s.tokens[0] for s in engine.sample("student", [prompt] * n, [1] * n, 1.0, rng(3))]
    ids = sorted(set(drawn))
    scores = engine.score("student", [(prompt, (token,)) for token in ids])
    p = np.exp([float(score[0]) for score in scores])
    counts = np.array([drawn.count(token) for token in ids])
    if n == 2000:  # with fewer, ids that never came up make most of it
        assert 0.5 * np.abs(p - counts / n).sum() < 0.2
    assert np.minimum(binom.cdf(counts, n, p), binom.sf(counts - 1, n, p)).min() > 1e-7


def test_limits_and_eos(make: Maker) -> None:
    engine = make()
    drawn = engine.sample("student", prompts(engine), [0, 3, 40], 1.0, rng())
    assert len(drawn[0].tokens) == 0 and len(drawn[1].tokens) <= 3 and len(drawn[2].tokens) <= 40
    for sample in drawn:
        assert not any(token in engine.eos for token in sample.tokens[:-1])


def test_greedy_takes_the_likeliest_token(make: Maker) -> None:
    engine = make()
    drawn = engine.sample("teacher", prompts(engine), [4] * 3, 0.0, rng())
    for prompt, sample in zip(prompts(engine), drawn, strict=True):
        head = prompt.then(sample.tokens[:-1])
        others = samples(engine, "teacher", seed=5, limit=1)
        scored = engine.score("teacher", [(head, s.tokens) for s in others])
        assert all(score[0] <= sample.logprobs[-1] + atol(1e-5) for score in scored)


def test_a_prompt_does_not_depend_on_its_neighbours(make: Maker) -> None:
    engine = make()
    completion = samples(engine)[0].tokens
    rows = [(prompt, completion) for prompt in prompts(engine)]
    together = engine.score("teacher", rows)
    for row, scores in zip(rows, together, strict=True):
        near(engine.score("teacher", [row])[0], scores, 1e-5)
    longer = engine.score("teacher", [(rows[0][0], completion), (rows[2][0], completion * 2)])
    near(longer[0], together[0], 1e-5)


def test_every_listed_loss_goes_down(make: Maker) -> None:
    for loss in losses_of(make()):
        engine = make()
        batch = data(engine, loss)
        seen = [engine.step(batch, 0.01).loss for _ in range(8)]
        assert seen[-1] < seen[0], f"{loss}: {seen}"


def test_reverse_kl_to_itself_is_zero(make: Maker) -> None:
    engine = make()
    whole_rows(engine)
    stats = engine.step(data(engine, ReverseKL(to="init")), 0.01)
    near(stats.loss, 0.0, 1e-6)
    near(stats.grad_norm, 0.0, 1e-5)


def test_the_sampled_anchor_pulls_towards_the_student_of_step_zero(make: Maker) -> None:
    """Nothing at step 0; later r (log p - log p0) of each token, whoever wrote it."""
    engine = make()
    anchor = ReverseKLSampled(to="init")
    text = [Datum(**{**d.__dict__, "source": "teacher"}) for d in data(engine, anchor)]
    near(engine.measure(text).loss, 0.0, 1e-6)
    for _ in range(2):
        engine.step(data(engine, CROSS_ENTROPY), 0.02)
    rows = [(d.prompt, d.completion) for d in text]
    p, start = (np.concatenate(engine.score(role, rows)) for role in ("student", "init"))
    sampler = np.concatenate([d.logprobs for d in text])
    weights = np.concatenate([d.terms[0].weights for d in text])
    want = float((weights * np.exp(p - sampler) * (p - start)).sum())
    got = engine.measure(text)
    near(got.loss, want, 1e-5)
    assert abs(want) > 1e-3 and got.losses.keys() == {"anchor"}
    near(got.losses["anchor"], got.loss, 1e-4)
    near(engine.step(text, 0.0).loss, want, 1e-5)


def test_the_next_sample_uses_the_new_weights(make: Maker) -> None:
    engine = make()
    batch = data(engine, CROSS_ENTROPY)
    rows = [(datum.prompt, datum.completion) for datum in batch]
    before = np.concatenate(engine.score("student", rows))
    first, teacher = samples(engine), engine.score("teacher", rows)
    for _ in range(5):
        engine.step(batch, 0.05)
    after = np.concatenate(engine.score("student", rows))
    assert after.mean() > before.mean() + 0.1
    again = samples(engine)
    assert any(
        not np.array_equal(a.logprobs, b.logprobs) for a, b in zip(first, again, strict=True)
    )
    for a, b in zip(teacher, engine.score("teacher", rows), strict=True):
        np.testing.assert_array_equal(a, b)
    init = np.concatenate(engine.score("init", rows))
    near(init, before, 1e-5)


def test_weights_of_zero_train_nothing(make: Maker) -> None:
    engine = make()
    silent = [
        Datum(
            **{
                **datum.__dict__,
                "terms": tuple(Term(t.loss, np.zeros_like(t.weights)) for t in datum.terms),
            }
        )
        for datum in data(engine, CROSS_ENTROPY)
    ]
    rows = [(datum.prompt, datum.completion) for datum in silent]
    before = engine.score("student", rows)
    stats = engine.step(silent, 0.1)
    assert stats.loss == 0 and stats.grad_norm == 0
    for a, b in zip(before, engine.score("student", rows), strict=True):
        np.testing.assert_array_equal(a, b)


def test_terms_add_up(make: Maker) -> None:
    """Two terms in one step are the sum of each alone, in the loss that is reported."""
    alone, pair = [], (CROSS_ENTROPY, losses_of(make())[-1])
    for loss in pair:
        engine = make()
        alone.append(engine.step(data(engine, loss), 0.0).loss)
    engine = make()
    first, second = (data(engine, loss) for loss in pair)
    both = [
        Datum(**{**a.__dict__, "terms": a.terms + b.terms})
        for a, b in zip(first, second, strict=True)
    ]
    near(engine.step(both, 0.0).loss, sum(alone), 0.0, 1e-5)


def test_saved_and_loaded_goes_on_to_the_same_numbers(
    make: Maker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine = make()
    batch = data(engine, REVERSE_KL_SAMPLED)
    engine.step(batch, 0.01)
    engine.save(tmp_path / "state")
    want = [engine.step(batch, 0.01) for _ in range(3)]
    other = make()
    other.load(tmp_path / "state")
    found = [other.step(batch, 0.01) for _ in range(3)]
    if request.node.callspec.params["make"].startswith("tinker"):  # a server's sums vary
        assert [s.loss for s in found] == pytest.approx([s.loss for s in want], rel=1e-5)
        return
    same_steps(found, want)


def test_not_a_number_is_raised_and_changes_nothing(make: Maker) -> None:
    engine = make()
    bad = [
        Datum(
            **{
                **datum.__dict__,
                "terms": tuple(Term(t.loss, np.full_like(t.weights, np.nan)) for t in datum.terms),
            }
        )
        for datum in data(engine, CROSS_ENTROPY)
    ]
    rows = [(datum.prompt, datum.completion) for datum in bad]
    before = engine.score("student", rows)
    with pytest.raises(NonFinite):
        engine.step(bad, 0.1)
    for a, b in zip(before, engine.score("student", rows), strict=True):
        np.testing.assert_array_equal(a, b)


def test_text_survives_encoding(make: Maker) -> None:
    engine = make()
    assert "Tom has 3" in engine.decode(engine.encode("Tom has 3"))


def test_says_how_much_memory_it_took(make: Maker) -> None:
    engine = make()
    peak, there = engine.memory()
    assert 0 < peak < there
