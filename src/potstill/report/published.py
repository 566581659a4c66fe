"""The published study's numbers, for studies that ask for them: `published = "distribution-cliff"`.

Accuracy on GSM8K, ten seeds a method. It has another model size, another task and other code, so
the numbers are shown for orientation and enter no computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill.settings import Pair
from potstill.study.schema import Study

COST = (
    "The published study reports 47 USD for its Qwen3 pair and 68 USD for its Llama pair, "
    "80 runs each."
)


@dataclass(frozen=True)
class Published:
    """One column of the published table."""

    models: str  # student <- teacher
    accuracy: Mapping[str, float]  # by method, a share in [0, 1]


def _column(models: str, per_cent: Mapping[str, float]) -> Published:
    return Published(models, {method: value / 100 for method, value in per_cent.items()})


COLLAPSED = {"hybrid": 0.0, "mixture": 0.0, "kl_anchored": 0.0}
QWEN = {"teacher_seeded": 58.6, "on_policy_gkd": 53.2, "extended_on_policy": 51.0}
LLAMA = {"teacher_seeded": 71.0, "on_policy_gkd": 67.4, "extended_on_policy": 64.4}
COLUMNS = {
    "qwen": _column(
        "Qwen3-4B ← Qwen3-30B-A3B",
        {**QWEN, "replay_buffer": 2.8, "reverse_curriculum": 0.8, **COLLAPSED},
    ),
    "llama": _column(
        "Llama-3.1-8B ← Llama-3.3-70B",
        {**LLAMA, "replay_buffer": 7.4, "reverse_curriculum": 0.0, **COLLAPSED},
    ),
}


def column(study: Study, name: str) -> Published | None:
    """The column of the same model family: by the pair's name, else by its models' names."""
    pair = study.models[name]
    for text in (name, pair.student, pair.teacher) if study.published else ():
        for family, published in COLUMNS.items():
            if family in text.lower():
                return published
    return None


def caveat(published: Published, pair: Pair, task: str) -> str:
    """How the published runs differ from this pair's."""
    student = published.models.split(" ")[0].lower()
    other = ["models of another size"] if student not in pair.student.lower() else []
    other += ["another task (GSM8K)"] if task != "gsm8k" else []
    listed = ", ".join([*other, "its own code"])
    return f"{published.models} in the published study: {listed}. For orientation only."
