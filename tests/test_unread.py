"""What a checkpoint's files have and its config leaves out is refused, not left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from families import write_pair
from potstill.cli.eval import evaluate_model
from potstill.engines import zoo
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.types import Prompt

pytestmark = pytest.mark.filterwarnings("ignore")
Weights = dict[str, Tensor]
Change = Callable[[Weights, dict[str, Any]], None]


def changed(place: Path, change: Change, source: Path | None = None) -> str:
    """A copy of a model folder with other weights and another config."""
    shutil.copytree(source or zoo.folder("tiny-llama", "teacher"), place)
    file, config = place / "model.safetensors", place / "config.json"
    weights, table = load_file(file), json.loads(config.read_text())
    change(weights, table)
    save_file(weights, file, {"format": "pt"})
    config.write_text(json.dumps(table))
    return str(place)


def read(name: str) -> Any:
    engine = TorchEngine(str(zoo.folder("tiny-llama", "student")), name)
    return engine.rows("teacher", Prompt.of((5, 9, 3)), (4, 8, 2))


def matrices(weights: Weights) -> list[str]:
    return [key for key in weights if "proj" in key]


def packed(weights: Weights, scale: str) -> None:
    """Integers in place of the weights, with a scale next to each."""
    for key in matrices(weights):
        step = weights[key].float().abs().max() / 127
        weights[key] = (weights[key].float() / step).round().to(torch.int8)
        weights[key.removesuffix("weight") + scale] = step.reshape(1)


@pytest.mark.parametrize("scale", ["weight_scale", "scales", "weight_scale_inv"])
def test_packed_weights_without_a_method_are_refused(tmp_path: Path, scale: str) -> None:
    name = changed(tmp_path / "packed", lambda weights, _: packed(weights, scale))
    with pytest.raises(PotstillError, match=rf"does not read \(first: .*{scale}") as refused:
        read(name)
    assert "quantised" in (refused.value.hint or "")
    with pytest.raises(PotstillError, match="does not read"):
        evaluate_model(name, "arithmetic", (), 4, 8, None)


@pytest.mark.parametrize("method", ["modelopt", "own", 8])
def test_a_quantisation_that_transformers_would_skip_is_refused(
    tmp_path: Path, method: Any
) -> None:
    def change(weights: Weights, config: dict[str, Any]) -> None:
        packed(weights, "input_scale")
        config["quantization_config"] = {"quant_method": method}

    with pytest.raises(PotstillError, match=f'quantised by "{method}"'):
        read(changed(tmp_path / "packed", change))


def test_eight_bit_floats_are_read_with_their_scales(tmp_path: Path) -> None:
    """One scale per block of 128 x 128. A CPU gets the weights in floating point."""
    whole: Weights = {}

    def change(weights: Weights, config: dict[str, Any]) -> None:
        for key in matrices(weights):
            step = weights[key].float().abs().max() / 448
            weights[key] = (weights[key].float() / step).to(torch.float8_e4m3fn)
            blocks = [-(-size // 128) for size in weights[key].shape]
            weights[f"{key}_scale_inv"] = step.expand(blocks).clone()
            whole[key] = weights[key].float() * step
        settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        config["quantization_config"] = settings | {"activation_scheme": "dynamic"}

    name = changed(tmp_path / "eight", change)
    known = changed(tmp_path / "known", lambda weights, _: weights.update(whole))
    np.testing.assert_allclose(read(name), read(known), atol=1e-5)


def test_biases_that_the_config_leaves_out_are_refused(tmp_path: Path) -> None:
    def change(weights: Weights, config: dict[str, Any]) -> None:
        rows = len(weights["model.layers.0.self_attn.q_proj.weight"])
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(rows)

    with pytest.raises(PotstillError, match=r"q_proj\.bias") as refused:
        read(changed(tmp_path / "biased", change))
    assert "config.json is of another model" in (refused.value.hint or "")


def test_layers_that_the_config_leaves_out_are_refused(tmp_path: Path) -> None:
    def change(weights: Weights, config: dict[str, Any]) -> None:
        config["num_hidden_layers"] -= 1

    with pytest.raises(PotstillError, match=r"model\.layers\..* in its files, its config has"):
        read(changed(tmp_path / "cut", change))


def test_experts_that_the_config_leaves_out_are_refused(tmp_path: Path) -> None:
    def change(weights: Weights, config: dict[str, Any]) -> None:
        config["num_local_experts" if "num_local_experts" in config else "num_experts"] = 3

    source = write_pair(tmp_path, "mixtral") / "teacher"
    with pytest.raises(PotstillError):
        read_alone(changed(tmp_path / "fewer", change, source))


def read_alone(name: str) -> Any:
    return TorchEngine(name, name).rows("student", Prompt.of((5, 9, 3)), (4, 8, 2))


def test_parts_that_are_not_the_models_are_left_out(tmp_path: Path) -> None:
    """A head that predicts further tokens, scales of a server's cache, masks of old files."""

    def change(weights: Weights, config: dict[str, Any]) -> None:
        last = config["num_hidden_layers"]
        config["num_nextn_predict_layers"] = 1
        weights[f"model.layers.{last}.eh_proj.weight"] = torch.ones(2, 2)
        weights["model.layers.0.self_attn.k_proj.k_scale"] = torch.ones(1)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        weights["value_head.weight"] = torch.ones(1, 2)

    name = changed(tmp_path / "more", change)
    np.testing.assert_array_equal(read(name), read(str(zoo.folder("tiny-llama", "teacher"))))


def test_buffers_that_a_family_once_saved_are_left_out(tmp_path: Path) -> None:
    source = write_pair(tmp_path, "gpt2") / "teacher"

    def change(weights: Weights, config: dict[str, Any]) -> None:
        weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)

    np.testing.assert_array_equal(
        read_alone(changed(tmp_path / "old", change, source)), read_alone(str(source))
    )


def test_a_head_of_its_own_is_read_although_the_config_ties_it(tmp_path: Path) -> None:
    """As transformers reads it: the engine and the model's own forward pass agree."""

    def change(weights: Weights, config: dict[str, Any]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
        config["tie_word_embeddings"] = True

    name = changed(tmp_path / "tied", change)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 3, 4, 8, 2]])).logits[0, 2:-1]
    rows = read(name)
    wanted = logits[:, : rows.shape[1]].log_softmax(-1).numpy()
    np.testing.assert_allclose(rows, wanted, atol=1e-4)
