"""Which rows are computed together: dealt to processes, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Row = TypeVar("Row")
SPARE = 256  # padded tokens that are worth one more micro-batch


def deal(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Rows for each of several processes, much the same to all: the longest first, to and fro.

    >>> deal([5, 9, 7, 1, 3], 2)
    [[1, 4, 3], [2, 0]]
    """
    out: list[list[int]] = [[] for _ in range(shares)]
    for place, row in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))):
        turn, seat = divmod(place, shares)
        out[seat if turn % 2 == 0 else shares - 1 - seat].append(row)
    return out


def micro_batches(
    rows: Sequence[Row], sizes: Sequence[int], limit: int, overhead: int = SPARE
) -> Iterator[list[Row]]:
    """Group rows of similar size so that little is padded.

    Of all ways to cut the rows, sorted by size, into groups it takes the one with the fewest
    padded tokens, each group counted as `overhead` tokens more.

    Args:
        rows: what to group.
        sizes: tokens of each row.
        limit: most padded tokens of a group; a single row may be larger.
        overhead: what one more group costs, in tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: (-sizes[i], i))
    best, cut = [0] * (len(order) + 1), [0] * (len(order) + 1)  # of the last n rows
    for n in range(1, len(order) + 1):
        width = sizes[order[-n]]
        most = min(n, max(1, limit // max(1, width)))
        best[n], cut[n] = min((width * k + overhead + best[n - k], -k) for k in range(1, most + 1))
    n = len(order)
    while n:
        here, n = len(order) - n, n + cut[n]
        yield [rows[i] for i in order[here : len(order) - n]]
