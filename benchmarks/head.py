"""The loss alone at a large vocabulary: sliced rows against whole ones, seconds and peak memory.

    python -m benchmarks.head --positions 512 1024

Exact reverse KL from the hidden states of both models to the gradient of the student's hidden
states and head. Each measurement is a process of its own, so that its peak is its own; the two
take turns. Loss and gradient have to agree, or it ends with an error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

VOCABULARY, HIDDEN = 151_936, 1_024


def measure(kind: str, positions: int) -> dict[str, float]:
    """One forward and backward pass in this process."""
    import torch

    from potstill.engines import host_memory
    from potstill.engines.heads import States
    from potstill.losses import reverse_kl
    from potstill.types import ModelSpec

    torch.manual_seed(0)
    heads = [torch.nn.Linear(HIDDEN, VOCABULARY, bias=False) for _ in range(2)]
    spec = ModelSpec(dtype="float32")
    mine, its = (
        States(torch.randn(positions, HIDDEN), [positions], head, VOCABULARY, spec)
        for head in heads
    )
    heads[1].requires_grad_(False)
    heads[0].weight.grad = torch.zeros_like(heads[0].weight)  # a gradient is kept by any method
    leaf = mine.hidden.requires_grad_(True)
    before, start, loss = host_memory()[0], time.perf_counter(), 0.0
    parts = mine.slices() if kind == "slices" else [slice(0, positions)]
    for at in parts:
        with torch.no_grad():
            logq = its.rows(at)
        total = reverse_kl(mine.rows(at), logq).sum() / positions
        total.backward()
        loss += total.item()
    assert leaf.grad is not None
    return {
        "seconds": time.perf_counter() - start,
        "gigabytes": (host_memory()[0] - before) / 1e9,
        "loss": loss,
        "gradient": float(leaf.grad.norm()),
    }


def apart(kind: str, positions: int) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.head", "--one", kind, "--positions", str(positions)]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def compare(positions: int, repeats: int) -> str:
    """A line of the table."""
    found: dict[str, list[dict[str, float]]] = {"whole": [], "slices": []}
    for _ in range(repeats):
        for kind, results in found.items():
            results.append(apart(kind, positions))
    whole, slices = found["whole"], found["slices"]
    for key in ("loss", "gradient"):
        if abs(whole[0][key] - slices[0][key]) > 1e-4 * abs(whole[0][key]):
            raise SystemExit(f"error: {key} {whole[0][key]} whole, {slices[0][key]} in slices")
    ratios = [s["seconds"] / w["seconds"] for s, w in zip(slices, whole, strict=True)]
    cells: list[Any] = [positions]
    for results in (whole, slices):
        cells.append(f"{statistics.median(r['seconds'] for r in results):.2f}")
        cells.append(f"{max(r['gigabytes'] for r in results):.2f}")
    cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=("whole", "slices"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(told.one, told.positions[0])))
        return
    print("| positions | whole: s | GB | slices: s | GB | time ratio |\n|--:|--:|--:|--:|--:|--:|")
    for positions in told.positions:
        print(compare(positions, told.repeats), flush=True)


if __name__ == "__main__":
    main()
