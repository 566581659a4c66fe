"""Which checkpoints are read, and as what: families, adapters, text models; the rest is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MptConfig,
    RobertaConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from checkpoints import CHATML, QUESTIONS, ROWS, config_of, save, study_table, tokenizer_of, write
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.windows import window_of
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Lora, TorchSettings
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.types import ModelSpec, Prompt
from test_cli import call
from test_torch_engine import batch_of

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WITHOUT_SDPA = {
    "gemma2": Gemma2Config,
    "gpt_oss": GptOssConfig,
    "bloom": BloomConfig,
    "mpt": MptConfig,
    "mamba": MambaConfig,
}


def engine_of(folder: str, **changes: Any) -> TorchEngine:
    return TorchEngine(folder, folder, **changes)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 15)[None]).logits


@pytest.mark.parametrize("family", WITHOUT_SDPA)
def test_attention_is_left_to_transformers(tmp_path: Path, family: str) -> None:
    folder = save(tmp_path / "m", config=config_of(WITHOUT_SDPA[family], ssm_state_size=4))
    model = engine_of(folder).models.held["student"]
    assert logits(model).isfinite().all() and model.config._attn_implementation != "sdpa"
    settings = TorchSettings(student=ModelSpec(attention="sdpa"))
    with pytest.raises(PotstillError, match="does not support an attention") as caught:
        engine_of(folder, settings=settings)
    assert caught.value.hint.startswith("leave attention out")


def test_attention_that_is_not_installed_or_not_there_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    settings = TorchSettings(student=ModelSpec(attention="flash_attention_2"))
    with pytest.raises(PotstillError, match="cannot read") as caught:
        engine_of(folder, settings=settings)
    assert caught.value.hint.startswith("install what it names")
    with pytest.raises(ValidationError, match=r'attention is an implementation .* got "fast"'):
        TorchSettings(student=ModelSpec(attention="fast"))


def adapter_of(base: str, folder: Path, rank: int = 2, alpha: int = 64) -> str:
    """A LoRA adapter with weights that matter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, param in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.05)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("adapted")
    base = save(root / "base", tokenizer_of(CHATML))
    return base, adapter_of(base, root / "adapter")


def merged(base: str, adapter: str) -> Any:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def moved(engine: TorchEngine) -> float:
    """How far the student is from the student of step 0, in nats."""
    prompt, ids = engine.prompt(Problem("", "7", "")), (40, 50, 60)
    p, q = (engine.rows(role, prompt, ids) for role in ("student", "init"))
    return float(np.abs(p - q).max())


