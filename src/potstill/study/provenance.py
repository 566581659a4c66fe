"""Provenance of a result: package versions, git revision, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "peft", "numpy", "scipy")


@lru_cache(1)
def provenance() -> dict[str, str]:
    """Versions, revision and hardware as text."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "revision": _revision(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=5,
        check=True,
    )
    return done.stdout.strip()


def _revision() -> str:
    """Git revision of the source tree that potstill runs from; "+" marks uncommitted changes."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) not in Path(__file__).parents:
            return "unknown"
        changed = "+" if _git("status", "--porcelain") else ""
        return _git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
