"""Floating point operations of language models: what a token costs to read, write and train.

A multiplication and an addition are two operations, so with N weights that multiply each token
(embeddings apart, which are looked up; of a mixture of experts the active) a forward pass takes

    2 N + 2 V d [where the head runs] + 4 L d_attn n / 2     operations a token,

the last for scores and mixing in L layers, over the n / 2 tokens that a token of n attends to on
average (Kaplan et al. 2020, arXiv 2001.08361, section 2.1 and table 1). A backward pass takes
twice the forward: 6 N a trained token, with attention 12 L d_attn n / 2 (PaLM, arXiv 2204.02311,
appendix B, which leaves the half out). With LoRA the frozen weights get no gradient, only what
flows through them does: 4 N, the adapters themselves left out. Text written with a cache takes
what reading it at once takes. It leaves out norms, activations, the optimizer, padding and
recomputed activations: this is the work of the mathematics, not of an implementation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Rows = Iterable[tuple[int, int]]  # tokens of prompts and completions


@dataclass(frozen=True)
class Size:
    """What a model asks for.

    Args:
        body: weights that multiply each token, the head apart; of a mixture of experts the active.
        head: weights of the head.
        width: bytes of a weight in the computation.
        keys: bytes of keys and values that a token leaves in the cache.
        mixing: operations a token needs for each token that it attends to.
        frozen: whether the body's own weights get no gradient (LoRA).
    """

    body: int
    head: int
    width: int
    keys: int
    mixing: int
    frozen: bool = False

    def forward(self, rows: Rows) -> float:
        """Operations of a forward pass; the head runs on completions.

        >>> Size(body=100, head=10, width=4, keys=0, mixing=8).forward([(3, 1)])
        884.0
        """
        rows = list(rows)
        lengths = [p + c for p, c in rows]
        body = 2.0 * self.body * sum(lengths) + self.mixing * sum(n * n / 2 for n in lengths)
        return body + 2.0 * self.head * sum(c for _, c in rows)

    def training(self, rows: Rows) -> float:
        """Operations of a forward and a backward pass; the head is trained with the body."""
        return (2.0 if self.frozen else 3.0) * self.forward(rows)


@dataclass(frozen=True)
class Machine:
    """What one device does at best in one dtype, with the threads that torch has now."""

    bandwidth: float  # bytes a second from memory
    matmul: float  # operations a second

    def seconds(self, operations: float, read: float = 0.0) -> float:
        """The least time for work that can overlap its reading."""
        return max(operations / self.matmul, read / self.bandwidth)
