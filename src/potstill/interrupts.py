"""Ctrl-C that is not lost: a library's callback may swallow the exception that it raises."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupts:
    """A handler of SIGINT that raises `KeyboardInterrupt` and remembers that it did."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        raise KeyboardInterrupt


def check_interrupts() -> None:
    """Raise an interrupt that was swallowed; for loops that wait."""
    if getattr(signal.getsignal(signal.SIGINT), "raised", False):
        raise KeyboardInterrupt
