"""The command line: a wrong request costs two lines and code 2, a right one writes its files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from conftest import toy_table
from potstill import cli
from potstill.algorithms.methods import METHODS
from potstill.cli import launch
from potstill.cli.check import plan
from potstill.cli.ls import LISTS
from potstill.errors import PotstillError
from potstill.study.loading import read_study
from potstill.study.run import prepare


def potstill(*words: object) -> subprocess.CompletedProcess[str]:
    """The real command."""
    return subprocess.run(
        [sys.executable, "-m", "potstill", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def call(*words: object) -> int:
    """The same in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(sys, "argv", ["potstill", *map(str, words)])
        cli.main()
    return int(leaving.value.code or 0)


def write(path: Path, table: dict[str, Any] | str) -> Path:
    path.write_text(table if isinstance(table, str) else tomli_w.dumps(table))
    return path


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(captured: pytest.CaptureFixture[str], code: int, message: str) -> None:
    """Exactly an error and a hint on stderr, nothing on stdout."""
    out, err = captured.readouterr()
    assert code == 2, err
    assert out == ""
    error, hint = err.rstrip("\n").split("\n")
    assert error.startswith("error: ") and message in error, err
    assert hint.startswith("hint: ") and len(hint) > len("hint: "), err


# Wrong study files: changes of the toy study, and a part of the message.
BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"trian": {"steps": 3}}, 'unknown key "trian"'),
    "unknown key in a table": ({"train": {"step": 3}}, 'unknown key "train.step"'),
    "unknown key of an engine": (
        {"engine": {"name": "fake", "threads": 2}},
        'unknown key "engine.threads"',
    ),
    "unknown method": ({"methods": ["hybird"]}, 'unknown method "hybird"'),
    "unknown pair": ({"pairs": ["tony"]}, 'unknown pair "tony"'),
    "unknown task": ({"task": "arithmetics"}, 'unknown task "arithmetics"'),
    "task without a name": ({"task": {"name": 3}}, 'unknown task "3"'),
    "unknown task option": ({"task": {"mach": "exact"}}, 'unknown key "mach"'),
    "unknown engine": ({"engine": "troch"}, 'unknown engine "troch"'),
    "unknown loss": (
        {"methods": ["a"], "recipe": {"a": {"student_loss": "reverse_lk"}}},
        'unknown loss "reverse_lk"',
    ),
    "unknown key of a recipe": (
        {"methods": ["a"], "recipe": {"a": {"prefx": 3}}},
        'unknown key "prefx"',
    ),
    "recipe that is a method": ({"recipe": {"hybrid": {"anchor": 1.0}}}, "would redefine"),
    "value of another type": ({"train": {"steps": "many"}}, "train.steps"),
    "value out of range": ({"train": {"learning_rate": -1.0}}, "train.learning_rate"),
    "not a number": ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
    "no room for the prefix": ({"train": {"max_tokens": 20}}, "max_tokens counts the prefix"),
    "duplicate seeds": ({"seeds": [0, 1, 0]}, "one of them twice"),
    "duplicate methods": ({"methods": ["hybrid", "hybrid"]}, "one of them twice"),
    "no seeds": ({"seeds": []}, "seeds"),
    "loss that the engine lacks": (
        {"methods": ["a"], "recipe": {"a": {"student_loss": {"jsd": 0.5}}}},
        'which engine "fake" cannot compute',
    ),
    "pair that climbs": ({"pair": {"../x": {"student": "a", "teacher": "b"}}}, "../x"),
    "study that climbs": ({"name": ".."}, "name"),
    "no rate for an own pair": (
        {"engine": "torch", "pair": {"toy": {"student": "a/b", "teacher": "c/d"}}, "train": None},
        "train.learning_rate is needed",
    ),
    "missing model": (
        {
            "engine": "torch",
            "pair": {"toy": {"student": "tiny-qwen/student", "teacher": "no-model"}},
        },
        "is neither a local folder nor a Hub model ID",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_wrong_study_file_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, message = BAD_FILES[case]
    table = toy_table(tmp_path, **changes)
    file = write(tmp_path / "toy.toml", {k: v for k, v in table.items() if v is not None})
    before = everything(tmp_path)
    refused(capsys, call("study", file, "--out", tmp_path / "out"), message)
    assert everything(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere.toml"], 'no study file "nowhere.toml"'),
        (["check", "/"], 'cannot read "/"'),
        (["check", "train.steps"], 'no study file "train.steps"'),  # an override without "="
        (["check", "train.steps="], "an override is key=value"),
        (["check", "=3"], "an override is key=value"),
        (["check", "a.toml", "b.toml"], "one study at a time"),
        (["check", "name.x=3"], "quick: name: "),
        (["check", "train.stepps=3"], 'unknown key "train.stepps"'),
        (["check", "seeds=0,two"], "seeds"),
        (["check", "task.dificulty=3"], 'unknown key "dificulty"'),
        (["check", "--preflite"], "no such option: --preflite"),
        (["chek"], "no such command 'chek'"),
        (["check", "--json=3"], "option '--json' does not take a value"),
        (["study", "--workers"], "option '--workers' requires an argument"),
        (["study", "--workers", "many"], "invalid value for '--workers'"),
        (["study", "--workers", "-1"], "invalid value for '--workers'"),
        (["report"], "missing argument 'FOLDER|URL'"),
        (["report", "a", "b"], "unexpected extra argument"),
        (["zoo", "biuld"], "no such command 'biuld'"),
        (["run", "--method", "hybird"], 'unknown method "hybird"'),
        (["run", "--pair", "tiny-qwem"], 'unknown pair "tiny-qwem"'),
        (["run", "--seed", "-1"], "seeds"),
        (["ls", "method"], 'nothing to list under "method"'),
        (["report", "/nowhere"], "/nowhere"),
        (["eval", "/nowhere/model"], "is neither a local folder nor a Hub model ID"),
        (["eval", "tiny-llama/student", "--task", "arithmetics"], 'unknown task "arithmetics"'),
        (["eval", "tiny-llama/student", "difficulty"], "a task option is key=value"),
        (["eval", "tiny-llama/student", "--problems", "2000"], "asked for 2000"),
        (["eval", "tiny-llama/student", "--texts", "no/x.jsonl"], 'folder "no" does not exist'),
        (["zoo", "build", "tiny-qwem"], 'unknown pair "tiny-qwem"'),
        (["zoo", "build", "--role", "techer"], 'unknown role "techer"'),
        (["zoo", "save", "tiny-qwem"], 'unknown pair "tiny-qwem"'),
        (["zoo", "save", "tiny-qwen", "--dtype", "int8"], 'unknown dtype "int8"'),
    ],
)
def test_wrong_words_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, call(*words), message)
    assert not list(tmp_path.iterdir())


