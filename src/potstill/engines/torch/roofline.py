"""The least that sampling, scoring and training can take: what a machine's memory and matrix units
do at best, measured on the spot, and the work that a model asks of them (`flops`).

A decoding step has to read every weight once, however few rows it has. Norms, activations and the
optimizer are left out: they have no matrix units to be measured against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from potstill.engines.flops import Machine, Size
from potstill.engines.torch.loading import without_adapters

SECONDS = 0.3  # how long each measurement repeats


def measure(device: Any, dtype: torch.dtype) -> Machine:
    """Read 512 MB and multiply square matrices until the best rate is known.

    Models that fit into a processor's cache may be read faster than that.
    """
    device = torch.device(device)
    large = torch.ones(1 << 27, device=device)
    read = 4.0 * large.numel() / _best(large.sum, device)
    del large
    best = 0.0
    for n in (512, 1024, 2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        a = torch.randn(n, n, device=device).to(dtype)
        best = max(best, 2.0 * n**3 / _best(partial(torch.mm, a, a), device))
    return Machine(read, best)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest time of some repetitions; a GPU is given ten at once."""
    times: list[float] = []
    many = 10 if device.type == "cuda" else 1
    while len(times) < 3 or sum(times) < SECONDS:
        start = time.perf_counter()
        for _ in range(many):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / many


def gpu_memory() -> list[tuple[int, int]]:
    """Bytes at the peak so far and bytes that there are, of each GPU."""
    return [
        (torch.cuda.max_memory_reserved(i), torch.cuda.get_device_properties(i).total_memory)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]


def size_of(model: Any, dtype: torch.dtype) -> Size:
    """Read a model's sizes off its weights and config; adapters are not counted."""
    inner = without_adapters(model)
    config = inner.config.get_text_config()
    head, embed = inner.get_output_embeddings().weight, inner.get_input_embeddings().weight
    total = experts = 0
    for name, param in inner.named_parameters():
        if param is not head and param is not embed and "lora_" not in name:
            total += param.numel()
            experts += param.numel() * (".experts." in name)
    many = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if many:
        total -= round(experts * (1 - getattr(config, "num_experts_per_tok", many) / many))
    heads, width = config.num_attention_heads, torch.finfo(dtype).bits // 8
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    return Size(
        body=total,
        head=head.numel(),
        width=width,
        keys=2 * layers * kept * dim * width,
        mixing=4 * layers * heads * dim,
        frozen=inner is not model,
    )


def least_decoding(size: Size, machine: Machine, rows: Sequence[tuple[int, int]]) -> float:
    """The least seconds to write completions of known lengths after prompts, as one batch.

    The prompts are read at once and give the first token; the last one is never read.
    """
    weights = size.width * (size.body + size.head)
    prompts = size.forward([(p, 0) for p, _ in rows]) + 2.0 * size.head * len(rows)
    total = machine.seconds(prompts, weights)
    for step in range(1, max((c for _, c in rows), default=0)):
        alive = [p + step for p, c in rows if c > step]
        operations = 2.0 * (size.body + size.head) * len(alive) + size.mixing * sum(alive)
        total += machine.seconds(operations, weights + size.keys * sum(alive))
    return total
