"""One on-policy step, potstill's and TRL's in turns: seconds, peak memory, and their ratio.

    python -m benchmarks.steps tiny
    python -m benchmarks.steps smol --repeats 4
    python -m benchmarks.steps smol --questions train.jsonl

`tiny` is the embedded tiny-llama pair at batch 32. `smol` has the shape of SmolLM2-135M (teacher)
and half its layers (student) with random weights, at batch 8 and 64 new tokens. Both sides train
all weights in float32 on the exact reverse KL of what the student has just written, at temperature
1, with as many threads. Step 0 trains on given completions, so that both report the same loss or
the benchmark ends with an error; it is not timed. TRL runs as it comes, with gradient
checkpointing, and without, which is faster. Diagnosis and grading are left out, as TRL has none.
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
from potstill import load_task, zoo
from potstill.engines import open_engine

SIDES = {"potstill": None, "TRL": True, "TRL, no checkpointing": False}
AGREE = 1e-3  # nats by which the losses of step 0 may differ


def job_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every side is given."""
    job = {"threads": args.threads, "learning_rate": 1e-4, "batch_tokens": args.batch_tokens}
    count = args.repeats + 2
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
    samples = engine.sample("student", prompts[:size], limits, 1.0, np.random.default_rng(0))
    return prompts, [sample.tokens for sample in samples]


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every side's steps, step 0 first."""
    job, python = job_of(args), trl_python()
    sides = {}
    for name, checkpointing in SIDES.items():
        words = (
            (sys.executable, "benchmarks.own_steps", job)
            if checkpointing is None
            else (
                python,
                "benchmarks.peers.trl_steps",
                {**job, "gradient_checkpointing": checkpointing},
            )
        )
        sides[name] = Child(*words)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    try:
        for _ in range(args.repeats + 1):
            for name, child in sides.items():
                found[name].append(child.ask())
    finally:
        for child in sides.values():
            child.close()
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The comparison in Markdown."""
    own = found["potstill"]
    lines = [
        "| | s a step | tokens a step | peak GB | its time : ours | our memory : its |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, steps in found.items():
        seconds = [step["seconds"] for step in steps[1:]]
        ratios = [s["seconds"] / o["seconds"] for s, o in zip(steps[1:], own[1:], strict=True)]
        tokens = statistics.mean(step["tokens"] for step in steps[1:])
        memory, mine = steps[-1]["memory"], own[-1]["memory"]
        compared = [f"{spread(ratios)}", f"{mine / memory:.2f}"] if steps is not own else ["", ""]
        cells = [name, spread(seconds, ".3f"), f"{tokens:.0f}", f"{memory / 1e9:.2f}", *compared]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", choices=("tiny", "smol"))
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="potstill's memory knob")
    parser.add_argument("--questions", default="", help="GSM8K's train.jsonl; default: the hub")
    parser.add_argument("--out", default="runs/bench")
    args = parser.parse_args()
    found = measure(args)
    losses = {name: steps[0]["loss"] for name, steps in found.items()}
    print("loss of step 0: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    if max(losses.values()) - min(losses.values()) > AGREE:
        raise SystemExit(f"error: the losses of step 0 differ by more than {AGREE}")
    print(table(found))


if __name__ == "__main__":
    main()
