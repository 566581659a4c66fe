"""Which rows of a table are trained on and which are held out, and their order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from potstill.errors import PotstillError

Rows = npt.NDArray[np.int64]
_ODD = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64


def split_keys(keys: pa.ChunkedArray, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """True for the rows that are held out: all rows of a share of the different keys.

    The keys are those with the smallest numbers, which they and the seed alone determine: a row
    that is added to the data moves few others.

    Args:
        keys: (N,) of the rows, the same for rows that are the same problem.
        share: of the keys, at least one of them.
        seed: draws them.

    Raises:
        PotstillError: there are not two different keys.
    """
    encoded = keys.combine_chunks().dictionary_encode()
    unique, of_row = encoded.dictionary, encoded.indices.to_numpy()
    if len(unique) < 2:
        raise PotstillError(
            f"held_out takes problems from those of training, there are {len(unique)} different",
            "give more data, or a test_path",
        )
    halves = np.frombuffer(unique.buffers()[1], "<u8", 2 * len(unique)).reshape(-1, 2)
    numbers = halves[:, 0] ^ (halves[:, 1] + np.uint64(seed * _ODD % 2**64))
    for shift in (30, 27):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * _MIX
    count = min(max(1, round(share * len(unique))), len(unique) - 1)
    chosen = np.zeros(len(unique), bool)
    chosen[np.argsort(numbers, kind="stable")[:count]] = True
    return np.asarray(chosen[of_row])


def arranged(rows: Rows, limit: int, seed: int | None) -> Rows:
    """Some rows in their order, or in one that a seed draws; at most `limit` of them, 0: all."""
    if seed is not None:
        rows = np.random.default_rng([seed, len(rows)]).permutation(rows)
    return rows[:limit] if limit else rows
