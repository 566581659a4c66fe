"""The number by which the methods of a study are compared, and the other numbers of an evaluation.

Where a task grades, it is the mean grade. Without a grader it is the KL divergence to the teacher
on held-out prompts, where less is better. Everything that compares methods reads direction, unit
and bounds here. Numbers as people read them are written in `report.formatting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from potstill.stats.comparisons import Difference, direction

Record = Mapping[str, Any]  # a run's result.json


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation: a mean over problems."""

    key: str  # of the outcomes in a record
    name: str  # for programs: in CSV and JSON, and of the record's mean where it has one
    label: str  # for people
    unit: str  # of a value
    points: str  # of a difference
    scale: float  # from the recorded number to the unit
    digits: int
    higher_is_better: bool
    share: bool  # in [0, 1]; otherwise any number
    help: str
    samples: int = 1  # completions of a problem, which its outcome is the mean of

    @property
    def curve(self) -> str:
        """The key in metrics.jsonl."""
        return f"eval/{self.name}"

    @property
    def best_mean(self) -> str:
        """The best of several means, in words."""
        return "highest" if self.higher_is_better else "lowest"

    @property
    def title(self) -> str:
        """Of a column."""
        return f"{self.label} %" if self.share else self.label

    def goodness(self, value: float) -> float:
        """The value, or its negative where less is better."""
        return value if self.higher_is_better else -value

    def judged(self, difference: Difference | None) -> int:
        """1 for significantly better, -1 for significantly worse, 0 for neither."""
        return direction(difference) * (1 if self.higher_is_better else -1)

    def of(self, record: Record) -> float | None:
        """The mean of a run's record; None if the record does not have this number."""
        values = (record.get("outcomes") or {}).get(self.key)
        return float(sum(map(float, values)) / len(values)) if values else None


STRICT = "Share of held-out problems with the right answer in the requested format (strict)."
ACCURACY = Metric(
    *("strict", "accuracy", "accuracy", "%", "points", 100.0, 1), True, True, help=STRICT
)
FLEXIBLE = replace(
    ACCURACY,
    key="flexible",
    name="flexible",
    label="flexible",
    help="Share of held-out problems whose last number is the right answer.",
)
KL = Metric(
    *("kl", "kl", "KL to the teacher", "nats per token", "nats per token", 1.0, 3),
    higher_is_better=False,
    share=False,
    help="KL(student, teacher) on the student's completions of held-out prompts: 0 where the "
    "student writes as its teacher would. Less is better.",
)
TEACHER_LOSS = replace(
    KL,
    key="teacher_loss",
    name="teacher_loss",
    label="teacher's loss",
    help="The teacher's loss on the student's completions of held-out prompts. Low: the teacher "
    "would have written them; far below its loss on its own text: they repeat themselves.",
)
STUDENT_LOSS = replace(
    KL,
    key="student_loss",
    name="student_loss",
    label="student's loss",
    help="The student's loss on the teacher's completions of held-out prompts. High: it cannot "
    "write what the teacher does.",
)


WITHOUT_TEACHER = replace(
    STUDENT_LOSS,
    label="loss on the data's completions",
    help="The student's loss on the completions that the held-out data have. Less is better.",
)


def metrics_of(records: Iterable[Record]) -> tuple[Metric, ...]:
    """The numbers that the runs of a study have, the one to compare methods by first.

    Without a grader, methods are compared by the KL to the teacher if all runs have it; a pair
    without a teacher has the loss on the data's completions alone.

    >>> [m.label for m in metrics_of([{"outcomes": {"kl": [0.5], "student_loss": [1.0]}}])]
    ['KL to the teacher', "student's loss"]
    >>> [m.label for m in metrics_of([])]
    ['accuracy', 'flexible']
    """
    evaluated = [record for record in records if record.get("outcomes")]
    known = {key for record in evaluated for key in record["outcomes"]}
    if known & {KL.key, STUDENT_LOSS.key}:
        if all(KL.key in record["outcomes"] for record in evaluated):
            return tuple(one for one in (KL, TEACHER_LOSS, STUDENT_LOSS) if one.key in known)
        return (WITHOUT_TEACHER, *(one for one in (KL, TEACHER_LOSS) if one.key in known))
    samples = max((int(record.get("samples") or 1) for record in evaluated), default=1)
    passed = sorted((key for key in known if key.startswith("pass@")), key=_tries)
    return (_averaged(ACCURACY, samples), _averaged(FLEXIBLE, samples), *map(_passed, passed))


def _averaged(metric: Metric, samples: int) -> Metric:
    if samples == 1:
        return metric
    help = f"{metric.help} Mean over {samples} sampled completions of each problem."
    return replace(metric, label=f"avg@{samples} {metric.label}", samples=samples, help=help)


def _passed(key: str) -> Metric:
    help = f"Chance that the best of {_tries(key)} completions of a problem is right, estimated "
    help += "without bias from those that were sampled (strict)."
    return replace(ACCURACY, key=key, name=key, label=key, help=help)


def _tries(key: str) -> int:
    number = key.removeprefix("pass@")
    return int(number) if number.isdecimal() else 0