def test_an_adapter_as_teacher_is_merged(adapted: tuple[str, str]) -> None:
    base, adapter = adapted
    engine = TorchEngine(base, adapter)
    expected = logits(merged(base, adapter))
    assert torch.allclose(logits(engine.models.ensure("teacher")), expected, atol=1e-5)
    assert not torch.allclose(logits(engine.models.held["student"]), expected, atol=1e-2)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_adapter_as_student_goes_on(adapted: tuple[str, str], tmp_path: Path, rank: int) -> None:
    """With its rank it is trained further; with rank 0 it is merged and all weights are trained.
    The student of step 0 has it too."""
    base, adapter = adapted
    engine = TorchEngine(adapter, base, lora_rank=rank)
    expected = logits(merged(base, adapter))
    assert torch.allclose(logits(engine.models.held["student"]), expected, atol=1e-5)
    assert moved(engine) < 1e-4
    names = list(engine.models.trained)
    assert all(".lora_" in name for name in names) == (rank > 0) and names
    data = batch_of(engine)
    for _ in range(3):
        engine.step(data, 0.05)
    assert moved(engine) > 1e-2
    engine.export(tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    trained = logits(engine.models.held["student"])
    assert torch.allclose(logits(exported), trained, atol=1e-4)
    if rank:
        again = engine_of(str(tmp_path / "out" / "adapter"))
        assert torch.allclose(logits(again.models.held["student"]), trained, atol=1e-4)
        assert again.encode("7") == engine.encode("7")


def test_eval_reads_an_adapter_and_the_options_of_an_engine(
    adapted: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--problems", 2, "--max-tokens", 4, "--json", "engine.attention=eager")
    assert call("eval", adapted[1], *words, "engine.dtype=float32", "engine.threads=1") == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 2
    for word, message in (
        ("engine.dtype=int8", "engine: student.dtype: .* got 'int8'"),
        ("engine.teacher.dtype=float32", "has no teacher"),
        ("engine.attn=eager", 'unknown key "attn"'),
        ("engine.sample_tokens=0", "sample_tokens: input should be greater"),
    ):
        assert call("eval", adapted[1], "--problems", 2, word) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert re.search(message, error) and hint.startswith("hint: ")


def test_a_model_whose_code_fails_is_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise IndexError("index out of range in self")

    folder = save(tmp_path / "m", tokenizer_of(CHATML))
    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", fail)
    assert call("eval", folder, "--problems", 2) == 2
    assert "cannot be run: IndexError: index out of range" in capsys.readouterr().err
    checks = preflight_pair(read_study(study_table(tmp_path, folder, folder)), "mine")
    refused = [check for check in checks if check.status == "refused"]
    assert refused and all("IndexError" in check.evidence for check in refused)


def test_an_adapter_in_a_study_passes_preflight(adapted: tuple[str, str], tmp_path: Path) -> None:
    base, adapter = adapted
    table = study_table(tmp_path, adapter, base, train={"lora_rank": 2})
    checks = preflight_pair(read_study(table), "mine", only=("steps", "identity", "adapters"))
    assert {check.status for check in checks} == {"passed"}, checks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "of kind PROMPT_TUNING, which cannot be merged"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "./nowhere"}, 'is based on "./nowhere", which does not exist'),
        ({"r": 4}, "an adapter \\(LORA of rank 4\\), train.lora_rank is 2"),
    ],
)
def test_adapters_that_cannot_be_read_are_refused(
    adapted: tuple[str, str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(adapted[1], tmp_path / "a")
    write(tmp_path / "a", "adapter_config.json", **change)
    with pytest.raises(PotstillError, match=message) as caught:
        TorchEngine(str(tmp_path / "a"), adapted[0], lora_rank=2)
    assert caught.value.hint


def test_an_adapter_of_another_base_or_without_weights_is_refused(
    adapted: tuple[str, str], tmp_path: Path
) -> None:
    other = save(tmp_path / "other", tokenizer_of(CHATML), config_of(hidden_size=64))
    shutil.copytree(adapted[1], tmp_path / "a")
    write(tmp_path / "a", "adapter_config.json", base_model_name_or_path=other)
    with pytest.raises(PotstillError, match="cannot read the adapter"):
        engine_of(str(tmp_path / "a"))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(PotstillError, match="cannot read the adapter"):
        engine_of(str(tmp_path / "a"))


def composite(kind: str) -> Any:
    """A vision-language model with a text model of two layers."""
    text = config_of().to_diff_dict() | {"vocab_size": ROWS}
    text.pop("model_type", None)
    if kind == "llava":
        vision: Any = CLIPVisionConfig(**VISION)
        config: Any = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text))
        return LlavaForConditionalGeneration(config)
    if kind == "gemma3":
        vision = SiglipVisionConfig(**VISION)
        inner = Gemma3TextConfig(**text)
        config = Gemma3Config(vision_config=vision, text_config=inner, mm_tokens_per_image=4)
        return Gemma3ForConditionalGeneration(config)
    config = SmolVLMConfig(vision_config=dict(VISION), text_config=LlamaConfig(**text))
    return SmolVLMForConditionalGeneration(config)


@pytest.mark.parametrize("kind", ["llava", "gemma3", "smolvlm"])
def test_the_text_model_of_a_vision_language_model_is_read(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    whole = composite(kind).eval()
    whole.save_pretrained(tmp_path / "m")
    tokenizer_of(CHATML).save_pretrained(tmp_path / "m")
    engine = engine_of(str(tmp_path / "m"))
    student = engine.models.held["student"]
    assert "its text model" in engine.notes[0] and len(engine.notes) == 2
    assert not [name for name, _ in student.named_parameters() if "vision" in name]
    assert torch.allclose(logits(student), logits(whole), atol=1e-4)
    prompt = engine.prompt(Problem("", QUESTIONS[0], ""))
    assert engine.sample("student", [prompt], [4], 0.0, np.random.default_rng(0))[0].tokens
    engine.export(tmp_path / "out")
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(whole), atol=1e-4
    )


