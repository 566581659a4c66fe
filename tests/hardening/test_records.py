"""One test for each way in which a study's folder used to lie, or a command used to break on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from damage import say
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import toy_table
from launching import run_study
from potstill.digests import sealed, unsealed
from potstill.engines.fake import FakeEngine
from potstill.study.budget import read_spent
from potstill.study.files import DamagedFile
from potstill.study.loading import read_study
from potstill.study.processes import is_alive, started_at
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, StudyFolder, settings_digest
from potstill.tasks.templates import TemplateError, render_template

CELL = RunId("toy", "hybrid", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of one run, done."""
    place = tmp_path_factory.mktemp("whole")
    table = toy_table(place, methods=["hybrid"], seeds=[0], train={"steps": 3})
    (place / "toy.toml").write_text(tomli_w.dumps(table))
    study = read_study(table)
    return study, run_study(study, place / "out", workers=0).path


@pytest.fixture
def study(whole: tuple[Study, Path]) -> Study:
    return whole[0]


@pytest.fixture
def out(whole: tuple[Study, Path], tmp_path: Path) -> Path:
    for name in ("copy", "second"):
        shutil.copytree(whole[1].parent, tmp_path / name)
    return tmp_path / "copy" / "out"


def refused(out: Path, text: str, *commands: str) -> None:
    toy = out.parent / "toy.toml"
    words: dict[str, list[object]] = {
        "report": ["report", out],
        "watch": ["watch", out, "--once"],
        "compare": ["compare", out, out.parents[1] / "second" / "out"],
        "diagnose": ["diagnose", out],
        "study": ["study", toy, "--out", out, "--no-preflight", "--no-figures"],
    }
    for command in commands or words:
        said = say(*words[command])
        assert said.code == 2 and text in said.err, (command, said)
        assert "\nhint: " in said.err and "Traceback" not in said.err


def test_accuracies_of_900_percent_are_refused(out: Path, study: Study) -> None:
    run = StudyFolder(out).cell(CELL)
    file = run.path / "result.json"
    text = file.read_text()
    record = unsealed(text.rstrip("\n"))
    file.write_text(text.replace('"accuracy": 0.', '"accuracy": 9.', 1))
    refused(out, "result.json", "report", "watch", "compare", "study")
    # an older version wrote no digest: its fields are checked, and so is their agreement
    for change in (
        {"accuracy": 9.0},
        {"accuracy": 0.123},
        {"outcomes": {"strict": "2" * 20, "flexible": "0" * 20}},
        {"problems": 19},
        {"tokens": {"trained": -1}},
        {"of_another_version": 1},
        {"seed": True},
        {"findings": [{"kind": "unheard"}]},
    ):
        file.write_text(json.dumps({**record, **change}))
        refused(out, "result.json", "report", "study")
    file.write_text(json.dumps(record))
    assert say("report", out).code == 0


def test_a_record_of_another_run_is_refused(out: Path) -> None:
    cells = out / "cells/toy"
    shutil.copy(cells / "untrained/all/result.json", cells / "hybrid/0/result.json")
    refused(out, "it is the record of toy/untrained/all", "report", "study")


def test_a_sound_record_of_another_kind_is_refused(out: Path) -> None:
    run = StudyFolder(out).cell(CELL).path
    whole = (run / "result.json").read_text()
    (run / "result.json").write_text(sealed({"pid": 1, "host": "x"}) + "\n")
    refused(out, "it is a record of another kind", "report", "study")
    (run / "result.json").unlink()
    (run / "metrics.jsonl").write_text(whole)
    refused(out, "step is None, not a whole number", "report", "watch", "diagnose")


def test_metrics_that_were_cut_or_changed_are_refused(out: Path) -> None:
    file = StudyFolder(out).cell(CELL).path / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for changed in (b"".join(lines[:-1]), b"", whole.replace(b'"tokens": ', b'"tokens": 1')):
        file.write_bytes(changed)
        refused(out, "metrics.jsonl", "report", "watch", "compare", "diagnose", "study")
    file.write_bytes(whole)
    assert say("report", out).code == 0


def test_completions_may_be_removed_and_not_be_changed(out: Path) -> None:
    file = StudyFolder(out).cell(CELL).path / "examples.jsonl"
    file.write_text(file.read_text().replace("answer", "Answer", 1))
    refused(out, "examples.jsonl", "report")
    file.unlink()
    assert say("report", out).code == 0


def test_a_teachers_row_that_is_missing_is_named_before_a_run_begins(
    out: Path, study: Study
) -> None:
    """Its way out works: the baseline is repeated, and the run is executed."""
    teacher = StudyFolder(out).cell(RunId("toy", "teacher"))
    file = teacher.path / "examples.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(StudyFolder(out).cell(CELL).path)
    refused(out, f'remove the folder "{teacher.path}"', "study")
    shutil.rmtree(teacher.path)
    toy = out.parent / "toy.toml"
    assert say("study", toy, "--out", out, "--no-preflight", "--no-figures").code == 0
    assert (StudyFolder(out).cell(CELL).result or {})["status"] == "done"


