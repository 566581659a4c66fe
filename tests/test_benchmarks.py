"""The benchmarks: their truth is right, and they leave nothing out."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from benchmarks.diagnosis import CLEAN, TRIED, Labelled, confusion, studies, summary, true_onset

from potstill.diagnose import Finding
from potstill.faults import FAULTS
from potstill.methods import METHODS
from potstill.store import Cell


def test_every_fault_is_tried_on_methods_that_it_touches() -> None:
    assert TRIED.keys() == FAULTS.keys()
    for fault, methods in TRIED.items():
        assert all(FAULTS[fault].touches(METHODS[name]) for name in methods)


def test_every_fault_has_a_study_and_clean_runs_have_all_methods(tmp_path: Path) -> None:
    args = argparse.Namespace(
        out=str(tmp_path), pairs=["tiny-qwen"], first=3, seeds=2, clean=6, steps=60
    )
    found = dict(studies(args))
    assert list(found) == [CLEAN, *FAULTS]
    assert found[CLEAN].seeds == (3, 4, 5, 6, 7, 8) and list(found[CLEAN].recipes) == list(METHODS)
    assert all(found[fault].faults == (fault,) and len(found[fault].seeds) == 2 for fault in FAULTS)


def test_a_collapse_is_two_gradings_in_a_row() -> None:
    def graded(*accuracies: float) -> list[dict[str, float]]:
        return [{"step": 5 * i + 5, "eval/accuracy": a} for i, a in enumerate(accuracies)]

    assert true_onset(graded(0.5, 0.05, 0.5, 0.04, 0.03), 0.4) == 20
    assert true_onset(graded(0.5, 0.05, 0.5, 0.04), 0.4) is None
    assert true_onset(graded(0.11, 0.11), 0.4) is None


def test_the_figures_count_what_they_say() -> None:
    fallen = Finding("collapse", "prompt_dropped", 10, 15, "", "")
    cell = Cell("tiny-qwen", "hybrid", 0)
    runs = [
        Labelled(CLEAN, cell, 60, None, [], []),
        Labelled(CLEAN, cell, 60, None, [fallen], []),
        Labelled("prompt_dropped", cell, 60, 10, [fallen], []),
        Labelled("eos_untrained", cell, 60, None, [fallen], []),
        Labelled("stale_sampler", cell, 60, 20, [], []),
    ]
    said = summary(runs)
    assert said["false alarms on clean runs"].startswith("1 of 2 runs")
    assert said["right cause named"].startswith("1 of 3 runs")
    assert said["collapses found"].startswith("1 of 2 runs")
    assert said["steps from onset to finding"] == "median 5, 5 to 5"
    assert said["budget saved by stop, collapsed runs"] == "median 0.75, 0.75 to 0.75"
    assert confusion(runs)["eos_untrained"] == {"prompt_dropped": 1}


def test_the_head_in_slices_gives_what_it_gives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import head
    from benchmarks.peers import alone

    from potstill.engines import heads, terms

    monkeypatch.setattr(alone, "VOCABULARY", 300)
    monkeypatch.setattr(alone, "HIDDEN", 16)
    monkeypatch.setattr(heads, "SLICE", 300 * 17)
    monkeypatch.setattr(terms, "BLOCK", 300 * 7)
    whole, slices = (alone.measure(way, 40) for way in (head.whole, head.slices))
    for key in head.CHECKED:
        assert whole[key] == pytest.approx(slices[key], rel=1e-5) and whole[key] > 0
    monkeypatch.setattr(head, "WAYS", {"whole": head.whole, "tiles": head.whole, "slices": None})
    monkeypatch.setattr(head, "apart", lambda kind, n: alone.measure(head.whole, n))
    assert head.compare(40, 2).startswith("| 40 | ")
    wrong = dict.fromkeys(("seconds", "gigabytes", *head.CHECKED), 1.0)
    monkeypatch.setattr(head, "apart", lambda kind, _: {**wrong, "loss": len(kind)})
    with pytest.raises(SystemExit, match="loss"):
        head.compare(40, 1)
