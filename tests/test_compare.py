"""Studies compared with the first one: pairing, refusals, and the words for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import PotstillError
from potstill.report.compare import compare, readings
from potstill.report.data import load
from potstill.report.pages.comparison import write_comparison
from potstill.report.results import outcome_matrix
from potstill.report.tables.comparison import to_markdown
from potstill.stats.comparisons import difference
from potstill.stats.multiple import holm
from potstill.study.storage import REFERENCES, RunId, StudyFolder
from studies import rewrite, small_study, write_study


def study(path: Path, fate: Any = lambda cell: {}, **changes: Any) -> Path:
    write_study(path, small_study(**changes), fate)
    return path


def outcomes(path: Path, method: str, *seeds: int) -> np.ndarray:
    """(S, P) as recorded, strict."""
    cells = [RunId("tiny-qwen", method, seed) for seed in seeds]
    return outcome_matrix(StudyFolder(path).results(cells).values())


def test_the_same_problems_are_paired_and_seeds_are_not(tmp_path: Path) -> None:
    a = study(tmp_path / "a")
    b = study(tmp_path / "b", train={"steps": 40, "max_tokens": 32})
    comparison = compare([a, b])
    assert comparison.pairing["tiny-qwen"][0].startswith("B − A: paired by problem; the seeds")
    assert ("train.steps", "20", "40") in comparison.settings
    assert not any(key.startswith("eval") or key == "name" for key, *_ in comparison.settings)
    entry = next(e for e in comparison.entries if e.method == "hybrid")
    before, after = (outcomes(path, "hybrid", 0, 1) for path in (a, b))
    assert entry.differences[0] is None and entry.differences[1]
    assert entry.differences[1].mean == pytest.approx(after.mean() - before.mean())


def test_a_study_does_not_differ_from_its_copy(tmp_path: Path) -> None:
    comparison = compare([study(tmp_path / "a"), study(tmp_path / "b")])
    assert comparison.settings == () and comparison.left == ()
    for entry in comparison.entries:
        assert entry.differences[1] and entry.differences[1].mean == 0.0
    assert readings(comparison, comparison.entries) == [
        "B against A: no significant difference in any of 2 methods."
    ]


def test_other_problems_are_not_paired_and_that_is_said(tmp_path: Path) -> None:
    many = {"every": 10, "problems": 60, "probe_every": 5}
    comparison = compare([study(tmp_path / "a"), study(tmp_path / "b", eval=many)])
    assert (
        "not paired, the problems differ (40 and 60 of them)"
        in (comparison.pairing["tiny-qwen"][0])
    )
    assert all(entry.differences[1] for entry in comparison.entries)


def test_completions_decide_what_the_same_problems_are(tmp_path: Path) -> None:
    a, b = study(tmp_path / "a"), study(tmp_path / "b")
    untrained, teacher = (StudyFolder(b).cell(RunId("tiny-qwen", role)) for role in REFERENCES)
    first, *rest = untrained.texts
    lines = [json.dumps(row) + "\n" for row in [first | {"question": "another"}, *rest]]
    (untrained.path / "examples.jsonl").write_text("".join(lines))
    rewrite(untrained)
    assert "not paired" in compare([a, b]).pairing["tiny-qwen"][0]
    (untrained.path / "examples.jsonl").unlink()  # unknown: the teacher's completions decide
    assert "paired by problem;" in compare([a, b]).pairing["tiny-qwen"][0]
    (teacher.path / "examples.jsonl").unlink()
    assert "by the settings" in compare([a, b]).pairing["tiny-qwen"][0]


def test_p_is_corrected_over_the_methods_alone(tmp_path: Path) -> None:
    """Reference rows are no hypotheses: they are left as they are."""
    first = study(tmp_path / "a", seeds=[0, 1, 2])
    comparison = compare([first, study(tmp_path / "b", seeds=[5, 6, 7])])
    methods = [e.method for e in comparison.entries]
    assert methods == ["untrained", "teacher", "on_policy_gkd", "hybrid"]
    found = [e.differences[1] for e in comparison.entries]
    of_methods = [d.p for d in found[2:] if d]
    raw = [_alone(tmp_path, method) for method in methods[2:]]
    assert of_methods == pytest.approx(holm(raw)) and of_methods != raw
    assert [d.p for d in found[:2] if d] == [1.0, 1.0]


def _alone(path: Path, method: str) -> float:
    """p of one method in b against a, uncorrected."""
    a, b = (load(path / name).family("tiny-qwen") for name in "ab")
    one, other = b.samples[method], a.samples[method]
    return difference(one, b.variances[method], other, a.variances[method]).p


def test_what_one_study_alone_has_is_left_and_named(tmp_path: Path) -> None:
    a = study(tmp_path / "a", methods=["on_policy_gkd", "mixture"])
    comparison = compare([a, study(tmp_path / "b")])
    assert comparison.left == ("A alone has tiny-qwen mixture.", "B alone has tiny-qwen hybrid.")
    assert {e.method for e in comparison.entries} == {"untrained", "teacher", "on_policy_gkd"}


@pytest.mark.parametrize("broken", ["skip", "fail"])
def test_unfinished_and_failed_studies_are_compared_as_far_as_they_are(
    tmp_path: Path, broken: str
) -> None:
    a = study(tmp_path / "a")
    b = study(tmp_path / "b", lambda cell: {broken: "x"} if cell.method == "hybrid" else {})
    comparison = compare([a, b])
    entry = next(e for e in comparison.entries if e.method == "hybrid")
    assert entry.differences == (None, None)
    json.dumps(comparison.to_json())
    assert write_comparison(comparison, tmp_path / "c.html").stat().st_size < 4e6


def test_labels_tell_equal_names_apart(tmp_path: Path) -> None:
    comparison = compare([study(tmp_path / "x" / "quick"), study(tmp_path / "y" / "quick")])
    assert [s.label for s in comparison.sides] == ["x/quick", "y/quick"]


def test_a_folder_with_a_hostile_name_is_text(tmp_path: Path) -> None:
    a = study(tmp_path / "<img src=x onerror=alert(1)>`|`")
    comparison = compare([a, study(tmp_path / "b")])
    html = write_comparison(comparison, tmp_path / "c.html").read_text()
    assert "<img" not in html and "&lt;img src=x" in html
    for line in to_markdown(comparison).splitlines():
        assert line.count("`") % 2 == 0


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = study(tmp_path / "a"), study(tmp_path / "b", pairs=["tiny-llama"])
    c = study(tmp_path / "c", methods=["mixture"])
    for paths, says in (
        ([a], "2 to 8 studies, got 1"),
        ([a, tmp_path / "b" / ".." / "a"], "is given twice"),
        ([a, tmp_path / "none"], "holds no study"),
        ([a, b], "share no method on a pair"),
        ([a, c], "share no method on a pair"),
    ):
        with pytest.raises(PotstillError, match=says) as refused:
            compare(paths)
        assert refused.value.hint
    with pytest.raises(PotstillError, match="is a folder"):
        write_comparison(compare([a, study(tmp_path / "d")]), tmp_path)


def test_the_command(tmp_path: Path) -> None:
    words = ["compare", str(study(tmp_path / "a")), str(study(tmp_path / "b", seeds=[5]))]
    out = tmp_path / "new" / "c.html"
    run = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert run.exit_code == 0 and out.exists() and "\nhybrid\t" in run.stdout
    heads = ["method", "A", "A 95 %", "B", "B 95 %", "B − A", "B − A 95 %"]
    assert "\t".join(heads) in run.stdout and f"comparison: {out}" in run.stdout
    assert "paired by problem; the seeds of each study" in run.stdout
    comparison = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [s["letter"] for s in comparison["studies"]] == ["A", "B"] and len(
        comparison["entries"]
    ) == 4
    markdown = CliRunner().invoke(app, [*words, "--markdown"]).stdout
    table = [line for line in markdown.splitlines() if line.startswith("| `")]
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
