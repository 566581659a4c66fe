"""When a difference is called significant, and how little data makes a result provisional.

A difference is significant where its interval excludes zero and its p-value after Holm's correction
is below 0.05. Nothing here explains a difference: that is the diagnosis's work.
"""

from __future__ import annotations

from potstill.report.stats import Difference

LEVEL = 0.05
FEW_SEEDS, FEW_PROBLEMS = 5, 100


def direction(value: Difference | None) -> int:
    """1 for significantly above, -1 for significantly below, 0 for neither."""
    if value is None or not value.clear or not value.p < LEVEL:
        return 0
    return 1 if value.mean > 0 else -1
