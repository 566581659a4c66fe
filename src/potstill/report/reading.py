"""When a difference is called clear, and what a reader must know before the numbers.

A difference is clear where its interval excludes zero and its p-value after Holm's correction is
below 0.05. Nothing here explains a difference: that is the diagnosis's work.
"""

from __future__ import annotations

from potstill.engines import zoo
from potstill.report import trap
from potstill.report.data import StudyData
from potstill.report.stats import BASELINE, Difference

LEVEL = 0.05
FEW_SEEDS, FEW_PROBLEMS = 5, 100


def clear(value: Difference | None) -> int:
    """1 for clearly above, -1 for clearly below, 0 for neither."""
    if value is None or not value.clear or not value.p < LEVEL:
        return 0
    return 1 if value.mean > 0 else -1


def caveats(data: StudyData) -> list[str]:
    """What a reader must know before the numbers."""
    study, counts = data.study, data.counts
    problems, tiny = study.eval.problems, [p for p in study.models if _embedded(data, p)]
    pairs = "is a pair" if len(tiny) == 1 else "are pairs"
    seeds = len(study.seeds)
    known = (
        (
            counts["missing"],
            f"Not finished: {counts['missing']} of {len(data.runs)} cells have no result. Means "
            "are over what is there.",
        ),
        (
            counts["failed"],
            f"{counts['failed']} failed: a failed cell has no accuracy and enters no mean. The "
            "causes are listed below.",
        ),
        (
            seeds == 1,
            "One seed: there is no interval over seeds. Intervals cover the choice of problems "
            "alone; another seed may give another order.",
        ),
        (
            1 < seeds < FEW_SEEDS,
            f"{seeds} seeds: a bootstrap over so few seeds is too narrow. Read intervals as a "
            "lower bound of the uncertainty.",
        ),
        (
            problems < FEW_PROBLEMS,
            f"Only {problems} held-out problems: one problem is {100 / problems:.1f} points.",
        ),
        (
            BASELINE not in study.methods,
            f"{BASELINE} is not in this study: differences to it and accuracy at equal tokens are "
            "empty.",
        ),
        (
            tiny,
            f"{' and '.join(tiny)} {pairs} of tiny embedded models: what they show is about tiny "
            "models.",
        ),
    )
    held = [text for holds, text in known if holds]
    return [*held, *trap.lines(trap.measured(data)), *trap.ceilings(data)]


def _embedded(data: StudyData, pair: str) -> bool:
    return pair in zoo.PAIRS and pair not in data.study.pair
