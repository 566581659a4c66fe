"""One command for a machine with an NVIDIA GPU: what works there, and how fast, on one page.

    make gpu                                  # at most 9 minutes; writes runs/gpu/page.md
    make gpu ARGS="--only decoder training --minutes 4"
    PYTHONPATH=src python3 -m benchmarks.gpu

Needs torch with CUDA and no network. Each section is a process with its own share of the time; one
that fails or takes too long is reported, and the next one begins. The page is rewritten while the
sections run. Without a GPU it runs on the CPU with tiny sizes, to test the command itself. The exit
code is 1 if any section failed. This module needs nothing but Python, so that a missing package is
a line on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu_packages as packages
from benchmarks.gpu_page import FAILED, PASSED, RUNNING, SKIPPED, Heading, Result, page

ROOT = Path(__file__).parents[1]
MINUTES = 9.0
REWRITE = 5.0  # seconds between two versions of the page while a section runs
LEAST = 5.0  # seconds below which a section is not started
SPARE = 3.0  # seconds of the total for the last page


@dataclass(frozen=True)
class Plan:
    """A section: a module with a function `run`, and its share of the time."""

    name: str
    title: str
    module: str
    weight: float


PLANS = (
    Plan("machine", "The machine", "benchmarks.gpu_machine", 5),
    Plan("contract", "The engine contract", "benchmarks.gpu_contract", 9),
    Plan("families", "Families of models in bfloat16", "benchmarks.gpu_families", 12),
    Plan("decoder", "The fast decoder against the plain one", "benchmarks.gpu_decoder", 10),
    Plan("training", "Training: all weights and LoRA", "benchmarks.gpu_training", 10),
    Plan("study", "A short study", "benchmarks.gpu_study", 14),
    Plan("bench", "potstill bench", "benchmarks.gpu_bench", 7),
    Plan("trl", "A step next to TRL's", "benchmarks.gpu_trl", 6),
    Plan("memory", "Memory against the estimate", "benchmarks.gpu_memory", 6),
)


@dataclass
class Book:
    """The page while it is written.

    Args:
        out: folder of page.md and log.txt.
        minutes: limit of the whole command.
        device: "cuda" or "cpu".
        tiny: sizes for a test of the command.
        card: for the title.
    """

    out: Path
    minutes: float
    device: str
    tiny: bool
    card: str
    facts: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def write(self) -> None:
        """Rewrite the page, so that a reader never sees half of it."""
        heading = Heading(self.card, self.facts, (self.used / 60, self.minutes), self.tiny)
        draft = self.out / "page.md.draft"
        draft.write_text(page(heading, self.results), encoding="utf-8")
        draft.replace(self.out / "page.md")


def run_all(plans: Sequence[Plan], book: Book, scratch: Path) -> None:
    """Run the sections in turn; each may use its share of what is left."""
    book.results = [Result(plan.name, plan.title) for plan in plans]
    for i, (plan, result) in enumerate(zip(plans, book.results, strict=True)):
        left = book.minutes * 60 - SPARE - book.used
        share = plan.weight / sum(later.weight for later in plans[i:])
        result.limit = max(0.0, left * share)
        if result.limit < LEAST:
            result.status = SKIPPED
            result.skipped.append(["the section", f"{max(left, 0):.0f} s of the time were left"])
        else:
            run_one(plan, result, book, scratch)
        print(f"{plan.title}: {result.status}, {result.seconds:.0f} s", flush=True)
        book.write()


def run_one(plan: Plan, result: Result, book: Book, scratch: Path) -> None:
    """Run a section in its own process group, and end it at its limit."""
    file = scratch / f"{plan.name}.json"
    words = [sys.executable, "-m", "benchmarks.gpu_section", plan.module, "--result", str(file)]
    words += ["--scratch", str(scratch), "--device", book.device]
    words += ["--seconds", f"{max(1.0, result.limit - 2):.1f}", *(["--tiny"] if book.tiny else [])]
    begin, result.status = time.monotonic(), RUNNING
    with (book.out / "log.txt").open("ab") as log:
        log.write(f"\n===== {plan.title}: {shlex.join(words)}\n".encode())
        log.flush()
        where = {"cwd": ROOT, "env": environment(), "stdout": log, "stderr": log}
        process = subprocess.Popen(words, start_new_session=True, **where)  # type: ignore[call-overload]
        with ended(process):
            while (left := result.limit - (time.monotonic() - begin)) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, REWRITE))
                result.seconds = time.monotonic() - begin
                result.read(file)
                if process.returncode is not None:
                    break
                book.write()
    result.read(file)
    conclude(result, process.returncode if left > 0 else None)


def conclude(result: Result, code: int | None) -> None:
    """Set a section's status from its results and its process's exit code; None: out of time."""
    if code is None:
        result.failed.append(["time", f"not finished after {result.limit:.0f} s, and ended"])
    elif code and not result.failed:
        result.failed.append(["process", f"it ended with exit code {code}; log.txt has its output"])
    rows = any(block.get("rows") for block in result.blocks)
    whole = [what for what, _ in result.skipped] == ["the section"]
    result.status = FAILED if result.failed else SKIPPED if whole and not rows else PASSED


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process and all that it started, however the block ends."""
    try:
        yield
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)


