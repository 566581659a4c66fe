"""The live view of a study: cells done, the step each running cell is at, its accuracy so far,
findings as they come, time left.

It reads the study's folder and nothing else, so it shows cells that other processes run as well.
Without a terminal it prints a line whenever a cell ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from potstill.config import Study
from potstill.diagnose import Finding, ended
from potstill.store import REFERENCES, Cell, StudyFolder
from potstill.track.follow import troubles

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 24  # bars of a trend


class View:
    """Progress of the given cells, drawn to stderr.

    Use as a context manager and call `tick` now and then.
    """

    def __init__(self, study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> None:
        self.study, self.folder, self.cells = study, folder, list(cells)
        self.console = Console(stderr=True)
        self._ended: set[Cell] = set()
        self._warned: set[tuple[Cell, str, str]] = set()
        self._told: set[str] = set()  # trackers whose trouble was said
        self._bars: dict[Cell, Any] = {}
        self._seen: dict[Cell, int] = {}  # steps at which a cell's metrics were last read
        self._begun = time.monotonic()
        self._steps_before: int | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._all = self._progress.add_task(study.name, total=len(self.cells), note="")

    def __enter__(self) -> View:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tick(self) -> None:
        """Look at the folder and draw."""
        steps = 0
        for cell in self.cells:
            if cell not in self._ended:
                result = self.folder.cell(cell).result
                if result is not None:
                    self._end(cell, result)
                else:
                    steps += self._running(cell)
            if cell in self._ended:
                steps += self._steps(cell)
        if self.study.track:
            self._tell(troubles(self.folder, self.cells))
        if self._steps_before is None:
            self._steps_before = steps
        note = self._left(steps)
        self._progress.update(self._all, completed=len(self._ended), note=note)

    def _steps(self, cell: Cell) -> int:
        if cell.method in REFERENCES:
            return 0
        return self.study.total_steps(self.study.recipes[cell.method])

    def _running(self, cell: Cell) -> int:
        """Draw one unfinished cell and return its steps so far."""
        place = self.folder.cell(cell)
        if place.running is None:
            return 0
        done = place.steps
        self._warn(cell, place.findings)
        if cell not in self._bars:
            total = self._steps(cell) or None
            self._bars[cell] = self._progress.add_task(f"  {cell}", total=total, note="")
        if done != self._seen.get(cell) and not self._progress.disable:
            self._seen[cell] = done
            note = trend([row.get("eval/accuracy") for row in place.metrics])
            self._progress.update(self._bars[cell], note=note)
        self._progress.update(self._bars[cell], completed=done)
        return done

    def _end(self, cell: Cell, result: dict[str, Any]) -> None:
        self._ended.add(cell)
        if self._steps_before is not None:  # what ended before this view began is in the report
            self._warn(cell, result.get("findings") or [])
        if cell in self._bars:
            self._progress.remove_task(self._bars.pop(cell))
        if result["status"] == "failed":
            self._say(f"[red]failed[/] {cell}: {result['cause']}")
        elif not self.console.is_terminal and self._steps_before is not None:
            given_up = f", {ended(result['ended'])}" if result.get("ended") else ""
            self._say(
                f"{len(self._ended)}/{len(self.cells)} {cell}: {result['accuracy']:.1%} "
                f"in {result['seconds']:.1f} s{given_up}"
            )

    def _warn(self, cell: Cell, findings: Sequence[dict[str, Any]]) -> None:
        """Say a finding once, when it comes."""
        for finding in findings:
            key = (cell, finding["kind"], finding["cause"])
            if key not in self._warned:
                self._warned.add(key)
                self._say(f"[yellow]warning[/] {cell} {Finding(**finding).sentence}")

    def _tell(self, troubled: Mapping[str, str]) -> None:
        """Say once what keeps a tracker from being told."""
        for tracker, words in troubled.items():
            if tracker not in self._told:
                self._told.add(tracker)
                self._say(
                    f"[yellow]warning[/] tracker {tracker}, {escape(words)}; what is missing is "
                    f"sent later, or by potstill track {self.folder.path}"
                )

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    @property
    def whole(self) -> bool:
        """Whether every cell has ended."""
        return len(self._ended) == len(self.cells)

    def _left(self, steps: int) -> str:
        """Time left, from the steps done since this view began."""
        done = steps - (self._steps_before or 0)
        total = sum(self._steps(cell) for cell in self.cells)
        if not done or steps >= total:
            return ""
        seconds = (time.monotonic() - self._begun) * (total - steps) / done
        return f"about {duration(seconds)} left"


def running(study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The cells that are being worked on, as records for a table."""
    found = []
    for cell in cells:
        place = folder.cell(cell)
        if place.running is None or place.result is not None:
            continue
        total = 0 if cell.method in REFERENCES else study.total_steps(study.recipes[cell.method])
        told = [Finding(**finding).sentence for finding in place.findings]
        accuracy = trend([row.get("eval/accuracy") for row in place.metrics])
        row = {"running": str(cell), "step": f"{place.steps} of {total}", "accuracy": accuracy}
        found.append({**row, "findings": "; ".join(told)})
    return found


def trend(values: Sequence[float | None]) -> str:
    """Shares as a line of small bars, and the last one in per cent.

    >>> trend([0.0, None, 0.5, 1.0]), trend([None])
    ('▁▅█ 100%', '')
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    bars = "".join(BARS[min(7, int(8 * max(0.0, value)))] for value in known[-LONGEST:])
    return f"{bars} {known[-1]:.0%}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42), duration(250), duration(9000)
    ('42 s', '4 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
