"""Reports of all kinds of studies: unfinished, failed, hostile, old, the published one."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.errors import PotstillError
from potstill.report import as_markdown, write_report
from potstill.report.data import load
from potstill.study.schema import PUBLISHED
from potstill.study.storage import RunId, StudyFolder
from studies import FINDING, Fate, rewrite, small_study, write_study
from test_report import CSV_COLUMNS, Page

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("fate", "says"),
    [
        (lambda cell: {"skip": True}, "No method has a result yet"),
        (lambda cell: {} if cell.method == "teacher" else {"skip": True}, "teacher"),
        (lambda cell: {"fail": "out of memory"}, "out of memory"),
        (lambda cell: {"stop": 1}, "step 1 of 20"),
        (lambda cell: {"skip": cell.method == "untrained"}, "Highest mean"),
        (lambda cell: {"null": True, "text": ""}, "Highest mean"),
    ],
    ids=["nothing", "teacher only", "all failed", "first step", "no untrained", "nulls"],
)
def test_any_study_gives_a_page(tmp_path: Path, fate: Callable[[RunId], Fate], says: str) -> None:
    write_study(tmp_path / "study", small_study(), fate)
    report = write_report(tmp_path / "study", figures=True)
    found = Page(report.html.read_text(encoding="utf-8"))
    assert says in " ".join(found.text.split())
    assert report.cells == 6 == len(json.loads(report.results.read_text())["cells"])
    json.dumps(report.to_json(), allow_nan=False)


def test_what_broke_is_said_everywhere(tmp_path: Path) -> None:
    later = {**FINDING, "step": 10, "found": 15}

    def fate(cell: RunId) -> Fate:
        if cell.method != "hybrid":
            return {}
        ended = {"step": 10, "of": 20, "back_to": 0}
        return {
            "findings": [later if cell.seed else FINDING],
            "ended": None if cell.seed else ended,
        }

    write_study(tmp_path, small_study(), fate)
    report = write_report(tmp_path)
    line = "collapsed: tiny-qwen hybrid, 2 of 2 runs, from step 5 to 10 on: unshifted_targets ("
    given_up = "seed 0 stopped at step 10 of 20, back to the student of step 0"
    assert line in as_markdown(report) and given_up in as_markdown(report)
    page = report.html.read_text()
    assert line in page and given_up in page and "seeds 0, 1" in page
    assert "&lt;i&gt;0% of the probe right" in page and "<i>0%" not in page
    cells = {(c["method"], c["seed"]): c for c in json.loads(report.results.read_text())["cells"]}
    assert cells["hybrid", 0]["findings"] == [FINDING]
    assert cells["hybrid", 0]["ended"]["back_to"] == 0
    assert cells["on_policy_gkd", 0]["findings"] == []


def test_a_sound_study_says_how_many_runs_were_watched(tmp_path: Path) -> None:
    write_study(tmp_path, small_study())
    folder = StudyFolder(tmp_path).cell(RunId("tiny-qwen", "hybrid", 0))
    rows = [{"step": 0, "tokens": 0, "signal/teacher_loss": 0.5}, *folder.metrics]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rewrite(folder)
    report = write_report(tmp_path)
    assert "none deviates from its recipe: 1 run was watched" in report.html.read_text()
    assert "collapsed:" not in as_markdown(report)


def test_a_note_is_shown_and_is_not_a_breakage(tmp_path: Path) -> None:
    note = {
        **FINDING,
        "kind": "note",
        "cause": "still_improving",
        "evidence": "KL: 2 -> 1 nats",
        "advice": "raise train.steps",
    }
    write_study(
        tmp_path, small_study(), lambda c: {"findings": [note] if c.method == "hybrid" else []}
    )
    report = write_report(tmp_path)
    page = report.html.read_text()
    assert "has a note" in page and "still_improving" in page and "KL: 2 -&gt; 1 nats" in page
    assert "none deviates from its recipe" in page
    assert "still_improving" not in as_markdown(report)


def test_a_run_that_blew_up_has_a_finding(tmp_path: Path) -> None:
    write_study(
        tmp_path,
        small_study(),
        lambda cell: (
            {"fail": "not a number at step 3: loss nan"}
            if cell.method == "hybrid" and cell.seed == 0
            else {}
        ),
    )
    assert "1 of 2 runs, from step" in as_markdown(write_report(tmp_path))
    assert "not_a_number" in as_markdown(write_report(tmp_path))


def test_a_single_cell_has_no_interval_over_seeds(tmp_path: Path) -> None:
    write_study(tmp_path / "one", small_study(methods=["mixture"], seeds=[3]))
    text = " ".join(Page(write_report(tmp_path / "one").html.read_text()).text.split())
    assert "One seed: intervals are for this seed" in text
    assert "on_policy_gkd is not in this study" in text


def test_a_pair_with_hostile_model_names(tmp_path: Path) -> None:
    pair = {"own": {"student": 's$x$"><img src=x>', "teacher": "t</script>"}}
    train = {"steps": 4, "max_tokens": 32, "learning_rate": 0.1}
    write_study(tmp_path / "own", small_study(pairs=[], pair=pair, train=train, seeds=[0]))
    report = write_report(tmp_path / "own", figures=True)
    found = Page(report.html.read_text())
    assert '"><img src=x>' in found.text and not [t for t, _ in found.tags if t == "img"]
    assert all(path.parent == tmp_path / "own" / "figures" for path in report.figures)


def test_a_study_that_does_not_ask_shows_nothing_of_the_published_one(tmp_path: Path) -> None:
    write_study(tmp_path / "study", small_study(methods=["on_policy_gkd", "hybrid", "mixture"]))
    report = write_report(tmp_path / "study")
    page = Page(report.html.read_text(encoding="utf-8"))
    assert not {name for name, _ in page.charts if name.startswith(("hand-over", "seed"))}
    shown = page.text.split("hypothesis")[0].lower()  # a recipe cites its source
    assert "published" not in shown and "cliff" not in shown
    assert report.csv.read_text().splitlines()[0].split(",") == CSV_COLUMNS
    assert not [
        row for row in json.loads(report.results.read_text())["table"] if "published" in row
    ]


def test_studies_ask_for_the_published_one_by_name(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="unknown published study") as refused:
        small_study(published="distribution-clif")
    assert refused.value.hint == 'did you mean "distribution-cliff"?'
    tables = {p.name: tomllib.loads(p.read_text()) for p in (ROOT / "studies").glob("*.toml")}
    asked = [name for name, table in tables.items() if table.get("published")]
    assert sorted(asked) == ["full.toml", "published-llama.toml", "published-qwen.toml"]
    folder = write_study(tmp_path, small_study())
    folder.check(small_study(published=PUBLISHED[0]))  # what a report shows is no other study
    folder.open(small_study(published=PUBLISHED[0]))
    assert load(tmp_path).study.published == PUBLISHED[0]


def test_a_folder_without_the_key_is_reported(tmp_path: Path) -> None:
    folder = write_study(tmp_path, small_study())
    file = tmp_path / "study.toml"
    text = file.read_text()
    assert 'published = ""\n' in text
    text = text.replace('published = ""\n', "")
    file.write_text(re.sub('digest = ".*"\n', "", text))  # as an earlier version wrote it
    folder.check(small_study())
    assert write_report(tmp_path).done == 6


def test_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="holds no study"):
        write_report(tmp_path)
    (tmp_path / "study.toml").write_text('name = "x"\nunheard = 1\n[provenance]\n')
    with pytest.raises(PotstillError, match="unheard"):
        write_report(tmp_path)
