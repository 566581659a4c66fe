"""A row's numbers do not depend on the rows of its batch, or the exception is rejected by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Phi3Config

from families import write_pair
from potstill.engines import zoo
from potstill.engines.torch import sharing as sharing_module
from potstill.engines.torch.batching import by_kind
from potstill.engines.torch.distributed import SINGLE
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.sharing import Sharing, sharing_of
from potstill.errors import PotstillError
from potstill.settings import TorchSettings
from potstill.types import Ids, ModelSpec, Prompt

LIMIT = 16  # length at which rotary tables change
SIZES: dict[str, Any] = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [6.0] * 4,
    "original_max_position_embeddings": LIMIT,
}
CONFIGS = {
    "longrope": lambda: Phi3Config(
        **SIZES,
        max_position_embeddings=64,
        original_max_position_embeddings=LIMIT,
        rope_parameters=LONG,
    ),
    "dynamic": lambda: LlamaConfig(
        **SIZES,
        max_position_embeddings=LIMIT,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ropes")
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("tiny-llama", "student"))
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config()).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def row(number: int, length: int) -> Ids:
    return tuple((7919 * (number * 31 + i) + 5) % 400 + 3 for i in range(length))


def readings(lengths: list[int], completion: int = 4) -> list[tuple[Prompt, Ids]]:
    rows = [row(i, length) for i, length in enumerate(lengths)]
    return [(Prompt.of(ids[:-completion]), ids[-completion:]) for ids in rows]


def test_longrope_rows_on_both_sides_of_the_limit_do_not_share_a_batch(
    folders: dict[str, Path],
) -> None:
    engine = TorchEngine(*[str(folders["longrope"])] * 2)
    rows = readings([10, 30, 12, 17, 16])
    together = engine.score("student", rows)
    for reading, scores in zip(rows, together, strict=True):
        np.testing.assert_allclose(engine.score("student", [reading])[0], scores, atol=1e-5)
        exact = engine.rows("student", *reading)[np.arange(4), list(reading[1])]
        np.testing.assert_allclose(scores, exact, atol=1e-4)
    prompts = [Prompt.of(row(i, length)) for i, length in enumerate([6, 20, 12, 17])]
    sampled = engine.sample("student", prompts, [4] * 4, 1.0, np.random.default_rng(0))
    pairs = [(p, s.tokens) for p, s in zip(prompts, sampled, strict=True)]
    for sample, scores in zip(sampled, engine.score("student", pairs), strict=True):
        np.testing.assert_allclose(sample.logprobs, scores, atol=1e-4)


def test_a_completion_that_crosses_the_limit_is_rejected(folders: dict[str, Path]) -> None:
    engine = TorchEngine(*[str(folders["longrope"])] * 2)
    with pytest.raises(PotstillError, match="may not cross") as caught:
        engine.sample("student", [Prompt.of(row(0, 14))], [4], 1.0, np.random.default_rng(0))
    assert f"at most {LIMIT} tokens" in caught.value.hint


def test_rows_beyond_a_dynamic_table_are_rejected(folders: dict[str, Path]) -> None:
    engine = TorchEngine(*[str(folders["dynamic"])] * 2)
    short = readings([10, LIMIT])
    assert all(np.isfinite(scores).all() for scores in engine.score("student", short))
    with pytest.raises(PotstillError, match=f"max_position_embeddings = {LIMIT} tokens, got 17"):
        engine.score("student", readings([17]))
    with pytest.raises(PotstillError, match="dynamic"):
        engine.sample("student", [Prompt.of(row(0, 14))], [4], 1.0, np.random.default_rng(0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2", "bamba", "rwkv"])
def test_any_batch_of_rows_gives_each_row_its_own_numbers(family: str, tmp_path: Path) -> None:
    folder = str(write_pair(tmp_path, family) / "student")
    rng = np.random.default_rng(0)
    spec = ModelSpec(attention="eager")
    for _ in range(2):
        limits = {name: int(rng.integers(8, 64)) for name in ("batch_tokens", "sample_tokens")}
        settings = TorchSettings(threads=0, student=spec, teacher=spec, **limits)
        engine = TorchEngine(folder, folder, settings=settings)
        lengths = rng.integers(1, 9, 5).tolist()
        prompts = [Prompt.of(row(i, length)) for i, length in enumerate(lengths)]
        added = rng.integers(1, 6, 5).tolist()
        samples = engine.sample("student", prompts, added, 0.0, rng)
        rows = [(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
        for i, scores in enumerate(engine.score("student", rows)):
            (alone,) = engine.sample("student", [prompts[i]], [added[i]], 0.0, rng)
            assert alone.tokens == samples[i].tokens
            np.testing.assert_allclose(alone.logprobs, samples[i].logprobs, atol=1e-4)
            np.testing.assert_allclose(scores, samples[i].logprobs, atol=1e-4)


def test_a_cache_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it, the comparison at loading finds a way that is right."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["longrope"]()).eval()
    spec = ModelSpec(dtype="float32")
    with torch.inference_mode():
        assert sharing_of(model, "x", 420, spec) == Sharing("x", limit=LIMIT)
    forward = type(model).forward

    def forgetful(self: Any, input_ids: Any = None, cache: Any = None, **options: Any) -> Any:
        return forward(self, input_ids, cache=None, **options)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with torch.inference_mode():
        found = sharing_of(model, "x", 420, spec)
    assert not found.cached and found.mixed
    assert any("all tokens of a row are read again" in note for note in found.notes())


def test_a_model_that_looks_ahead_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["longrope"]()).eval()
    forward = type(model).forward

    def ahead(self: Any, input_ids: Any = None, **options: Any) -> Any:
        out = forward(self, input_ids, **options)
        out.logits = out.logits + input_ids.float().mean()[None, None, None] * torch.arange(420)
        return out

    monkeypatch.setattr(type(model), "forward", ahead)
    with torch.inference_mode(), pytest.raises(PotstillError, match="same log-probs in a batch"):
        sharing_of(model, "x", 420, ModelSpec(dtype="float32"))


def test_rows_of_different_kinds_do_not_share_a_micro_batch() -> None:
    assert by_kind([1, 2, 1, 2]) == [[0, 2], [1, 3]]
    chunks = list(SINGLE.chunks([5, 6, 7, 8], 1000, kinds=["a", "b", "a", "b"]))
    assert sorted(map(sorted, chunks)) == [[0, 2], [1, 3]]
    assert sharing_module.rotary_limit(CONFIGS["dynamic"]()) == (LIMIT, True)
