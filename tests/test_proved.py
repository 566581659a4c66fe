"""Short cuts are taken for exactly the classes that they implement, and for no model like them."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from potstill.algorithms.losses import CROSS_ENTROPY
from potstill.engines.torch.adapters import add_lora
from potstill.engines.torch.decoding import begin, fits
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.lm_head import PLAIN, read
from potstill.engines.torch.proved import sliced_head
from potstill.settings import TorchSettings
from potstill.types import Datum, ModelSpec, Prompt, Term

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


class Packed(nn.Linear):
    """Weights in eighths, as integers: a quantised layer."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__(other.in_features, other.out_features, bias=False)
        del self.weight
        packed = (other.weight.detach() * 8).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) / 8)


class Scaled(LlamaForCausalLM):
    """Custom code whose logits are more than its head."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        out = super().forward(input_ids, **options)
        out.logits = 0.4 * out.logits
        return out


class Halved(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) / 2


class Doubled(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Softly(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(input)


def halve(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def replace_forward(model: Any) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return type(self).forward(self, x) / 2

    head = model.lm_head
    head.forward = types.MethodType(forward, head)


def wrap_logits(model: Any) -> None:
    model.register_forward_hook(lambda m, a, out: setattr(out, "logits", out.logits / 2) or out)


def pack_all(model: Any) -> None:
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Packed(getattr(layer.self_attn, name)))
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Packed(getattr(layer.mlp, name)))


def parametrise(model: Any) -> None:
    matrix = parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    matrix.parametrizations.weight.original0.data *= 2


def as_class(name: str, kind: type) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.get_submodule(name).__class__ = kind

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a subclass of the model": as_class("", Scaled),
    "a subclass of a norm": as_class("model.norm", Halved),
    "a subclass of an MLP": as_class("model.layers.1.mlp", Doubled),
    "a subclass of the embedding": as_class("model.embed_tokens", Softly),
    "a hook on the head": lambda model: model.lm_head.register_forward_hook(halve),
    "a hook on a layer's matrix": lambda model: model.model.layers[
        0
    ].self_attn.o_proj.register_forward_hook(halve),
    "a hook on the embedding": lambda model: model.model.embed_tokens.register_forward_hook(halve),
    "a hook on the model": wrap_logits,
    "a method set on the head": replace_forward,
    "a parametrisation": parametrise,
    "packed weights": pack_all,
    "a packed head": lambda model: setattr(model, "lm_head", Packed(model.lm_head)),
    "a bias of the head": lambda model: setattr(
        model.lm_head, "bias", nn.Parameter(torch.linspace(-2, 2, 61))
    ),
}


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()


def logits_of(model: Any, row: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([row])).logits[0].detach()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_module_is_run_as_it_is(name: str) -> None:
    """Sampled, scored and trained from the model's own logits, whatever was changed."""
    model = llama()
    assert fits(model) and sliced_head(model, PLAIN)
    before = logits_of(model, (1, 2, 3))
    CHANGES[name](model)
    assert (logits_of(model, (1, 2, 3)) - before).abs().max() > 1e-3  # the change has an effect
    assert fits(model) == (name == "a bias of the head")
    rows = (5, 9, 2, 40, 8), (7, 3, 60)
    with torch.no_grad():
        ids = torch.tensor([rows[0], (0, 0, *rows[1])])
        decoder = begin(model, ids, (ids > 0).long(), 1)
        decoder.step(torch.tensor([4, 6]))
        for i, last in enumerate((4, 6)):
            exact = logits_of(model, (*rows[i], last))[-1]
            torch.testing.assert_close(decoder.logits[i], exact, atol=1e-4, rtol=1e-4)
    states = read(
        model, [row[:1] for row in rows], [row[1:] for row in rows], 61, ModelSpec(dtype="float32")
    )
    exact = torch.cat([logits_of(model, row)[:-1] for row in rows])
    torch.testing.assert_close(states.logits(slice(None)), exact, atol=1e-4, rtol=1e-4)
    weight = torch.randn(len(exact), 61, generator=torch.Generator().manual_seed(0))
    into = torch.zeros_like(states.hidden)
    states.backward(slice(None), weight, into)
    states.backward_body(into)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    logits = torch.cat([model(torch.tensor([row])).logits[0, :-1] for row in rows])
    (logits * weight).sum().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    for mine, autograds in zip(gradients, trained, strict=True):
        torch.testing.assert_close(mine, autograds, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.lora_bias=True")
@pytest.mark.parametrize("change", ["dora", "merged", "a bias of an adapter"])
def test_adapters_of_other_kinds_are_run_as_peft_runs_them(change: str) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "down_proj"],
        use_dora=change == "dora",
        lora_bias=change == "a bias of an adapter",
    )
    model = get_peft_model(llama(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter.data)
    if change == "merged":
        model.merge_adapter()
    assert not fits(model) and fits(add_lora(llama(), 2))
    with torch.no_grad():
        decoder = begin(model, torch.tensor([[5, 9]]), torch.ones(1, 2, dtype=torch.long), 1)
        decoder.step(torch.tensor([4]))
        exact = logits_of(model, (5, 9, 4))[-1]
    torch.testing.assert_close(decoder.logits[0], exact, atol=1e-4, rtol=1e-4)


def test_families_with_a_plain_head_are_known_by_class() -> None:
    config = MixtralConfig(**SIZES, num_local_experts=2)
    assert sliced_head(AutoModelForCausalLM.from_config(config), PLAIN)
    assert not sliced_head(Scaled(LlamaConfig(**SIZES)), PLAIN)


CODE = """
from transformers import LlamaForCausalLM


class Scaled(LlamaForCausalLM):
    def forward(self, input_ids=None, **options):
        out = super().forward(input_ids, **options)
        out.logits = 0.4 * out.logits
        return out
"""


@pytest.fixture(scope="module")
def remote(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with custom code, whose model type is that of Llama."""
    import json
    import shutil

    folder = tmp_path_factory.mktemp("remote") / "scaled"
    shutil.copytree(models / "llama" / "student", folder)
    (folder / "modeling_scaled.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_scaled.Scaled"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_custom_code_is_run_although_its_model_type_is_llama(remote: Path) -> None:
    spec = ModelSpec(trust_remote_code=True)
    settings = TorchSettings(student=spec, teacher=spec)
    engine = TorchEngine(str(remote), str(remote), settings=settings, max_grad_norm=0.0)
    prompts = [Prompt.of(engine.encode(text)) for text in ("Tom has 3", "7")]
    samples = engine.sample("student", prompts, [6, 3], 1.0, np.random.default_rng(0))
    rows = [(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    scores, data, total = engine.score("student", rows), [], 0.0
    for (prompt, completion), sample, score in zip(rows, samples, scores, strict=True):
        exact = engine.rows("student", prompt, completion)
        picked = exact[np.arange(len(completion)), list(completion)]
        np.testing.assert_allclose(sample.logprobs, picked, atol=1e-4)
        np.testing.assert_allclose(score, picked, atol=1e-4)
        terms = (Term(CROSS_ENTROPY, np.ones(len(completion), np.float32)),)
        data.append(Datum(prompt, completion, completion, terms, "student", sample.logprobs))
        total -= picked.sum()
    assert engine.step(data, 1e-3).loss == pytest.approx(total, rel=1e-4)
