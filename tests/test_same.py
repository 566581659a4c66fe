"""The comparison of two revisions' numbers sees what differs, and only that."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from benchmarks.same import differences, main


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    run = tmp_path / "old" / "cells" / "pair" / "method" / "0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "x": 1}\n')
    record = {"accuracy": 0.5, "outcomes": {"strict": "01"}, "seconds": 3.0, "tokens": {"x": 1}}
    (run / "result.json").write_text(json.dumps(record))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    return tmp_path / "old", tmp_path / "new"


def change(new: Path, **fields: object) -> None:
    (path,) = new.rglob("result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_equal_numbers_and_other_clocks_are_the_same(folders: tuple[Path, Path]) -> None:
    change(folders[1], seconds=9.0)
    assert list(differences(*folders)) == []


def test_other_outcomes_metrics_and_missing_files_are_named(folders: tuple[Path, Path]) -> None:
    old, new = folders
    change(new, outcomes={"strict": "11"}, tokens={"x": 2})
    lines = list(differences(old, new))
    assert len(lines) == 2 and "outcomes" in lines[0] and "tokens" in lines[1]
    assert len(list(differences(old, new, ["tokens", "outcomes"]))) == 0
    (metrics,) = new.rglob("metrics.jsonl")
    metrics.write_text(metrics.read_text().replace("0.5", "0.50000001"))
    assert "step 1 differs in train/loss" in next(iter(differences(old, new)))
    metrics.unlink()
    assert next(iter(differences(old, new))).endswith("metrics.jsonl: missing")


def test_nothing_to_compare_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]
) -> None:
    (tmp_path / "empty").mkdir()
    for old, code in ((tmp_path / "empty", 1), (folders[0], 0)):
        monkeypatch.setattr(sys, "argv", ["same", str(old), str(folders[1])])
        assert main() == code
