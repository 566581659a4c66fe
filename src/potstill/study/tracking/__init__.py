"""Sends a study's metrics to experiment trackers, from a process of its own.

A study's folder is the truth, and what is sent is read from it: a process a tracker follows the
folder and tells the tracker the rows that it does not have yet. So no cell waits for a tracker or
fails with it, cells of any number of processes are covered, and a run that was killed and goes on
has no step twice and none missing: its second attempt at a step has the numbers of the first.
What cannot be sent stays in the folder, is noted in the cell and said once, and is sent later: by
the next `potstill study`, or by `potstill track`. Reference rows train nothing and are not sent.

`follow` reads the folder; one module a tracker writes. Here is what they agree on.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.study.tracking.registry import TRACKERS

# Numbers of a cell's record that are told when it ends.
SUMMARY = ("accuracy", "flexible", "steps", "seconds", "peak_bytes")


Row = tuple[int, Mapping[str, float]]  # a step and its numbers by name


@dataclass(frozen=True)
class Sheet:
    """What a tracker is told of a run when it begins."""

    study: str  # groups the runs
    cell: str  # names the run: pair/method/seed
    id: str  # tells it from all others, also after a restart
    config: Mapping[str, Any]  # nested settings; no keys are in it
    folder: Path  # where this tracker's files of the study go, unless its environment says else


class Tracked(Protocol):
    """A run in a tracker."""

    last: int  # the newest step that the tracker already has; -1 where it has none

    def log(self, rows: Sequence[Row]) -> None:
        """Keep some steps' metrics; steps rise."""

    def close(self, result: Mapping[str, Any]) -> None:
        """End the run, with its record; an empty one where the run is to go on another time."""


def opener(name: str) -> Callable[[Sheet], Tracked]:
    """What opens a run in a tracker; imports its library."""
    found: Callable[[Sheet], Tracked] = importlib.import_module(TRACKERS[name].module).open_run
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is tracked: its finite numbers. A loss that was none is null in the row, and
    a gap in the curve.

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
    """Numbers that a run ends with, by name."""
    tokens = {f"tokens/{kind}": n for kind, n in (result.get("tokens") or {}).items()}
    ended = {key: result.get(key) for key in SUMMARY}
    return {f"result/{key}": value for key, value in numbers(ended | tokens).items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys.

    >>> flat({"train": {"steps": 5}, "seed": 0})
    {'train.steps': 5, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
