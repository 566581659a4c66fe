"""One command for a machine with an NVIDIA GPU: everything that was only run on a CPU, on one page.

    make gpu                       or, without a network, with any Python that has torch:
    PYTHONPATH=src python -m benchmarks.gpu [--minutes 9] [--device cuda] [--out runs/gpu]

Each section runs in a process of its own, within its share of the time, so that one that fails or
takes too long is reported and the others go on. The page is written after each section. Without a
GPU it runs on the CPU, with tiny models, and says so. The sections are in `gpu_sections`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each section with its title and its share of the time. Families are last: they take what is left.
SECTIONS: dict[str, tuple[str, float]] = {
    "machine": ("The machine", 0.5),
    "contract": ("The engine's contract", 2.0),
    "decoder": ("The fast decoder and the plain one", 1.5),
    "training": ("A step: all weights and LoRA, memory", 1.5),
    "study": ("A short study", 2.0),
    "bench": ("potstill bench", 1.0),
    "trl": ("The step next to TRL's", 1.0),
    "families": ("Model families", 3.0),
}
NEEDED = ("torch", "transformers", "peft", "safetensors", "pydantic", "typer", "scipy")


@dataclass(frozen=True)
class Section:
    """What a section printed, and how it ended."""

    title: str
    text: str
    seconds: float
    failed: str = ""  # the reason; empty: it ended well


def run(name: str, device: str, limit: float, work: Path) -> Section:
    """Run one section in a process, for at most `limit` seconds."""
    title, start = SECTIONS[name][0], time.perf_counter()
    words = [
        sys.executable,
        "-u",
        "-m",
        "benchmarks.gpu_sections",
        name,
        device,
        str(work),
        str(limit),
    ]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    reason = ""
    try:
        out, err = process.communicate(timeout=limit)
        if process.returncode:
            lines = [line for line in err.strip().splitlines() if line.strip()]
            reason = f"exit code {process.returncode}: {lines[-1][:300] if lines else 'no message'}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, _ = process.communicate()
        reason = f"not done after {limit:.0f} s"
    return Section(title, out.strip(), time.perf_counter() - start, reason)


def page(card: str, words: Sequence[str], sections: Sequence[Section], left: Sequence[str]) -> str:
    """The page in Markdown.

    Args:
        card: name of the device.
        words: the command.
        sections: those that have run.
        left: titles of those that have not.
    """
    failed = [section.title for section in sections if section.failed]
    state = f"{len(sections) - len(failed)} of {len(sections)} sections passed"
    if left:
        state += f"; not run: {', '.join(left)}"
    lines = [f"# potstill on {card}", ""]
    lines += [f"`{' '.join(words)}`, {time.strftime('%Y-%m-%d')}: {state}.", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.failed:
            lines += [f"**Failed**: {section.failed}", ""]
        lines += [section.text or "Nothing was printed.", "", f"{section.seconds:.0f} s", ""]
    return "\n".join(lines)


def limit_of(names: Sequence[str], seconds: float) -> float:
    """The seconds that the first of some sections may take: twice its share of those left.

    Sections rarely need their share; what one leaves is the next ones', the last one's in the end.
    """
    share = SECTIONS[names[0]][1] / sum(SECTIONS[name][1] for name in names)
    return max(1.0, seconds * min(1.0, max(2 * share, 0.1)))


def found(device: str) -> tuple[str, str]:
    """The device to use and its name."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device, "a CPU, without a GPU"
    if not torch.cuda.is_available():
        raise SystemExit("error: torch finds no GPU. hint: --device cpu runs the tiny sizes")
    return device, torch.cuda.get_device_name(0)


def main(words: Sequence[str] | None = None) -> None:
    """Run the sections and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of page.md")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="in all")
    parser.add_argument("--only", nargs="*", default=[*SECTIONS], choices=[*SECTIONS])
    args = parser.parse_args(words)
    missing = [name for name in NEEDED if not _there(name)]
    if missing:
        raise SystemExit(
            f"error: this Python lacks {', '.join(missing)}. hint: pip install . from the clone, "
            "or use a Python that has them (make gpu PYTHON=...)"
        )
    device, card = found(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + 60 * args.minutes
    sections: list[Section] = []
    command = ["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if words is None else words)]
    for index, name in enumerate(args.only):
        share = limit_of(args.only[index:], end - time.perf_counter())
        print(f"{SECTIONS[name][0]}: at most {share:.0f} s", file=sys.stderr, flush=True)
        sections.append(run(name, device, share, args.out.resolve()))
        left = [SECTIONS[other][0] for other in args.only[index + 1 :]]
        text = page(card, command, sections, left)
        (args.out / "page.md").write_text(text, encoding="utf-8")
    print(text)
    if any(section.failed for section in sections):
        raise SystemExit(1)


def _there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


if __name__ == "__main__":
    main()