def environment() -> dict[str, str]:
    """The environment of a section: this checkout, no network, float32 without TF32."""
    paths = [str(ROOT / "src"), str(ROOT), str(packages.SITE), os.environ.get("PYTHONPATH", "")]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    return {
        **os.environ,
        **offline,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NVIDIA_TF32_OVERRIDE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_HUB_KERNELS": "NO",
        "WANDB_MODE": "disabled",
    }


def card_of(device: str) -> tuple[str, str]:
    """The device to use and the name of its card, from torch in a process of its own."""
    code = (
        "import torch\n"
        "there = torch.cuda.is_available()\n"
        "print('cuda' if there else 'cpu')\n"
        "print(torch.cuda.get_device_name() if there else '')\n"
    )
    words = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=environment(), check=True, timeout=180
        )
        kind, name, *_ = [*done.stdout.splitlines(), "", ""]
    except (subprocess.SubprocessError, OSError) as error:
        print(f"torch cannot be asked for a GPU: {error}", flush=True)
        kind, name = "cpu", ""
    if device == "auto":
        device = kind or "cpu"
    if device == "cuda" and kind != "cuda":
        raise SystemExit("error: --device cuda needs a GPU, and torch finds no GPU here")
    return device, f"one {name}" if device == "cuda" and name else "a CPU (no GPU was used)"


def commit() -> str:
    """The revision of this checkout; a copy without .git has none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    return "unknown (not a git checkout)"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [plan.name for plan in PLANS]
    parser.add_argument("--minutes", type=float, default=MINUTES, help="limit of the whole")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; always so on a CPU")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION")
    parser.add_argument("--wheels", type=Path, default=packages.WHEELS, help="folder of wheels")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else list(words)
    args, begin = arguments(given), time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.txt").unlink(missing_ok=True)
    sys.path[:0] = [str(packages.SITE)]
    said = packages.install(args.wheels, packages.SITE) if args.wheels.is_dir() else ""
    print(said, end="\n" if said else "", flush=True)
    plans = [plan for plan in PLANS if plan.name in args.only]
    lacking = packages.missing(packages.REQUIRED)
    device, card = ("cpu", "an unknown device") if "torch" in lacking else card_of(args.device)
    book = Book(args.out, args.minutes, device, args.tiny or device == "cpu", card, start=begin)
    now = datetime.datetime.now(datetime.UTC)
    book.facts = {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "command": f"`{' '.join(['python -m benchmarks.gpu', *map(shlex.quote, given)])}`",
        "Python": f"{sys.version.split()[0]}, {sys.executable}",
    }
    if said:
        book.facts["packages"] = said
    if lacking:
        reason = packages.advice(lacking)
        book.results = [Result(p.name, p.title, SKIPPED) for p in plans]
        book.results.insert(0, Result("packages", "Packages", FAILED, failed=[["import", reason]]))
        book.write()
        print(f"error: {reason}", file=sys.stderr)
        return 1
    scratch = Path(tempfile.mkdtemp(prefix="potstill-gpu-"))
    try:
        run_all(plans, book, scratch)
    finally:
        book.write()
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{book.out / 'page.md'}")
    return 1 if any(result.status == FAILED for result in book.results) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the section that runs
    sys.exit(main())
