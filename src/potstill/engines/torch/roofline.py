"""Estimate the minimum time of sampling, scoring and training (a roofline model).

It combines the measured peak rates of a machine's memory and matrix units with the operations and
bytes of a model (`flops`). A decoding step has to read every weight once, even for few rows. Norms,
activation functions and the optimizer are left out, because they do not use the matrix units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from potstill.engines.flops import Machine, Size
from potstill.engines.torch.loading import without_adapters

SECONDS = 0.3  # minimum duration of each measurement


def measure(device: torch.device | str, dtype: torch.dtype) -> Machine:
    """Measure the peak rates of reading 512 MB and of multiplying square matrices.

    Models that fit into a processor's cache may be read faster.
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


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of several repetitions; on a GPU of ten calls at once."""
    times: list[float] = []
    calls = 10 if device.type == "cuda" else 1
    while len(times) < 3 or sum(times) < SECONDS:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / calls


def gpu_memory() -> list[tuple[int, int]]:
    """Return (peak, total) bytes of each GPU."""
    return [
        (torch.cuda.max_memory_reserved(i), torch.cuda.get_device_properties(i).total_memory)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]


def size_of(model: Any, dtype: torch.dtype) -> Size:
    """Compute a model's sizes from its weights and config; adapters are not counted."""
    inner = without_adapters(model)
    config = inner.config.get_text_config()
    head, embed = inner.get_output_embeddings().weight, inner.get_input_embeddings().weight
    total = experts = 0
    for name, param in inner.named_parameters():
        if param is not head and param is not embed and "lora_" not in name:
            total += param.numel()
            experts += param.numel() * (".experts." in name)
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if count:
        total -= round(experts * (1 - getattr(config, "num_experts_per_tok", count) / count))
    width = torch.finfo(dtype).bits // 8
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:  # recurrent: no cache that grows
        return Size(total, head.numel(), width, keys=0, mixing=0, frozen=inner is not model)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    return Size(
        body=total,
        head=head.numel(),
        width=width,
        keys=2 * layers * kv_heads * dim * width,
        mixing=4 * layers * heads * dim,
        frozen=inner is not model,
    )


def least_decoding(size: Size, machine: Machine, rows: Sequence[tuple[int, int]]) -> float:
    """Return the minimum seconds to sample completions of known lengths, as one batch.

    The prompts are read in one pass, which gives the first tokens. Last tokens are never read.
    """
    weights = size.width * (size.body + size.head)
    prompts = size.forward([(p, 0) for p, _ in rows]) + 2.0 * size.head * len(rows)
    total = machine.seconds(prompts, weights)
    for step in range(1, max((c for _, c in rows), default=0)):
        alive = [p + step for p, c in rows if c > step]
        operations = 2.0 * (size.body + size.head) * len(alive) + size.mixing * sum(alive)
        total += machine.seconds(operations, weights + size.keys * sum(alive))
    return total
