"""The loss alone at a large vocabulary: seconds and peak memory of three ways.

    python -m benchmarks.head --positions 512 1024

Exact reverse KL from the hidden states of both models to the gradients of the student's hidden
states and head: whole logits under autograd, TRL's tiles, and potstill's slices. Each measurement
is a process of its own, so that its peak is its own; the three take turns. Loss and gradients have
to agree, or it ends with an error. TRL's tiles also give the student's entropy, and on a CPU they
are its fallback for kernels that a GPU has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import numpy as np
import torch
from torch import Tensor

from benchmarks.beside import ROOT, spread, trl_python
from benchmarks.peers.alone import measure
from potstill.algorithms.losses import REVERSE_KL
from potstill.engines.torch.lm_head import States
from potstill.engines.torch.loss_terms import Columns, Tally, take
from potstill.types import Datum, ModelSpec, Prompt, Term

CHECKED = ("loss", "gradient", "head gradient")


def whole(mine: Tensor, head: Tensor, its: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """Rows of all positions at once."""
    mine.requires_grad_(True)
    logp, logq = (mine @ head.T).log_softmax(-1), (its @ other.T).log_softmax(-1)
    loss = REVERSE_KL.value(logp, logq).mean()
    loss.backward()
    assert mine.grad is not None
    return loss.item(), mine.grad


def slices(mine: Tensor, head: Tensor, its: Tensor, other: Tensor) -> tuple[float, Tensor]:
    """What the engine does."""
    size, spec = len(mine), ModelSpec(dtype="float32")
    ids, nothing = (0,) * size, np.zeros(size, np.float32)
    term = Term(REVERSE_KL, np.full(size, 1 / size, np.float32))
    data = [Datum(Prompt.of((0,)), ids, ids, (term,), "student", nothing)]
    columns, tally = Columns(data, [REVERSE_KL], torch.device("cpu")), Tally()
    states = []
    for hidden, weight in ((mine, head), (its, other)):
        layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=weight.requires_grad)
        layer.weight.grad = weight.grad
        states.append(States(hidden, [size], layer, len(weight), spec))
    student, teacher = states
    grad = torch.zeros_like(mine)
    for at in student.slices():
        logits, others = student.logits(at), {REVERSE_KL.to: teacher.logits(at)}
        take([REVERSE_KL], columns, at, logits, others, tally, backward=True)
        student.backward(at, logits, into=grad)
    return tally.loss, grad


WAYS = {"whole": whole, "tiles": None, "slices": slices}  # None: in TRL's environment


def apart(kind: str, positions: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    words = (
        [trl_python(), "-m", "benchmarks.peers.trl_loss", str(positions)]
        if WAYS[kind] is None
        else [sys.executable, "-m", "benchmarks.head", "--one", kind, "--positions", str(positions)]
    )
    out = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    found: dict[str, float] = json.loads(out)
    return found


def compare(positions: int, repeats: int) -> str:
    """A line of the table."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in WAYS}
    for _ in range(repeats):
        for kind, results in found.items():
            results.append(apart(kind, positions))
    for key in CHECKED:
        values = [results[0][key] for results in found.values()]
        if max(values) - min(values) > 1e-4 * abs(max(values)):
            raise SystemExit(f"error: {key} of {', '.join(found)}: {values}")
    cells = [str(positions)]
    for results in found.values():
        cells.append(f"{statistics.median(r['seconds'] for r in results):.2f}")
        cells.append(f"{max(r['gigabytes'] for r in results):.2f}")
    for kind in ("whole", "tiles"):
        pairs = zip(found["slices"], found[kind], strict=True)
        cells.append(spread([mine["seconds"] / its["seconds"] for mine, its in pairs]))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=("whole", "slices"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        way = WAYS[told.one]
        assert way is not None
        print(json.dumps(measure(way, told.positions[0])))
        return
    columns = ["positions", *(f"{kind}: {unit}" for kind in WAYS for unit in ("s", "GB"))]
    columns += ["slices : whole, time", "slices : tiles, time"]
    print("| " + " | ".join(columns) + " |\n" + "|--:" * len(columns) + "|")
    for positions in told.positions:
        print(compare(positions, told.repeats), flush=True)


if __name__ == "__main__":
    main()
