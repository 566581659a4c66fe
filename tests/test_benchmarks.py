"""The benchmarks: their truth is right, and they leave nothing out."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.beside import Child
from benchmarks.diagnosis import CLEAN, TRIED, Labelled, confusion, studies, summary, true_onset
from benchmarks.varied import GROUPS, PAIRS, Case, cases, execute, table, truth

from potstill import open_engine
from potstill.algorithms.methods import METHODS
from potstill.diagnostics.faults import FAULTS
from potstill.study.storage import RunId
from potstill.types import Finding, Prompt


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
    cell = RunId("tiny-qwen", "hybrid", 0)
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

    from potstill.engines.torch import lm_head as heads
    from potstill.engines.torch import loss_terms as terms

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


def test_a_side_takes_the_step_that_the_library_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 0 trains on given completions: its loss is the mean reverse KL over their tokens."""
    from benchmarks import own_steps, steps

    told = argparse.Namespace(workload="tiny", repeats=1, threads=1)
    job = steps.job_of(told)
    assert len(job["questions"]) == len(job["prompts"]) == (1 + steps.WARM + 1) * 32
    assert len(job["completions"]) == 32
    work = own_steps.begin(job)
    first, second = work({}), work({})
    engine = open_engine("torch", "tiny-llama", threads=1)
    divergence, tokens = 0.0, 0
    for prompt, completion in zip(job["prompts"], job["completions"], strict=False):
        p, q = (
            engine.rows(r, Prompt.of(tuple(prompt)), tuple(completion))
            for r in ("student", "teacher")
        )
        divergence += float((np.exp(p) * (p - q)).sum())
        tokens += len(completion)
    assert first["loss"] == pytest.approx(divergence / tokens, rel=1e-4)
    assert first["tokens"] == tokens and second["tokens"] > 32 and second["memory"] > 1e8


@pytest.mark.slow
def test_every_optimisation_can_be_taken_out_and_changes_no_loss() -> None:
    """Each in a process of its own, as what is taken out does not come back."""
    from benchmarks import effects, steps

    job = steps.job_of(argparse.Namespace(workload="tiny", repeats=0, threads=1))
    sides = {
        name: Child(sys.executable, "benchmarks.own_steps", {**job, "without": name})
        for name in ("", *effects.UNDO)
    }
    found = {name: (child.ask(), child.ask()) for name, child in sides.items()}
    for child in sides.values():
        child.close()
    for name, (first, second) in found.items():
        assert first["loss"] == pytest.approx(found[""][0]["loss"], rel=1e-5), name
        assert second["loss"] == pytest.approx(found[""][1]["loss"], rel=1e-3), name
        assert second["seconds"] == pytest.approx(second["sampling"] + second["training"])


def test_sides_are_compared_step_by_step() -> None:
    from benchmarks import steps

    def taken(*seconds: float) -> list[dict[str, float]]:
        shared = {"loss": 0.5, "tokens": 10, "memory": 2e9, "loaded": 1.5e9}
        return [{"seconds": s, **shared} for s in seconds]

    found = {"potstill": taken(9.0, 9.0, 1.0, 2.0), "TRL": taken(9.0, 9.0, 3.0, 4.0)}
    lines = steps.table(found).splitlines()
    assert lines[2].startswith("| potstill | 1.500 (1.000 to 2.000) | 10 | 2.00 (0.50) |")
    assert "| 2.50 (2.00 to 3.00) | 1.00 |" in lines[3]


def test_growth_is_told_by_its_exponent() -> None:
    from benchmarks import growth

    result = {"bytes": 1e9, "weights": 5.0}
    found = [(2.0, {**result, "seconds": 1.0}), (4.0, {**result, "seconds": 4.0})]
    assert growth.table("batch", found).splitlines()[3] == "| 4 | 4.000 | 2.00 | 1.00 |"


