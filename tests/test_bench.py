"""`potstill bench`: sizes and bounds are counted right, and every part of a step is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig
from typer.testing import CliRunner

from conftest import toy_table
from potstill.cli import app
from potstill.cli.speed import bench
from potstill.engines.torch.adapters import add_lora
from potstill.engines.torch.roofline import Machine, Size, least_decoding, measure, size_of
from potstill.errors import PotstillError
from potstill.study.loading import read_study

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_models_size_is_its_weights(models: Path) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    size = size_of(model, torch.float32)
    attention = 16 * 16 * 2 + 16 * 8 * 2
    assert size.body == 3 * (attention + 3 * 16 * 24 + 2 * 16) + 16
    assert (size.head, size.width, size.frozen) == (50 * 16, 4, False)
    assert size.keys == 2 * 3 * 8 * 4 and size.mixing == 4 * 3 * 16
    tied = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    assert size_of(tied, torch.bfloat16) == Size(
        size.body, size.head, 2, size.keys // 2, size.mixing
    )
    assert size_of(add_lora(model, 4), torch.float32) == Size(
        size.body, size.head, 4, size.keys, size.mixing, frozen=True
    )


def test_of_a_mixture_of_experts_the_active_ones_count() -> None:
    sizes = []
    for experts in (2, 4):
        config = MixtralConfig(**SHAPE, num_local_experts=experts, num_experts_per_tok=2)
        model = AutoModelForCausalLM.from_config(config)
        routers = sum(p.numel() for n, p in model.named_parameters() if n.endswith("gate.weight"))
        sizes.append(size_of(model, torch.float32).body - routers)
    assert sizes[0] == sizes[1] > 3 * 2 * 3 * 16 * 24


def test_operations_are_those_of_the_products() -> None:
    size = Size(body=1000, head=200, width=4, keys=8, mixing=0)
    assert size.forward([(3, 2), (5, 0)]) == 2 * 1000 * 10 + 2 * 200 * 2
    assert size.training([(3, 2)]) == 3 * size.forward([(3, 2)])
    assert Size(1000, 200, 4, 8, 10).forward([(4, 0)]) == 2 * 1000 * 4 + 10 * 8


def test_decoding_is_bound_by_reading_or_by_products() -> None:
    size = Size(body=1000, head=200, width=4, keys=8, mixing=0)
    reading = least_decoding(size, Machine(bandwidth=1.0, matmul=1e30), [(3, 2), (3, 1)])
    assert reading == pytest.approx(2 * 4 * 1200 + 8 * 4)  # the prompts, then one step of a row
    products = least_decoding(size, Machine(bandwidth=1e30, matmul=1.0), [(3, 2), (3, 1)])
    assert products == pytest.approx(2 * 1000 * 6 + 2 * 200 * 2 + 2 * 1200)


def test_a_machine_has_both_rates() -> None:
    machine = measure("cpu", torch.float32)
    assert machine.bandwidth > 1e8 and machine.matmul > 1e8


def test_bench_prints_each_part_of_a_step() -> None:
    words = ["bench", "pairs=tiny-llama", "train.batch_size=4", "train.max_tokens=8"]
    words.append("methods=on_policy_gkd")
    done = CliRunner().invoke(app, [*words, "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    by_name = {speed["activity"]: speed for speed in result["speeds"]}
    assert list(by_name) == ["student sampling", "scoring", "forward and backward", "optimizer"]
    assert by_name["scoring"]["of_step"] is None  # the exact reverse KL has the log-probs already
    shares = [s["of_step"] for s in result["speeds"] if s["of_step"] is not None]
    assert sum(shares) == pytest.approx(1.0)
    assert by_name["optimizer"]["bound"] is None
    for name in ("student sampling", "scoring", "forward and backward"):
        speed = by_name[name]
        assert speed["share"] == pytest.approx(speed["bound"] / speed["seconds"])
        assert 0 < speed["tokens"] <= 32
    plain = CliRunner().invoke(app, [*words, "--repeats", "1"])
    assert "GFLOP/s" in plain.stdout and "share of the bound" in plain.stdout


def test_bench_needs_the_torch_engine_and_a_pair_of_the_study(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="computes elsewhere"):
        bench(read_study(toy_table(tmp_path)), "toy", 1)
    with pytest.raises(PotstillError, match='no pair "tiny-lama"') as caught:
        CliRunner().invoke(app, ["bench", "--pair", "tiny-lama"], catch_exceptions=False)
    assert "tiny-llama" in str(caught.value.hint)
