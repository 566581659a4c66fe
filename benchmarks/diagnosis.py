"""How often is a broken run noticed, how soon, and is the right cause named?

Trains every fault on both embedded pairs over several seeds, and clean runs of all nine methods,
with pre-flight off; then applies `potstill.diagnostics.diagnosis` to each run's rows, and
pre-flight to each fault. The truth is the held-out accuracy, evaluated every five steps: a run has
collapsed at the first of two evaluations in a row below a quarter of the untrained accuracy. The
thresholds of `diagnose` were set on tiny-llama; nothing was tuned on the other pair's runs.

    python -m benchmarks.diagnosis --out runs/diagnosis
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.algorithms.methods import METHODS
from potstill.cli.live import View
from potstill.diagnostics.diagnosis import CONFIRM, alarms, diagnose, failure
from potstill.diagnostics.faults import FAULTS, PUBLISHED
from potstill.report.audit import COLLAPSED, Rate
from potstill.study.executors.local import LocalScheduler, preflight_study
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder, runs_of, write_text
from potstill.types import Finding

CLEAN = "clean"
BOTH = ("on_policy_gkd", "off_policy")
# The methods that a fault is tried on: one of each kind that it touches.
TRIED: dict[str, tuple[str, ...]] = {
    "unshifted_targets": ("off_policy", "hybrid", "mixture"),
    "prompt_dropped": ("on_policy_gkd", "hybrid"),
    "stale_sampler": ("on_policy_gkd", "mixture"),
    "prefix_trained": ("teacher_seeded",),
    "anchor_absent": ("kl_anchored",),
    "mixture_unblended": ("mixture", "replay_buffer"),
    "eval_on_train": BOTH,
    "seeds_ignored": BOTH,
    "eos_untrained": BOTH,
    "template_mismatch": ("on_policy_gkd", "teacher_seeded"),
    "teacher_shifted": ("on_policy_gkd", "hybrid"),
    "vocab_permuted": BOTH,
    "learning_rate_spike": BOTH,
    "top_k_without_tail": ("on_policy_gkd", "mixture"),
}


@dataclass(frozen=True)
class Labelled:
    """One run with what is true of it and what was said of it."""

    fault: str
    cell: RunId
    steps: int  # of the whole run
    onset: int | None  # step of the true collapse
    findings: Sequence[Finding]
    blind: Sequence[Finding]  # the same from the student's behaviour alone, without the checks

    @property
    def said(self) -> str:
        return self.findings[0].cause if self.findings else "nothing"

    @property
    def alarm(self) -> Finding | None:
        return next((f for f in self.findings if f.kind == "collapse"), None)


def studies(args: argparse.Namespace) -> Iterator[tuple[str, Study]]:
    """One study a fault, and one without; clean runs have seeds of their own number."""
    for fault in [CLEAN, *FAULTS]:
        table = {
            "name": fault,
            "pairs": args.pairs,
            "methods": list(METHODS) if fault == CLEAN else list(TRIED[fault]),
            "seeds": list(
                range(args.first, args.first + (args.clean if fault == CLEAN else args.seeds))
            ),
            "faults": [] if fault == CLEAN else [fault],
            "train": {"steps": args.steps, "save": False},
            "eval": {"every": 5, "problems": 100},
        }
        yield fault, read_study(table)


def label(fault: str, study: Study, folder: StudyFolder) -> Iterator[Labelled]:
    """Read a study's runs with their truth."""
    for cell in runs_of(study):
        if cell.seed is None:
            continue
        place = folder.cell(cell)
        rows, result = place.metrics, place.result or {}
        untrained = (folder.cell(RunId(cell.pair, "untrained")).result or {})["accuracy"]
        steps = study.total_steps(study.recipes[cell.method])
        findings = alarms(diagnose(rows))
        if broken := failure(str(result.get("cause", "")), int(result.get("steps", 0))):
            findings = [broken, *findings]
        # the checks know the mistakes that faults make; this is what is left without them
        plain = [{k: v for k, v in row.items() if k != "checks"} for row in rows]
        onset = true_onset(rows, untrained)
        yield Labelled(fault, cell, steps, onset, findings, alarms(diagnose(plain)))


def true_onset(rows: Sequence[Mapping[str, Any]], untrained: float) -> int | None:
    """The first of two gradings in a row that are collapsed."""
    streak: list[int] = []
    for row in rows:
        accuracy = row.get("eval/accuracy")
        if accuracy is not None:
            streak = [*streak, row["step"]] if accuracy < COLLAPSED * untrained else []
            if len(streak) == CONFIRM:
                return streak[0]
    return None


