"""Count the floating-point operations to read, sample and train a token of a language model.

A multiplication and an addition are two operations. Let N be the number of weights that multiply
each token: all but the embeddings, which are looked up, and only the active experts of a mixture of
experts. A forward pass takes

    2 N + 2 V d [at positions where the head runs] + 4 L d_attn n / 2     operations per token.

The last term is attention scores and mixing in L layers, over the n / 2 tokens that a token in a
sequence of n attends to on average (Kaplan et al. 2020, arXiv 2001.08361, section 2.1 and table 1).
A backward pass takes twice as many: in total 6 N per trained token, and 12 L d_attn n / 2 for
attention (PaLM, arXiv 2204.02311, appendix B, without the factor 1/2). With LoRA the frozen weights
get no gradient of their own: 4 N, without the adapters; attention has no weights, and its backward
pass takes as much as ever. Sampling with a key-value cache takes as
many operations as reading the same tokens in one pass. Not counted: norms, activation functions,
the optimizer, padding and recomputed activations. The count is that of the mathematics, not of an
implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Rows = Iterable[tuple[int, int]]  # numbers of prompt and completion tokens


@dataclass(frozen=True)
class Size:
    """Sizes of a model that determine its operations and memory traffic.

    Args:
        body: weights that multiply each token, without the head and inactive experts.
        head: weights of the head.
        width: bytes per weight in the computation.
        keys: bytes of keys and values per cached token.
        mixing: operations per token and attended token.
        frozen: whether the body's weights get no gradient (LoRA).
    """

    body: int
    head: int
    width: int
    keys: int
    mixing: int
    frozen: bool = False

    def forward(self, rows: Rows) -> float:
        """Return the operations of a forward pass; the head runs on completions only.

        >>> Size(body=100, head=10, width=4, keys=0, mixing=8).forward([(3, 1)])
        884.0
        """
        rows = list(rows)
        return self._weights(rows) + self._attention(rows)

    def training(self, rows: Rows) -> float:
        """Return the operations of a forward and a backward pass, the head included.

        >>> Size(body=100, head=10, width=4, keys=0, mixing=8, frozen=True).training([(3, 1)])
        1832.0
        """
        rows = list(rows)
        return (2.0 if self.frozen else 3.0) * self._weights(rows) + 3.0 * self._attention(rows)

    def _weights(self, rows: Sequence[tuple[int, int]]) -> float:
        read, written = sum(p + c for p, c in rows), sum(c for _, c in rows)
        return 2.0 * self.body * read + 2.0 * self.head * written

    def _attention(self, rows: Sequence[tuple[int, int]]) -> float:
        return self.mixing * sum((p + c) ** 2 / 2 for p, c in rows)


@dataclass(frozen=True)
class Machine:
    """The measured peak rates of one device in one dtype, with torch's current thread count."""

    bandwidth: float  # bytes per second from memory
    matmul: float  # operations per second

    def seconds(self, operations: float, read: float = 0.0) -> float:
        """Return the minimum time if computation and memory reads overlap."""
        return max(operations / self.matmul, read / self.bandwidth)
