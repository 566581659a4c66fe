"""The live view of a study: finished runs, running ones and their results, findings as they
come, time and money left.

In a terminal it draws as many lines as there is room for and removes them at the end; failures,
findings and tracker problems are printed above and stay. Without a terminal it prints a line for
each of them, and a line when a run ends.
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

from potstill.cli.terminal import printable
from potstill.diagnostics.diagnosis import ended, sentence
from potstill.errors import shown
from potstill.report.formatting import amount, count, duration, level
from potstill.settings import Price
from potstill.stats.metric import ACCURACY, Metric, metrics_of
from potstill.study.progress import Running, Snapshot, Watcher
from potstill.study.schema import Study
from potstill.study.storage import REFERENCES, RunId, StudyFolder
from potstill.study.tracking.follower import troubles
from potstill.training.spending import Spent
from potstill.types import Finding

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 24  # bars of a trend
NARROW = 70  # columns below which bars and scores are left out


class View:
    """Progress of the given runs, drawn to stderr.

    Use as a context manager and call `tick` now and then.
    """

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        runs: Sequence[RunId],
        console: Console | None = None,
    ) -> None:
        self.study, self.folder, self.runs = study, folder, list(runs)
        self.console = console or Console(stderr=True)
        self._watcher = Watcher(study, folder, runs)
        self._warned: set[tuple[RunId | str, str, str]] = set()
        self._troubled: set[str] = set()  # trackers with a problem that is printed already
        self._begun = time.monotonic()
        self._latest: Snapshot | None = None
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
        """Read the folder and draw."""
        first, snapshot = self._latest is None, self._watcher.look()
        self._latest = snapshot
        before = len(snapshot.results) - len(snapshot.fresh)
        for number, run in enumerate(snapshot.fresh, before + 1):
            self._end(run, snapshot.results[run], number, first=first)
        for running in snapshot.running:
            self._warn(running.cell, running.findings)
        if self.study.track:
            self._warn_of_trackers(troubles(self.folder, self.runs))
        if self._live.is_started:
            self._live.update(self.screen(snapshot), refresh=True)

    @property
    def whole(self) -> bool:
        """True once every run has ended."""
        return self._latest is not None and self._latest.whole

    def screen(self, snapshot: Snapshot) -> RenderableType:
        """The drawing: at most as many lines as the terminal has, the totals first."""
        size = self.console.size
        head = list(self._head(snapshot, size.width))
        room = size.height - len(head) - 1  # the last line stays free for the cursor
        parts: list[RenderableType] = [*head]
        running = snapshot.running
        lines = room - 2  # an empty one and the names above
        lines -= len(running) > lines  # one for how many more there are
        if running and lines > 0:
            parts += [Text(), _runs(running[:lines], size.width)]
            more = len(running) - lines
            parts += [Text(f"and {more} more", style="dim")] if more > 0 else []
            room -= 2 + min(lines, len(running)) + (more > 0)
        methods = _methods(self.study, snapshot)
        if methods and room >= methods.row_count + 3 and size.width >= NARROW:
            parts += [Text(), methods]
        return Group(*parts)

    def _head(self, snapshot: Snapshot, width: int) -> Iterator[RenderableType]:
        """Two lines: runs and time, then money."""
        words = [f"{len(snapshot.results)} of {snapshot.cells} runs"]
        words += [f"[red]{snapshot.failed} failed[/]"] if snapshot.failed else []
        words.append(f"{duration(time.monotonic() - self._begun)} elapsed")
        words += [f"about {duration(snapshot.left)} left"] if snapshot.left is not None else []
        line = Table.grid(padding=(0, 1))
        for _ in range(3 if width >= NARROW else 2):
            line.add_column(no_wrap=True, overflow="ellipsis")
        done = snapshot.steps / snapshot.of_steps if snapshot.of_steps else 0.0
        bar = [ProgressBar(total=1.0, completed=done, width=24)] if width >= NARROW else []
        line.add_row(Text(self.study.name, style="bold"), *bar, " · ".join(words))
        yield line
        spent = money(snapshot.spent, snapshot.expected, self.study.price)
        yield Text(spent, style="dim", no_wrap=True, overflow="ellipsis")

    def _end(self, run: RunId, result: dict[str, Any], number: int, *, first: bool) -> None:
        if not first:  # runs that ended before this view began are in the report
            self._warn(run, result.get("findings") or [])
        if result["status"] == "failed":
            self._print(f"[red]failed[/] {run}: {escape(shown(result['cause']))}")
        elif not self.console.is_terminal and not first:
            given_up = f", {ended(result['ended'])}" if result.get("ended") else ""
            metric = metrics_of([result])[0]
            reached = amount(metric.of(result), metric).replace(" %", "%")
            self._print(
                f"{number}/{len(self.runs)} {run}: {reached} in {result['seconds']:.1f} s{given_up}"
            )

    def _warn(self, run: RunId, findings: Sequence[dict[str, Any]]) -> None:
        """Print each alarm once, and a note of step 0 once per pair; the report has all notes."""
        for finding in findings:
            note = finding["kind"] == "note"
            if note and finding["found"]:
                continue
            key = (run.pair if note else run, finding["kind"], finding["cause"])
            if key not in self._warned:
                self._warned.add(key)
                mark = "note" if note else "[yellow]warning[/]"
                self._print(f"{mark} {run} {escape(shown(sentence(Finding(**finding))))}")

    def _warn_of_trackers(self, problems: Mapping[str, str]) -> None:
        """Print each tracker's problem once."""
        for tracker, problem in problems.items():
            if tracker not in self._troubled:
                self._troubled.add(tracker)
                self._print(
                    f"[yellow]warning[/] tracker {tracker}, {escape(shown(problem))}; missing "
                    f"metrics are sent later, or by potstill track {self.folder.path}"
                )

    def _print(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, soft_wrap=True)