def summary(runs: Sequence[Labelled]) -> dict[str, Any]:
    """The figures, over any set of runs."""
    clean, broken = [r for r in runs if r.fault == CLEAN], [r for r in runs if r.fault != CLEAN]
    fallen = [r for r in runs if r.onset is not None]
    caught = [r for r in fallen if r.alarm]
    delays = [r.alarm.found - r.onset for r in caught if r.alarm and r.onset is not None]
    saved = [(r.steps - r.alarm.found) / r.steps for r in caught if r.alarm]
    standing = [r for r in runs if r.onset is None]
    return {
        "runs": len(runs),
        "clean runs": len(clean),
        "false alarms on clean runs": rate(bool(r.findings) for r in clean),
        "false collapses on clean runs": rate(r.alarm is not None for r in clean),
        "faulty runs with a finding": rate(bool(r.findings) for r in broken),
        "right cause named": rate(r.said == r.fault for r in broken),
        "right cause from behaviour alone": rate(
            bool(r.blind) and r.blind[0].cause == r.fault for r in broken
        ),
        "collapsed runs": len(fallen),
        "collapses found": rate(r.alarm is not None for r in fallen),
        "right cause of a collapse": rate(r.said == r.fault for r in caught),
        "collapse said of a run that stands": rate(r.alarm is not None for r in standing),
        "steps from onset to finding": spread(delays),
        "found within 10 steps": rate(d <= 10 for d in delays),
        "budget saved by stop, collapsed runs": spread(saved),
    }


def rate(hits: Any) -> str:
    hits = list(hits)
    return str(Rate(sum(hits), len(hits)))


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    if not values:
        return "none"
    return f"median {np.median(values):.2g}, {min(values):.2g} to {max(values):.2g}"


def confusion(runs: Sequence[Labelled]) -> dict[str, dict[str, int]]:
    """Fault -> what was said first -> runs."""
    table = {fault: Counter(r.said for r in runs if r.fault == fault) for fault in [CLEAN, *FAULTS]}
    return {fault: dict(said.most_common()) for fault, said in table.items()}


def preflight(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """What pre-flight says of each fault: refused by its name, by another, or passed."""
    said: dict[str, dict[str, str]] = {}
    for fault, study in studies(args):
        kept = Path(args.out) / f"preflight-{fault}.json"
        if not kept.exists():
            found = preflight_study(study)
            causes = {
                pair: sorted({c.cause or c.name for c in checks if c.status == "refused"})
                for pair, checks in found.items()
            }
            write_text(kept, json.dumps(causes))
        causes = json.loads(kept.read_text())
        said[fault] = {pair: ", ".join(names) or "passed" for pair, names in causes.items()}
    return said


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, print the tables, write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--out", default="runs/diagnosis", help="folder; resumable")
    parser.add_argument("--pairs", nargs="+", default=["tiny-llama", "tiny-qwen"])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of faulty runs")
    parser.add_argument("--clean", type=int, default=6, help="seeds of clean runs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(words)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    runs: list[Labelled] = []
    for fault, study in studies(args):
        print(f"{fault}", file=sys.stderr)
        folder, cells = StudyFolder(Path(args.out) / fault), runs_of(study)
        folder.open(study)
        with View(study, folder, cells) as view:
            LocalScheduler(study, folder, args.workers, cells).run(view.tick)
        runs += label(fault, study, folder)
    before = preflight(args)
    result: dict[str, Any] = {"preflight": before, "pairs": {}}
    for pair in args.pairs:
        mine = [r for r in runs if r.cell.pair == pair]
        result["pairs"][pair] = {"figures": summary(mine), "confusion": confusion(mine)}
    write_text(Path(args.out) / "diagnosis.json", json.dumps(result, indent=1) + "\n")
    show(result)


def show(result: Mapping[str, Any]) -> None:
    """Print the tables as Markdown."""
    pairs = list(result["pairs"])
    print("| at step 0, pre-flight | " + " | ".join(pairs) + " |")
    print("|---|" + "---|" * len(pairs))
    for fault, said in result["preflight"].items():
        mark = f"`{fault}`" + (" (published)" if fault in PUBLISHED else "")
        print(f"| {mark} | " + " | ".join(said[p] for p in pairs) + " |")
    print("\n| while training | " + " | ".join(pairs) + " |")
    print("|---|" + "---|" * len(pairs))
    for key in result["pairs"][pairs[0]]["figures"]:
        print(
            f"| {key} | "
            + " | ".join(str(result["pairs"][p]["figures"][key]) for p in pairs)
            + " |"
        )
    print("\n| fault | first finding, runs: " + " | ".join(pairs) + " |")
    print("|---|" + "---|" * len(pairs))
    for fault in [CLEAN, *FAULTS]:
        cells = [
            ", ".join(f"{said} {n}" for said, n in result["pairs"][p]["confusion"][fault].items())
            for p in pairs
        ]
        print(f"| `{fault}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
