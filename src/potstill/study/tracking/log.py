"""The log of a tracker's process: everything that its library prints, without secrets.

A library prints the addresses that it cannot reach, from Python, from C and from processes of its
own. Therefore the file descriptors themselves lead through a thread that cuts secrets out of each
line.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from potstill.urls import without_secrets

PATIENCE = 2.0  # seconds for the last lines; a process that was left behind may keep the pipe open


@contextmanager
def without_secrets_in_log() -> Iterator[None]:
    """Cut secrets out of stdout and stderr while the block runs, and of its traceback."""
    log = os.dup(1)
    reading, writing = os.pipe()
    thread = threading.Thread(target=_copy, args=(reading, log), daemon=True)
    _lead_to(writing)
    os.close(writing)
    thread.start()
    failed = False
    try:
        yield
    except Exception:
        traceback.print_exc()
        failed = True
    finally:
        _lead_to(log)
        thread.join(PATIENCE)
    if failed:
        raise SystemExit(1)


def _lead_to(place: int) -> None:
    """Lead stdout and stderr to another file descriptor."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(place, number)


def _copy(source: int, log: int) -> None:
    with open(source, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            os.write(log, without_secrets(line).encode("utf-8", "backslashreplace"))
