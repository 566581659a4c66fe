"""Rules for the contents of a study's files.

A record whose digest fits is what potstill wrote, and is checked for being in its place. One
without a digest comes from an older version, from another program or from a damaged disk: every
field is checked, and a field that no version had is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from potstill.study.files import damaged, read_record
from potstill.types import Finding

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Outcomes = Annotated[str, Field(pattern=r"^[01]*$")] | list[Number]  # one a problem

GRADED = ("strict", "flexible")  # outcomes of a task with a grader; pass@k besides
UNGRADED = ("kl", "teacher_loss", "student_loss")  # of a task without one: some of these
PASSED = re.compile(r"pass@[1-9]\d*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


FIELDS: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(Finding).items()}
FindingRecord = create_model("FindingRecord", __base__=_Strict, **FIELDS)


class FindingsRecord(_Strict):
    """The file findings.json."""

    findings: list[FindingRecord]  # type: ignore[valid-type]


class SpentRecord(_Strict):
    """The file .spent, or a prediction; `lost` is the cost of earlier attempts."""

    seconds: Amount = 0.0
    tokens: dict[str, Amount] = {}
    flops: Amount | dict[str, Amount] | None = None
    saved: Amount | dict[str, Amount] = 0.0
    lost: SpentRecord | None = None


class MarkRecord(BaseModel):
    """The file .running; a cluster's lease has more fields."""

    model_config = ConfigDict(strict=True)

    pid: Annotated[int, Field(gt=0)]
    host: str
    started: str = ""


class NoteRecord(_Strict):
    """The file tracking/TRACKER.json."""

    id: Annotated[str, Field(min_length=1)]
    sent: Annotated[int, Field(ge=-1)]
    ended: bool
    trouble: str


class KeptRecord(_Strict):
    """The best student of a run, by validation."""

    step: Count
    by: Literal["loss", "accuracy"]
    value: float


class BenchmarkRecord(_Strict):
    """One task of lm-eval with an outcome a document, or a text with one a piece."""

    metric: str
    outcomes: Outcomes
    mean: Number
    higher_is_better: bool = True
    documents: list[str] = []  # a digest of each
    cut: Count = 0  # prompts of all tasks that lost tokens
    tokens: Count = 0  # of the text


class ResultRecord(_Strict):
    """The file result.json."""

    pair: str
    method: str
    seed: int | None
    status: Literal["done", "failed"]
    steps: Count
    provenance: dict[str, str]
    settings: str = ""
    inputs: str = ""
    files: dict[str, str | None] = {}
    cause: str = ""
    traceback: str = ""
    ended: dict[str, Count] | None = None
    kept: KeptRecord | None = None
    state: Count | None = None
    findings: list[FindingRecord] = []  # type: ignore[valid-type]
    accuracy: Share | None = None
    flexible: Share | None = None
    format: Share | None = None
    problems: Count | None = None
    outcomes: dict[str, Outcomes] | None = None
    samples: Annotated[int, Field(ge=1)] = 1
    estimator: str = ""
    benchmarks: dict[str, BenchmarkRecord] = {}
    drift: BenchmarkRecord | None = None
    routes: list[str] = []
    clusters: list[Count] = []
    prompt: str = ""
    tokens: dict[str, Amount] = {}
    token_sources: dict[str, Count] | None = None  # trained tokens by who wrote them
    flops: Amount | dict[str, Amount] | None = None
    seconds: Amount | None = None
    activity: dict[str, Amount] = {}
    saved: Amount | dict[str, Amount] = 0.0
    devices: Count | None = None
    peak_bytes: Count | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """A run that is done has an evaluation, whose numbers agree with its outcomes."""
        if self.status == "failed":
            if not self.cause:
                raise ValueError("a failed run has a cause")
            return self
        if self.outcomes is None or self.problems is None or self.seconds is None:
            raise ValueError("a run that is done has outcomes, problems and seconds")
        check_outcomes(self.outcomes, self.problems, self.samples)
        for name, share in zip(GRADED, (self.accuracy, self.flexible), strict=True):
            outcomes = self.outcomes.get(name)
            if (outcomes is None) != (share is None):
                raise ValueError(f'its "{name}" outcomes are not those of {self.problems} problems')
            mean = mean_of(outcomes) if outcomes is not None else 0.0
            if share is not None and not math.isclose(share, mean, abs_tol=1e-9):
                raise ValueError(
                    f'the mean of its "{name}" outcomes is {mean:g}, it says {share:g}'
                )
        for name, values in (("routes", self.routes), ("clusters", self.clusters)):
            if values and len(values) != self.problems:
                raise ValueError(f"{name} has {len(values)} entries for {self.problems} problems")
        return self