def test_a_point_of_growth_is_measured() -> None:
    from benchmarks import growth

    shape = {"batch": 2, "completion": 5, "vocabulary": 1024, "width": 96}
    found = growth.point(shape, 1)
    assert found["seconds"] > 0 and found["bytes"] > 1e8
    layer = 4 * 96 * 96 + 3 * 96 * 4 * 96 + 2 * 96
    assert found["weights"] == 1024 * 96 + 2 * layer + 96


def test_children_answer_in_turn() -> None:
    child = Child(sys.executable, "tests.echo", {"factor": 3})
    try:
        assert child.ask(number=2) == {"product": 6} and child.ask(number=5) == {"product": 15}
        with pytest.raises(SystemExit, match="echo ended with 1"):
            child.ask(nothing=1)
    finally:
        child.close()


def test_predictions_are_held_against_what_runs_took(tmp_path: Path) -> None:
    from benchmarks.prediction import compare

    from potstill.study.storage import runs_of
    from potstill.training.spending import Spent
    from studies import small_study, write_study

    study = small_study()
    folder = write_study(tmp_path / "out", study)
    runs = folder.results([cell for cell in runs_of(study) if cell.seed is not None])
    mean = {
        method: [Spent.read(r) for c, r in runs.items() if c.method == method]
        for method in study.recipes
    }
    told = {"tiny-qwen": {m: (s[0] + s[1]) * 0.75 for m, s in mean.items()}}
    twice = {"tiny-qwen": {m: (s[0] + s[1]) * 1.0 for m, s in mean.items()}}
    *rows, last = compare(study, folder, told, twice)
    assert [row["run"] for row in rows] == ["tiny-qwen on_policy_gkd", "tiny-qwen hybrid"]
    for row in (*rows, last):
        assert row["predicted/actual tokens"] == "1.50" == row["predicted/actual seconds"]
        assert row["after it"] == "2.00" and row["FLOPs"] == "unknown"


class TestVaried:
    SOUND = {"accuracy": 0.4, "kl": 2.0, "reading": 1.0, "token": 0.1, "completion": 0.02}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("end", "what"),
        [
            ({}, "sound"),
            ({"kl": 6.0, "token": 1.0}, "collapsed"),
            ({"kl": 1.6, "completion": 0.5}, "collapsed"),
            ({"kl": 0.9, "token": 1.0}, "sound"),
            ({"reading": 2.1}, "broken"),
            ({"kl": 3.6}, "broken"),
            ({"accuracy": 0.0}, "broken"),
            ({"accuracy": 0.25}, "sound"),
        ],
    )
    def test_the_truth_is_the_held_out_behaviour(self, end: dict[str, float], what: str) -> None:
        assert truth(self.SOUND, {**self.SOUND, **end}, self.SOUND) == what

    def test_one_right_text_for_all_prompts_is_the_teachers_too(self) -> None:
        alike = {**self.SOUND, "kl": 6.0, "token": 0.5, "completion": 1.0}
        teacher = {**self.SOUND, "token": 0.5, "completion": 1.0}
        assert truth(self.SOUND, alike, teacher) == "broken"
        assert truth(self.SOUND, alike, self.SOUND) == "collapsed"

    def test_every_group_has_runs_and_no_run_is_made_twice(self) -> None:
        runs = list(cases({f"{kind} {p}": p for kind in ("pruned", "random") for p in PAIRS}))
        assert {run.group for run in runs} == set(GROUPS)
        assert len({run.key for run in runs}) == len(runs)
        assert {run.method for run in runs if run.group == "settings"} == set(METHODS)
        assert sum(run.group not in ("weak student", "high rate") for run in runs) >= 150

    def test_a_run_is_made_with_its_truth_and_counted(self) -> None:
        sound = Case("letters", "on_policy_gkd", "fake", "", {"digits": "3", "graded": "no"})
        run = execute(replace(sound, train={"steps": 20, "learning_rate": 1.0, "max_tokens": 24}))
        assert run["truth"] == "sound" and run["rows"][-1]["step"] == 20
        broken = {**run, "truth": "collapsed"}
        lines = table([run, broken]).splitlines()
        assert "| 2 | 0 of 1 runs" in lines[2] and "0 of 1 runs" in lines[-1]
