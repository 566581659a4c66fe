"""The Tinker engine on real servers: its numbers are the torch engine's, and what happens to a
server changes none of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.proxy import KINDS, badly

from conftest import prompt_of
from potstill.algorithms.losses import REVERSE_KL_SAMPLED, ReverseKLSampled
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.engines.registry import open_engine
from potstill.engines.tinker import connection
from potstill.engines.tinker.connection import check_sdk, connect
from potstill.engines.tinker.engine import TinkerEngine
from potstill.engines.tinker.parts import stats_of
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Pair
from potstill.study.loading import read_study
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, Prompt, Sample, Term

SAMPLED = REVERSE_KL_SAMPLED


def sampled(name: str) -> Recipe:
    """A method with what a service can compute."""
    import dataclasses

    recipe = METHODS[name]
    return dataclasses.replace(recipe, student_loss=SAMPLED, anchor_loss=SAMPLED)


def batch_of(engine: Any, recipe: Recipe, t: float = 0.0, seed: int = 0) -> list[Datum]:
    texts = ["Tom has 3", "7", "Ann has 12 pens, buys 5", "Eva"]
    problems = [Problem(str(i), text, "0") for i, text in enumerate(texts)]
    return build(
        recipe, collect(recipe, engine, problems, t, 0, seed, Limits(24, 1.0, 1.0)), engine
    )


# Without a server: what is refused, and how.


def test_adapters_are_needed() -> None:
    with pytest.raises(PotstillError, match="lora_rank is 0") as refused:
        read_study({"engine": "tinker", "methods": ["off_policy"]})
    assert "32" in refused.value.hint


def test_whole_rows_are_refused_before_anything_opens() -> None:
    table = {"engine": "tinker", "train": {"lora_rank": 8}, "methods": ["on_policy_gkd"]}
    with pytest.raises(PotstillError, match="needs reverse_kl"):
        read_study(table)
    table["methods"] = ["kl_anchored"]
    with pytest.raises(PotstillError, match="needs reverse_kl"):
        read_study(table)
    table |= {
        "methods": ["anchored"],
        "recipe": {"anchored": {"from": "kl_anchored", "anchor_loss": "reverse_kl_sampled"}},
    }
    assert read_study(table).recipes["anchored"].anchor_loss == SAMPLED


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(PotstillError, match="does not answer as a training service"):
        connect("http://127.0.0.1:9")


def test_the_hosted_service_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(PotstillError, match="TINKER_API_KEY is not set"):
        connect("")


def test_an_old_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_sdk()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.24.1")
    with pytest.raises(PotstillError, match=r"needs 0\.25"):
        check_sdk()


class Served:
    """A sampler of a server: log-probabilities at temperature 1, or at that of sampling."""

    def __init__(self, raw: bool) -> None:
        self.raw = raw

    def sample(self, ids: Any, limits: Any, temperature: float, *_: Any) -> list[Sample]:
        score = -1.0 if self.raw else -temperature
        return [Sample((1, 2), np.full(2, score, np.float32)) for _ in ids]

    def score(self, rows: Any) -> list[Any]:
        return [np.full(len(tokens), -1.0, np.float32) for _, tokens in rows]


@pytest.mark.parametrize("raw", [True, False])
def test_the_probability_at_a_temperature_is_the_servers_or_unknown(raw: bool) -> None:
    engine = TinkerEngine.__new__(TinkerEngine)
    engine.vocabulary, engine.eos = 9, frozenset({8})
    engine._raw, engine._samplers = {"student": raw}, {"student": Served(raw)}  # type: ignore[dict-item]
    for temperature in (0.7, 1.0):
        (sample,) = engine.sample(
            "student", [Prompt.of((3,))], [2], temperature, np.random.default_rng(0)
        )
        assert sample.logprobs.tolist() == [-1.0, -1.0]
        if temperature == 1.0:
            assert sample.behavior_logprobs.tolist() == [-1.0, -1.0]
        elif raw:
            assert np.isnan(sample.behavior_logprobs).all()
        else:
            np.testing.assert_allclose(sample.behavior_logprobs, -0.7, rtol=1e-6)


@pytest.mark.parametrize("fresh", [True, False])
def test_older_tokens_are_estimated_at_the_weights_of_now(fresh: bool) -> None:
    """A = log q - log p of now, limited ratios, and no forward pass where the sampler is new."""
    engine, passes = TinkerEngine.__new__(TinkerEngine), []
    now = np.float32([-1.0, -1.0])

    def current(parts: Any) -> list[Any]:
        passes.append(len(parts))
        return [now for _ in parts]

    engine._current_scores = current  # type: ignore[method-assign]
    engine.score = lambda role, rows: []  # type: ignore[method-assign]
    own, behavior, teacher = np.float32([[-3.0, -1.5], [-3.5, -1.0], [-0.5, -np.inf]])
    term = Term(ReverseKLSampled(clip_ratio=2.0), np.float32([1.0, 0.0]))
    datum = Datum(
        Prompt.of((3,)), (1, 2), (1, 2), (term,), "student", own, teacher,
        behavior_logprobs=behavior, fresh=fresh,
    )  # fmt: skip
    (part,) = engine._parts([datum])
    assert passes == [0] if fresh else [1]
    p = own if fresh else now
    ratio = (min(np.exp(p[0] - own[0]), 2.0)) * np.exp(own[0] - behavior[0])
    assert part.surrogate is not None
    assert part.coefficients.tolist() == pytest.approx([teacher[0] - p[0], 0.0])
    assert np.exp(p[0] - part.surrogate.reference[0]) == pytest.approx(ratio)
    assert stats_of([part], [p], 0.0).clipped == (0.0 if fresh else 1.0)


# On real servers.

Opener = Callable[..., Any]


@pytest.fixture
def opened(models: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    servers, found = request.getfixturevalue("servers"), []

    def open_one(family: str = "qwen", **settings: Any) -> Any:
        folder = models / family
        urls = {"base_url": servers.url(folder / "student")}
        urls["teacher_url"] = servers.url(folder / "teacher")
        pair = Pair(student=str(folder / "student"), teacher=str(folder / "teacher"))
        found.append(open_engine("tinker", pair, **{"lora_rank": 4, **urls, **settings}))
        return found[-1]

    yield open_one
    for engine in found:
        engine.close()


@pytest.mark.server
@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.smoke if m == "mixture" else ()) for m in sorted(METHODS)],
)
def test_the_first_loss_is_the_torch_engines(opened: Opener, models: Path, method: str) -> None:
    """The same batch on both engines, at the moments where the recipe does something else."""
    engine, recipe = opened(), sampled(method)
    folder = models / "qwen"
    pair = Pair(student=str(folder / "student"), teacher=str(folder / "teacher"))
    other = open_engine("torch", pair, lora_rank=4)
    for t in (0.0, 0.8):
        data = batch_of(engine, recipe, t)
        there, here = engine.measure(data), other.measure(data)
        assert there.loss == pytest.approx(here.loss, abs=1e-3)
        assert there.losses == pytest.approx(here.losses, abs=1e-3)
        stepped = engine.step(data, 0.0)
        assert stepped.loss == pytest.approx(there.loss, abs=1e-4)
    other.close()


@pytest.mark.server
def test_weights_count_although_the_server_averages(opened: Opener) -> None:
    """This server divides by a sequence's weights; a step still does what the weights say."""
    engine = opened()
    assert engine.facts.reduction == "sequence mean"
    data = batch_of(engine, sampled("off_policy"))
    norms = []
    for factors in ((1, 1, 1, 1), (2, 2, 2, 2), (1, 1, 1, 4)):
        scaled = [
            Datum(**{**d.__dict__, "terms": (Term(d.terms[0].loss, d.terms[0].weights * k),)})
            for d, k in zip(data, factors, strict=True)
        ]
        norms.append(engine.step(scaled, 0.0).grad_norm)
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)
    assert abs(norms[2] - norms[0]) > 0.01 * norms[0]


