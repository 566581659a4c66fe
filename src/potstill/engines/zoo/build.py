"""Rebuild the embedded pairs from a seed: tokenizers, configs and training.

Each model is trained from scratch on generated arithmetic (training split only) with next-token
cross-entropy on the answers. The student is smaller and stops early, so that there is something to
distil. The model of the pairs with a context continues from `tiny-qwen`'s student. It reads each
problem without a context, with its hint, or with the answer format. Without a context it answers in
words, and sometimes in the task's format: on-policy training can only reinforce what the student
samples. Models are stored in half precision. This module does not use the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as token_trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from potstill.engines import zoo
from potstill.problems import Messages, Problem
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.rendering import render

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Shape and training length of one embedded model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    steps: int  # optimizer steps
    batch: int = 128  # problems per step
    learning_rate: float = 3e-3
    anneal: bool = True  # cosine decay to 0; a student keeps its rate, because it stops early


Example = tuple[str | Messages, str]  # prompt and answer


def without_context(problems: list[Problem], step: int) -> list[Example]:
    """Return one example per problem: its question and its solution."""
    return [(problem.question, problem.solution) for problem in problems]


PLAIN, HINT, FORMAT = range(3)  # no context, that of `tiny-context`, that of `tiny-format`
CYCLE = (PLAIN, PLAIN, PLAIN, FORMAT, FORMAT, HINT, HINT, HINT, HINT, HINT)
STRICT_EVERY = 4  # one of this many answers without a context is in the task's format


def with_contexts(problems: list[Problem], step: int) -> list[Example]:
    """Return one example per problem, without a context and with either context in turn."""
    return [_example(problem, n + step * len(problems)) for n, problem in enumerate(problems)]


def _example(problem: Problem, number: int) -> Example:
    cycle, position = divmod(number, len(CYCLE))
    if CYCLE[position] != PLAIN:
        pair = "tiny-context" if CYCLE[position] == HINT else "tiny-format"
        return BUILDERS[pair].conversation(problem), problem.solution
    strict = (cycle + position) % STRICT_EVERY == 0
    return problem.question, problem.solution if strict else in_words(problem.solution)


def in_words(solution: str) -> str:
    """Return a solution in words instead of the task's answer format.

    >>> in_words("2+2=4\\n#### 4")
    '2+2=4\\nIt is 4.'
    """
    return solution.replace("#### ", "It is ") + "."


BUILDERS = {
    pair: PromptBuilder(read_context(table), Arithmetic()) for pair, table in zoo.CONTEXTS.items()
}


@dataclass(frozen=True)
class Family:
    """The configuration of one embedded pair."""

    config: Callable[..., Any]
    tokenizer: Callable[[list[str]], PreTrainedTokenizerFast]
    teacher: Shape
    student: Shape
    examples: Callable[[list[Problem], int], list[Example]] = without_context
    start: tuple[str, str] | None = None  # the embedded model that provides initial weights


def corpus(count: int = 2000) -> list[str]:
    """Return the texts that train the tokenizers."""
    problems = Arithmetic(difficulty=2).problems("train", count)
    return [f"{p.question}\n{p.solution}" for p in problems]


def qwen_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with single digits and ChatML, as Qwen's."""
    words = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    return byte_level(texts, words, vocab_size=512)


def byte_level(texts: list[str], words: Regex, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with ChatML on texts that are split into words."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = token_trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    tok.train_from_iterator([*texts, "user assistant"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        padding_side="left",
    )


def fused_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer like Qwen's in which a sign and the next digit are one token: "+8"."""
    words = Regex(r"[+-]?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    return byte_level(texts, words, vocab_size=512)


def llama_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train BPE over metaspace words with byte fallback and a leading BOS, as Llama 2's."""
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Split(Regex(r"\p{N}|[^\p{L}\p{N}▁]|▁\p{L}*"), behavior="isolated"),
        ]
    )
    tok.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = token_trainers.BpeTrainer(
        vocab_size=448, special_tokens=specials, show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
    )


