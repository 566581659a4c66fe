"""Texts that are like the teacher's and no better than before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from potstill.report import as_markdown, as_text, trap, write_report
from potstill.report.data import load
from potstill.report.reading import caveats
from potstill.report.stats import Difference, Interval
from potstill.study.storage import Cell, StudyFolder
from studies import small_study, write_study

HALF = Interval(0.5, 0.45, 0.55)
LIKE = trap.Likeness(
    "p", "m", HALF, HALF, Difference(0.01, -0.02, 0.04, 0.5), (0.95, 0.9, 1.0), None, None
)


@pytest.mark.parametrize(
    ("changes", "trapped"),
    [
        ({}, True),
        ({"gain": Difference(-0.4, -0.5, -0.3, 0.001)}, True),
        ({"gain": Difference(0.1, 0.05, 0.15, 0.001)}, False),
        ({"score": (0.7, 0.6, 0.8)}, False),
        ({"score": None}, False),
        ({"gain": None}, False),
    ],
)
def test_alike_without_a_clear_gain_is_a_trap(changes: dict, trapped: bool) -> None:
    one = replace(LIKE, **changes)
    assert one.trapped == trapped
    assert len(trap.lines([one])) == trapped


def test_the_words_and_the_table_hold_the_numbers() -> None:
    (line,) = trap.lines([LIKE])
    assert "p m" in line and "0.95 (0.90 to 1.00)" in line and "+1.0 (-2.0 to +4.0)" in line
    text = trap.to_markdown([replace(LIKE, format=(1.0, 1.0, 1.0), kl=(0.1, 0.05, 0.2))])
    assert text.splitlines()[2] == (
        "| p | `m` | 50.0 (45.0 to 55.0) | 50.0 (45.0 to 55.0) | +1.0 (-2.0 to +4.0) | "
        "0.95 (0.90 to 1.00) | 0.100 (0.050 to 0.200) | 100.0 |"
    )
    assert trap.to_markdown([]) == ""


def scored(folder: StudyFolder, cells: list[Cell], score: float) -> None:
    """Write a similarity into the last row of each cell's metrics."""
    for cell in cells:
        place = folder.cell(cell)
        last = {**place.metrics[-1], "eval/avg_score": score, "eval/format": 1.0}
        place.rewind(last["step"] - 1)
        place.record(last, None)


def test_a_report_says_it_wherever_it_is_read(tmp_path: Path) -> None:
    """Texts alike in both methods: the one that lost accuracy is named, the other is not."""
    methods = ["reverse_curriculum", "on_policy_gkd"]
    study = small_study(pairs=["tiny-context"], methods=methods, eval={"problems": 200})
    folder = write_study(tmp_path / "study", study)
    cells = [Cell("tiny-context", method, seed) for method in methods for seed in (0, 1)]
    scored(folder, cells, 0.95)
    report = write_report(folder.path)
    told = [line for line in report.remarks if line.startswith("Alike is not able")]
    assert len(told) == 1 and "reverse_curriculum" in told[0]
    assert any("ceiling" in line for line in report.remarks)
    for text in (as_text(report), as_markdown(report)):
        assert told[0] in text
    assert "| tiny-context | `on_policy_gkd` |" in as_markdown(report)
    assert set(report.remarks) <= set(caveats(load(folder.path)))
    assert "Alike is not able" in report.html.read_text(encoding="utf-8")


def test_a_study_without_contexts_and_scores_prints_what_it_did(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", small_study())
    report = write_report(folder.path)
    assert not report.remarks and not report.likeness
    (first, *_) = trap.measured(load(folder.path))
    assert first.score is None and first.kl is not None and not first.trapped
