"""What a number was made with: versions, git revision, machine."""

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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {
        **found,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "revision": _revision(),
    }


def _revision() -> str:
    """Git revision of the source tree that this package runs from, with + where it has changes."""
    here = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        if Path(run("rev-parse", "--show-toplevel")) not in here.parents:
            return "unknown"
        return run("rev-parse", "--short=12", "HEAD") + (
            "+" if run("status", "--porcelain") else ""
        )
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
