"""Is a process of this machine that a file names still there?"""

from __future__ import annotations

import os
from pathlib import Path


def started_at(pid: int) -> str:
    """When a process began, in the system's own units; empty where the system does not say.

    It tells a process from a later one that was given the same number.
    """
    return (_state(pid) or [""] * 20)[19]


def is_alive(pid: int, started: str = "") -> bool:
    """True unless the process is known to be gone.

    Args:
        pid: its number.
        started: what `started_at` said when it was there; empty if that is not known.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    state = _state(pid)
    if not state:
        return True
    return state[0] != "Z" and started in ("", state[19])  # Z: ended, and not collected yet


def _state(pid: int) -> list[str]:
    """The fields of a process after its name, from Linux' /proc; empty elsewhere."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
