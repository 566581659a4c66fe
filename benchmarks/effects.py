"""What each optimisation of the torch engine is worth: a step with it and without it, in turns.

    python -m benchmarks.effects tiny --repeats 10
    python -m benchmarks.effects smol --questions train.jsonl
    python -m benchmarks.effects smol --only decoder packing

The workloads are those of `benchmarks.steps`. `without` is the same engine with one thing put back
to what it was, or to what torch or transformers does of itself; the losses of step 0 have to
agree. Ratios above 1 say that the optimisation helps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.beside import Child, spread
from benchmarks.steps import AGREE, WARM, job_of, options


def whole_rows() -> None:
    """All positions' logits at once."""
    from potstill.engines.torch import lm_head as heads
    from potstill.engines.torch import loss_terms as terms

    heads.SLICE = terms.BLOCK = 1 << 60


def whole_blocks() -> None:
    """The loss on a whole slice instead of block by block."""
    from potstill.engines.torch import loss_terms as terms

    terms.BLOCK = 1 << 60


def autograd_head() -> None:
    """The model's own logits, their gradient by autograd."""
    from potstill.engines.torch import lm_head as heads

    heads.PLAIN = frozenset()


def autograd_embedding() -> None:
    """A gradient of the whole embedding for every micro-batch."""
    from torch.nn import functional as F

    from potstill.engines.torch import lm_head as heads

    class Whole(heads.Embedded):
        def __init__(self, module: Any, ids: Any) -> None:
            self.out = F.embedding(ids, module.weight, module.padding_idx)

        def add_gradient(self) -> None:
            pass

    heads.Embedded = Whole  # type: ignore[misc]


def plain_decoding() -> None:
    """Transformers' forward pass and growing cache, token by token."""
    from potstill.engines.torch import proved

    proved.FAMILIES = {}


def unjoined() -> None:
    """No copy of weights: neither joined nor packed."""
    from potstill.engines.torch import decoding

    decoding.JOINED = 0


def unpacked() -> None:
    """Large matrices in torch's layout."""
    from potstill.engines.torch import decoding

    decoding.PACKED = 1 << 60


def as_they_come() -> None:
    """Micro-batches of rows in the order of the batch, as many as fit."""
    from potstill.engines.torch import distributed as processes

    def cut(
        rows: Sequence[Any], sizes: Sequence[int], limit: int, overhead: int = 0
    ) -> Iterator[list[Any]]:
        group: list[Any] = []
        width = 0
        for row, size in zip(rows, sizes, strict=True):
            if group and max(width, size) * (len(group) + 1) > limit:
                yield group
                group, width = [], 0
            group.append(row)
            width = max(width, size)
        if group:
            yield group

    processes.micro_batches = cut  # type: ignore[attr-defined]


def unfused() -> None:
    """AdamW as torch runs it by default."""
    import torch

    made: Any = torch.optim.AdamW
    torch.optim.AdamW = lambda *a, **k: made(*a, **{**k, "fused": None})  # type: ignore


UNDO: dict[str, Callable[[], None]] = {
    "slices": whole_rows,
    "blocks": whole_blocks,
    "head": autograd_head,
    "embedding": autograd_embedding,
    "decoder": plain_decoding,
    "joining": unjoined,
    "packing": unpacked,
    "grouping": as_they_come,
    "fused": unfused,
}


def compare(job: dict[str, Any], name: str, repeats: int) -> str:
    """A line of the table: two children in turns."""
    sides = [
        Child(sys.executable, "benchmarks.own_steps", {**job, "without": w}) for w in ("", name)
    ]
    found: list[list[dict[str, Any]]] = [[], []]
    try:
        for _ in range(repeats + WARM):
            for steps, child in zip(found, sides, strict=True):
                steps.append(child.ask())
    finally:
        for child in sides:
            child.close()
    kept, undone = found
    if abs(kept[0]["loss"] - undone[0]["loss"]) > AGREE:
        raise SystemExit(f"error: {name} changes the loss of step 0")
    cells = [(UNDO[name].__doc__ or name).rstrip(".")]
    for key in ("sampling", "training", "seconds"):
        pairs = zip(kept[WARM:], undone[WARM:], strict=True)
        cells.append(spread([without[key] / mine[key] for mine, without in pairs]))
    peaks = [steps[-1]["memory"] / 1e9 for steps in found]
    return f"| {name} | " + " | ".join([*cells, *(f"{peak:.2f}" for peak in peaks)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser, repeats=3)
    parser.add_argument("--only", nargs="+", choices=list(UNDO), default=list(UNDO))
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    told = parser.parse_args()
    job = {**job_of(told), "batch_tokens": told.batch_tokens}
    heads = ["", "without it", "sampling", "training", "a step", "peak GB with", "without"]
    print("| " + " | ".join(heads) + " |\n|---|---" + "|--:" * (len(heads) - 2) + "|")
    for name in told.only:
        print(compare(job, name, told.repeats), flush=True)


if __name__ == "__main__":
    main()
