"""The progress of pre-flight: lines without a terminal, a drawing that is removed in one."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from conftest import toy_table
from potstill.cli.app import app
from potstill.cli.checking import CheckView
from potstill.diagnostics.preflight import Check, Progress
from potstill.study.executors.local import LocalExecutor
from potstill.study.loading import read_study

FINE, BROKEN = Check("sampler", "passed", "fine"), Check("steps", "refused", "broken")


def lines(file: io.StringIO) -> list[str]:
    return [line for line in file.getvalue().splitlines() if line.strip()]


def test_without_a_terminal_each_check_is_a_line() -> None:
    file = io.StringIO()
    with CheckView(Console(file=file, width=50)) as view:
        view("qwen", Progress("sampler"))
        view("qwen", Progress("sampler", [FINE], 0.31))
        view("qwen", Progress("context", [], 0.1))  # has nothing to check
        view("qwen", Progress("identity", [FINE], kept=True))
        view("qwen", Progress("steps of hybrid"))
        view("qwen", Progress("steps of hybrid", [FINE, BROKEN], 12.0))
    assert lines(file) == [
        "pre-flight of qwen: sampler: passed (0.3 s)",
        "pre-flight of qwen: identity: passed (kept)",
        "pre-flight of qwen: steps of hybrid: refused (12.0 s)",
    ]


def test_a_slow_check_is_a_line_before_it_ends() -> None:
    file = io.StringIO()
    with CheckView(Console(file=file), slow=0.01) as view:
        view("qwen", Progress("fresh sampler"))
        for _ in range(200):
            if lines(file):
                break
            time.sleep(0.01)
        assert lines(file) == ["pre-flight of qwen: fresh sampler ..."]
        view("qwen", Progress("fresh sampler", [FINE], 3.0))
    assert lines(file)[1:] == ["pre-flight of qwen: fresh sampler: passed (3.0 s)"]


def test_a_terminal_shows_as_many_checks_as_it_has_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=5)
    with CheckView(console) as view:
        for number in range(9):
            view("qwen", Progress(f"check {number}", [FINE], 1.0))
        view("qwen", Progress("fresh sampler"))
        shown = io.StringIO()
        Console(file=shown, width=60, height=5).print(view)
    assert lines(shown) == [
        *(f"pre-flight of qwen: check {number}: passed (1.0 s)" for number in (6, 7, 8)),
        "pre-flight of qwen: fresh sampler, 0 s",
    ]


def test_the_executor_reports_the_checks_of_its_process(tmp_path: Path) -> None:
    study = read_study(toy_table(tmp_path, methods=["off_policy"]))
    events: list[tuple[str, Progress]] = []
    checks = LocalExecutor().preflight(
        study, lambda pair, progress: events.append((pair, progress))
    )
    assert {pair for pair, _ in events} == {"toy"}
    ended = [progress for _, progress in events if progress.results is not None]
    assert len(ended) * 2 == len(events)
    assert {check.name for p in ended[1:] for check in p.results or ()} == {
        check.name for check in checks["toy"]
    }


@pytest.mark.slow
def test_a_second_check_uses_what_the_first_one_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Through the executor's own process; --repeat makes every check again."""
    words = ["check", "pairs=tiny-llama", "methods=off_policy", "train.steps=5", "eval.problems=4"]
    shown = []
    for options in ([], [], ["--repeat"]):
        app([*words, *options], standalone_mode=False)
        out, err = capsys.readouterr()
        shown.append((out.count("kept from"), err.count("(kept)")))
    first, second, third = shown
    assert first == third == (0, 0)
    assert second[0] >= 8 and second[1] >= 8