SMALL: dict[str, Any] = {"vocab_size": ROWS, "d_model": 32, "decoder_layers": 1}
OTHERS: dict[str, Any] = {
    "is an encoder-decoder model \\(t5\\)": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=ROWS, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
    "is an encoder-decoder model \\(bart\\)": lambda: BartForConditionalGeneration(
        BartConfig(**SMALL, encoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32)
    ),
    "is an encoder \\(bert\\)": lambda: BertLMHeadModel(config_of(BertConfig)),
    "is not a causal language model \\(vit\\)": lambda: ViTModel(ViTConfig(**VISION)),
    "lacks 1 weights of its model \\(first: lm_head.weight\\)": (
        lambda: LlamaForSequenceClassification(config_of())
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_kinds_of_models_are_named(
    tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    OTHERS[message]().save_pretrained(tmp_path / "m")
    tokenizer_of(CHATML).save_pretrained(tmp_path / "m")
    with pytest.raises(PotstillError, match=message) as caught:
        engine_of(str(tmp_path / "m"))
    assert "causal language model" in caught.value.hint
    capsys.readouterr()
    assert call("eval", tmp_path / "m", "--problems", 2) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert error == f"error: {caught.value}" and hint == f"hint: {caught.value.hint}"


def test_a_decoder_of_berts_family_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", config=config_of(BertConfig, is_decoder=True))
    engine = engine_of(folder)
    assert engine.pair.windows[0].fixed and engine.pair.windows[0].tokens == 512
    config = config_of(RobertaConfig, is_decoder=True, pad_token_id=1)
    config.max_position_embeddings = 34
    model = AutoModelForCausalLM.from_config(config).eval()
    assert window_of(config).tokens == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((RuntimeError, IndexError)):
        model(torch.full((1, 33), 5))


def without_tokenizer(folder: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(folder) / name).unlink()
    return Path(folder)


def test_a_sentencepiece_model_alone_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = without_tokenizer(save(tmp_path / "m"))
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    write(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(PotstillError, match=r"is tokenizer.model alone.*sentencepiece") as caught:
        engine_of(str(folder))
    assert "pip install sentencepiece protobuf" in caught.value.hint


@pytest.mark.parametrize("config", [True, False])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, config: bool) -> None:
    """transformers makes one of three special tokens where tokenizer_config.json is alone."""
    folder = without_tokenizer(save(tmp_path / "m"))
    if config:
        write(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(PotstillError, match=r"has no tokenizer|special tokens only") as caught:
        engine_of(str(folder))
    assert caught.value.hint.startswith("copy ")


def test_weights_that_are_missing_pickled_or_damaged_are_refused(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "m"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PotstillError, match=r"model\.safetensors\" is damaged"):
        engine_of(str(folder))
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(PotstillError, match="cannot read") as caught:
        engine_of(str(folder))
    assert "writes safetensors" in caught.value.hint and "login" not in caught.value.hint


def test_a_config_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    write(folder, "config.json", model_type="novel")
    with pytest.raises(PotstillError, match="cannot read") as caught:
        engine_of(folder)
    assert "update transformers" in caught.value.hint
    (Path(folder) / "config.json").write_text("{")
    with pytest.raises(PotstillError, match=r"config\.json\" is damaged"):
        engine_of(folder)


def test_a_template_beside_an_old_processor_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    (Path(folder) / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert "assistant" in engine_of(folder).rendered(Prompt.of(engine_of(folder).encode("7")), "")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("mixture")
    return save(root / "m", tokenizer_of(CHATML), config_of(GraniteMoeConfig))


def test_experts_without_adapters_are_a_warning(mixture: str, tmp_path: Path) -> None:
    table = study_table(tmp_path, mixture, mixture, train={"lora_rank": 2})
    (check,) = preflight_pair(read_study(table), "mine", only=("adapters",))
    engine = engine_of(mixture, lora_rank=2)
    share, covered, experts = engine.coverage
    assert check.status == "warning" and covered == 0 < experts
    assert f"{share:.0%} of the student's weights" in check.evidence
    assert f"0 of {experts} expert tensors" in check.evidence and 0 < share < 0.5
    assert not engine_of(mixture).coverage


def test_the_targets_of_adapters_are_a_setting(mixture: str, tmp_path: Path) -> None:

    inner = engine_of(mixture).models.held["student"]
    tensors = {n.rsplit(".", 1)[-1] for n, p in inner.named_parameters() if "expert" in n}
    names = sorted({n for n, p in inner.named_parameters() if "expert" in n and p.ndim > 1})
    assert tensors and names
    lora = Lora(target=("q_proj", *{".".join(n.split(".")[-2:]) for n in names}), alpha=8)
    engine = engine_of(mixture, lora_rank=2, lora=lora)
    share, covered, experts = engine.coverage
    assert covered == experts > 0 and share > 0.5
    trained = list(engine.models.trained)
    data = batch_of(engine)
    for _ in range(3):
        engine.step(data, 0.05)
    assert moved(engine) > 1e-2
    engine.export(tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(exported), logits(engine.models.held["student"]), atol=1e-4)
    assert trained and not [name for name in trained if "o_proj" in name]
    with pytest.raises(PotstillError, match=r'train.lora_target names modules.*got "qq"'):
        engine_of(mixture, lora_rank=2, lora=Lora(target="qq"))
    table = study_table(
        tmp_path, mixture, mixture, train={"lora_rank": 2, "lora_target": ["q_proj"]}
    )
    (check,) = preflight_pair(read_study(table), "mine", only=("adapters",))
    assert check.status == "warning"
    with pytest.raises(PotstillError, match=r"train\.lora_alpha, train\.lora_dropout"):
        read_study(study_table(tmp_path, mixture, mixture, train={"lora_target": "q_proj"}))


def test_adapters_that_a_family_cannot_have_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tokenizer_of(CHATML), config_of(MambaConfig, ssm_state_size=4))
    with pytest.raises(PotstillError, match=r"cannot have these adapters.*out_proj") as caught:
        engine_of(folder, lora_rank=2, lora=Lora(target="out_proj"))
    assert "train.lora_target" in caught.value.hint


def test_position_tables_are_embeddings_in_the_share(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tokenizer_of(CHATML), config_of(GPT2Config))
    share, _, _ = engine_of(folder, lora_rank=2).coverage
    assert share > 0.95
