"""The audit: which variants run, which are read for which, and a verdict from the counts alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from conftest import toy_table
from potstill.algorithms.methods import METHODS
from potstill.cli import app
from potstill.diagnostics.faults import PUBLISHED
from potstill.report.audit import (
    ALL,
    CLEAN,
    Rate,
    VariantResult,
    effects,
    matrix,
    paragraph,
    study_of,
    variants,
)
from potstill.report.pages.audit import to_markdown
from potstill.stats.comparisons import Interval
from potstill.study.loading import read_study
from test_cli import call, refused


def entry(method: str, variant: str, ran_as: str, runs: int, collapsed: int) -> VariantResult:
    return VariantResult("p", method, variant, ran_as, Interval(0.5, 0.4, 0.6), runs, collapsed)


def test_variants_cover_the_plan_and_run_no_more_than_needed() -> None:
    plan = {v.name: v for v in variants(METHODS, PUBLISHED)}
    assert len(plan) == 2 + 2 * 8
    assert plan[CLEAN].faults == () and plan[ALL].faults == PUBLISHED
    assert set(plan["only-unshifted_targets"].methods) == {
        "mixture",
        "replay_buffer",
        "kl_anchored",
        "hybrid",
        "reverse_curriculum",
        "off_policy",
    }
    assert plan["only-prefix_trained"].methods == ("teacher_seeded",)
    assert plan["without-anchor_absent"].methods == ("kl_anchored",)
    assert set(plan["only-mixture_unblended"].methods) == {"mixture", "replay_buffer"}
    for name, variant in plan.items():
        if name.startswith("without-"):
            assert set(PUBLISHED) - set(variant.faults) == {name.removeprefix("without-")}
    assert [
        v.name for v in variants({"on_policy_gkd": METHODS["on_policy_gkd"]}, ["anchor_absent"])
    ] == [
        CLEAN,
        ALL,
    ]


def test_a_fault_that_alone_collapses_suffices_and_one_that_rescues_is_necessary() -> None:
    entries = []
    for method in ("hybrid", "mixture"):
        entries += [
            entry(method, CLEAN, CLEAN, 10, 0),
            entry(method, ALL, ALL, 10, 10),
            entry(method, "only-unshifted_targets", "only-unshifted_targets", 10, 10),
            entry(method, "without-unshifted_targets", "without-unshifted_targets", 10, 1),
            entry(method, "only-stale_sampler", "only-stale_sampler", 10, 1),
            entry(method, "without-stale_sampler", "without-stale_sampler", 10, 10),
        ]
    first, second = effects(entries, ["unshifted_targets", "stale_sampler"])
    assert (first.suffices, first.necessary) == (True, True)
    assert (second.suffices, second.necessary) == (False, False)
    assert str(first.alone) == "20 of 20 runs (83 to 100 %)"
    base = read_study({"methods": ["hybrid", "mixture"]})
    text = paragraph(base, entries, [first, second])
    assert "unshifted_targets suffices and is necessary: alone it collapses 20 of 20 runs" in text
    assert "For stale_sampler neither could be shown." in text
    assert "Alone it collapses most runs of hybrid" in text
    assert "does not measure the published pairs" in text


def test_the_matrix_can_be_pasted() -> None:
    base = read_study({"methods": ["hybrid", "mixture"], "pairs": ["tiny-llama"]})
    known = Interval(0.5, 0.4, 0.6)
    entries = [
        VariantResult("tiny-llama", "hybrid", CLEAN, CLEAN, known, 10, 0),
        VariantResult("tiny-llama", "mixture", CLEAN, CLEAN, None, 0, 0),
        VariantResult("tiny-llama", "hybrid", ALL, ALL, None, 10, 10),
        VariantResult("tiny-llama", "mixture", ALL, CLEAN, known, 10, 0),
    ]
    pooled, alone = (table.splitlines() for table in to_markdown(base, entries, []).split("\n\n"))
    assert pooled[0] == "| tiny-llama | clean | all |"
    assert pooled[2:] == ["| `hybrid` | 50.0 (0/10) | (10/10) |", "| `mixture` | missing |  |"]
    assert alone[0] == "| tiny-llama | hybrid | mixture |"
    assert alone[2:] == ["| `clean` | 50.0 (0/10) | missing |", "| `all` | (10/10) |  |"]


def test_few_runs_prove_nothing() -> None:
    entries = [
        entry("hybrid", CLEAN, CLEAN, 2, 0),
        entry("hybrid", ALL, ALL, 2, 2),
        entry("hybrid", "only-unshifted_targets", "only-unshifted_targets", 2, 2),
        entry("hybrid", "without-unshifted_targets", "without-unshifted_targets", 2, 0),
    ]
    (found,) = effects(entries, ["unshifted_targets"])
    assert not found.suffices and not found.necessary
    assert effects(entries[:2], ["unshifted_targets"]) == []


@pytest.mark.parametrize(("hits", "runs", "low", "high"), [(0, 10, 0, 31), (10, 10, 69, 100)])
def test_rates_have_exact_intervals(hits: int, runs: int, low: int, high: int) -> None:
    assert str(Rate(hits, runs)) == f"{hits} of {runs} runs ({low} to {high} %)"
    assert str(Rate(0, 0)) == "no run"


@pytest.mark.slow
def test_an_audit_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(tmp_path, methods=["on_policy_gkd", "hybrid"], train={"steps": 8})
    file, out = tmp_path / "toy.toml", tmp_path / "audit"
    file.write_text(tomli_w.dumps(table))
    words = ["audit", str(file), "--out", str(out), "--workers", "2", "--json"]
    assert app(words, standalone_mode=False) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"].startswith("A run has collapsed when")
    base = read_study(table)
    entries = matrix(base, out, PUBLISHED)
    assert len(told["matrix"]) == len(entries) == 2 * (2 + 2 * 8)
    by = {(e.method, e.variant): e for e in entries}
    assert by["on_policy_gkd", "only-unshifted_targets"].ran_as == CLEAN
    assert by["hybrid", "only-unshifted_targets"].ran_as == "only-unshifted_targets"
    assert by["hybrid", "without-anchor_absent"].ran_as == ALL
    assert all(e.runs == 2 for e in entries)
    clean = study_at(out, CLEAN)
    assert "faults = []" in clean and "faults = [" in study_at(out, ALL)
    page = (out / "audit.html").read_text()
    assert "as clean" in page and "hybrid" in page and "http" not in page.split("<body>")[1]
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert app(words, standalone_mode=False) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == stamps
    capsys.readouterr()
    one = [*words, "--fault", "unshifted_targets"]  # a part of the plan, from the same runs
    assert app(one, standalone_mode=False) == 0
    told = json.loads(capsys.readouterr().out)
    assert {e["variant"] for e in told["matrix"]} == {
        *(CLEAN, ALL, "only-unshifted_targets", "without-unshifted_targets")
    }
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == stamps


def test_only_published_faults_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("audit", "--fault", "unshifted_target", "--out", tmp_path / "out")
    refused(capsys, code, 'a published fault, got "unshifted_target"')
    assert not (tmp_path / "out").exists()


def study_at(out: Path, variant: str) -> str:
    return (out / "variants" / variant / "study.toml").read_text()


def test_variants_share_everything_but_faults_and_methods(tmp_path: Path) -> None:
    base = read_study(toy_table(tmp_path))
    for variant in variants(base.recipes, PUBLISHED):
        study = study_of(base, variant)
        assert study.faults == variant.faults and tuple(study.recipes) == variant.methods
        assert study.train.model_copy(update={"save": True}) == base.train
        assert (study.seeds, study.eval, study.task) == (base.seeds, base.eval, base.task)