def test_a_study_file_that_was_edited_is_refused(out: Path) -> None:
    file = out / "study.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.3", "learning_rate = 0.1"))
    refused(out, "it has changed since potstill wrote it", "report", "watch", "compare")
    refused(out, "train.learning_rate: 0.1 -> 0.3", "study")


def test_the_digest_of_settings_is_of_what_changes_a_number(study: Study) -> None:
    table, digest = study.to_toml(), settings_digest(study, CELL)
    assert settings_digest(read_study(table), CELL) == digest
    same: list[dict[str, Any]] = [
        {"price": {"hour": 3}},
        {"seeds": [0, 1]},
        {"methods": ["hybrid", "mixture"]},
        {"name": "other"},
        {"recipe": {"mine": {"from": "hybrid", "budget": 2}}},
    ]
    for change in same:
        assert settings_digest(read_study({**table, **change}), CELL) == digest, change
    pair = {**table["pair"]["toy"], "student": "another"}
    other: list[dict[str, Any]] = [
        {"train": {**table["train"], "learning_rate": 0.1}},
        {"eval": {**table["eval"], "problems": 19}},
        {"pair": {"toy": pair}},
        {"faults": ["seeds_ignored"]},
        {"student_loss": "reverse_kl_sampled"},
    ]
    for change in other:
        assert settings_digest(read_study({**table, **change}), CELL) != digest, change
    recipes = {"mine": {"from": "hybrid", "budget": 2}, "more": {"from": "mine"}}
    own = RunId("toy", "more", 0)
    derived = read_study({**table, "recipe": recipes, "methods": ["more"]})
    recipes["mine"] = {"from": "hybrid", "budget": 3}
    changed = read_study({**table, "recipe": recipes, "methods": ["more"]})
    assert settings_digest(derived, own) != settings_digest(changed, own)


def test_a_dead_process_is_not_shown_as_running(out: Path) -> None:
    run = StudyFolder(out).cell(CELL)
    (run.path / "result.json").unlink()
    run.mark_running(True)
    assert run.running and run.running["pid"] == os.getpid()
    assert run.running["started"] == started_at(os.getpid())
    assert "hybrid/0" in say("watch", out, "--once").out
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for mark in ({"pid": dead.pid}, {"pid": os.getpid(), "started": "12"}):
        (run.path / ".running").write_text(sealed({"host": os.uname().nodename, **mark}))
        assert run.mark and run.running is None
        assert "hybrid/0" not in say("watch", out, "--once").out
    (run.path / ".running").write_text(json.dumps({"host": "elsewhere", "pid": dead.pid}))
    assert run.running and run.running["host"] == "elsewhere"  # which nobody here can know


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid)
    child.wait()
    assert not is_alive(child.pid) and is_alive(os.getpid()) and is_alive(os.getpid(), "")


def test_what_kills_leave_behind_is_removed_by_the_next_command(out: Path) -> None:
    run = StudyFolder(out).cell(CELL)
    (run.path / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run.path / "checkpoints" / "step-00000003" / "engine.safetensors").write_bytes(b"0" * 999)
    (run.path / ".metrics.jsonl.4711").write_text("a whole copy")
    run.mark_running(True)
    toy = out.parent / "toy.toml"
    assert say("study", toy, "--out", out, "--no-figures").code == 0
    names = {path.name for path in run.path.iterdir()}
    kept = {"metrics.jsonl", "examples.jsonl", "result.json", "findings.json", "student", ".lock"}
    assert names == kept


