"""`potstill bench` on the card: the embedded pair, and one of a real shape."""

from __future__ import annotations

import json

from benchmarks import gpu_models as models
from benchmarks.gpu_section import Section
from benchmarks.gpu_study import PAIR, potstill


def run(section: Section) -> None:
    section.text(
        "`share of the bound` is the least time that the measured memory bandwidth and matrix "
        "products allow, as a share of the time that was needed."
    )
    shapes = (models.TINY, models.TINY_TEACHER) if section.tiny else (models.MIDDLE, models.LARGE)
    with section.part("the embedded pair"):
        measured(section, PAIR, [f'pairs=["{PAIR}"]'])
    with section.part("a pair of a real shape", 0 if section.tiny else 15) as go:
        if go:
            folders = models.pair(section, *shapes)
            models.clear()
            words = [f'pair.large.{role}="{name}"' for role, name in folders.items()]
            words += ['pairs=["large"]', "train.learning_rate=1e-4"]
            measured(section, f"{shapes[0].name} : {shapes[1].name}", words)


def measured(section: Section, name: str, words: list[str]) -> None:
    """Run the command on a pair and show its table."""
    sizes = ["train.batch_size=4", "train.max_tokens=8"] if section.tiny else []
    sizes += ['methods=["on_policy_gkd"]']
    place = [f'engine.{role}.device="{section.device}"' for role in ("student", "teacher")]
    place += [f'engine.{role}.dtype="bfloat16"' for role in ("student", "teacher")]
    repeats = "1" if section.tiny else "3"
    code, seconds, out = potstill(
        section, ["bench", *words, *place, *sizes, "--repeats", repeats, "--json"]
    )
    if code:
        section.fail(f"potstill bench, {name}", out[-400:])
        return
    found = json.loads(out)
    rows = section.table(
        f"{name}: {found['batch']} rows of {found['prompt']:.0f} + {found['completion']:.0f} "
        f"tokens, peak {found['peak'] / 1e9:.2f} GB, memory {found['bandwidth'] / 1e9:,.0f} GB/s, "
        f"matrix products {found['matmul'] / 1e12:,.1f} TFLOP/s; the command took {seconds:.0f} s.",
        ["activity", "seconds", "low", "high", "tokens/s", "share of the bound"],
    )
    for speed in found["speeds"]:
        keys = ("activity", "seconds", "low", "high", "rate", "share")
        rows.row(*(speed[key] for key in keys))
