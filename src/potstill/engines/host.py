"""Facts about the current process and its machine."""

from __future__ import annotations

import os
import resource
import sys


def one_of_several() -> bool:
    """Return whether torchrun started this process as one of several that share an engine."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def host_memory() -> tuple[int, int]:
    """Return the peak resident bytes of this process and the memory bytes of the machine."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
