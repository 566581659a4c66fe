"""One section of `benchmarks.gpu` in a process of its own: writes results as they come.

    python -m benchmarks.gpu_section MODULE --result FILE --scratch FOLDER --device cuda

MODULE has a function `run(section)`. An exception there is a failure of the section, and what was
written before it is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_page import shortened


class Section:
    """Results of a section and the limits that it has.

    Args:
        result: file that is rewritten with every result.
        scratch: folder for models and studies, shared by the sections.
        device: "cuda" or "cpu".
        tiny: sizes for a test of the command.
        seconds: after which the process is ended.
    """

    def __init__(
        self, result: Path, scratch: Path, device: str, tiny: bool, seconds: float
    ) -> None:
        self.result, self.scratch, self.device, self.tiny = result, scratch, device, tiny
        self._end = time.monotonic() + seconds
        self.blocks: list[dict[str, Any]] = []
        self.failed: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []

    def left(self) -> float:
        """Seconds until the process is ended."""
        return self._end - time.monotonic()

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.blocks.append({"kind": "text", "text": text})
        self.write()

    def table(self, title: str, heads: Sequence[str]) -> Table:
        """Add a table; its rows follow."""
        block = {"kind": "table", "title": title, "heads": list(heads), "rows": []}
        self.blocks.append(block)
        self.write()
        return Table(self, block)

    def fail(self, what: str, why: object) -> None:
        """Report that something is wrong; the section goes on."""
        print(f"FAILED {what}: {why}", flush=True)
        self.failed.append((what, shortened(str(why))))
        self.write()

    def skip(self, what: str, why: str) -> None:
        """Report that something was not run."""
        self.skipped.append((what, why))
        self.write()

    @contextmanager
    def part(self, what: str, least: float = 0.0) -> Iterator[bool]:
        """A part whose exceptions are failures of that part alone; yields whether to run it.

        Args:
            what: its name on the page.
            least: seconds that it needs at least; it is skipped where fewer are left.
        """
        if self.left() < least:
            self.skip(what, f"{self.left():.0f} s were left of this section's time")
            yield False
            return
        try:
            yield True
        except (Exception, SystemExit) as error:  # a child that ends is a SystemExit here
            traceback.print_exc()
            self.fail(what, f"{type(error).__name__}: {error}")

    def write(self) -> None:
        """Write everything, so that a reader never sees half of it."""
        whole = {"blocks": self.blocks, "failed": self.failed, "skipped": self.skipped}
        draft = self.result.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(whole, default=str), encoding="utf-8")
        draft.replace(self.result)


class Table:
    """A table that grows."""

    def __init__(self, section: Section, block: dict[str, Any]) -> None:
        self._section, self._block = section, block

    def row(self, *values: Any) -> None:
        """Add a row."""
        assert len(values) == len(self._block["heads"]), (self._block["heads"], values)
        self._block["rows"].append(list(values))
        print(" | ".join(map(str, values)), flush=True)
        self._section.write()


def options() -> argparse.ArgumentParser:
    """The arguments of a section's process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    return parser


def strict() -> None:
    """Float32 products in float32: TF32 has ten bits, and would hide errors."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def main() -> int:
    args = options().parse_args()
    section = Section(args.result, args.scratch, args.device, args.tiny, args.seconds)
    section.write()
    with section.part("the section"):
        module = importlib.import_module(args.module)
        if "torch" in sys.modules:
            strict()
        module.run(section)
    return 1 if section.failed else 0


if __name__ == "__main__":
    sys.exit(main())
