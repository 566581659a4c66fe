"""The protocol of a tracker's module, and the numbers that trackers receive."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.study.file_schemas import GRADED, mean_of
from potstill.study.tracking.registry import TRACKERS

SUMMARY = ("accuracy", "flexible", "steps", "seconds", "peak_bytes")  # keys of result.json

Row = tuple[int, Mapping[str, float]]  # a step and its numbers by name


@dataclass(frozen=True)
class RunInfo:
    """The identity and settings of a run, for a tracker."""

    study: str  # groups the runs
    run: str  # pair/method/seed
    id: str  # unique; the same after a restart
    config: Mapping[str, Any]  # nested settings, without secrets
    folder: Path  # for the tracker's files, unless its environment variables name another place


class TrackerRun(Protocol):
    """A run in a tracker, as `open_run` of the tracker's module returns it."""

    last: int  # the last step that the tracker has; -1 if none

    def log(self, rows: Sequence[Row]) -> None:
        """Send the metrics of some steps, in ascending order."""

    def close(self, result: Mapping[str, Any]) -> None:
        """Send the record of a run that has ended; an empty one if it is to be continued."""


def run_opener(tracker: str) -> Callable[[RunInfo], TrackerRun]:
    """The `open_run` of a tracker's module; imports the tracker's library."""
    opener: Callable[[RunInfo], TrackerRun] = importlib.import_module(
        TRACKERS[tracker].module
    ).open_run
    return opener


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row. A non-finite loss is null in the row, and a gap in the curve.

    >>> numbers({"step": 3, "train/loss": 0.5, "eval/accuracy": None, "checks": [], "x": True})
    {'train/loss': 0.5}
    """
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's record, by name."""
    tokens = {f"tokens/{kind}": n for kind, n in (result.get("tokens") or {}).items()}
    fields = {key: result.get(key) for key in SUMMARY}
    outcomes = result.get("outcomes") or {}
    fields |= {key: mean_of(outcomes[key]) for key in outcomes if key not in GRADED}
    return {f"result/{key}": value for key, value in numbers(fields | tokens).items()}
