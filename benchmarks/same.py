"""Do two revisions give the same numbers? Compares the runs of two study folders.

    python -m benchmarks.same OLD NEW [--leave-out tokens flops]

Metrics have to be equal byte for byte, and records field by field, except for clocks, memory and
provenance. It exits with 1 where anything differs, and where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

CLOCKS = frozenset({"seconds", "activity", "saved", "peak_bytes", "devices", "provenance"})


def differences(old: Path, new: Path, leave_out: Collection[str] = ()) -> Iterator[str]:
    """One line for each file of `old` that is missing in `new` or differs.

    Args:
        old: a study's folder, or a folder of several.
        new: the same of another revision.
        leave_out: fields of records that are meant to differ.
    """
    for path in files(old):
        name = path.relative_to(old)
        if not (new / name).exists():
            yield f"{name}: missing"
        elif path.name == "result.json":
            yield from _records(name, path, new / name, leave_out)
        elif path.read_bytes() != (new / name).read_bytes():
            yield f"{name}: {_first_row(path, new / name)}"


def files(folder: Path) -> list[Path]:
    """Metrics and records of every run."""
    return sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("result.json")])


def _records(name: Path, old: Path, new: Path, leave_out: Collection[str]) -> Iterator[str]:
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    for key in sorted({*before, *after} - CLOCKS - {*leave_out}):
        if before.get(key) != after.get(key):
            yield f"{name}: {key}: {_short(before.get(key))} -> {_short(after.get(key))}"


def _first_row(old: Path, new: Path) -> str:
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (old, new))
    for a, b in zip(before, after, strict=False):
        if a != b:
            x, y = json.loads(a), json.loads(b)
            keys = [key for key in {**x, **y} if x.get(key) != y.get(key)]
            return f"step {x.get('step')} differs in {', '.join(keys) or 'the order of its keys'}"
    return f"{len(before)} rows -> {len(after)} rows"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--leave-out", nargs="*", default=[], help="fields meant to differ")
    options = parser.parse_args()
    lines = list(differences(options.old, options.new, options.leave_out))
    print(*lines, sep="\n", end="\n" if lines else "")
    count = len(files(options.old))
    print(f"{count} files compared, {len(lines)} differences")
    return int(bool(lines) or not count)


if __name__ == "__main__":
    sys.exit(main())
