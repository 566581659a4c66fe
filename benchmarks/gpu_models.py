"""Models of real shapes with random weights, made on the device: nothing is downloaded."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_section import Section
from potstill import load_task
from potstill.engines import zoo

TOKENIZER = "tiny-llama"  # its ids are the first ones of every model here


@dataclass(frozen=True)
class Shape:
    """The shape of a model; `family` is transformers' name."""

    name: str
    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Number of weights; the head is the embedding."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner) + (
            self.vocabulary * self.hidden
        )

    def config(self) -> Any:
        """The config of transformers; the weights' spread keeps likely tokens apart."""
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(zoo.folder(TOKENIZER, "student"))
        return AutoConfig.for_model(
            self.family,
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


TINY = Shape("tiny", "llama", 64, 128, 2, 4, 2, 16, 600)
TINY_TEACHER = Shape("tiny teacher", "llama", 96, 192, 3, 4, 2, 24, 600)
SMALL = Shape("135M (SmolLM2's shape)", "llama", 576, 1536, 30, 9, 3, 64, 49_152)
MIDDLE = Shape("0.6B (Qwen3's shape)", "qwen3", 1024, 3072, 28, 16, 8, 128, 151_936)
LARGE = Shape("1.7B (Qwen3's shape)", "qwen3", 2048, 6144, 28, 16, 8, 128, 151_936)
LARGEST = Shape("4B (Qwen3's shape)", "qwen3", 2560, 9728, 36, 32, 8, 128, 151_936)


def build(shape: Shape, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model with random weights, made on the device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    return model.to(device).eval()


def folder(section: Section, shape: Shape, seed: int) -> str:
    """The folder of a shape's model in bfloat16, written on first use."""
    from transformers import AutoTokenizer

    place = section.scratch / "models" / f"{shape.family}-{shape.parameters}-{seed}"
    if not (place / "ready").exists():
        build(shape, section.device, torch.bfloat16, seed).save_pretrained(place)
        AutoTokenizer.from_pretrained(zoo.folder(TOKENIZER, "student")).save_pretrained(place)
        (place / "ready").touch()
        clear()
    return str(place)


def pair(section: Section, student: Shape, teacher: Shape) -> dict[str, str]:
    """The folders of a pair, by role."""
    return {
        "student": folder(section, student, 0),
        "teacher": folder(section, teacher, 1),
    }


def questions(count: int) -> list[str]:
    """Questions of the arithmetic task."""
    problems = load_task("arithmetic").train
    return [problems[i % len(problems)].question for i in range(count)]


def check_placed(engine: Any, device: str) -> None:
    """Raise an error if weights of an engine are on another device; the numbers would be right."""
    kinds = {
        weight.device.type for model in engine.models.held.values() for weight in model.parameters()
    }
    if kinds != {device.split(":")[0]}:
        raise RuntimeError(f"the weights are on {', '.join(sorted(kinds))}, not on {device}")


def memory(device: str) -> int:
    """Bytes of the card; without one, of a card that fits nothing but tiny models."""
    if device != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(0).total_memory)


def fitting(section: Section, shapes: tuple[Shape, ...], width: float) -> list[Shape]:
    """The shapes whose weights, at `width` bytes each, take at most half of the card."""
    if section.tiny:
        return [TINY]
    total = memory(section.device)
    for shape in shapes:
        if shape.parameters * width > total / 2:
            section.skip(shape.name, f"it does not fit into half of {total / 1e9:.0f} GB")
    return [shape for shape in shapes if shape.parameters * width <= total / 2]


def clear() -> None:
    """Give back the memory of models that are no longer used, and count the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronise(device: str) -> None:
    """Wait for the card, before a clock is read."""
    if device == "cuda":
        torch.cuda.synchronize()
