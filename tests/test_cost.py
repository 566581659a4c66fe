"""Money and budgets: what is counted, what is refused, what stops and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import toy_table
from launching import run_study
from potstill.cli import app
from potstill.cli.launch import checked, fill, predict
from potstill.errors import PotstillError
from potstill.settings import Budget, Price
from potstill.study.budget import Ledger
from potstill.study.files import write_record
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, StudyFolder, runs_of
from potstill.training.spending import BudgetReached, Spent, excess, total

PRICE = Price(hour=2.0, prompt=1.0, student_sampled=3.0, teacher_scored=5.0, trained=7.0)


def test_dollars_are_hours_and_tokens() -> None:
    tokens = {
        "prompt": 1e6,
        "graded_prompt": 1e6,
        "student_sampled": 2e6,
        "graded_student_sampled": 1e6,
        "teacher_scored": 1e6,
        "trained": 3e6,
    }
    assert Spent(1800.0, tokens).usd(PRICE) == pytest.approx(1 + 2 + 9 + 5 + 21)
    assert Spent(1800.0, tokens).count() == 6e6  # gradings and prompts are no method's tokens


def test_spending_adds_up() -> None:
    one, two = Spent(1.0, {"trained": 2.0}), Spent(2.0, {"prompt": 1.0, "trained": 1.0})
    assert total([one, two]) == Spent(3.0, {"trained": 3.0, "prompt": 1.0})
    assert one * 3 == Spent(3.0, {"trained": 6.0})
    assert Spent.read({"seconds": None, "tokens": None}) == Spent()


@pytest.mark.parametrize(
    ("record", "want"),
    [
        ({}, Spent()),
        ({"flops": {"trained": 3.0}}, Spent()),  # nothing was done
        ({"tokens": {"trained": 2}}, Spent(0.0, {"trained": 2}, None)),  # it was not counted
        ({"tokens": {"trained": 2}, "flops": {}}, Spent(0.0, {"trained": 2}, None)),
        ({"tokens": {"trained": 2}, "flops": 7.0}, Spent(0.0, {"trained": 2}, 7.0)),
        (
            {"seconds": 4, "tokens": {"prompt": 2}, "flops": {"a": 3.0, "b": 4.0}, "saved": 1},
            Spent(4.0, {"prompt": 2}, 7.0, 1.0),
        ),
        ({"seconds": 4, "saved": {"a": 0.5, "b": 2.0}}, Spent(4.0, {}, 0.0, 2.5)),
        ({"saved": None, "tokens": {}, "flops": None}, Spent()),
    ],
)
def test_a_record_is_read(record: dict, want: Spent) -> None:
    assert Spent.read(record) == want


def test_operations_and_saved_seconds_add_up_where_they_are_known() -> None:
    one, two = Spent(1.0, {"a": 1.0}, 5.0, 0.5), Spent(2.0, {"b": 1.0}, 7.0, 0.25)
    unknown = Spent(3.0, {}, None, 1.0)
    assert one + two == Spent(3.0, {"a": 1.0, "b": 1.0}, 12.0, 0.75)
    assert one + unknown == unknown + one == Spent(4.0, {"a": 1.0}, None, 1.5)
    assert one * 2 == Spent(2.0, {"a": 2.0}, 10.0, 1.0)
    assert unknown * 2 == Spent(6.0, {}, None, 2.0)
    assert one.alone == Spent(1.5, {"a": 1.0}, 5.0, 0.0)


def test_the_first_limit_that_is_reached_is_named() -> None:
    spent = Spent(7200.0, {"trained": 1e6})
    assert excess(Budget(), PRICE, spent) == ""
    assert excess(Budget(usd=12, hours=3, tokens=2e6), PRICE, spent) == ""
    assert excess(Budget(usd=11, hours=1), PRICE, spent) == "11 USD of budget.usd = 11"
    assert excess(Budget(usd=1), Price(hour=1e7), spent) == "2e+07 USD of budget.usd = 1"
    assert excess(Budget(hours=2), PRICE, spent) == "2 hours of budget.hours = 2"
    assert excess(Budget(tokens=100), PRICE, spent) == "1e+06 tokens of budget.tokens = 100"
    assert excess(Budget(tokens=1e6), PRICE, spent) == "1e+06 tokens of budget.tokens = 1e+06"


def test_a_ledger_sums_what_ended_and_what_runs(tmp_path: Path) -> None:
    def write(cell: str, name: str, record: dict) -> Path:
        path = tmp_path / "p" / cell / "0"
        path.mkdir(parents=True, exist_ok=True)
        write_record(path / name, record)
        return path

    write("a", "result.json", {"status": "done", "seconds": 5.0, "tokens": {"trained": 1}})
    write("b", ".spent", {"seconds": 7.0, "tokens": {"trained": 2}})
    write("b", "result.json", {"status": "failed", "seconds": 1.0})
    mine = write("c", ".spent", {"seconds": 1.0, "tokens": {"trained": 5}})
    ledger = Ledger(tmp_path, Budget(tokens=10), Price())
    assert ledger.spent(mine) == Spent(12.0, {"trained": 3.0}, flops=None)
    assert ledger.charge(mine, Spent(1.0, {"trained": 6.0})) == ""
    assert ledger.charge(mine, Spent(1.0, {"trained": 9.0})) == ""  # looks once a second
    assert "budget.tokens" in ledger.charge(mine, Spent(1.0, {"trained": 9.0}), now=True)
    assert json.loads((mine / ".spent").read_text())["tokens"] == {"trained": 9.0}


def test_what_was_done_twice_is_paid_twice(tmp_path: Path, looks_at_once: None) -> None:
    """A cell fails after 9 tokens and begins anew; another is killed at 8 and goes on from 5."""
    budget, place = Budget(tokens=100), RunFolder(tmp_path / "p" / "m" / "0")
    place.path.mkdir(parents=True)
    for spent, begins, lost in ((9.0, 1.0, 8.0), (8.0, 6.0, 10.0)):
        assert not Ledger(tmp_path, budget, Price()).charge(
            place.path, Spent(spent, {"trained": spent})
        )
        again = Ledger(tmp_path, budget, Price())  # another process
        again.charge(place.path, Spent(begins, {"trained": begins}))
        assert again.spent().count() == begins + lost
        assert again.spent().seconds == begins + lost
    assert Ledger(tmp_path, Budget(tokens=16), Price()).over()
    place.finish({"status": "done", "seconds": 12.0, "tokens": {"trained": 12}})
    assert Ledger(tmp_path, budget, Price()).spent().count() == 12 + 10


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.study import budget

    monkeypatch.setattr(budget, "EVERY", 0.0)


def toy(tmp_path: Path, **changes: object) -> Study:
    table = {"methods": ["on_policy_gkd", "off_policy"], "seeds": [0], **changes}
    return read_study(toy_table(tmp_path, **table))


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyFolder]:
    """A study of two methods and two seeds, with pre-flight, at 3,600 dollars an hour."""
    tmp = tmp_path_factory.mktemp("priced")
    study = toy(tmp, price={"hour": 3600.0}, seeds=[0, 1])
    fill(study, tmp / "out", 1, True)
    return study, StudyFolder(tmp / "out")


def test_a_spent_budget_stops_between_steps_and_goes_on(
    tmp_path: Path, looks_at_once: None
) -> None:
    whole = run_study(toy(tmp_path), tmp_path / "whole", workers=0)
    key = RunId("toy", "on_policy_gkd", 0)
    record = whole.cell(key).result
    assert record is not None
    half = Spent.read(record).count() / 2
    part = StudyFolder(tmp_path / "part")
    with pytest.raises(BudgetReached, match=r"of budget\.tokens"):
        run_study(toy(tmp_path, budget={"tokens": half}), part.path, workers=0)
    run = part.cell(key)
    assert run.result is None and run.running is None and 1 < run.steps < 12
    with pytest.raises(BudgetReached):  # nothing begins while it is spent
        fill(toy(tmp_path, budget={"tokens": half}), part.path, 1, False)
    assert run.result is None
    fill(toy(tmp_path, budget={"tokens": 1e9}), part.path, 1, False)
    again = run.result
    assert again is not None and run.metrics == whole.cell(key).metrics
    assert again["tokens"] == record["tokens"]
    assert not list(part.path.rglob(".spent"))


def test_a_study_that_would_exceed_its_budget_is_refused_before_it_begins(tmp_path: Path) -> None:
    study = toy(tmp_path, budget={"tokens": 10})
    with pytest.raises(
        PotstillError, match=r"the 4 missing runs .* budget\.tokens = 10"
    ) as refused:
        fill(study, tmp_path / "out", 1, True)
    assert "--no-preflight" in refused.value.hint and not (tmp_path / "out").exists()


def test_what_was_predicted_is_kept_and_close(priced: tuple[Study, StudyFolder]) -> None:
    study, folder = priced
    predicted = folder.predicted["toy"]
    assert predicted.keys() == {"on_policy_gkd", "off_policy", "teacher", "untrained"}
    for method in ("on_policy_gkd", "off_policy"):
        record = folder.cell(RunId("toy", method, 0)).result
        assert record is not None
        assert predicted[method].count() == pytest.approx(Spent.read(record).count(), rel=0.5)
    assert set(predict(checked(study))["toy"]) == set(predicted)


def test_evaluations_and_baselines_are_paid_for(priced: tuple[Study, StudyFolder]) -> None:
    study, folder = priced
    assert len(runs_of(study)) == 6
    for key in runs_of(study):
        record = folder.cell(key).result
        assert record is not None
        tokens = record["tokens"]
        role = "teacher" if key.method == "teacher" else "student"
        assert tokens[f"graded_{role}_sampled"] > 0 and tokens["graded_prompt"] > 0
        assert record["peak_bytes"] > 0
        kinds = ("student_sampled", "teacher_sampled", "teacher_scored", "trained")
        assert Spent.read(record).count() == sum(tokens.get(kind, 0) for kind in kinds)
        assert (Spent.read(record).count() > 0) == (key.seed is not None)


def test_the_report_compares_costs_with_the_prediction(
    priced: tuple[Study, StudyFolder], tmp_path: Path
) -> None:
    from potstill.report import write_report
    from potstill.report.costs import costs
    from potstill.report.data import load

    _, folder = priced
    row = {row.method: row for row in costs(load(folder.path), "toy")}["on_policy_gkd"]
    results = [folder.cell(RunId("toy", "on_policy_gkd", seed)).result for seed in (0, 1)]
    records = [record for record in results if record]
    seconds = sum(record["seconds"] for record in records) / 2
    assert len(records) == row.runs == 2 and row.usd == pytest.approx(seconds)
    assert row.predicted == folder.predicted["toy"]["on_policy_gkd"]
    untrained = folder.cell(RunId("toy", "untrained")).result
    assert untrained is not None
    accuracy = sum(record["accuracy"] for record in records) / 2
    points = 100 * (accuracy - untrained["accuracy"])
    assert row.usd_per_point == pytest.approx(seconds / points)
    assert row.device_seconds == pytest.approx(seconds)  # one device a run
    assert row.spent.flops is None and row.flops_per_point is None  # a bigram table has no size
    kinds = {name: kind.tokens for name, kind in row.kinds.items()}
    graded = kinds.pop("graded"), kinds.pop("prompt")
    assert min(graded) > 0 and sum(kinds.values()) == pytest.approx(row.spent.count())
    assert row.peak_bytes == max(record["peak_bytes"] for record in records)
    text = write_report(folder.path).html.read_text()
    assert "Tokens and operations by kind" in text
    assert "What it cost" in text and "a point gained" in text
    free = run_study(toy(tmp_path), tmp_path / "free", workers=0)
    (row, _) = costs(load(free.path), "toy")
    assert row.usd is None and row.predicted is None
    assert "No price is set" in write_report(free.path).html.read_text()


def test_check_prints_hours_tokens_and_dollars(tmp_path: Path) -> None:
    import tomli_w

    file = tmp_path / "study.toml"
    table = toy_table(tmp_path, methods=["off_policy"], price={"hour": 1.0, "trained": 2.0})
    file.write_text(tomli_w.dumps(table))
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["prediction"]
    assert row["predicted"] == "toy" and float(row["USD"]) > 0 and float(row["tokens"]) > 100
    plain = CliRunner().invoke(app, ["check", str(file)])
    assert "prediction\tCPU-hours\ttokens\tUSD\n" in plain.stdout  # FLOPs are unknown
    refused = CliRunner().invoke(app, ["check", str(file), "budget.usd=0.00001"])
    assert refused.exception is not None and "budget.usd" in str(refused.exception)
