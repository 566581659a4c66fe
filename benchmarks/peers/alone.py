"""The loss alone: what every way of `benchmarks.head` starts from, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.beside import peak_memory

VOCABULARY, HIDDEN = 151_936, 1_024

# From hidden states (N, H) and heads (V, H) of student and teacher to the mean reverse KL and the
# gradient (N, H) of the student's states; the gradient of its head is added to `head.grad`.
Way = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[float, Tensor]]


def measure(way: Way, positions: int) -> dict[str, float]:
    """Seconds and peak memory beyond both heads and the gradient of one, which any way keeps."""
    torch.manual_seed(0)
    heads = [torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).weight for _ in range(2)]
    hidden = [torch.randn(positions, HIDDEN) for _ in range(2)]
    heads[1].requires_grad_(False)
    heads[0].grad = torch.zeros_like(heads[0])
    before, start = peak_memory(), time.perf_counter()
    loss, grad = way(hidden[0], heads[0], hidden[1], heads[1])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "gigabytes": (peak_memory() - before) / 1e9,
        "loss": loss,
        "gradient": float(grad.norm()),
        "head gradient": float(heads[0].grad.norm()),
    }