def test_the_nearest_name_is_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, nearest in (
        ({"trian": {}}, "train"),
        ({"train": {"step": 3}}, "steps"),
        ({"methods": ["hybird"]}, "hybrid"),
        ({"pairs": ["tiny-lama"]}, "tiny-llama"),
        ({"engine": "troch"}, "torch"),
    ):
        file = write(tmp_path / "toy.toml", toy_table(tmp_path, **changes))
        assert call("check", file) == 2
        assert f'hint: did you mean "{nearest}"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"question": "1", "answer": "d"}\n{"question": "2", \n', "train.jsonl, line 2: not JSON"),
        (
            '{"question": "1", "answer": "d"}\n\n{"question": "2", "answer": "d"}\n',
            "train.jsonl, line 2: the line is empty",
        ),
        ('{"question": "1"}\n', 'train.jsonl, line 1: "answer" must be text'),
        ("[1]\n", "train.jsonl, line 1: not an object"),
        ('{"question": "xa1", "answer": "d"}\n', "problems used for training are never graded on"),
    ],
)
def test_a_wrong_problem_file_is_named_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    table = toy_table(tmp_path, eval={"probe": 1})
    (tmp_path / "train.jsonl").write_text(text)
    file = write(tmp_path / "toy.toml", table)
    refused(capsys, call("study", file, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no config.json"),
        (["config.json"], "has no weights"),
        (["config.json", "pytorch_model.bin"], "only pickled weights (pytorch_model.bin)"),
        (["config.json", "model.pt"], "only pickled weights (model.pt)"),
    ],
)
def test_a_folder_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    pair = {"toy": {"student": str(folder), "teacher": "tiny-qwen/teacher"}}
    file = write(tmp_path / "toy.toml", toy_table(tmp_path, engine="torch", pair=pair))
    refused(capsys, call("study", file, "--out", tmp_path / "out"), message)
    refused(capsys, call("eval", folder), message)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_toml_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, call("check", write(tmp_path / "a.toml", "name = ")), "is not TOML")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    refused(capsys, call("check", tmp_path / "b.toml"), "cannot read")


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/potstill"])
def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    (tmp_path / "file").write_text("mine")
    study = write(tmp_path / "toy.toml", toy_table(tmp_path))
    code = call("study", study, "--out", tmp_path / where)
    refused(capsys, code, f'cannot write "{tmp_path / where}"')
    assert (tmp_path / "file").read_text() == "mine"


