"""Tiny checkpoints of any family, with a byte-level tokenizer and the chat template of a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
from transformers import PreTrainedTokenizerFast as Fast

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")  # ids 0 to 3
ROWS = 260  # of a head: the special tokens and 256 bytes
BOS, EOS, TURN = 0, 1, 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ("Tom has 3", "7", "Ann has 12 pens")


def tokenizer_of(
    template: str = "",
    post: str = "$A",
    extra: Sequence[str] = (),
    template_ids: dict[str, int] | None = None,
) -> Any:
    """A byte-level tokenizer.

    Args:
        template: chat template; "" for none.
        post: what is put around a text that no template renders.
        extra: more special tokens, with ids from `ROWS` on.
        template_ids: special tokens in `post`.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id for id, token in enumerate((*SPECIAL, *letters))}
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if post != "$A":
        named = template_ids or {"<s>": BOS, "</s>": EOS}
        backend.post_processor = processors.TemplateProcessing(
            single=post, special_tokens=list(named.items())
        )
    tokenizer = Fast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIAL[2:]),
    )
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[2:], *extra]})
    if template:
        tokenizer.chat_template = template
    return tokenizer


def config_of(kind: Any = LlamaConfig, **changes: Any) -> Any:
    """A config of two small layers; keys that the family does not have are left out."""
    sizes: dict[str, Any] = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 2)
    sizes |= dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size"), 32)
    sizes |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 2)
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3}
    sizes |= {"vocab_size": ROWS, "num_local_experts": 2, "num_experts_per_tok": 1}
    sizes |= {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None} | changes
    plain = kind()
    return kind(**{key: value for key, value in sizes.items() if hasattr(plain, key)})


def save(folder: Path, tokenizer: Any = None, config: Any = None, seed: int = 0) -> str:
    """Write a model with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or config_of())
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS)
    model.save_pretrained(folder)
    (tokenizer or tokenizer_of()).save_pretrained(folder)
    return str(folder)


def write(folder: str | Path, file: str, **changes: Any) -> None:
    """Change keys of a JSON file of a model."""
    path = Path(folder) / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | changes))


def jsonl_task(folder: Path, questions: Sequence[str] = QUESTIONS, **more: Any) -> dict[str, Any]:
    """A task whose training questions are the test questions with another start."""
    for split, lead in (("train", "Say: "), ("test", "")):
        rows = [{"question": lead + text, "answer": "1", "hint": "one"} for text in questions]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {f"{split}_path": str(folder / f"{split}.jsonl") for split in ("train", "test")}
    return {"name": "jsonl", **paths, **more}


def study_table(folder: Path, student: str, teacher: str, **changes: Any) -> dict[str, Any]:
    """A study of one method and a step on two checkpoints."""
    table: dict[str, Any] = {
        "name": "checkpoints",
        "methods": ["on_policy_gkd"],
        "pair": {"mine": {"student": student, "teacher": teacher}},
        "task": changes.pop("task", None) or jsonl_task(folder),
        "train": {"steps": 1, "batch_size": 2, "max_tokens": 8, "learning_rate": 1e-3},
        "eval": {"problems": 3, "every": 1, "probe": 2, "probe_every": 1},
    }
    for key, value in changes.items():
        old = table.get(key)
        table[key] = {**old, **value} if isinstance(old, dict) else value
    return table
