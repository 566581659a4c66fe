"""The same study here and on a training service: do the two engines end at the same accuracies?

Starts two real servers (`servers/tinker`), one for each model of the embedded pair, trains the same
recipes with LoRA on both engines over the same seeds and problems, and compares what each ends at,
run by run and as paired differences. Texts differ: a service draws with its own random numbers and
starts its adapters from its own seed; so accuracies agree within their intervals, not to a digit.

    python -m benchmarks.service --out runs/service
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.cli.launch import fill
from potstill.cli.tables import print_table
from potstill.engines.zoo.save import save_pair
from potstill.report import write_report
from potstill.report.results import Row
from potstill.study.loading import read_study
from potstill.study.schema import Study

SERVER = Path(__file__).parents[1] / "servers" / "tinker"
RECIPES = {  # a service has single tokens' log-probabilities, no whole rows
    "on_policy": {"from": "on_policy_gkd", "student_loss": "reverse_kl_sampled"},
    "off_policy": {"from": "off_policy"},
}


@contextmanager
def server(model: Path, port: int, state: Path) -> Iterator[str]:
    """A real service for one base model; ended with the block."""
    words = [str(SERVER), str(model), str(port), str(state)]
    process = int(subprocess.run(words, check=True, capture_output=True).stdout)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process, signal.SIGKILL)


def study_of(name: str, folder: Path, steps: int, seeds: int, engine: dict[str, Any]) -> Study:
    """The study of one engine; only the engine's table differs."""
    pair = {role: str(folder / role) for role in ("student", "teacher")}
    train = {"steps": steps, "batch_size": 16, "learning_rate": 2.5e-4, "lora_rank": 16}
    return read_study(
        {
            "name": name,
            "engine": engine,
            "methods": list(RECIPES),
            "recipe": {k: v for k, v in RECIPES.items() if k != v["from"]},
            "pair": {"tiny-qwen": pair},
            "seeds": list(range(seeds)),
            # SDK 0.25 cannot ask a service to clip, so neither clips
            "train": {**train, "max_grad_norm": 0.0, "checkpoint_every": 1000, "save": False},
            "eval": {"problems": 200, "every": steps, "probe_every": steps},
        }
    )


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/service"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    folder = args.out / "models" / "tiny-qwen"
    if not folder.exists():
        save_pair("tiny-qwen", folder.parent)
    found: dict[str, list[Row]] = {}
    took: dict[str, float] = {}
    for engine in ("torch", "tinker"):
        start = time.perf_counter()
        if engine == "torch":
            study = study_of("here", folder, args.steps, args.seeds, {"name": "torch"})
            fill(study, args.out / engine, 0, False)
        else:
            with (
                server(folder / "student", 18801, args.out / "student-server") as base,
                server(folder / "teacher", 18802, args.out / "teacher-server") as teacher,
            ):
                table = {"name": "tinker", "base_url": base, "teacher_url": teacher}
                study = study_of("service", folder, args.steps, args.seeds, table)
                fill(study, args.out / engine, 1, False)
        took[engine] = time.perf_counter() - start
        found[engine] = list(write_report(args.out / engine).rows)
    print_table(compared(found))
    print(", ".join(f"{engine} {seconds / 60:.1f} min" for engine, seconds in took.items()))
    (args.out / "service.json").write_text(json.dumps(compared(found), indent=1) + "\n")


def compared(found: dict[str, list[Row]]) -> list[dict[str, str]]:
    """A line a method: accuracy with interval on each engine, and whether the intervals meet."""
    lines = []
    for here, there in zip(found["torch"], found["tinker"], strict=True):
        a, b = here.level, there.level
        assert here.method == there.method and a and b, (here, there)
        meet = a.low <= b.high and b.low <= a.high
        lines.append(
            {
                "method": here.method,
                "torch": f"{a.mean:.1%} ({a.low:.1%} to {a.high:.1%})",
                "tinker": f"{b.mean:.1%} ({b.low:.1%} to {b.high:.1%})",
                "intervals": "meet" if meet else "apart",
            }
        )
    return lines


if __name__ == "__main__":
    main()
