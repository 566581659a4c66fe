"""The live view of a study: cells done, what runs and how well, findings as they come, time and
money left.

In a terminal it draws as many lines as there is room for and takes them away at the end; what is
worth keeping (failures, findings, trackers in trouble) is printed above. Without a terminal it
prints a line for each of them, and whenever a cell ends.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from potstill.diagnostics.diagnosis import ended, sentence
from potstill.settings import Price
from potstill.study.progress import Running, Snapshot, Watcher
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, Cell, StudyFolder
from potstill.study.tracking.exporter import troubles
from potstill.training.spending import Spent
from potstill.types import Finding

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 24  # bars of a trend
NARROW = 70  # columns below which bars and scores are left out


class View:
    """Progress of the given cells, drawn to stderr.

    Use as a context manager and call `tick` now and then.
    """

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        cells: Sequence[Cell],
        console: Console | None = None,
    ) -> None:
        self.study, self.folder, self.cells = study, folder, list(cells)
        self.console = console or Console(stderr=True)
        self._watcher = Watcher(study, folder, cells)
        self._warned: set[tuple[Cell, str, str]] = set()
        self._told: set[str] = set()  # trackers whose trouble was said
        self._begun = time.monotonic()
        self._seen: Snapshot | None = None
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def tick(self) -> None:
        """Look at the folder and draw."""
        first, seen = self._seen is None, self._watcher.look()
        self._seen = seen
        for number, cell in enumerate(seen.fresh, len(seen.results) - len(seen.fresh) + 1):
            self._end(cell, seen.results[cell], number, first=first)
        for run in seen.running:
            self._warn(run.cell, run.findings)
        if self.study.track:
            self._tell(troubles(self.folder, self.cells))
        if self._live.is_started:
            self._live.update(self.screen(seen), refresh=True)

    @property
    def whole(self) -> bool:
        """Whether every cell has ended."""
        return self._seen is not None and self._seen.whole

    def screen(self, seen: Snapshot) -> RenderableType:
        """What is drawn: as many lines as the terminal has, the totals first."""
        size = self.console.size
        head = list(self._head(seen, size.width))
        room = size.height - len(head) - 1  # the last line stays free for the cursor
        parts: list[RenderableType] = [*head]
        lines = room - 2  # an empty one and names above
        lines -= len(seen.running) > lines  # one says how many more
        if seen.running and lines > 0:
            parts += [Text(), _runs(seen.running[:lines], size.width)]
            more = len(seen.running) - lines
            parts += [Text(f"and {more} more", style="dim")] if more > 0 else []
            room -= 2 + min(lines, len(seen.running)) + (more > 0)
        methods = _methods(self.study, seen)
        if methods and room >= methods.row_count + 3 and size.width >= NARROW:
            parts += [Text(), methods]
        return Group(*parts)

    def _head(self, seen: Snapshot, width: int) -> Iterator[RenderableType]:
        """Cells, time and money."""
        words = [f"{len(seen.results)} of {seen.cells} cells"]
        words += [f"[red]{seen.failed} failed[/]"] if seen.failed else []
        words.append(f"{duration(time.monotonic() - self._begun)} gone")
        words += [f"about {duration(seen.left)} left"] if seen.left is not None else []
        line = Table.grid(padding=(0, 1))
        for _ in range(3 if width >= NARROW else 2):
            line.add_column(no_wrap=True, overflow="ellipsis")
        done = seen.steps / seen.of_steps if seen.of_steps else 0.0
        bar = [ProgressBar(total=1.0, completed=done, width=24)] if width >= NARROW else []
        line.add_row(Text(self.study.name, style="bold"), *bar, " · ".join(words))
        yield line
        spent = money(seen.spent, seen.expected, self.study.price)
        yield Text(spent, style="dim", no_wrap=True, overflow="ellipsis")

    def _end(self, cell: Cell, result: dict[str, Any], number: int, *, first: bool) -> None:
        if not first:  # what ended before this view began is in the report
            self._warn(cell, result.get("findings") or [])
        if result["status"] == "failed":
            self._say(f"[red]failed[/] {cell}: {escape(result['cause'])}")
        elif not self.console.is_terminal and not first:
            given_up = f", {ended(result['ended'])}" if result.get("ended") else ""
            self._say(
                f"{number}/{len(self.cells)} {cell}: {result['accuracy']:.1%} "
                f"in {result['seconds']:.1f} s{given_up}"
            )

    def _warn(self, cell: Cell, findings: Sequence[dict[str, Any]]) -> None:
        """Say a finding once, when it comes."""
        for finding in findings:
            key = (cell, finding["kind"], finding["cause"])
            if key not in self._warned:
                self._warned.add(key)
                self._say(f"[yellow]warning[/] {cell} {escape(sentence(Finding(**finding)))}")

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


def _runs(running: Sequence[Running], width: int) -> Table:
    """The cells in work, a line each."""
    wide, bars = width >= NARROW, max(4, min(LONGEST, (width - 62) // 2))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("running", "step", "", "accuracy", "score") if wide else ("running", "step", ""):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for run in running:
        mark = "[yellow]![/] " if run.findings else ""
        row: list[RenderableType] = [f"{mark}{run.cell}", f"{run.step}/{run.total or '-'}"]
        if wide:
            row.append(ProgressBar(total=1.0, completed=run.share, width=10))
            row += [trend(run.accuracy, bars), trend(run.score, bars)]
        else:
            row.append(trend(run.accuracy, 4))
        table.add_row(*row)
    return table


def _methods(study: Study, seen: Snapshot) -> Table | None:
    """Mean accuracy of what has ended, by method and pair; None before there is any."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell, result in seen.results.items():
        if result["status"] == "done":
            found[cell.method, cell.pair].append(result["accuracy"])
    rows = [m for m in (*REFERENCES, *study.recipes) if any(m == name for name, _ in found)]
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("ended so far", no_wrap=True)
    for pair in study.models:
        table.add_column(f"{pair} %", justify="right", no_wrap=True)
    for method in rows:
        cells = [found.get((method, pair), []) for pair in study.models]
        table.add_row(method, *(_mean(values) for values in cells))
    return table


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    runs = f" [dim]x{len(values)}[/]" if len(values) > 1 else ""
    return f"{100 * sum(values) / len(values):.1f}{runs}"


