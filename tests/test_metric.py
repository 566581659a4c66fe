"""Studies whose outcomes are no 0 and 1: everything that a report says reads the metric."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

from potstill.cli import app
from potstill.cli.live import View, progress
from potstill.errors import PotstillError
from potstill.report import as_markdown, write_report
from potstill.report.compare import compare, readings
from potstill.report.costs import costs
from potstill.report.data import load
from potstill.report.forgotten import retentions
from potstill.report.pages.comparison import write_comparison
from potstill.report.results import Row
from potstill.report.sentences import ability, headline, reasons
from potstill.report.summary import summarize
from potstill.report.tables.comparison import to_markdown
from potstill.report.verdict import Evidence, Outcome, judge
from potstill.stats.comparisons import Comparisons, Difference, Interval
from potstill.stats.metric import (
    ACCURACY,
    KL,
    STUDENT_LOSS,
    TEACHER_LOSS,
    WITHOUT_TEACHER,
    metrics_of,
)
from potstill.stats.power import power
from potstill.study.file_schemas import ResultRecord, example_error, metrics_error
from potstill.study.progress import Running
from potstill.study.race import Rules, raced
from potstill.study.schema import Study
from potstill.study.storage import RunId
from potstill.study.tracking.protocol import summary
from studies import Kind, small_study, write_study

EVALUATED = {"every": 10, "problems": 100, "probe_every": 5}
METHODS = ["on_policy_gkd", "hybrid", "reverse_curriculum"]


def say(*words: object) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def outcomes(**by_key: Any) -> dict[str, Any]:
    return {"outcomes": by_key}


# Records of a study, the metrics that it has, the one that methods are compared by first.
MEASURED: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "nothing yet": ([], ["accuracy", "flexible"]),
    "a failed run": ([{"status": "failed"}], ["accuracy", "flexible"]),
    "graded": ([outcomes(strict="10", flexible="11")], ["accuracy", "flexible"]),
    "four samples": (
        [outcomes(strict=[0.5], flexible=[1.0]) | {"samples": 4}],
        ["avg@4 accuracy", "avg@4 flexible"],
    ),
    "pass@k": (
        [outcomes(strict=[0.5], flexible=[1.0], **{"pass@10": [1.0], "pass@2": [0.5]})],
        ["accuracy", "flexible", "pass@2", "pass@10"],
    ),
    "no grader": (
        [outcomes(kl=[0.1], teacher_loss=[1.0], student_loss=[2.0])],
        ["KL to the teacher", "teacher's loss", "student's loss"],
    ),
    "no grader, no teacher": ([outcomes(student_loss=[2.0])], ["loss on the data's completions"]),
    "a pair without a teacher among others": (
        [outcomes(student_loss=[2.0]), outcomes(kl=[0.1], teacher_loss=[1.0], student_loss=[2.0])],
        ["loss on the data's completions", "KL to the teacher", "teacher's loss"],
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_metrics_of_a_study_are_those_of_its_records(name: str) -> None:
    records, labels = MEASURED[name]
    assert [metric.label for metric in metrics_of(records)] == labels


def test_less_is_better_where_the_metric_says_so() -> None:
    lower = Difference(-0.1, -0.15, -0.05, 0.01, 3)
    assert (ACCURACY.judged(lower), KL.judged(lower), KL.judged(-lower)) == (-1, 1, -1)
    assert KL.judged(None) == 0 and KL.judged(Difference(-0.1, -0.2, 0.1, 0.5, 3)) == 0
    assert (ACCURACY.goodness(0.3), KL.goodness(0.3)) == (0.3, -0.3)


GAIN = Difference(-0.2, -0.3, -0.1, 0.001, 5)  # less KL than the untrained student
LOSS = -GAIN


def kl_row(method: str, mean: float, gain: Difference | None = GAIN, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "pair": "p",
        "method": method,
        "seeds": (0, 1, 2, 3, 4),
        "failed": (),
        "missing": 0,
        "level": Interval(mean, mean - 0.05, mean + 0.05, 5),
        "others": {},
        "against_baseline": None,
        "against_untrained": gain,
        "gap_closed": None,
        "equal_tokens": None,
        "tokens": 1e5,
        "seconds": 1.0,
    }
    return Row(**{**fields, **more})


def lead(mean: float, p: float = 0.5) -> Difference:
    """The best one's KL minus another's."""
    half = abs(mean) / 2 if p < 0.05 else 2 * abs(mean) + 0.01
    return Difference(mean, mean - half, mean + half, p, 5)


BEST, NEAR, FAR = kl_row("best", 0.30), kl_row("near", 0.305, tokens=5e4), kl_row("far", 0.60)
# evidence, outcome, choice, words of the headline
VERDICTS: dict[str, tuple[Evidence, Outcome, str, str]] = {
    "the lowest is best": (
        Evidence([FAR, BEST], {"far": lead(-0.3, 0.001)}, metric=KL),
        Outcome.CLEAR,
        "best",
        "significantly better than every other method",
    ),
    "a cheaper one within the margin": (
        Evidence([BEST, NEAR], {"near": lead(-0.005)}, metric=KL),
        Outcome.TIE,
        "near",
        "cheapest of the 2 methods within 0.010 nats per token of the lowest mean (best)",
    ),
    "a cheaper one beyond the margin": (
        Evidence([BEST, kl_row("near", 0.33, tokens=5e4)], {"near": lead(-0.03)}, metric=KL),
        Outcome.TIE,
        "best",
        "1 other is not significantly worse, but more than 0.010 nats per token behind",
    ),
    "all further from the teacher than before": (
        Evidence([kl_row("a", 0.8, LOSS), kl_row("b", 0.9, LOSS)], {"b": lead(-0.1)}, metric=KL),
        Outcome.NO_GAIN,
        "",
        "no method is significantly better than the untrained student",
    ),
    "the lowest mean is not a significant gain": (
        Evidence(
            [kl_row("lucky", 0.2, Difference(-0.3, -0.7, 0.1, 0.2, 5)), BEST],
            {"lucky": lead(0.1)},
            metric=KL,
        ),
        Outcome.GAIN,
        "best",
        "the only significant improvement over the untrained student",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_where_less_is_better(name: str) -> None:
    evidence, outcome, choice, words = VERDICTS[name]
    verdict = judge(evidence)
    assert (verdict.outcome, verdict.choice) == (outcome, choice)
    assert words in headline(verdict)
    text = " ".join([headline(verdict), *reasons(verdict)])
    assert not re.search(r"points|%|[Hh]ighest", text), text
    assert verdict.to_json()["metric"] == "kl"


def test_what_is_worse_than_untrained_is_named_where_less_is_better() -> None:
    worse = kl_row("worse", 0.9, LOSS)
    verdict = judge(Evidence([BEST, worse], {"worse": lead(-0.6, 0.001)}, metric=KL))
    assert verdict.below_untrained == ("worse",) and [*verdict.below] == ["worse"]
    text = " ".join(reasons(verdict))
    assert "best is better by −0.600 nats per token" in text
    assert "Significantly worse than the untrained student: worse." in text
    assert "−0.200 nats per token (−0.300 to −0.100, p 0.001) from the untrained student" in text


def study_of(kind: Kind, **changes: Any) -> Study:
    table: dict[str, Any] = {"seeds": [0, 1, 2], "methods": METHODS, "eval": EVALUATED} | changes
    if kind == "no teacher":
        own = {"pair": {"solo": {"student": "mine/student"}}, "pairs": ["solo"]}
        train = {"steps": 20, "max_tokens": 32, "learning_rate": 1e-3}
        recipe = {"longer": {"from": "off_policy", "budget": 2}}
        table |= {**own, "train": train, "recipe": recipe, "methods": ["off_policy", "longer"]}
    return small_study(**table)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study of each kind, reported."""
    kinds: tuple[Kind, ...] = ("shares", "nats", "no teacher")
    places = {kind: tmp_path_factory.mktemp("kinds") / kind.replace(" ", "-") for kind in kinds}
    for kind, place in places.items():
        write_study(place, study_of(kind), kind=kind)
        write_report(place)
    return {str(kind): place for kind, place in places.items()}