@pytest.mark.server
def test_a_server_that_is_killed_changes_no_number(
    opened: Opener, models: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """kill -9 before any state was saved, and after; the steps since are taken again, once."""
    servers, student = request.getfixturevalue("servers"), models / "qwen" / "student"
    recipe = sampled("mixture")
    engine = opened()
    batches = [batch_of(engine, recipe, seed=i) for i in range(5)]
    want = [engine.step(batch, 0.01).loss for batch in batches]
    other, found = opened(), []
    for i, batch in enumerate(batches):
        if i in (2, 4):
            servers.url(student, servers.kill(student))
        found.append(other.step(batch, 0.01).loss)
        if i == 2:
            other.save(tmp_path)
    assert found == pytest.approx(want, rel=1e-4)
    again = opened()
    again.load(tmp_path)
    assert [again.step(batch, 0.01).loss for batch in batches[3:]] == pytest.approx(
        want[3:], rel=1e-4
    )


@pytest.mark.server
@pytest.mark.slow
def test_a_session_that_expired_changes_no_number(opened: Opener) -> None:
    """A minute and a half without a heartbeat, as of a suspended laptop: the server has put the
    student away."""
    recipe = sampled("mixture")
    engine = opened()
    batches = [batch_of(engine, recipe, seed=i) for i in range(4)]
    want = [engine.step(batch, 0.01).loss for batch in batches]
    other = opened()
    found = [other.step(batch, 0.01).loss for batch in batches[:2]]
    before = other._trainer
    time.sleep(12)  # a session without any heartbeat never expires there; the first comes after 10
    holder = other._services["student"].client.holder
    holder.get_loop().call_soon_threadsafe(holder._session_heartbeat_task.cancel)
    time.sleep(90)  # the server allows 60 without, and looks every 10
    found += [other.step(batch, 0.01).loss for batch in batches[2:]]
    assert other._trainer is not before  # else nothing had expired
    assert found == pytest.approx(want, rel=1e-4)


@pytest.mark.server
def test_the_teachers_server_is_asked_too(opened: Opener) -> None:
    """It is another server than the student's, and may be another kind."""
    engine = opened()
    asked = "the teacher's server: do sampled log-probabilities depend on the temperature: no"
    assert any(note.startswith(asked) for note in engine.notes), engine.notes
    prompts = [prompt_of(engine, text) for text in ("Tom has 3", "7")]
    drawn = engine.sample("teacher", prompts, [6, 6], 0.5, np.random.default_rng(0))
    scored = engine.score("teacher", [(p, s.tokens) for p, s in zip(prompts, drawn, strict=True)])
    for sample, score in zip(drawn, scored, strict=True):
        np.testing.assert_allclose(score, sample.logprobs, atol=1e-5)


@pytest.mark.server
def test_ids_that_no_model_has_are_never_sent(opened: Opener) -> None:
    engine = opened()
    prompt, bad = prompt_of(engine, "7"), engine.vocabulary
    for ids in ((bad,), (-1,)):
        with pytest.raises(PotstillError, match="token ids lie in"):
            engine.score("student", [(prompt, ids)])
    data = batch_of(engine, sampled("off_policy"))
    wrong = [Datum(**{**d.__dict__, "targets": (bad,) * len(d.targets)}) for d in data]
    with pytest.raises(PotstillError, match="token ids lie in"):
        engine.step(wrong, 0.1)
    assert np.isfinite(engine.step(data, 0.0).loss)


@pytest.mark.server
def test_the_key_is_written_nowhere(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret-of-mine")
    engine = opened()
    engine.save(tmp_path)
    engine.export(tmp_path / "student")
    for path in tmp_path.rglob("*.json"):
        assert "secret" not in path.read_text()
    assert not any("secret" in note for note in engine.notes)


@pytest.mark.server
def test_the_probe_tells_what_this_server_does(
    models: Path, request: pytest.FixtureRequest
) -> None:
    from potstill.cli.probe import conformance

    url = request.getfixturevalue("servers").url(models / "qwen" / "student")
    rows, refused = conformance(url)
    said = {row["question"]: (row["answer"], row["verdict"]) for row in rows}
    assert not refused
    assert said["does position i predict token i + 1"][1] == "good"
    assert said["are a sequence's losses added up or averaged"][0].startswith("averaged")
    assert said["log-probabilities of N ids"][0] == "N - 1"
    assert said["soft targets (N, K)"][0].startswith("flattened")
    assert said["a sampler made after a step"][1] == "good"
    assert said["using the older one"][0].startswith("moves the trained weights")
    assert "nan" in said["an id outside the vocabulary"][0]
    with pytest.raises(PotstillError, match="does not serve"):
        conformance(url, str(models / "qwen" / "teacher"))


STEPS = ("forward_backward", "optim_step", "retrieve_future")


@pytest.mark.server
@pytest.mark.parametrize(
    "kind", [k if k == "lose" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_bad_line_changes_no_number(
    opened: Opener, models: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Requests and answers get lost, come late or twice; each step is taken once all the same."""
    url = request.getfixturevalue("servers").url(models / "qwen" / "student")
    engine = opened()
    recipe = sampled("mixture")
    batches = [batch_of(engine, recipe, seed=i) for i in range(4)]
    want = [engine.step(batch, 0.01).loss for batch in batches]

    def misfortune(path: str, n: int) -> str:
        return kind if path.endswith(STEPS) and n % 3 == 0 else ""

    with badly(url, misfortune) as (through, proxy):
        other = opened(base_url=through)
        found = [other.step(batch, 0.01).loss for batch in batches]
        other.close()
    assert found == pytest.approx(want, rel=1e-4)
    met = {step for what, step in proxy.met if what == kind}
    assert met & {"forward_backward", "optim_step"}, proxy.met


def test_long_waits_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE", 0.05)
    with connection.waiting(lambda: "http://x: waiting for a training step"):
        time.sleep(0.2)
    assert "http://x: waiting for a training step for 0 s" in capsys.readouterr().err


def test_a_folder_is_the_same_model_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    assert connection.same_model(str(tmp_path / "student"), "student")
    assert connection.same_model("Qwen/Qwen3-4B", "Qwen/Qwen3-4B")
    assert not connection.same_model(str(tmp_path / "teacher"), "student")
