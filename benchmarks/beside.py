"""Side by side: child processes that do the same work and take turns.

A child is a module that reads one JSON request a line and answers with one; it holds its models
between requests, so that only the work is timed. A peer's children run in a virtual environment
that is made on first use, beside this one and with the same versions of torch and transformers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRL = "trl==1.16.0"


def trl_python(folder: Path = ROOT / "runs" / "trl") -> str:
    """The interpreter of TRL's environment, made now if it is not there."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"setting up {TRL} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pins = str(ROOT / "constraints.txt")
        words = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            pins,
            TRL,
            "torch",
            "transformers",
        ]
        subprocess.run(words, check=True)
        ready.touch()
    return str(python)


class Child:
    """A process that answers requests."""

    def __init__(self, python: str, module: str, job: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [python, "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.module = module
        self.send(job)

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process.stdout
        self.send(request)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.module} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.kill()
        with self.process:  # closes its pipes and waits
            pass


Work = Callable[[dict[str, Any]], dict[str, Any]]


def serve(begin: Callable[[dict[str, Any]], Work]) -> None:
    """A child's main: the job on its first line, then requests; answers alone go to stdout."""
    out, sys.stdout = sys.stdout, sys.stderr
    work = begin(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), file=out, flush=True)


def peak_memory(device: str = "cpu") -> int:
    """Most bytes of tensors on a GPU, or most resident bytes that this process has had (Linux)."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range.

    >>> spread([1.0, 3.0, 2.0])
    '2.00 (1.00 to 3.00)'
    """
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