HEADS = {
    "shares": "avg@4 accuracy %",
    "nats": "KL to the teacher",
    "no teacher": "loss on the data's completions",
}


def page_text(path: Path) -> str:
    """What a reader of a page sees without charts."""
    html = re.sub(r"<(script|style).*?</\1>", "", path.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


@pytest.mark.parametrize("kind", HEADS)
def test_a_report_says_what_was_measured(folders: dict[str, Path], kind: str) -> None:
    data = load(folders[kind])
    shown = say("report", folders[kind])
    assert f"method\t{HEADS[kind]}" in shown
    report = write_report(folders[kind])
    assert report.missing == 0 and report.metrics == data.metrics
    title = HEADS[kind].removesuffix(" %")
    assert title in as_markdown(report) and title in page_text(report.html)
    results = json.loads(report.results.read_text())
    assert results["metric"]["name"] == data.metric.name
    assert all(math.isfinite(cell[data.metric.name]) for cell in results["cells"])
    row = next(r for r in results["table"] if r["method"] == "untrained")
    assert row[data.metric.name]["low"] < row[data.metric.name]["mean"]
    assert f",{data.metric.name},{data.metric.name}_low," in report.csv.read_text()


@pytest.mark.parametrize("kind", ["nats", "no teacher"])
def test_a_report_without_a_grader_speaks_of_no_accuracy(
    folders: dict[str, Path], kind: str
) -> None:
    report = write_report(folders[kind])
    shown = say("report", folders[kind])
    for text in (page_text(report.html), as_markdown(report), shown):
        assert not re.search(r"[Aa]ccurac|\bpoints\b|[Hh]ighest mean", text)
    assert "less is better" in page_text(report.html)


def test_the_lowest_kl_is_recommended_and_the_gap_is_the_teachers(
    folders: dict[str, Path],
) -> None:
    data = load(folders["nats"])
    rows = {row.method: row for row in data.rows}
    level = {method: row.level.mean for method, row in rows.items() if row.level}
    assert level["teacher"] == 0 and math.isnan(rows["teacher"].level.low)  # type: ignore[union-attr]
    assert level["hybrid"] < level["untrained"] < level["reverse_curriculum"]
    closed = rows["hybrid"].gap_closed
    assert closed == pytest.approx(1 - level["hybrid"] / level["untrained"]) and closed > 0
    verdict = summarize(data, []).verdicts["tiny-qwen"]
    assert verdict.choice in ("hybrid", "on_policy_gkd")
    assert verdict.below_untrained == ("reverse_curriculum",)
    assert rows["hybrid"].others["student_loss"].mean > 0
    assert rows["hybrid"].equal_tokens == pytest.approx(level["hybrid"], abs=0.01)


def test_directions_of_marks_and_colours_follow_the_metric(folders: dict[str, Path]) -> None:
    html = (folders["nats"] / "report.html").read_text()
    row = re.findall(r'<tr data-method="reverse_curriculum".*?</tr>', html, re.S)[0]
    assert 'class="num up reverse"' in row  # above the untrained student, and worse
    best = re.findall(r'<tr data-method="hybrid".*?</tr>', html, re.S)[0]
    assert 'class="num down reverse"' in best
    shares = (folders["shares"] / "report.html").read_text()
    assert re.search("num (up|down)", shares) and not re.search("num (up|down) reverse", shares)


def test_a_pair_without_a_teacher_has_no_row_and_no_gap(folders: dict[str, Path]) -> None:
    data = load(folders["no teacher"])
    assert [row.method for row in data.rows] == ["untrained", "off_policy", "longer"]
    assert all(row.gap_closed is None for row in data.rows) and data.references("solo") == [
        "untrained"
    ]
    text = page_text(folders["no teacher"] / "report.html")
    assert "missing" not in text and "without a teacher" in text
    head = (folders["no teacher"] / "report.html").read_text().split("How to read")[0]
    assert "gap closed" not in head
    watched = say("watch", folders["no teacher"], "--once")
    assert "loss on the data's completions" in watched


def test_passes_have_intervals_of_their_own(folders: dict[str, Path]) -> None:
    rows = {row.method: row for row in load(folders["shares"]).rows}
    one = rows["hybrid"]
    assert one.level is not None
    assert one.level.mean < one.others["pass@2"].mean < one.others["pass@4"].mean
    assert one.others["pass@4"].low < one.others["pass@4"].mean < one.others["pass@4"].high
    text = say("report", folders["shares"])
    low, high = (100 * x for x in (one.others["pass@2"].low, one.others["pass@2"].high))
    assert f"({low:.1f} to {high:.1f})" in text


def test_completions_show_grades_between_right_and_wrong(tmp_path: Path) -> None:
    from potstill.report.completions import Answer

    marks = {grade: Answer(None, [], grade, True).mark for grade in (None, 0.0, 0.25, 1.0)}
    assert marks == {None: "", 0.0: "✗ wrong", 0.25: "grade 0.25", 1.0: "✓ right"}
    assert Answer(None, [], 0.75, True).css == "up" and Answer(None, [], None, True).css == ""


def test_studies_with_other_metrics_are_not_compared(folders: dict[str, Path]) -> None:
    words = "measured by different numbers: .*accuracy.*KL to the teacher"
    with pytest.raises(PotstillError, match=words) as error:
        compare([folders["shares"], folders["nats"]])
    assert error.value.hint


def test_a_comparison_without_a_grader_says_better_and_worse(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    changed = study_of("nats", train={"steps": 20, "max_tokens": 32, "batch_size": 8})
    write_study(tmp_path / "other", changed, kind="nats")
    for cell in ("hybrid/0", "hybrid/1", "hybrid/2"):  # a tenth of the KL
        place = tmp_path / "other/cells/tiny-qwen" / cell / "result.json"
        record = json.loads(place.read_text().splitlines()[0])
        record["outcomes"] = {k: [0.1 * x for x in v] for k, v in record["outcomes"].items()}
        record.pop("digest", None)
        place.write_text(json.dumps(record))
    comparison = compare([folders["nats"], tmp_path / "other"])
    (line,) = readings(comparison, comparison.entries)
    assert "significantly better: hybrid" in line and "higher" not in line
    assert "tiny-qwen, KL to the teacher" in to_markdown(comparison)
    page = page_text(write_comparison(comparison, tmp_path / "compare.html"))
    assert "KL to the teacher, nats per token, less is better" in page
    assert not re.search(r"[Aa]ccurac|\bpoints\b", page)
    shown = say("compare", folders["nats"], tmp_path / "other", "--out", tmp_path / "c.html")
    assert "tiny-qwen, KL to the teacher, nats per token, differences in nats per token" in shown
    whole = json.loads(say("compare", folders["nats"], tmp_path / "other", "--json"))
    entry = next(e for e in whole["entries"] if e["method"] == "hybrid")
    assert (
        whole["metric"] == "kl" and entry["rows"][1]["kl"]["mean"] < entry["rows"][0]["kl"]["mean"]
    )


def test_the_live_view_shows_nats_as_numbers(folders: dict[str, Path]) -> None:
    from rich.console import Console

    data = load(folders["nats"])
    view = View(data.study, data.folder, list(data.runs), Console(width=120, record=True))
    view.tick()
    assert view._latest is not None
    view.console.print(view.screen(view._latest))
    text = view.console.export_text()
    assert "tiny-qwen KL to the teacher" in text and "%" not in text
    run = Running(RunId("p", "m", 0), 10, None, levels=[0.5, 0.4, 0.25], metric=KL)  # type: ignore[arg-type]
    assert progress(run) == "0.500 → 0.250"
    assert progress(Running(run.cell, 10, run.lines, levels=[0.5])) == "▅ 50%"


def test_nothing_is_promised_about_nats_without_results() -> None:
    able = power(Comparisons({}), methods=3, seeds=5, problems=200, metric=KL)
    assert math.isinf(able.smallest) and able.plans == ()
    assert ability(able) == ["What difference can be shown is known when methods have two seeds."]


def test_intervals_that_may_cover_less_are_announced(tmp_path: Path) -> None:
    few = study_of("nats", eval={"every": 10, "problems": 12, "probe_every": 5})
    write_study(tmp_path / "few", few, kind="nats")
    trust = summarize(load(tmp_path / "few"), []).trust
    assert trust.skewed and trust.effective < 12 and trust.tone == "warn"
    text = page_text(write_report(tmp_path / "few").html)
    assert "its 95 % intervals may cover less" in text and "Only 12 held-out problems. " in text


def test_a_race_of_grades_has_its_seeds() -> None:
    assert len(raced(small_study(), Rules()).seeds) == Rules().seeds


def record(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"pair": "p", "method": "m", "seed": 0, "status": "done", "steps": 1}
    plain |= {"provenance": {}, "seconds": 1.0, "problems": 2}
    plain |= {"accuracy": 0.5, "flexible": 1.0, "outcomes": {"strict": "10", "flexible": "11"}}
    return plain | changes


UNGRADED: dict[str, Any] = {"accuracy": None, "flexible": None}
THREE = {"kl": [0.1, -0.01], "teacher_loss": [1.0, 2.0], "student_loss": [1.0, 2.0]}
SHARES = {"strict": [0.5, 0.0], "flexible": [1.0, 0.5]}
AVERAGE = {"accuracy": 0.25, "flexible": 0.75, "outcomes": SHARES, "samples": 4}
SOUND: dict[str, dict[str, Any]] = {
    "as before": {},
    "shares": AVERAGE,
    "pass@k": AVERAGE | {"outcomes": SHARES | {"pass@2": [0.5, 0.0], "pass@4": "10"}},
    "no grader": UNGRADED | {"outcomes": THREE, "estimator": "full vocabulary"},
    "no teacher": UNGRADED | {"outcomes": {"student_loss": [1.0, 2.0]}},
    "benchmarks": {
        "benchmarks": {"ifeval": {"metric": "acc", "outcomes": "110", "mean": 2 / 3}},
        "drift": {"metric": "nats per token", "outcomes": [2.0, 3.0], "mean": 2.5, "tokens": 99},
    },
    "sources": {"token_sources": {"student": 12, "teacher": 0, "file": 6}},
    "unknown sources": {"token_sources": None},
}
DAMAGED: dict[str, dict[str, Any]] = {
    "a share above 1": AVERAGE | {"outcomes": SHARES | {"strict": [1.5, -1.0]}},
    "a mean of other outcomes": AVERAGE | {"accuracy": 0.5},
    "not a number": UNGRADED | {"outcomes": THREE | {"kl": [math.nan, 0.1]}},
    "infinite": UNGRADED | {"outcomes": THREE | {"kl": [math.inf, 0.1]}},
    "text": UNGRADED | {"outcomes": THREE | {"kl": ["0.1", "0.2"]}},
    "too few": UNGRADED | {"outcomes": THREE | {"student_loss": [1.0]}},
    "accuracy without a grader": {"outcomes": THREE},
    "graded, without accuracy": {"accuracy": None},
    "one extractor": {"outcomes": {"strict": "10"}, "flexible": None},
    "both kinds": {"outcomes": {"strict": "10", "flexible": "11", "kl": [0.1, 0.2]}},
    "no outcomes": UNGRADED | {"outcomes": {}},
    "another outcome": UNGRADED | {"outcomes": {"loss": [1.0, 2.0]}},
    "pass@0": AVERAGE | {"outcomes": SHARES | {"pass@0": [0.5, 0.0]}},
    "pass@8 of 4": AVERAGE | {"outcomes": SHARES | {"pass@8": [0.5, 0.0]}},
    "no samples": AVERAGE | {"samples": 0},
    "a damaged benchmark": {"benchmarks": {"ifeval": {"metric": "acc", "outcomes": "112"}}},
    "a damaged drift": {"drift": {"metric": "nats", "outcomes": [1.0, None], "mean": 1.0}},
    "negative tokens": {"token_sources": {"file": -1}},
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_records_are_read(name: str) -> None:
    assert ResultRecord.model_validate(record(**SOUND[name])).status == "done"


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_records_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ResultRecord.model_validate(record(**DAMAGED[name]))


def test_rows_of_metrics_and_examples_have_limits() -> None:
    assert metrics_error({"step": 1, "eval/kl": 3.5, "eval/pass@4": 0.5}) == ""
    assert "between 0 and 1" in metrics_error({"step": 1, "eval/pass@4": 1.5})
    assert "not a number" in metrics_error({"step": 1, "eval/kl": "low"})
    row = {"step": 1, "problem": "a"}
    for grade in (None, True, 0.5, 1):
        assert example_error(row | {"strict": grade}) == ""
    for grade in (1.5, -0.1, math.nan, "right"):
        assert "strict" in example_error(row | {"flexible": 0.5, "strict": grade})


def elsewhere(cell: RunId) -> dict[str, Any]:
    """Benchmarks of a run: hybrid forgets, the others do not."""
    if cell.method == "teacher":
        return {}
    rng = np.random.default_rng([cell.seed or 0, *cell.method.encode()])
    skill = 0.5 if cell.method == "hybrid" else 0.7
    hard = np.random.default_rng(1).permutation(150) / 150
    right = hard + 0.05 * rng.normal(size=150) < skill
    far = 1.3 if cell.method == "hybrid" else 1.0
    drift = 2 * far * np.exp(0.3 * np.random.default_rng(2).normal(size=40))
    drift = drift * np.exp(0.02 * rng.normal(size=40))
    wrote = {"hybrid": {"student": 900, "teacher": 300}, "on_policy_gkd": {"student": 1200}}
    sources = wrote.get(cell.method, {"student": 0, "file": 4000})
    text = {"metric": "nats per token", "higher_is_better": False, "tokens": 9999}
    known = {"cut": 3, "metric": "acc,none", "outcomes": "".join("01"[int(x)] for x in right)}
    more: dict[str, Any] = {"benchmarks": {"local": known | {"mean": float(right.mean())}}}
    more |= {"drift": text | {"outcomes": drift.tolist(), "mean": float(drift.mean())}}
    return {"more": more | ({"token_sources": sources} if cell.seed is not None else {})}


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("forgotten") / "study"
    write_study(place, study_of("right"), elsewhere)
    return place


def test_what_was_forgotten_is_shown_and_said(remembered: Path) -> None:
    data = load(remembered)
    local, drift = retentions(data, "tiny-qwen")
    assert (local.metric.label, local.documents, local.judged(-1)) == (
        "local (acc,none)",
        150,
        ["hybrid"],
    )
    assert local.changes["hybrid"].mean == pytest.approx(-0.2, abs=0.02)
    assert drift.documents == 40 and not drift.metric.higher_is_better
    assert drift.judged(-1) == ["hybrid"] and drift.changes["hybrid"].mean > 0.4
    report = write_report(remembered)
    (line, _) = (text for text in report.forgotten if "local" in text)
    assert "significantly worse than the untrained student: hybrid −2" in line
    assert "points" in line and "on_policy_gkd" not in line
    assert any("3 prompts did not fit and lost tokens" in text for text in report.forgotten)
    assert any("loss on the text, significantly worse" in text for text in report.forgotten)
    text = page_text(report.html)
    assert "What was forgotten" in text and "trained − untrained" in text
    assert "| tiny-qwen, forgotten | local (acc,none) % |" in as_markdown(report)
    known = json.loads(report.results.read_text())["forgotten"]["tiny-qwen"]
    assert [one["name"] for one in known] == ["local", "drift"]
    assert known[0]["methods"]["hybrid"]["change"]["high"] < 0


def test_two_seeds_call_nothing_forgotten(tmp_path: Path) -> None:
    write_study(tmp_path / "two", study_of("right", seeds=[0, 1]), elsewhere)
    lines = write_report(tmp_path / "two").forgotten
    assert all("significantly" not in line for line in lines) and len(lines) == 3
    few = "Not enough seeds to call a change significant: 3 are needed"
    assert [few in line for line in lines] == [True, False, True]


def test_benchmarks_that_changed_are_left_out(tmp_path: Path) -> None:
    """An untrained student that was measured by another number has nothing to compare with."""

    def fate(cell: RunId) -> dict[str, Any]:
        made = elsewhere(cell)
        if cell.method == "untrained":
            made["more"]["benchmarks"]["local"]["metric"] = "acc_norm,none"
        return made

    write_study(tmp_path / "changed", study_of("right"), fate)
    assert [one.metric.name for one in retentions(load(tmp_path / "changed"), "tiny-qwen")] == [
        "drift"
    ]
    write_study(tmp_path / "none", study_of("right"))
    report = write_report(tmp_path / "none")
    assert report.forgotten == () and "What was forgotten" not in page_text(report.html)


def test_tokens_are_shown_by_who_wrote_them(remembered: Path) -> None:
    rows = {row.method: row.sources for row in costs(load(remembered), "tiny-qwen")}
    assert rows == {
        "on_policy_gkd": {"student": 1200},
        "hybrid": {"student": 900, "teacher": 300},
        "reverse_curriculum": {"file": 4000},
    }
    report = write_report(remembered)
    assert "Tokens that a run trained on, by who wrote them." in page_text(report.html)
    head = "| tiny-qwen, tokens trained on | the student's | the teacher's | of the data's files |"
    assert head in as_markdown(report)


def test_one_writer_needs_no_table(tmp_path: Path) -> None:
    def fate(cell: RunId) -> dict[str, Any]:
        return {"more": {"token_sources": {"student": 1200, "teacher": 0, "file": 0}}}

    write_study(tmp_path / "one", study_of("right"), fate)
    report = write_report(tmp_path / "one")
    assert "by who wrote them" not in page_text(report.html)
    assert "tokens trained on" not in as_markdown(report)


def test_losses_are_the_metrics_next_to_the_kl() -> None:
    assert [m.curve for m in (KL, TEACHER_LOSS, STUDENT_LOSS)] == [
        "eval/kl",
        "eval/teacher_loss",
        "eval/student_loss",
    ]
    assert WITHOUT_TEACHER.key == STUDENT_LOSS.key and not WITHOUT_TEACHER.higher_is_better
    assert ACCURACY.of({"outcomes": {"strict": "110"}}) == pytest.approx(2 / 3)
    assert KL.of({"outcomes": {"strict": "110"}}) is None and KL.of({}) is None


def test_trackers_receive_what_a_run_was_measured_by() -> None:
    sent = summary(record(**UNGRADED, outcomes=THREE))
    assert sent["result/kl"] == pytest.approx(0.045) and sent["result/student_loss"] == 1.5
    assert "result/accuracy" not in sent
    shares = summary(record(**AVERAGE | {"outcomes": SHARES | {"pass@2": "10"}}))
    assert shares["result/accuracy"] == 0.25 and shares["result/pass@2"] == 0.5
    assert "result/strict" not in shares


@pytest.mark.parametrize("command", ["race", "audit"])
def test_commands_that_need_a_grader_say_so(command: str, tmp_path: Path) -> None:
    """Before anything runs."""
    lines = "".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(20))
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "test.jsonl").write_text(lines.replace("Say", "Write"))
    options = ["task.name=data", "task.train_path=train.jsonl", "task.test_path=test.jsonl"]
    table = {"name": "prompts", "pairs": ["tiny-qwen"], "methods": METHODS}
    table["task"] = dict(word.removeprefix("task.").split("=") for word in options)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(PotstillError, match='the task "data" has no grader') as error:
        words = [command, str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert error.value.hint and not (tmp_path / "out").exists()