def _runs(running: Sequence[Running], width: int) -> Table:
    """The running runs, a line each."""
    wide, bars = width >= NARROW, max(4, min(LONGEST, (width - 62) // 2))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    label = _metric(running).label
    for name in ("running", "step", "", label, "score") if wide else ("running", "step", ""):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for run in running:
        alarm = any(finding["kind"] != "note" for finding in run.findings)
        mark = "[yellow]![/] " if alarm else ""
        row: list[RenderableType] = [f"{mark}{run.cell}", f"{run.step}/{run.total or '-'}"]
        if wide:
            row.append(ProgressBar(total=1.0, completed=run.share, width=10))
            row += [progress(run, bars), trend(run.score, bars)]
        else:
            row.append(progress(run, 4))
        table.add_row(*row)
    return table


def _methods(study: Study, snapshot: Snapshot) -> Table | None:
    """Mean result of the runs that are done, by method and pair; None without any."""
    metric = metrics_of(snapshot.results.values())[0]
    levels: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run, result in snapshot.results.items():
        if result["status"] == "done" and (value := metric.of(result)) is not None:
            levels[run.method, run.pair].append(value)
    known = {method for method, _ in levels}
    methods = [method for method in (*REFERENCES, *study.recipes) if method in known]
    if not methods:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("done so far", no_wrap=True)
    for pair in study.models:
        title = f"{pair} %" if metric.share else f"{pair} {metric.label}"
        table.add_column(title, justify="right", no_wrap=True)
    for method in methods:
        means = (_mean(levels.get((method, pair), []), metric) for pair in study.models)
        table.add_row(method, *means)
    return table


def _mean(values: Sequence[float], metric: Metric) -> str:
    if not values:
        return ""
    runs = f" [dim]x{len(values)}[/]" if len(values) > 1 else ""
    return f"{level(sum(values) / len(values), metric)}{runs}"


def money(spent: Spent, expected: Spent | None, price: Price) -> str:
    """Spent so far and expected in all, in dollars where there are prices.

    >>> money(Spent(60.0, {"trained": 2e6}), Spent(600.0, {"trained": 2e7}), Price(hour=6))
    '0.10 of about 1.00 USD · 1 min 00 s of about 10 min 00 s computed · 2 M of about 20 M tokens'
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


def running(study: Study, folder: StudyFolder, runs: Sequence[RunId]) -> list[dict[str, str]]:
    """The running runs as rows of a table."""
    running_now = Watcher(study, folder, runs).look().running
    label = _metric(running_now).label
    return [
        {
            "running": str(run.cell),
            "step": f"{run.step} of {run.total}" if run.total else "-",
            label: progress(run),
            "score": trend(run.score),
            "findings": "; ".join(sentence(Finding(**finding)) for finding in run.findings),
        }
        for run in running_now
    ]


def _metric(runs: Sequence[Running]) -> Metric:
    """The number that the running runs are evaluated by, as far as one has been."""
    return next((run.metric for run in runs if run.levels), ACCURACY)


def progress(run: Running, longest: int = LONGEST) -> str:
    """The evaluations of a run: shares as `trend`, other numbers as the first and the last."""
    if run.metric.share or not run.levels:
        return trend(run.levels, longest)
    ends = [run.levels[0], *run.levels[1:][-1:]]
    return " → ".join(level(value, run.metric) for value in ends)


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
