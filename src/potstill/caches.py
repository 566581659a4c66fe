"""The user's cache of potstill: pre-flight results, digests of large files, converted data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A folder in POTSTILL_CACHE, or in potstill of the user's cache; None without a home."""
    if own := os.environ.get("POTSTILL_CACHE"):
        return Path(own).expanduser() / name
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(cache) / "potstill" / name
