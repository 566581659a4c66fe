"""The published study's numbers, as data, to stand beside our own.

Accuracy on GSM8K in per cent, ten seeds a method. It is another model size, another task and
other code, so the numbers are shown for orientation and enter no computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill.settings import Pair


@dataclass(frozen=True)
class Published:
    """One column of the published table."""

    models: str  # student <- teacher
    accuracy: Mapping[str, float]  # by method, a share in [0, 1]


def _column(models: str, per_cent: Mapping[str, float]) -> Published:
    return Published(models, {method: value / 100 for method, value in per_cent.items()})


COLLAPSED = {"hybrid": 0.0, "mixture": 0.0, "kl_anchored": 0.0}
COLUMNS = {
    "qwen": _column(
        "Qwen3-4B ← Qwen3-30B-A3B",
        {
            "teacher_seeded": 58.6,
            "on_policy_gkd": 53.2,
            "extended_on_policy": 51.0,
            "replay_buffer": 2.8,
            "reverse_curriculum": 0.8,
            **COLLAPSED,
        },
    ),
    "llama": _column(
        "Llama-3.1-8B ← Llama-3.3-70B",
        {
            "teacher_seeded": 71.0,
            "on_policy_gkd": 67.4,
            "extended_on_policy": 64.4,
            "replay_buffer": 7.4,
            "reverse_curriculum": 0.0,
            **COLLAPSED,
        },
    ),
}


def column(name: str, pair: Pair) -> Published | None:
    """The published column of the same family: by the pair's name, else by its models' names."""
    for text in (name, pair.student, pair.teacher):
        for family, found in COLUMNS.items():
            if family in text.lower():
                return found
    return None


def caveat(found: Published, pair: Pair, task: str) -> str:
    """How the published runs differ from this pair's, in words."""
    student = found.models.split(" ")[0].lower()
    other = ["its own code"]
    other += ["another task (GSM8K)"] if task != "gsm8k" else []
    other += ["models of another size"] if student not in pair.student.lower() else []
    return f"{found.models} in the published study: {', '.join(other[::-1])}. For orientation only."
