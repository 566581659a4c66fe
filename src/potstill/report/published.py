"""The published study's numbers, for studies that ask for them: `published = "distribution-cliff"`.

Accuracy on GSM8K, ten seeds a method. It has another model size, another task and other code, so
the numbers are shown for orientation and enter no computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill.study.schema import Study

COST = "The published study reports 47 USD for its Qwen3 pair, 68 USD for its Llama pair, \
80 runs each."


@dataclass(frozen=True)
class Published:
    """One column of the published table."""

    models: str  # student <- teacher
    accuracy: Mapping[str, float]  # by method, a share in [0, 1]


NAMES = (
    *("teacher_seeded", "on_policy_gkd", "extended_on_policy", "replay_buffer"),
    *("reverse_curriculum", "hybrid", "mixture", "kl_anchored"),
)


def _column(models: str, *per_cent: float) -> Published:
    return Published(models, {m: value / 100 for m, value in zip(NAMES, per_cent, strict=True)})


COLUMNS = {
    "qwen": _column("Qwen3-4B ← Qwen3-30B-A3B", 58.6, 53.2, 51.0, 2.8, 0.8, 0.0, 0.0, 0.0),
    "llama": _column("Llama-3.1-8B ← Llama-3.3-70B", 71.0, 67.4, 64.4, 7.4, 0.0, 0.0, 0.0, 0.0),
}


def column(study: Study, name: str) -> Published | None:
    """The column of the same model family: by the pair's name, else by its models' names."""
    pair = study.models[name]
    for text in (name, pair.student, pair.teacher) if study.published else ():
        for family, published in COLUMNS.items():
            if family in text.lower():
                return published
    return None


def caveat(study: Study, pair: str) -> str:
    """Differences between the published runs and this pair's; empty without a column."""
    published, task = column(study, pair), study.task.get("name")
    if not published:
        return ""
    size = published.models.split(" ")[0].lower() not in study.models[pair].student.lower()
    other = ["models of another size"] * size + ["another task (GSM8K)"] * (task != "gsm8k")
    listed = ", ".join([*other, "its own code"])
    return f"{published.models} in the published study: {listed}. For orientation only."
