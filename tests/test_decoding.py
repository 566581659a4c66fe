"""The fast decoder against transformers' own forward pass, layer families and adapters included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from potstill.engines.torch import decoding
from potstill.engines.torch.adapters import add_lora
from potstill.engines.torch.decoding import Fast, Plain, begin, fits

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, scaled rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


def make(name: str, adapters: bool = False) -> Any:
    """A random model in which every parameter matters: no bias or norm is at its neutral start."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    model = add_lora(model, 4) if adapters else model
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 or "lora_B" in key:
            torch.nn.init.normal_(parameter.data, 1.0 if "norm" in key else 0.0, 0.3)
        elif "lora" not in key:
            torch.nn.init.normal_(parameter.data, 0.0, 0.3)
    return model.eval()


@torch.inference_mode()
def follow(kind: Any, model: Any, padded: bool) -> list[torch.Tensor]:
    """Logits over a few steps, with rows leaving the batch on the way."""
    ids = torch.randint(0, 61, (5, 7), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    if padded:
        seen[1, :3], seen[4, :6] = 0, 0
    run = kind(model, ids, seen, 6)
    logits, rows = [run.logits], torch.arange(5)
    for column in range(6):
        if keep := {2: [0, 1, 4], 4: [1]}.get(column):
            run.keep(torch.tensor(keep))
            rows = rows[keep]
        run.step((rows * 7 + column) % 61)
        logits.append(run.logits)
    return logits


def apart(model: Any, padded: bool) -> float:
    pairs = zip(follow(Plain, model, padded), follow(Fast, model, padded), strict=True)
    return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("packed", [0, 1 << 40])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_fast_decoder_gives_transformers_logits(
    name: str, adapters: bool, padded: bool, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PACKED", packed)
    model = make(name, adapters)
    assert apart(model, padded) < 1e-4 * float(follow(Plain, model, padded)[0].abs().max())


def test_weights_too_large_to_join_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen2")
    joined = follow(Fast, model, True)
    monkeypatch.setattr(decoding, "JOINED", 0)
    apart = [
        float((a - b).abs().max()) for a, b in zip(follow(Fast, model, True), joined, strict=True)
    ]
    assert max(apart) < 1e-3


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_bfloat16_is_as_far_off_as_transformers_bfloat16_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained weights in float32 under autocast, and weights that are in bfloat16 themselves."""
    model = make(name)
    exact = torch.cat(follow(Plain, model, True)).double()

    def error(kind: Any) -> float:
        return float((torch.cat(follow(kind, model, True)).double() - exact).norm())

    monkeypatch.setattr(decoding, "PACKED", 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert error(Fast) < 1.5 * error(Plain)
    model.to(torch.bfloat16)
    assert error(Fast) < 1.5 * error(Plain)


def test_adapters_that_are_switched_off_are_left_out() -> None:
    model = make("llama", adapters=True)
    on = follow(Fast, model, False)[3]
    with model.disable_adapter():
        assert apart(model, False) < 1e-3
        assert float((follow(Fast, model, False)[3] - on).abs().max()) > 0.1


def test_no_large_model_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged adapters and another dtype need a copy of the weights; plain weights need none."""
    monkeypatch.setattr(decoding, "JOINED", 0)
    model = make("llama")
    assert fits(model) and not fits(make("llama", adapters=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fits(model)


def test_other_families_run_as_transformers_runs_them() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    gpt = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2)
    )
    mistral = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=4))
    sliding = AutoModelForCausalLM.from_config(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    )
    for model in (gpt, mistral, sliding):
        assert not fits(model) and type(begin(model, ids, ids, 2)) is Plain
    assert type(begin(make("llama", adapters=True), ids, ids, 2)) is Fast
