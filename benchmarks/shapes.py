"""A pair of a small model's real shape, with random weights, and questions to feed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potstill.errors import PotstillError
from potstill.tasks import load_task
from potstill.tasks.gsm8k import GSM8K

VOCABULARY = 49_152


def gsm8k_questions(path: str, count: int) -> list[str]:
    """GSM8K's training questions as its task words them.

    Where the hub cannot be reached they are made up, one to five arithmetic problems each, and
    that is said.

    Args:
        path: a local train.jsonl; empty reads the hub.
        count: how many.
    """
    try:
        return [problem.question for problem in GSM8K(train_path=path).train[:count]]
    except PotstillError as error:
        if path:
            raise SystemExit(f"error: {error}") from error
    print("questions: made up, as GSM8K cannot be reached here (--questions train.jsonl)")
    rng, parts = np.random.default_rng(0), load_task("arithmetic").train
    picks = [rng.integers(0, len(parts), size) for size in rng.integers(1, 6, count)]
    return [" ".join(parts[i].question for i in pick) for pick in picks]


def make_smol(
    folder: Path, questions: list[str], layers: tuple[int, int] = (15, 30)
) -> dict[str, str]:
    """Folders of a student and a teacher of SmolLM2-135M's width, by role.

    The tokenizer is a byte-level BPE of its own, trained on the questions: no id of it matters to
    random weights, only how many there are.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(questions, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], pad_token=special[1]
    )
    found = {}
    for seed, (role, depth) in enumerate(zip(("student", "teacher"), layers, strict=True)):
        found[role] = str(folder / role)
        tokenizer.save_pretrained(found[role])
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=depth,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=0,
            pad_token_id=1,
            bos_token_id=None,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(found[role])
    return found
