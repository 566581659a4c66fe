"""The loss alone by TRL's tiles. Runs in TRL's environment, see `beside`."""

from __future__ import annotations

import json
import sys

from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from benchmarks.peers.alone import measure


def tiles(mine: Tensor, head: Tensor, its: Tensor, other: Tensor) -> tuple[float, Tensor]:
    mine.requires_grad_(True)
    divergence, _ = ChunkedDivergenceFunction.apply(mine, head, None, its, other, None, 1.0)
    loss = divergence.mean()
    loss.backward()
    assert mine.grad is not None
    return loss.item(), mine.grad


if __name__ == "__main__":
    print(json.dumps(measure(tiles, int(sys.argv[1]))))