HOSTILE: list[Any] = [3, -1, 2.5, "x", "", [], [1, "a"], {}, {"a": {"b": 1}}, True, [[]]]
HOSTILE += [float("inf"), float("nan"), 10**30, 1e308, "ä\x00/.."]
KEYS = """name task task.name task.train_path task.match engine engine.name engine.student methods
    pairs seeds pair pair.toy pair.toy.student train train.steps train.learning_rate train.save
    eval eval.problems eval.probe recipe recipe.a recipe.a.from recipe.a.on_policy recipe.a.prefix
    recipe.a.prefix.linear recipe.a.prefix.until recipe.a.student_loss recipe.a.student_loss.jsd
    recipe.a.student_loss.topk_reverse_kl recipe.a.teacher_loss recipe.a.anchor recipe.a.replay
    recipe.a.replay.capacity recipe.a.budget"""


@pytest.mark.parametrize("key", KEYS.split())
def test_no_value_of_a_study_ends_in_a_traceback(tmp_path: Path, key: str) -> None:
    """Any value at any key gives a study that can be planned, or an error with a hint."""
    base = toy_table(tmp_path)
    if key.startswith("recipe."):
        base |= {"methods": ["a"], "recipe": {"a": {"prefix": {}, "student_loss": {}}}}
        base["recipe"]["a"] = {} if key.count(".") < 3 else {key.split(".")[2]: {}}
    for value in HOSTILE:
        table = copy.deepcopy(base)
        *path, last = key.split(".")
        place = table
        for part in path:
            inner = place.get(part, {})
            place[part] = {"name": inner} if isinstance(inner, str) else inner
            place = place[part]
        place[last] = value
        try:
            study = read_study(table)
            plan(study, prepare(study))
        except PotstillError as error:
            assert error.hint, (value, error)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A folder with toy.toml and its study in out/, what stdout held as JSON, and stderr."""
    tmp = tmp_path_factory.mktemp("filled")
    table = toy_table(tmp, methods=["on_policy_gkd", "hybrid"], seeds=[0], train={"steps": 4})
    file = write(tmp / "toy.toml", table)
    words = ["study", file, "--out", tmp / "out", "--workers", 1, "--no-figures", "--json"]
    done = potstill(*words)
    assert done.returncode == 0, done.stderr
    return tmp, json.loads(done.stdout), done.stderr


def test_study_writes_a_report_and_prints_where(
    filled: tuple[Path, dict[str, Any], str],
) -> None:
    tmp, record, err = filled
    assert (record["cells"], record["done"], record["failed"], record["missing"]) == (4, 4, 0, 0)
    assert [row["method"] for row in record["table"]][2:] == ["on_policy_gkd", "hybrid"]
    for key in ("html", "results", "csv"):
        assert Path(record[key]).is_file()
    assert json.loads((tmp / "out" / "results.json").read_text())
    assert "4/4" in err and "Traceback" not in err


def test_a_folder_of_other_settings_is_left_alone(
    filled: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp, _, _ = filled
    before = everything(tmp)
    code = call("study", tmp / "toy.toml", "train.steps=5", "--out", tmp / "out")
    refused(capsys, code, "train.steps: 4 -> 5")
    assert everything(tmp) == before


def test_report_rebuilds_what_is_there(
    filled: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp, record, _ = filled
    file = tmp / "out" / "report.html"
    page = file.read_bytes()
    file.unlink()
    assert call("report", tmp / "out") == 0
    assert "on_policy_gkd" in capsys.readouterr().out
    lines = [text.decode().splitlines() for text in (page, file.read_bytes())]
    assert [pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]] == []
    assert file.read_bytes() == page
    assert call("report", tmp / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["table"] == record["table"]


def test_check_shows_the_grid_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "toy.toml", toy_table(tmp_path))
    before = everything(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call("check", file, "seeds=0,1,2", "--json", "--no-preflight") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checks"] == facts["prediction"] == []
    assert facts["cells"] == 2 + 9 * 3
    assert facts["optimizer steps"] == 12 * 10 * 3  # extended_on_policy runs for twice the steps
    assert facts["sampled tokens, at most"] == 360 * 10 * 24
    assert call("check", file, "methods=extended_on_policy,hybrid") == 0
    shown = capsys.readouterr().out
    assert "extended_on_policy (24 steps)" in shown and "runs, with baselines\t6\n" in shown
    assert "toy\thybrid: student tokens\tpassed\t" in shown and "CPU-hours" in shown
    assert "\tcause" not in shown and "\tUSD" not in shown  # no fault, and no price is set
    assert call("check", "task.difficulty=3", "engine.threads=1", "--no-preflight") == 0
    assert "setting\tvalue\nstudy\tquick\n" in capsys.readouterr().out
    assert everything(tmp_path) == before


def test_run_runs_one_method_on_one_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(tmp_path, train={"steps": 2})
    table["pair"]["second"] = table["pair"]["toy"]
    file = write(tmp_path / "toy.toml", table)
    words = ("run", file, "--method", "hybrid", "--seed", 3, "--out", tmp_path / "out", "--json")
    assert call(*words) == 0
    record = json.loads(capsys.readouterr().out)
    kept = {key: record[key] for key in ("pair", "method", "seed", "status")}
    assert kept == {"pair": "toy", "method": "hybrid", "seed": 3, "status": "done"}
    ended = sorted((tmp_path / "out").glob("cells/*/*/*/result.json"))
    runs = ["toy/hybrid/3", "toy/teacher/all", "toy/untrained/all"]
    assert [str(path.parent.relative_to(tmp_path / "out" / "cells")) for path in ended] == runs


def test_two_runs_of_one_study_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --out each has a folder of its own."""
    file = write(tmp_path / "toy.toml", toy_table(tmp_path, train={"steps": 1}))
    monkeypatch.chdir(tmp_path)
    filled: list[tuple[Any, Path]] = []

    def fill(study: Any, path: Path, workers: int, preflight: bool) -> dict[str, Any]:
        filled.append((study, path))
        return {"cell": {"status": "done", "pair": "", "method": "", "seed": 0, "accuracy": 1.0}}

    monkeypatch.setattr(launch, "fill", fill)
    for words in (["--seed", 1], ["--seed", 2], ["--method", "hybrid"]):
        assert call("run", file, *words) == 0
    assert len({path for _, path in filled}) == 3


