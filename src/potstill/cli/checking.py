"""The live view of pre-flight: the checks that have ended, and the one that runs.

In a terminal it draws as many lines as there is room for and removes them at the end. Without one
it prints a line when a check ends, and one when it has been running for a while.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from potstill.cli.terminal import printable
from potstill.diagnostics.preflight import Progress

SLOW = 2.0  # seconds after which a line says that a check is running
COLORS = {"passed": "green", "warning": "yellow", "refused": "red"}


class CheckView:
    """Progress of the pre-flight of a study, drawn to stderr.

    Use as a context manager, and call it with each pair and progress.

    Args:
        console: default: stderr.
        slow: seconds of a check after which it is printed that it runs, without a terminal.
    """

    def __init__(self, console: Console | None = None, slow: float = SLOW) -> None:
        self.console, self._slow = console or Console(stderr=True), slow
        self._ended: list[Text] = []
        self._running, self._since = "pre-flight", time.monotonic()
        self._timer: threading.Timer | None = None
        self._live = Live(
            self, console=self.console, auto_refresh=True, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> CheckView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancel()
        self._live.stop()

    def __call__(self, pair: str, progress: Progress) -> None:
        self._cancel()
        name = printable(f"pre-flight of {pair}: {progress.name}")
        if progress.results is None:
            self._running, self._since = name, time.monotonic()
            if not self.console.is_terminal:
                self._timer = threading.Timer(self._slow, self._print, [f"{name} ..."])
                self._timer.daemon = True
                self._timer.start()
        elif progress.results:
            took = "kept" if progress.kept else f"{progress.seconds:.1f} s"
            self._ended.append(
                Text.assemble(f"{name}: ", (progress.status, COLORS[progress.status]), f" ({took})")
            )
            if not self.console.is_terminal:
                self._print(self._ended[-1])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The drawing: the last checks, and the running one with its seconds."""
        room = max(0, console.size.height - 2)
        yield from self._ended[-room:] if room else ()
        yield Text(f"{self._running}, {time.monotonic() - self._since:.0f} s", style="dim")

    def _cancel(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _print(self, line: str | Text) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