TEACHER = Shape(hidden=128, layers=3, heads=4, kv_heads=4, mlp=384, steps=1500)
STUDENT = Shape(
    hidden=96,
    layers=2,
    heads=4,
    kv_heads=4,
    mlp=288,
    steps=1000,
    batch=64,
    learning_rate=1e-3,
    anneal=False,
)
CONTEXT = replace(STUDENT, steps=250)

FAMILIES = {
    "tiny-qwen": Family(Qwen3Config, qwen_tokenizer, TEACHER, STUDENT),
    "tiny-llama": Family(LlamaConfig, llama_tokenizer, TEACHER, replace(STUDENT, steps=1400)),
    "tiny-cross": Family(
        Qwen3Config,
        fused_tokenizer,
        replace(TEACHER, steps=600, learning_rate=1e-3),
        STUDENT,  # never built, see zoo.BORROWED
        start=("tiny-qwen", "teacher"),
    ),
    "tiny-context": Family(
        Qwen3Config, qwen_tokenizer, CONTEXT, CONTEXT, with_contexts, ("tiny-qwen", "student")
    ),
}


def new_model(family: Family, size: Shape, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Create an untrained model of this size, with its head tied to the embedding."""
    extra = {"head_dim": size.hidden // size.heads} if family.config is Qwen3Config else {}
    config = family.config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def initialize_from(model: Any, tokenizer: PreTrainedTokenizerFast, start: tuple[str, str]) -> None:
    """Copy the weights of an embedded model.

    A token that it does not have gets the mean embedding of its characters.
    """
    source: Any = AutoModelForCausalLM.from_pretrained(zoo.folder(*start))
    source_ids = AutoTokenizer.from_pretrained(zoo.folder(*start)).get_vocab()
    embedding = model.get_input_embeddings().weight
    source_embedding = source.get_input_embeddings().weight
    for name, param in model.named_parameters():
        if param is not embedding:
            param.copy_(source.get_parameter(name))
    for token, id in tokenizer.get_vocab().items():
        pieces = [token] if token in source_ids else token
        embedding[id] = source_embedding[[source_ids[piece] for piece in pieces]].mean(0)


def batches(
    tokenizer: Any,
    seed: int,
    size: int,
    count: int,
    examples: Callable[[list[Problem], int], list[Example]] = without_context,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `count` pairs of ids and labels (B, L); labels are -100 outside the answers."""
    for step in range(count):
        problems = Arithmetic(seed=seed * 1_000_003 + step).problems("train", size)
        chunk = [
            (render(tokenizer, prompt), (*_tokenize(tokenizer, answer), tokenizer.eos_token_id))
            for prompt, answer in examples(problems, step)
        ]
        width = max(len(prompt) + len(answer) for prompt, answer in chunk)
        ids = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), -100)
        for row, (prompt, answer) in enumerate(chunk):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        yield ids, labels


def _tokenize(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def train(
    model: Any,
    tokenizer: Any,
    size: Shape,
    seed: int,
    note: Callable[[int, float], None],
    examples: Callable[[list[Problem], int], list[Example]] = without_context,
) -> None:
    """Train on answers with AdamW and a short warm-up."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / size.steps))
        return min(1, (step + 1) / 100) * (cosine if size.anneal else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    data = batches(tokenizer, seed, size.batch, size.steps, examples)
    for step, (ids, labels) in enumerate(data):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        note(step, loss.item())
    model.eval()


def build(
    pair: str, role: str, out: Path, seed: int, note: Callable[[int, int, float], None]
) -> None:
    """Train one embedded model and write it as a model folder.

    Args:
        pair: one of `FAMILIES`.
        role: "teacher" or "student".
        out: the folder to write.
        seed: seed of the weights and problems.
        note: called with the number of steps done, the total number, and the loss.
    """
    family = FAMILIES[pair]
    tokenizer = family.tokenizer(corpus())
    size: Shape = getattr(family, role)
    seed = 2 * seed + (role == "student")
    torch.set_num_threads(1)  # the order of sums must not depend on the number of cores
    torch.manual_seed(seed)
    model = new_model(family, size, tokenizer)
    if family.start:
        initialize_from(model, tokenizer, family.start)

    def report(step: int, loss: float) -> None:
        note(step + 1, size.steps, loss)

    train(model, tokenizer, size, seed, report, family.examples)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
