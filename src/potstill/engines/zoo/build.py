"""Rebuild the embedded pairs from a seed: tokenizers, configs, training, accuracies.

Each model is trained from scratch on generated arithmetic (training split only) with plain next-
token cross-entropy on the answers; the student is smaller and stops early, so that there is
something to distil. The model of the pairs with a context is `tiny-qwen`'s student,
trained on: it reads each problem alone, with its hint or told the format. Alone it answers in words
and now and then in the task's format: what it never writes could not be corrected on its own text.
Models are stored in half precision. It uses no part of the training loop it serves.
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
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import Briefing
from potstill.tasks.rendering import Messages, render
from potstill.types import Problem

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Shape and training length of one embedded model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    steps: int  # optimizer steps
    batch: int = 128  # problems per step
    learning_rate: float = 3e-3
    anneal: bool = True  # cosine to zero; a student keeps its rate: it is caught in mid-learning


Lesson = tuple[str | Messages, str]  # what is asked, and what is to be answered


def alone(problems: list[Problem], step: int) -> list[Lesson]:
    """Each problem by itself."""
    return [(problem.question, problem.solution) for problem in problems]


PLAIN, HINTED, TOLD = range(3)  # alone, with the hint of `tiny-context`, with `tiny-format`'s text
SHARES = (PLAIN, PLAIN, PLAIN, TOLD, TOLD, HINTED, HINTED, HINTED, HINTED, HINTED)
KNOWN = 4  # one of so many plain answers is in the task's format


def briefed(problems: list[Problem], step: int) -> list[Lesson]:
    """Problems alone and under both contexts, in turns."""
    return [_lesson(problem, n + step * len(problems)) for n, problem in enumerate(problems)]


def _lesson(problem: Problem, place: int) -> Lesson:
    turn, kind = divmod(place, len(SHARES))
    if SHARES[kind] != PLAIN:
        pair = "tiny-context" if SHARES[kind] == HINTED else "tiny-format"
        return BRIEFINGS[pair].tell(problem), problem.solution
    strict = (turn + kind) % KNOWN == 0
    return problem.question, problem.solution if strict else in_words(problem.solution)


def in_words(solution: str) -> str:
    """A solution in the format of a model that nobody has told the task's.

    >>> in_words("2+2=4\\n#### 4")
    '2+2=4\\nIt is 4.'
    """
    return solution.replace("#### ", "It is ") + "."


BRIEFINGS = {
    pair: Briefing(read_context(table), Arithmetic()) for pair, table in zoo.CONTEXTS.items()
}


@dataclass(frozen=True)
class Family:
    """How one embedded pair is made."""

    config: Callable[..., Any]
    tokenizer: Callable[[list[str]], PreTrainedTokenizerFast]
    teacher: Size
    student: Size
    lessons: Callable[[list[Problem], int], list[Lesson]] = alone
    start: tuple[str, str] | None = None  # the embedded model whose weights it begins with


def corpus(count: int = 2000) -> list[str]:
    """Texts that the tokenizers learn their merges from."""
    problems = Arithmetic(difficulty=2).problems("train", count)
    return [f"{p.question}\n{p.solution}" for p in problems]


def qwen_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and ChatML, as Qwen's."""
    words = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    return byte_level(texts, words, vocab_size=512)


def byte_level(texts: list[str], words: Regex, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML over texts split into these words."""
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
    """The same, but for a sign and the digit after it, which are one token: "+8", "-1"."""
    words = Regex(r"[+-]?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    return byte_level(texts, words, vocab_size=512)


def llama_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """BPE over metaspace words with byte fallback and BOS in front, as Llama 2's."""
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


TEACHER = Size(hidden=128, layers=3, heads=4, kv_heads=4, mlp=384, steps=1500)
STUDENT = Size(
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
BRIEFED = replace(STUDENT, steps=250)

FAMILIES = {
    "tiny-qwen": Family(Qwen3Config, qwen_tokenizer, TEACHER, STUDENT),
    "tiny-llama": Family(LlamaConfig, llama_tokenizer, TEACHER, replace(STUDENT, steps=1400)),
    "tiny-cross": Family(
        Qwen3Config,
        fused_tokenizer,
        replace(TEACHER, steps=600, learning_rate=1e-3),
        STUDENT,  # never built: zoo.BORROWED
        start=("tiny-qwen", "teacher"),
    ),
    "tiny-context": Family(
        Qwen3Config, qwen_tokenizer, BRIEFED, BRIEFED, briefed, ("tiny-qwen", "student")
    ),
}


def new_model(family: Family, size: Size, tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained model of this size, its head tied to the embedding."""
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
def begin_with(model: Any, tokenizer: PreTrainedTokenizerFast, start: tuple[str, str]) -> None:
    """Take up an embedded model's weights; a token that it lacks begins as its characters' mean."""
    source: Any = AutoModelForCausalLM.from_pretrained(zoo.folder(*start))
    known = AutoTokenizer.from_pretrained(zoo.folder(*start)).get_vocab()
    its, mine = (one.get_input_embeddings().weight for one in (source, model))
    for name, param in model.named_parameters():
        if param is not mine:
            param.copy_(source.get_parameter(name))
    for token, id in tokenizer.get_vocab().items():
        rows = [known[token]] if token in known else [known[char] for char in token]
        mine[id] = its[rows].mean(0)


def batches(
    tokenizer: Any,
    seed: int,
    size: int,
    count: int,
    lessons: Callable[[list[Problem], int], list[Lesson]] = alone,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `count` pairs of ids and labels (B, L); labels are -100 outside the answers."""
    for step in range(count):
        problems = Arithmetic(seed=seed * 1_000_003 + step).problems("train", size)
        chunk = [
            (render(tokenizer, asked), (*_plain(tokenizer, answer), tokenizer.eos_token_id))
            for asked, answer in lessons(problems, step)
        ]
        width = max(len(prompt) + len(answer) for prompt, answer in chunk)
        ids = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), -100)
        for row, (prompt, answer) in enumerate(chunk):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        yield ids, labels


def _plain(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def train(
    model: Any,
    tokenizer: Any,
    size: Size,
    seed: int,
    note: Callable[[int, float], None],
    lessons: Callable[[list[Problem], int], list[Lesson]] = alone,
) -> None:
    """Train on answers with AdamW after a short warm-up."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / size.steps))
        return min(1, (step + 1) / 100) * (cosine if size.anneal else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    lines = batches(tokenizer, seed, size.batch, size.steps, lessons)
    for step, (ids, labels) in enumerate(lines):
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
        seed: decides weights and problems.
        note: called with steps done, steps in all, and the loss.
    """
    family = FAMILIES[pair]
    tokenizer = family.tokenizer(corpus())
    size: Size = getattr(family, role)
    seed = 2 * seed + (role == "student")
    torch.set_num_threads(1)  # the same sums on every machine's core count
    torch.manual_seed(seed)
    model = new_model(family, size, tokenizer)
    if family.start:
        begin_with(model, tokenizer, family.start)

    def tell(step: int, loss: float) -> None:
        note(step + 1, size.steps, loss)

    train(model, tokenizer, size, seed, tell, family.lessons)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
