"""Train a small language model on a larger one's feedback, and check whether it worked.

    from potstill import JSD, Eval, Recipe, Train, linear, load_task, open_engine, train

Names are imported on first use, so that `import potstill` and the command line start fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "METHODS": "algorithms.methods",
    "Recipe": "algorithms.recipe",
    "Replay": "algorithms.recipe",
    "CROSS_ENTROPY": "algorithms.losses",
    "FORWARD_KL": "algorithms.losses",
    "REVERSE_KL": "algorithms.losses",
    "REVERSE_KL_SAMPLED": "algorithms.losses",
    "JSD": "algorithms.losses",
    "GOLD": "algorithms.losses",
    "top_k": "algorithms.losses",
    "constant": "algorithms.schedules",
    "cosine": "algorithms.schedules",
    "linear": "algorithms.schedules",
    "switch": "algorithms.schedules",
    "Pair": "settings",
    "Study": "study.schema",
    "Train": "settings",
    "Eval": "settings",
    "load_study": "study.loading",
    "load_task": "tasks",
    "load_grader": "tasks.graders",
    "Problem": "problems",
    "Grade": "problems",
    "open_engine": "engines.registry",
    "train": "training.loop",
    "PotstillError": "errors",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'potstill' has no attribute '{name}'")
    return getattr(importlib.import_module(f"potstill.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