def mean_of(outcomes: str | list[float]) -> float:
    """The mean over problems; 0 without any."""
    return sum(map(float, outcomes)) / max(1, len(outcomes))


def check_outcomes(outcomes: Mapping[str, str | list[float]], problems: int, samples: int) -> None:
    """Raise `ValueError` for outcomes that no evaluation has.

    Args:
        outcomes: by name, one a problem.
        problems: how many were evaluated.
        samples: completions of each problem.
    """
    graded = {name for name in outcomes if name in GRADED or PASSED.fullmatch(name)}
    if not outcomes or (graded and not {*GRADED} <= graded):
        raise ValueError(f"its outcomes are {', '.join(outcomes) or 'empty'}")
    for name, values in outcomes.items():
        if name not in (graded or UNGRADED):
            raise ValueError(f'"{name:.40}" is not an outcome of the same evaluation')
        if len(values) != problems:
            raise ValueError(f'its "{name}" outcomes are not those of {problems} problems')
        if graded and not all(0 <= value <= 1 for value in map(float, values)):
            raise ValueError(f'some of its "{name}" outcomes are not between 0 and 1')
        if PASSED.fullmatch(name) and int(name.removeprefix("pass@")) > samples:
            raise ValueError(f'it has "{name}" outcomes of {samples} samples')


def checked(
    model: type[BaseModel], value: Mapping[str, Any], path: Path, hint: str
) -> Mapping[str, Any]:
    """The value, if it fits the model.

    Raises:
        DamagedFile: with the first thing that is wrong.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise damaged(path, f"{key}: {message}" if key else message, hint) from None
    return value


def read_result(path: Path, hint: str) -> dict[str, Any] | None:
    """The record in a result.json; None if there is no such file.

    Raises:
        DamagedFile: it is not what was written.
    """
    stored = read_record(path, hint)
    if stored is None:
        return None
    record, is_sealed = stored
    if not is_sealed:
        checked(ResultRecord, record, path, hint)
    elif record.get("status") not in ("done", "failed"):
        raise damaged(path, "it is a record of another kind", hint)
    return record


NUMBERS = ("train/", "eval/", "signal/", "check/")  # metrics that are a number or null
SHARES = ("eval/accuracy", "eval/flexible", "train/accuracy")


def metrics_error(row: Mapping[str, Any]) -> str:
    """The error in a row of metrics.jsonl; empty if it has none."""
    if not _is_count(row.get("step")):
        return f"step is {row.get('step')!r:.40}, not a whole number"
    for name, value in row.items():
        if name.startswith(NUMBERS) and not (value is None or _is_number(value)):
            return f"{name} is {value!r:.40}, not a number"
        is_share = name in SHARES or name.startswith("eval/pass@")
        if is_share and value is not None and not 0 <= value <= 1:
            return f"{name} is {value:g}, not between 0 and 1"
    tokens = row.get("tokens")
    return "" if tokens is None or _is_number(tokens) else f"tokens is {tokens!r:.40}"


TEXTS = ("question", "answer", "text", "teacher")


def example_error(row: Mapping[str, Any]) -> str:
    """The error in a row of examples.jsonl; empty if it has none."""
    if not _is_count(row.get("step")):
        return f"step is {row.get('step')!r:.40}, not a whole number"
    if not isinstance(row.get("problem"), str):
        return f"problem is {row.get('problem')!r:.40}, not a name"
    for name in TEXTS:
        if not isinstance(row.get(name), str | None):
            return f"{name} is {row[name]!r:.40}, not a text"
    for name in GRADED:
        grade = row.get(name)
        if grade is not None and not (isinstance(grade, bool) or _is_share(grade)):
            return f"{name} is {grade!r:.40}, not between 0 and 1"
    if not isinstance(row.get("ended"), bool | None):
        return f"ended is {row['ended']!r:.40}, not true or false"
    return ""


def order_error(steps: Iterable[int]) -> str:
    """The error in the steps of metrics, one row each; empty if they have none."""
    last: int | None = None
    for step in steps:
        if last is None and step > 1:
            return f"it begins with step {step}"
        if last is not None and step != last + 1:
            return f"step {step} follows step {last}"
        last = step
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
