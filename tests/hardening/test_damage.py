"""A study's folder with one damaged file: right numbers, or a refusal that names the file."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from damage import WAYS, Folder, Said, outcome

SECONDS = 30  # for one command, which takes a second


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("damage"))


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Fail what hangs, such as a read of a pipe that nobody writes."""

    def hang(*_: Any) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def faults_of(folder: Folder, numbers: range) -> list[str]:
    counts: Counter[str] = Counter()
    faults = []
    for number in numbers:
        with limited(f"case {number}"):
            for title, how, text in folder.case(number):
                counts[how] += 1
                if how not in ("right", "refused"):
                    faults.append(f"{how}: {title}\n{text[-600:]}")
    print(dict(counts))
    assert counts["refused"] > len(numbers) / 10 and counts["right"] > len(numbers) / 10
    return faults


def test_a_sample_is_right_or_refused(folder: Folder) -> None:
    assert len(WAYS) >= 20 and len(folder.files) >= 25
    assert faults_of(folder, range(14)) == []


@pytest.mark.slow
def test_a_thousand_are_right_or_refused(folder: Folder) -> None:
    assert faults_of(folder, range(14, 1014)) == []


def test_outcomes_are_told_apart() -> None:
    right = Said(0, "table", "")
    said = 'error: "x/cells/a/b/0/metrics.jsonl" is damaged\nhint: remove the folder'
    name = "cells/a/b/0/metrics.jsonl"
    assert outcome(right, 1, right, 1, name) == "right"
    assert outcome(right, 2, right, 1, name) == "wrong"
    assert outcome(Said(1, "", ""), 1, right, 1, name) == "wrong"
    assert outcome(Said(2, "", said), None, right, 1, name) == "refused"
    assert outcome(Said(2, "", said), None, right, 1, "predicted.json") == "unnamed"
    assert outcome(Said(2, "", "error: \nhint: "), None, right, 1, name) == "unnamed"
    assert outcome(Said(None, "", "Traceback"), None, right, 1, name) == "traceback"
