"""Group rows for computation: deal them to processes, and split them into micro-batches."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from potstill.types import Ids

Row = TypeVar("Row")
SPARE = 256  # cost of one more micro-batch, in padded tokens


def deal(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Deal rows to processes so that each gets a similar number of tokens.

    The rows are dealt from the longest to the shortest, in alternating direction.

    >>> deal([5, 9, 7, 1, 3], 2)
    [[1, 4, 3], [2, 0]]
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    for position, row in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))):
        turn, seat = divmod(position, shares)
        dealt[seat if turn % 2 == 0 else shares - 1 - seat].append(row)
    return dealt


def micro_batches(
    rows: Sequence[Row], sizes: Sequence[int], limit: int, overhead: int = SPARE
) -> Iterator[list[Row]]:
    """Group rows of similar size into micro-batches with little padding.

    Of all splits of the rows, sorted by size, it yields the one with the fewest padded tokens,
    where each micro-batch costs `overhead` additional tokens.

    Args:
        rows: the rows to group.
        sizes: number of tokens of each row.
        limit: maximum number of padded tokens per group; a single row may exceed it.
        overhead: cost of one more group, in tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: (-sizes[i], i))
    # cost[n] and cut[n]: the best split of the last n rows, and its first group's negated size
    cost, cut = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for n in range(1, len(order) + 1):
        width = sizes[order[-n]]
        most = min(n, max(1, limit // max(1, width)))
        cost[n], cut[n] = min((width * k + overhead + cost[n - k], -k) for k in range(1, most + 1))
    n = len(order)
    while n:
        start, n = len(order) - n, n + cut[n]
        yield [rows[i] for i in order[start : len(order) - n]]


def by_kind(kinds: Sequence[Hashable]) -> list[list[int]]:
    """Group the indices of rows that may share a micro-batch.

    >>> by_kind([5, 9, 5])
    [[0, 2], [1]]
    """
    groups: dict[Hashable, list[int]] = {}
    for row, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(row)
    return list(groups.values())


def pad_left(rows: Sequence[Ids], fill: int) -> npt.NDArray[np.int64]:
    """Stack sequences of ids to (B, longest), padded on the left."""
    width = max(map(len, rows), default=0)
    return np.array([(fill,) * (width - len(row)) + row for row in rows], dtype=np.int64)
