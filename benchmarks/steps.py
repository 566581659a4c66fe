"""One on-policy step, potstill's and TRL's in turns: seconds, peak memory, and their ratio.

    python -m benchmarks.steps tiny
    python -m benchmarks.steps smol --repeats 4
    python -m benchmarks.steps smol --questions train.jsonl

`tiny` is the embedded tiny-llama pair at batch 32. `smol` has the shape of SmolLM2-135M (teacher)
and half its layers (student) with random weights, at batch 8 and 64 new tokens. Both sides train
all weights in float32 on the exact reverse KL of what the student has just written, at temperature
1, with as many threads. Step 0 trains on given completions, so that both report the same loss or
the benchmark ends with an error; neither it nor the step after it is timed. TRL runs as it comes,
with gradient checkpointing, and without, which is faster; potstill as it comes, and with `smol` in
micro-batches of 256 tokens as well, which is its knob for memory. Diagnosis and grading are left
out, as TRL has none. On a CPU TRL's loss works on padding too and on the student's entropy; on
GPUs it skips the former. Peak memory is the process's, and in brackets what it grew by once both
models were loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.beside import Child, spread, trl_python
from benchmarks.shapes import gsm8k_questions, make_smol
from potstill import load_task
from potstill.engines import zoo
from potstill.engines.registry import open_engine
from potstill.types import Prompt

OWN, SMALL = "potstill", "potstill, 256 tokens at once"
TRL = {"TRL": True, "TRL, no checkpointing": False}  # gradient checkpointing
WARM = 2  # steps before the clock counts: step 0 on given text, and one that allocates
AGREE = 1e-3  # nats by which the losses of step 0 may differ


def job_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every side is given."""
    job: dict[str, Any] = {"threads": args.threads, "learning_rate": 1e-4, "batch_tokens": 16_384}
    count = args.repeats + WARM + 1
    if args.workload == "tiny":
        task = load_task("arithmetic")
        job |= {role: str(zoo.folder("tiny-llama", role)) for role in ("student", "teacher")}
        job |= {"batch": 32, "max_tokens": 96}
        questions = [problem.question for problem in task.train[: 32 * count]]
    else:
        job |= {"batch": 8, "max_tokens": 64}
        questions = gsm8k_questions(args.questions, 8 * count)
        job |= make_smol(Path(args.out) / "smol", questions)
    job["questions"] = questions
    job["prompts"], job["completions"] = first_batch(job)
    return job


def first_batch(job: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The ids of all prompts, and completions for those of step 0."""
    import numpy as np

    pair = argparse.Namespace(student=job["student"], teacher=job["teacher"])
    engine = open_engine("torch", pair)
    prompts, size = [engine.encode(question) for question in job["questions"]], job["batch"]
    limits = [job["max_tokens"]] * size
    rows = [Prompt.of(ids) for ids in prompts[:size]]
    samples = engine.sample("student", rows, limits, 1.0, np.random.default_rng(0))
    return prompts, [sample.tokens for sample in samples]


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every side's steps, step 0 first."""
    job, python = job_of(args), trl_python()
    sides = {OWN: Child(sys.executable, "benchmarks.own_steps", job)}
    if args.workload == "smol":
        small = {**job, "batch_tokens": 256}
        sides[SMALL] = Child(sys.executable, "benchmarks.own_steps", small)
    for name, checkpointing in TRL.items():
        its = {**job, "gradient_checkpointing": checkpointing}
        sides[name] = Child(python, "benchmarks.peers.trl_steps", its)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    try:
        for _ in range(args.repeats + WARM):
            for name, child in sides.items():
                found[name].append(child.ask())
    finally:
        for child in sides.values():
            child.close()
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The comparison in Markdown: each side, and how many times longer each TRL takes."""
    own = [name for name in found if name not in TRL]
    heads = ["", "s a step", "tokens a step", "peak GB (growth)"]
    heads += [f"{what} : {name}" for name in own for what in ("its time", "its peak")]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for name, steps in found.items():
        tokens = statistics.mean(step["tokens"] for step in steps[WARM:])
        peak, loaded = steps[-1]["memory"] / 1e9, steps[-1]["loaded"] / 1e9
        cells = [name, spread([step["seconds"] for step in steps[WARM:]], ".3f"), f"{tokens:.0f}"]
        cells.append(f"{peak:.2f} ({peak - loaded:.2f})")
        for mine in own:
            pairs = list(zip(steps[WARM:], found[mine][WARM:], strict=True))
            ratios = [its["seconds"] / ours["seconds"] for its, ours in pairs]
            times = peak * 1e9 / found[mine][-1]["memory"]
            cells += [spread(ratios), f"{times:.2f}"] if name in TRL else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """What chooses a workload."""
    parser.add_argument("workload", choices=("tiny", "smol"))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--questions", default="", help="GSM8K's train.jsonl; default: the hub")
    parser.add_argument("--out", default="runs/bench")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options(parser, repeats=4)
    args = parser.parse_args()
    found = measure(args)
    losses = {name: steps[0]["loss"] for name, steps in found.items()}
    print("loss of step 0: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    if max(losses.values()) - min(losses.values()) > AGREE:
        raise SystemExit(f"error: the losses of step 0 differ by more than {AGREE}")
    print(table(found))


if __name__ == "__main__":
    main()
