"""Similarity check: completions like the teacher's that are no better than before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from potstill.report import as_markdown, sentences, write_report
from potstill.report.data import load
from potstill.report.similarity import Similarity, similarities
from potstill.report.summary import trust
from potstill.report.tables.more import similarity_markdown
from potstill.stats.comparisons import Difference, Interval
from potstill.study.storage import RunId, StudyFolder
from studies import rewrite, small_study, write_study

HALF = Interval(0.5, 0.45, 0.55)
LIKE = Similarity(
    "p", "m", HALF, HALF, Difference(0.01, -0.02, 0.04, 0.5), Interval(0.95, 0.9, 1.0), None, None
)


@pytest.mark.parametrize(
    ("changes", "misleading"),
    [
        ({}, True),
        ({"gain": Difference(-0.4, -0.5, -0.3, 0.001)}, True),
        ({"gain": Difference(0.1, 0.05, 0.15, 0.001)}, False),
        ({"score": Interval(0.7, 0.6, 0.8)}, False),
        ({"score": None}, False),
        ({"gain": None}, False),
    ],
)
def test_similar_without_a_clear_gain_is_misleading(changes: dict, misleading: bool) -> None:
    assert replace(LIKE, **changes).misleading == misleading


def test_the_table_holds_the_numbers() -> None:
    text = similarity_markdown(
        [replace(LIKE, format=Interval(1.0, 1.0, 1.0), kl=Interval(0.1, 0.05, 0.2))]
    )
    assert text.splitlines()[2] == (
        "| p | `m` | 50.0 (45.0 to 55.0) | 50.0 (45.0 to 55.0) | +1.0 (−2.0 to +4.0) | "
        "0.95 (0.90 to 1.00) | 0.100 (0.050 to 0.200) | 100.0 |"
    )
    assert similarity_markdown([]) == ""


def scored(folder: StudyFolder, cells: list[RunId], score: float) -> None:
    """Write a similarity into the last row of each run's metrics."""
    for cell in cells:
        place = folder.cell(cell)
        last = {**place.metrics[-1], "eval/avg_score": score, "eval/format": 1.0}
        place.rewind(last["step"] - 1)
        place.record(last, None)
        rewrite(place)


def test_a_report_warns_wherever_it_is_read(tmp_path: Path) -> None:
    """Similar completions in both methods: the one that lost accuracy is named, the other not."""
    methods = ["reverse_curriculum", "on_policy_gkd"]
    study = small_study(pairs=["tiny-context"], methods=methods, eval={"problems": 200})
    folder = write_study(tmp_path / "study", study)
    cells = [RunId("tiny-context", method, seed) for method in methods for seed in (0, 1)]
    scored(folder, cells, 0.95)
    report, caveats = write_report(folder.path), trust(load(folder.path), [])
    assert [one.method for one in caveats.misleading] == ["reverse_curriculum"]
    assert caveats.ceilings == ("tiny-context",)
    assert list(report.remarks) == sentences.remarks(caveats) and len(report.remarks) == 2
    warning, ceiling = report.remarks
    assert "tiny-context reverse_curriculum" in warning and "0.95" in warning
    assert "tiny-context" in ceiling and "upper bound" in ceiling
    page = report.html.read_text(encoding="utf-8")
    for text in (as_markdown(report), page):
        assert warning in text.replace("&#39;", "'")
    assert "| tiny-context | `on_policy_gkd` |" in as_markdown(report)


def test_a_study_without_contexts_and_scores_has_no_remark(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", small_study())
    report = write_report(folder.path)
    assert not report.remarks and not report.similarity
    (first, *_) = similarities(load(folder.path))
    assert first.score is None and first.kl is not None and not first.misleading