def test_a_kill_before_the_first_checkpoint_changes_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rollback, the checkpoint of step 0 has the cost of step 0."""
    train = {"steps": 4, "checkpoint_every": 3, "on_collapse": "rollback"}
    study = read_study(toy_table(tmp_path, methods=["hybrid"], seeds=[0], train=train))
    counts = []
    for name, kill in (("whole", 0), ("killed", 1)):
        folder = run_study_until(study, tmp_path / name, kill, monkeypatch)
        result = folder.cell(CELL).result or {}
        counts.append((result["tokens"], result["flops"], folder.cell(CELL).metrics))
    assert counts[0] == counts[1] and counts[0][0]["graded_student_scored"]


def run_study_until(
    study: Study, path: Path, kill: int, monkeypatch: pytest.MonkeyPatch
) -> StudyFolder:
    """Run a study that is interrupted once, in the step after `kill` steps."""
    step, folder = FakeEngine.step, StudyFolder(path)
    if kill:

        def killed(self: FakeEngine, *args: Any) -> Any:
            if folder.cell(CELL).steps == kill:
                raise KeyboardInterrupt
            return step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(FakeEngine, "step", killed)
            with pytest.raises(KeyboardInterrupt):
                run_study(study, path, workers=0)
    run_study(study, path, workers=0)
    return folder


def test_a_damaged_checkpoint_is_in_the_record(tmp_path: Path) -> None:
    from damage import UNFINISHED, Folder

    folder = Folder(tmp_path)
    copy = folder.copied()
    run = StudyFolder(copy).cell(UNFINISHED)
    file = run.path / "checkpoints/step-00000004/engine.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    ended = say("study", folder.file, "--out", copy, "--no-preflight", "--no-figures")
    assert ended.code == 0
    (note,) = (run.result or {})["notes"]
    assert "step-00000004 is damaged (engine.safetensors has changed" in note


def test_other_things_in_the_place_of_files_and_folders(out: Path) -> None:
    (out / "cells/toy/hybrid/0/.x.1").mkdir()
    assert say("study", out.parent / "toy.toml", "--out", out, "--no-figures").code == 0
    shutil.rmtree(out / "cells/toy")
    (out / "cells/toy").write_text("x")
    refused(out, "Not a directory", "report", "watch", "study")
    refused(out / "study.toml", "holds no study", "report", "watch")


def test_the_account_of_runs_is_of_checked_records(out: Path, study: Study) -> None:
    file = out / "cells/toy/hybrid/0/result.json"
    record = unsealed(file.read_text().rstrip("\n"))
    file.write_text(json.dumps({**record, "tokens": [1, 2]}))
    with pytest.raises(DamagedFile, match="tokens"):
        StudyFolder(out).ledger(study).spent()


def test_a_damaged_file_in_a_worker_stops_the_study_with_its_name(
    tmp_path: Path, study: Study
) -> None:
    folder = run_study(study, tmp_path / "out", workers=0)
    run = folder.cell(CELL)
    (run.path / "result.json").unlink()
    (run.path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(DamagedFile, match="it holds a list, not an object"):
        run_cell(study, folder, CELL)
    assert run.result is None and run.mark is None
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl"):
        run_study(study, tmp_path / "out", workers=1)


def test_a_race_of_digests_between_old_and_new_lines(tmp_path: Path) -> None:
    """Lines without a digest may come first, from an older version, and not later."""
    run = RunFolder(tmp_path)
    plain = [json.dumps({"step": step, "train/loss": 0.5}) for step in range(4)]
    lines = [*plain[:2], sealed({"step": 2}), sealed({"step": 3})]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:3], plain[3], ""]))
    with pytest.raises(DamagedFile, match="line 4: it has no digest"):
        _ = run.metrics
    for row in ({"step": 0.5}, {"step": True}, {"step": 0, "train/loss": "x"}, {"a": 1}):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DamagedFile, match="line 1"):
            _ = run.metrics
    for steps in ([0, 2], [0, 1, 1], [2, 3]):
        text = "".join(sealed({"step": step}) + "\n" for step in steps)
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(DamagedFile, match=r"follows|begins"):
            _ = run.metrics


TEXTS = st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1"))
LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20)
RECORDS = st.dictionaries(
    st.text(min_size=1, max_size=9).filter(lambda key: key != "digest"),
    st.recursive(
        LEAVES | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    min_size=1,
    max_size=5,
)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: dict[str, Any]) -> None:
    assert unsealed(sealed(record)) == record
    assert "\n" not in sealed(record)


@given(RECORDS, st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_of_a_record_goes_unnoticed(
    record: dict[str, Any], place: int, bit: int
) -> None:
    """It is refused, or the digest's own name is broken and every value is as it was."""
    data = bytearray(sealed(record).encode("utf-8", "surrogatepass"))
    data[place % len(data)] ^= 1 << bit
    try:
        back = unsealed(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return
    assert {key: back.get(key) for key in record} == record


@given(TEXTS, st.sampled_from(["result.json", "metrics.jsonl", "findings.json", ".spent"]))
def test_any_text_in_a_file_is_read_or_refused_by_name(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place))
        (run.path / name).write_text(text, encoding="utf-8", errors="replace")
        try:
            _ = run.result, run.metrics, run.findings, read_spent(run.path / ".spent")
        except DamagedFile as error:
            assert name in str(error) and error.hint


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing(whole: tuple[Study, Path], tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    sources = [*whole[1].glob("cells/*/hybrid/0/*.json*"), whole[1] / "study.toml"]
    for number, file in enumerate(sources):
        for first in range(9):
            (tmp_path / f"{number}-{first}").write_bytes(bytes([first]) + file.read_bytes())
    script = Path(__file__).parent / "fuzz_records.py"
    words = [sys.executable, str(script), "-max_total_time=60", "-max_len=4096", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs.group(1)) > 1000, done.stderr[-1000:]


# Pieces of templates, so that many that are drawn do something.
PIECES = st.sampled_from(
    [
        *(
            "{{ messages[0].content }}",
            "{% for m in messages %}",
            "{% endfor %}",
            "{{ m.content }}",
        ),
        *("{% if add_generation_prompt %}", "{% endif %}", "{{", "}}", "{% raw %}", "{{ 1/0 }}"),
        *("{{ messages|tojson }}", "{{ x.__class__ }}", "{% set x = 2 %}", "{{ 'a' * 10**9 }}"),
    ]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(PIECES | st.text(max_size=5), max_size=6).map("".join))
def test_any_template_gives_a_text_or_is_refused(template: str) -> None:
    messages = [{"role": "user", "content": "q"}]
    try:
        text = render_template(template, messages, {}, day="2024-07-26", prompt=True)
    except TemplateError as error:
        assert str(error)
    else:
        assert isinstance(text, str) and len(text) < 10**7
