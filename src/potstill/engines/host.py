"""Facts about the process and the machine that an engine runs in."""

from __future__ import annotations

import os
import resource
import sys


def one_of_several() -> bool:
    """Whether torchrun started this process, as one of those that are one engine together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def host_memory() -> tuple[int, int]:
    """Peak resident bytes of this process, and bytes of memory that the machine has."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
