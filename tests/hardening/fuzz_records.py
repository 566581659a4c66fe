"""Coverage-guided fuzzing of the readers of a study's folder, by atheris.

    python tests/hardening/fuzz_records.py -max_total_time=60 CORPUS

One byte chooses the file, the others are its contents. Anything but a record that keeps the rules
or a `PotstillError` with the path and a hint ends the run with the bytes that caused it.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["potstill.study", "potstill.digests", "json"]):
    from potstill.errors import PotstillError
    from potstill.study.budget import read_spent
    from potstill.study.storage import RunFolder, RunId, StudyFolder
    from potstill.study.tracking.follower import _note_in

PLACE = Path(tempfile.mkdtemp(prefix="potstill-fuzz-"))
STUDY = StudyFolder(PLACE)
RUN = RunFolder(PLACE / "cells" / "p" / "m" / "0", key=RunId("p", "m", 0))
FILES = (
    "result.json",
    "metrics.jsonl",
    "examples.jsonl",
    "findings.json",
    ".running",
    ".spent",
    "note.json",
)


def read(name: str) -> None:
    """Read one file as its users do, and check what it gives."""
    match name:
        case "result.json":
            record = RUN.result or {}
            if "outcomes" in record and record.get("status") == "done":
                values = [float(x) for known in record["outcomes"].values() for x in known]
                assert all(map(math.isfinite, values))
                assert record.get("accuracy") is None or 0 <= record["accuracy"] <= 1
        case "metrics.jsonl":
            steps = [row["step"] for row in RUN.metrics]
            assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True
        case "examples.jsonl":
            assert all(isinstance(row, dict) for row in RUN.texts)
        case "findings.json":
            assert all(finding["kind"] for finding in RUN.findings)
        case ".running":
            assert RUN.running is None or RUN.running["pid"] > 0
        case ".spent":
            assert read_spent(RUN.path / name).get("seconds", 0) >= 0
        case "note.json":
            note = _note_in(RUN.path / name)
            assert note is None or note.sent >= -1
        case "predicted.json":
            assert all(cost.seconds >= 0 for by in STUDY.predicted.values() for cost in by.values())
        case "study.toml":
            assert STUDY.study.name


def one(data: bytes) -> None:
    RUN.path.mkdir(parents=True, exist_ok=True)
    names = (*FILES, "predicted.json", "study.toml")
    name = names[data[0] % len(names)] if data else FILES[0]
    path = (RUN.path if name in FILES else PLACE) / name
    path.write_bytes(data[1:])
    try:
        read(name)
    except PotstillError as error:
        assert name in str(error) and error.hint
    finally:
        path.unlink()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