def test_a_failing_run_is_reported_and_can_be_retried(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(tmp_path, methods=["hybrid"], seeds=[0])
    table["train"]["learning_rate"] = 1e308
    file, out = write(tmp_path / "toy.toml", table), tmp_path / "out"
    words = ("study", file, "--out", out, "--workers", 1, "--no-figures", "--no-preflight")
    assert call(*words) == 1
    shown = capfd.readouterr()  # of the worker's process too
    assert "failed" in shown.err and "Traceback" not in shown.err
    assert "1 failed" in shown.out and (out / "report.html").is_file()
    ended = out / "cells" / "toy" / "hybrid" / "0" / "result.json"
    stamp = ended.stat().st_mtime_ns
    assert call(*words, "--retry-failed") == 1
    assert ended.stat().st_mtime_ns > stamp
    assert json.loads(ended.read_text())["status"] == "failed"


@pytest.mark.parametrize("what", LISTS)
def test_every_list_has_rows_of_one_shape(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls", what, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row.keys() == rows[0].keys() for row in rows)
    assert call("ls", what) == 0
    shown = capsys.readouterr().out
    assert all(str(next(iter(row.values()))) in shown for row in rows)


def test_ls_methods_lists_the_nine_and_sft(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls", "methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [*METHODS, "sft"] and len(rows) == 10


def test_the_real_command_leaves_with_two_lines_and_code_2(tmp_path: Path) -> None:
    failed = potstill("study", tmp_path / "nowhere.toml", "--out", tmp_path / "out")
    assert failed.returncode == 2 and failed.stdout == ""
    error, hint = failed.stderr.splitlines()
    assert error == f'error: no study file "{tmp_path / "nowhere.toml"}"'
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out").exists()


def test_eval_evaluates_an_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    words = ("eval", "tiny-llama/student", "--problems", 20, "--max-tokens", 32, "--json")
    assert call(*words, "--texts", texts, "difficulty=1") == 0
    result = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    assert result["problems"] == len(rows) == 20
    assert result["strict"] == sum(row["strict"] for row in rows) / 20
    low, high = result["interval"]
    assert 0 <= low <= result["strict"] <= high <= 1
