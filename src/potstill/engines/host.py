"""Facts about the current process and its machine."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path


def one_of_several() -> bool:
    """Return whether torchrun started this process as one of several that share an engine."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def free_host_memory() -> int:
    """Return the bytes that this process can still use: of the machine, and of its container."""
    unit = os.sysconf("SC_PAGE_SIZE")
    free = [os.sysconf("SC_AVPHYS_PAGES") * unit]
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if "Available" in x)
        free = [int(line.split()[1]) * 1024]
    with contextlib.suppress(OSError, ValueError):  # the container's limit, if it has one
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    return max(0, min(free))


def host_memory() -> tuple[int, int]:
    """Return the peak resident bytes of this process and the memory bytes of the machine."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
