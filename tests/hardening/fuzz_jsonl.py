"""Coverage-guided fuzzing of the reader of JSON Lines, by atheris.

    python tests/hardening/fuzz_jsonl.py -max_total_time=60 CORPUS

The file that is read has the fuzzer's bytes. Anything but rows of text or a `PotstillError` with
the path and a hint ends the run with the bytes that caused it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["potstill.tasks", "json"]):
    from potstill.errors import PotstillError
    from potstill.tasks.jsonl import Jsonl, read_jsonl

KEYS = ("question", "answer")
PATH = Path(tempfile.mkdtemp(prefix="potstill-fuzz-")) / "data.jsonl"


def one(data: bytes) -> None:
    """Read one file; the task reads it too, with numeric answers."""
    PATH.write_bytes(data)
    try:
        rows = read_jsonl(PATH, KEYS)
        for row in rows:
            assert all(isinstance(row[key], str) and row[key].strip() for key in KEYS)
            row["question"].encode()
        task = Jsonl(train_path=str(PATH), test_path=str(PATH), match="numeric")
        for problem in task.train:
            assert task.grade(problem, f"#### {problem.answer}").format is not None
    except PotstillError as error:
        assert str(PATH) in str(error) and error.hint


atheris.Setup(sys.argv, one)
atheris.Fuzz()
