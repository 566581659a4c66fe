"""How seconds and memory of a step grow: with the batch, the completion, the vocabulary, the
weights.

    python -m benchmarks.growth
    python -m benchmarks.growth --plot docs/growth.svg

One thing is changed at a time around a Llama pair of a few million parameters with random weights;
each point is a process of its own, so that its peak is its own. A step is the on-policy one: the
student writes exactly the asked number of tokens, and all weights are trained on the exact reverse
KL, on one thread. The exponent is that of seconds between neighbours: 1 is linear, below it a
constant part is shared.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.beside import ROOT, peak_memory

START = {"batch": 8, "completion": 64, "vocabulary": 8192, "width": 192}
AXES = {
    "batch": [4, 8, 16, 32, 64],
    "completion": [32, 64, 128, 256, 512],
    "vocabulary": [2048, 8192, 32768, 131072],
    "width": [96, 192, 384, 768],
}
PROMPT, LAYERS = 32, 4


def point(shape: dict[str, int], repeats: int) -> dict[str, float]:
    """Median seconds of a step, bytes of the process at its peak, and the student's weights."""
    import numpy as np

    from potstill.algorithms.losses import REVERSE_KL
    from potstill.engines.torch.engine import TorchEngine
    from potstill.types import Datum, Prompt, Term

    with tempfile.TemporaryDirectory() as out:
        make_pair(Path(out), shape)
        engine = TorchEngine(f"{out}/student", f"{out}/teacher", threads=1)
        engine.eos = frozenset()  # every completion is as long as asked
        size, times = shape["batch"], []
        prompts = [Prompt.of(tuple(range(3, 3 + PROMPT)))] * size
        limits = [shape["completion"]] * size
        weights = np.full(shape["completion"], 1 / size / shape["completion"], np.float32)
        for turn in range(repeats + 1):
            start = time.perf_counter()
            samples = engine.sample("student", prompts, limits, 1.0, np.random.default_rng(turn))
            data = [
                Datum(p, s.tokens, s.tokens, (Term(REVERSE_KL, weights),), "student", s.logprobs)
                for p, s in zip(prompts, samples, strict=True)
            ]
            engine.step(data, 1e-4)
            times.append(time.perf_counter() - start)
        weight = sum(p.numel() for p in engine.models.trained.values())
    return {"seconds": statistics.median(times[1:]), "bytes": peak_memory(), "weights": weight}


def make_pair(out: Path, shape: dict[str, int]) -> None:
    """A student and a teacher of twice its depth, with an embedded tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from potstill.engines.zoo import folder

    for role, depth in (("student", LAYERS // 2), ("teacher", LAYERS)):
        config = LlamaConfig(
            vocab_size=shape["vocabulary"],
            hidden_size=shape["width"],
            intermediate_size=4 * shape["width"],
            num_hidden_layers=depth,
            num_attention_heads=shape["width"] // 48,
            num_key_value_heads=shape["width"] // 48,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(out / role)
        for path in Path(folder("tiny-llama", "student")).glob("*token*"):
            (out / role / path.name).write_bytes(path.read_bytes())


def apart(shape: dict[str, int], repeats: int) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.growth", "--repeats", str(repeats), "--one"]
    out = subprocess.run(
        [*words, json.dumps(shape)], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def exponent(before: tuple[float, float], now: tuple[float, float]) -> float:
    """The power of x that y grew with between two points.

    >>> exponent((1, 2), (2, 8))
    2.0
    """
    return math.log(now[1] / before[1]) / math.log(now[0] / before[0])


def table(axis: str, found: list[tuple[float, dict[str, float]]]) -> str:
    """One axis in Markdown."""
    lines = [f"| {axis} | s a step | exponent | peak GB |", "|--:|--:|--:|--:|"]
    for i, (x, result) in enumerate(found):
        power = ""
        if i:
            x0, before = found[i - 1]
            power = f"{exponent((x0, before['seconds']), (x, result['seconds'])):.2f}"
        memory = result["bytes"] / 1e9
        lines.append(f"| {x:,.0f} | {result['seconds']:.3f} | {power} | {memory:.2f} |")
    return "\n".join(lines)


def plot(path: Path, everything: dict[str, list[tuple[float, dict[str, float]]]]) -> None:
    """Seconds and memory against each axis, both logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: it can be read and searched

    figure = Figure(figsize=(3 * len(everything), 5), layout="constrained")
    rows = figure.subplots(2, len(everything), squeeze=False)
    for column, (axis, found) in enumerate(everything.items()):
        xs = [x for x, _ in found]
        for row, key, unit, scale in (
            (0, "seconds", "s a step", 1.0),
            (1, "bytes", "peak GB", 1e9),
        ):
            ys = [result[key] / scale for _, result in found]
            place = rows[row][column]
            place.loglog(xs, ys, "o-", color="#1f6aa5")
            place.loglog(xs, [ys[0] * x / xs[0] for x in xs], ":", color="#8a8f98")
            place.set_xticks(xs, [f"{x / 1e6:.1f} M" if x >= 1e6 else f"{x:,.0f}" for x in xs])
            place.yaxis.set_major_formatter("{x:g}")
            for side in (place.xaxis, place.yaxis):
                side.set_minor_formatter(NullFormatter())
            place.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            place.set_xlabel(axis)
            place.set_ylabel(unit if not column else "")
    figure.suptitle("A step's growth; dotted: linear")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write a figure here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(point(json.loads(told.one), told.repeats)))
        return
    everything: dict[str, Any] = {}
    for axis in told.axes:
        results = [apart({**START, axis: value}, told.repeats) for value in AXES[axis]]
        name = "weights" if axis == "width" else axis  # of the student
        xs = [r["weights"] for r in results] if axis == "width" else AXES[axis]
        everything[name] = list(zip(map(float, xs), results, strict=True))
        print(table(name, everything[name]) + "\n", flush=True)
    if told.plot:
        plot(told.plot, everything)


if __name__ == "__main__":
    main()