def money(spent: Spent, expected: Spent | None, price: Price) -> str:
    """What is spent, and what will have been, in dollars where there are prices.

    >>> money(Spent(60.0, {"trained": 2e6}), Spent(600.0, {"trained": 2e7}), Price(hour=6))
    '0.10 of about 1.00 USD · 60 s of about 10 min computed · 2M of about 20M tokens'
    """

    def line(so_far: str, in_all: str, unit: str) -> str:
        return f"{so_far} of about {in_all} {unit}" if expected else f"{so_far} {unit}"

    all_in = expected or Spent()
    parts = [
        line(duration(spent.seconds), duration(all_in.seconds), "computed"),
        line(count(spent.count()), count(all_in.count()), "tokens"),
    ]
    if price != Price():
        parts.insert(0, line(f"{spent.usd(price):.2f}", f"{all_in.usd(price):.2f}", "USD"))
    return " · ".join(parts)


def running(study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The cells that are being worked on, as records for a table."""
    return [
        {
            "running": str(run.cell),
            "step": f"{run.step} of {run.total}",
            "accuracy": trend(run.accuracy),
            "score": trend(run.score),
            "findings": "; ".join(sentence(Finding(**finding)) for finding in run.findings),
        }
        for run in Watcher(study, folder, cells).look().running
    ]


def trend(values: Sequence[float | None], longest: int = LONGEST) -> str:
    """Shares as a line of small bars, and the last one in per cent.

    >>> trend([0.0, None, 0.5, 1.0]), trend([None])
    ('▁▅█ 100%', '')
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    bars = "".join(BARS[min(7, int(8 * max(0.0, value)))] for value in known[-longest:])
    return f"{bars} {known[-1]:.0%}"


def count(number: float) -> str:
    """Tokens as a person says them.

    >>> count(950), count(12_300), count(4.5e6)
    ('950', '12k', '4.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return (
                f"{number / size:.2g}{letter}"
                if number < 10 * size
                else f"{number / size:.0f}{letter}"
            )
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42), duration(250), duration(9000)
    ('42 s', '4 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
