"""Quantised checkpoints: read as they are, trained through adapters, exported in floating point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils import is_bitsandbytes_available

from potstill.algorithms.losses import CROSS_ENTROPY
from potstill.cli.eval import evaluate_model
from potstill.engines import zoo
from potstill.engines.torch.adapters import add_lora
from potstill.engines.torch.decoding import fits
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.loading import load_model
from potstill.errors import PotstillError
from potstill.types import Datum, ModelSpec, Prompt, Term

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
# Largest distance in nats of one token: int8 rounds activations, by what is in the batch.
KINDS = {"int8": 0.1, "nf4": 1e-4, "torchao": 1e-4}


def settings_of(kind: str) -> Any:
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        from transformers import TorchAoConfig

        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.fixture(scope="module", params=KINDS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, folder) of a quantised checkpoint."""
    settings, root = settings_of(request.param), tmp_path_factory.mktemp("packed")
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("tiny-llama", "student"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=tokenizer.eos_token_id, **SIZES
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "plain")
    model = AutoModelForCausalLM.from_pretrained(
        root / "plain", quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
    )
    model.save_pretrained(root / "packed")
    tokenizer.save_pretrained(root / "packed")
    return request.param, root / "packed"


def batch_of(engine: TorchEngine) -> list[Datum]:
    prompts = [Prompt.of((1, 5, 300, 77)), Prompt.of((1, 9))]
    samples = engine.sample("teacher", prompts, [6, 3], 1.0, np.random.default_rng(0))
    return [
        Datum(
            prompt,
            s.tokens,
            s.tokens,
            (Term(CROSS_ENTROPY, np.ones(len(s.tokens), np.float32)),),
            "teacher",
            s.logprobs,
        )
        for prompt, s in zip(prompts, samples, strict=True)
    ]


def test_samples_and_scores_are_those_of_the_packed_model(packed: tuple[str, Path]) -> None:
    kind, folder = packed
    engine = TorchEngine(str(folder), str(folder))
    assert not fits(engine.models.held["student"])
    for datum in batch_of(engine):
        at = np.arange(len(datum.completion)), list(datum.completion)
        exact = engine.rows("teacher", datum.prompt, datum.completion)[at]
        (score,) = engine.score("teacher", [(datum.prompt, datum.completion)])
        np.testing.assert_allclose(datum.logprobs, exact, atol=KINDS[kind])
        np.testing.assert_allclose(score, exact, atol=KINDS[kind])
    assert any("rounds activations" in note for note in engine.notes) == (kind == "int8")


def test_adapters_train_as_they_do_in_peft(packed: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = packed
    engine = TorchEngine(str(folder), str(folder), lora_rank=2, seed=3, max_grad_norm=0.0)
    data = batch_of(engine)
    torch.manual_seed(3)
    spec = ModelSpec(dtype="float32", device="cpu")
    model = add_lora(load_model(str(folder), spec, trained=False), 2)
    total = torch.zeros(())
    for datum in data:
        start = len(datum.prompt.student)
        ids = torch.tensor([datum.prompt.student + datum.completion])
        logp = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        total = total - logp.gather(1, torch.tensor(datum.completion)[:, None]).sum()
    total.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
    stats = engine.step(data, 0.01)
    close = 2e-2 if kind == "int8" else 1e-3
    assert stats.loss == pytest.approx(total.item(), rel=close)
    assert stats.grad_norm == pytest.approx(norm.item(), rel=3 * close)
    assert engine.step(data, 0.01).loss < stats.loss
    at = np.arange(len(data[0].completion)), list(data[0].completion)
    wanted = engine.rows("student", data[0].prompt, data[0].completion)[at]
    engine.export(tmp_path / "out")
    exported = TorchEngine(str(tmp_path / "out"), str(folder))
    got = exported.rows("student", data[0].prompt, data[0].completion)[at]
    np.testing.assert_allclose(got, wanted, atol=0.15 if kind == "int8" else 1e-4)
    assert exported.step(data, 0.01).loss > 0  # ordinary weights, which can be trained


def test_packed_weights_cannot_be_trained_but_evaluated(packed: tuple[str, Path]) -> None:
    _, folder = packed
    engine = TorchEngine(str(folder), str(folder))
    with pytest.raises(PotstillError, match="weights of a quantised student") as caught:
        engine.step(batch_of(engine), 0.01)
    assert "lora_rank" in caught.value.hint
    assert evaluate_model(str(folder), "arithmetic", [], 4, 4, None)["problems"] == 4


def test_a_quantiser_that_is_not_installed_is_named(models: Path, tmp_path: Path) -> None:
    if is_bitsandbytes_available():
        pytest.skip("bitsandbytes is installed")
    shutil.copytree(models / "llama" / "student", tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(config))
    with pytest.raises(PotstillError, match="requires bitsandbytes") as caught:
        TorchEngine(str(tmp_path / "packed"), str(tmp_path / "packed"))
    assert "install what it names" in caught.value.hint


def test_activations_are_quantised_as_in_the_models_own_pass(tmp_path: Path) -> None:
    """W8A8 of compressed-tensors: weights by channel, activations by token."""
    pytest.importorskip("compressed_tensors")
    folder, eight = tmp_path / "w8a8", {"num_bits": 8, "type": "int", "symmetric": True}
    shutil.copytree(zoo.folder("tiny-llama", "teacher"), folder)
    weights = load_file(folder / "model.safetensors")
    for key in [key for key in weights if "proj" in key]:
        whole = weights[key].float()
        step = whole.abs().amax(1, keepdim=True) / 127
        weights[key] = (whole / step).round().to(torch.int8)
        weights[f"{key}_scale"] = step
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    ids = torch.tensor([[5, 9, 3, 4, 8, 2]])
    rows = []
    for name in (folder, zoo.folder("tiny-llama", "teacher")):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        with torch.no_grad():
            rows.append(model(ids).logits[0, 2:-1].log_softmax(-1).numpy())
    assert np.abs(rows[0] - rows[1]).max() > 0.05  # it is another model
    engine = TorchEngine(str(zoo.folder("tiny-llama", "student")), str(folder))
    prompt, completion = Prompt.of((5, 9, 3)), (4, 8, 2)
    got = engine.rows("teacher", prompt, completion)
    np.testing.assert_allclose(got, rows[0][:, : got.shape[1]], atol=1e-4)
    wanted = got[np.arange(3), list(completion)]
    np.testing.assert_allclose(
        engine.score("teacher", [(prompt, completion)])[0], wanted, atol=1e-4
    )
    (sample,) = engine.sample("teacher", [prompt], [5], 1.0, np.random.default_rng(0))
    (score,) = engine.score("teacher", [(prompt, sample.tokens)])
    np.testing.assert_allclose(sample.logprobs, score, atol=0.05)  # roundings that flip
