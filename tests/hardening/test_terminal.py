"""Hostile texts on the terminal, encodings without potstill's characters, output that is lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console

from conftest import toy_table
from potstill import __main__
from potstill.cli import entry, terminal
from potstill.cli.app import be_verbose
from potstill.cli.checking import CheckView
from potstill.cli.live import View
from potstill.cli.terminal import Guarded, OutputLost, abandon, echo, printable, streams
from potstill.diagnostics.preflight import Check, Progress
from potstill.digests import to_json
from potstill.errors import PotstillError
from potstill.study.loading import read_study
from potstill.study.storage import RunId, StudyFolder, runs_of
from test_cli import call, refused

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eright\u2066\u200f\u2028 \ud800 \x7f[red]"
LINES = "\n\t"
NOWHERE = Path("/dev/full")


def is_harmless(text: str) -> bool:
    """True without control, format and surrogate characters, line ends and tabs excepted."""
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in LINES]


def test_hostile_characters_are_escaped_and_others_kept() -> None:
    text = printable(HOSTILE)
    assert is_harmless(text)
    for word in (r"\x1b[2J", r"\u202eright", r"\u2066", r"\ud800", r"\x9b31m", r"\r", "[red]"):
        assert word in text
    kept = "naïve 你好 −1 ▁▅ 👩‍🚀 خوش\u200cآمدید\n\ttab"  # with joiners, which writing needs
    assert printable(kept) == kept and printable(3) == "3"


def test_echo_is_print_for_foreign_texts(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a", "\x1b[1mb", end="!")
    echo()
    echo("\u202e", file=sys.stderr)
    assert capsys.readouterr() == ("a \\x1b[1mb!\n", "\\u202e\n")


# Everything that prints what others wrote.


@pytest.fixture
def studied(tmp_path: Path) -> Path:
    """A study whose causes, findings, completions and models are hostile."""
    text = HOSTILE.replace("\ud800", "")  # which no file can hold
    pair = {"toy": {"student": f"a{text}", "teacher": "b"}}
    study = read_study(toy_table(tmp_path, methods=["off_policy"], seeds=[0], pair=pair))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    for run in runs_of(study):
        place = folder.cell(run)
        place.path.mkdir(parents=True)
        finding = {
            "kind": "collapse",
            "cause": text,
            "step": 1,
            "found": 2,
            "evidence": text,
            "advice": text,
        }
        row = {"step": 0, "tokens": 0, "signal/teacher_loss": 1.0}
        (place.path / "metrics.jsonl").write_text(to_json(row) + "\n")
        (place.path / "findings.json").write_text(to_json([finding]))
        record = {"pair": run.pair, "method": run.method, "seed": run.seed, "status": "failed"}
        record |= {"cause": text, "traceback": text, "steps": 0, "findings": [], "provenance": {}}
        (place.path / "result.json").write_text(to_json(record))
    (folder.path / "track").mkdir()
    (folder.path / "track" / "wandb.trouble").write_text(text)
    return folder.path


def test_commands_print_a_hostile_study_safely(
    studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ([], ["--markdown"], ["--json"])
    commands = [["report", studied, *more] for more in lines]
    commands += [["compare", studied, studied, *more] for more in lines]
    commands += [["watch", studied, "--once"], ["watch", studied], ["diagnose", studied]]
    commands += [["track", studied, "--to", HOSTILE], ["report", f"{studied}{HOSTILE}"]]
    for words in commands:
        code = call(*words)
        out, err = capsys.readouterr()
        assert code in (0, 2) and out + err, words
        assert is_harmless(out) and is_harmless(err), words
    assert r"\u202eright" in err


def test_drawings_escape_what_is_in_them(studied: Path) -> None:
    for wide in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=wide, width=100, height=30)
        folder = StudyFolder(studied)
        with View(folder.study, folder, runs_of(folder.study), console) as view:
            view.tick()
            view._warn_of_trackers({"wandb": HOSTILE + "x" * 10**5})
        with CheckView(console) as checks:
            checks(HOSTILE, Progress(HOSTILE))
            checks(HOSTILE, Progress(HOSTILE, [Check(HOSTILE, "passed", HOSTILE)], 1.0))
        drawn = file.getvalue()
        assert len(drawn) < 20_000
        assert "\x1b[2J" not in drawn and "\x1b]0;" not in drawn and "\u202e" not in drawn
        assert r"\u202eright" in drawn
        assert wide or is_harmless(drawn)


def test_errors_print_hostile_names_and_long_values_safely(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(tmp_path)
    table["train"][f"a{HOSTILE[:-6]}"] = 1
    table["methods"] = ["m" * 10**5]
    table["seeds"] = [2] * 10**4
    file = tmp_path / "s.toml"
    file.write_text(tomli_w.dumps(table).replace("\ud800", ""), encoding="utf-8", errors="replace")
    assert call("check", file) == 2
    out, err = capsys.readouterr()
    assert out == "" and is_harmless(err) and len(err) < 60_000 and "a key has no control c" in err
    word = HOSTILE.replace("\ud800", "\udcff")  # as Python reads a byte that is not UTF-8
    refused(capsys, call("check", f"x{word}.toml"), "\\x1b[2J")
    refused(capsys, call(f"x{word}"), "\\x1b[2J")
    refused(capsys, call("watch", "x" * 10**5), "xxx")


def test_bugs_logs_and_system_errors_are_printed_safely(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ZeroDivisionError) as bug:
        entry.explain(ZeroDivisionError(f"{HOSTILE} http://me:hunter2@h"))
    sys.excepthook(bug.type, bug.value, bug.tb)
    assert entry.explain(PermissionError(13, "no", f"/x{HOSTILE}")) == 2
    assert entry.explain(PotstillError(HOSTILE, HOSTILE)) == 2
    err = capsys.readouterr().err
    assert is_harmless(err) and "hunter2" not in err and "Traceback" in err
    record = terminal.logging.LogRecord("x", 20, "", 0, "%s", (HOSTILE,), None)
    assert is_harmless(terminal.Formatter("%(message)s").format(record))
    assert callable(be_verbose)


def test_an_interrupt_while_commands_are_imported_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        """A finder in whose time Ctrl-C is pressed."""

        def find_spec(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "potstill.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    with pytest.raises(SystemExit) as leaving:
        __main__.main()
    assert leaving.value.code == entry.INTERRUPTED and capsys.readouterr() == ("", "")


# Streams.


class Broken(io.StringIO):
    """A stream on which every write fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(("messages", "user"), [(True, "..."), (False, "me:pw")])
def test_a_guarded_stream_has_no_misleading_characters_and_messages_no_secrets(
    messages: bool, user: str
) -> None:
    file = io.StringIO()
    guarded = Guarded(file, messages=messages)
    assert guarded.write("a\u202eb http://me:pw@h\x1b[1m\r\n") == 24
    assert file.getvalue() == f"a\\u202eb http://{user}@h\x1b[1m\r\n"
    guarded.close()
    assert not file.closed and guarded.writable() and not guarded.isatty()


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("latin-1", "−1.5 ï ▁▅█ 你", b"-1.5 \xef _-= \\u4f60"),
        ("ascii", "a · b … ï \ud800", b"a | b ... \\xef \\ud800"),
        ("utf-8", "−1 \ud800", "−1 \\ud800".encode()),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(
    encoding: str, text: str, written: bytes
) -> None:
    raw = io.BytesIO()
    wrapper = io.TextIOWrapper(raw, encoding)
    guarded = Guarded(wrapper, messages=False)
    guarded.write(text)
    guarded.flush()
    assert raw.getvalue() == written and guarded.encoding == encoding
    wrapper.detach()


def test_lost_output_is_an_error_and_lost_messages_are_not() -> None:
    for error, closed in ((BrokenPipeError(32, "x"), True), (OSError(28, "full"), False)):
        with pytest.raises(OutputLost) as lost:
            Guarded(Broken(error), messages=False).write("x")
        assert lost.value.closed is closed and lost.value.reason in ("x", "full")
        assert Guarded(Broken(error), messages=True).write("xy") == 2
    with pytest.raises(OutputLost):
        Guarded(Broken(ValueError("I/O operation on closed file")), messages=False).write("x")


def test_streams_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with streams():
        assert isinstance(sys.stdout, Guarded) and isinstance(sys.stderr, Guarded)
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)  # as with >&-
    with streams():
        print("nowhere")
    assert sys.stdout is None
    reading, writing = os.pipe()
    abandon(writing)
    os.write(writing, b"nowhere")
    os.close(writing)
    assert os.read(reading, 9) == b""
    os.close(reading)


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's line, in which $P is potstill with buffered streams, as is usual."""
    usual = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", line],
        env={**usual, **variables, "P": f"{sys.executable} -m potstill"},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$P ls faults | true; exit ${PIPESTATUS[0]}", entry.CLOSED),
        ("$P --help | true; exit ${PIPESTATUS[0]}", entry.CLOSED),
        ("$P check nothing.toml 2>&-", entry.WRONG),
        ("$P ls faults >&-", 0),
    ],
)
def test_a_closed_pipe_ends_a_command_silently(line: str, code: int) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.skipif(not NOWHERE.exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("$P ls faults >/dev/full", entry.WRONG, b"error: cannot write to stdout: No space left"),
        ("$P check nothing.toml 2>/dev/full", entry.WRONG, b""),
        ("$P check nothing.toml >/dev/full 2>/dev/full", entry.WRONG, b""),
    ],
)
def test_a_full_disk_is_an_error_without_a_traceback(line: str, code: int, err: bytes) -> None:
    done = shell(line)
    assert done.returncode == code and done.stderr.startswith(err)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert done.stderr.count(b"\n") == 2 * bool(err)


def test_a_study_runs_without_a_place_for_its_messages(tmp_path: Path) -> None:
    """Its progress is lost, its results are not; also where the terminal has few characters."""
    table = toy_table(tmp_path, methods=["off_policy"], seeds=[0], train={"steps": 2})
    (tmp_path / "s.toml").write_text(tomli_w.dumps(table))
    place = "/dev/full" if NOWHERE.exists() else "/dev/null"
    words = f"study {tmp_path}/s.toml --no-preflight --no-figures --out {tmp_path}/out"
    done = shell(f"$P {words} 2>{place}", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "3 of 3 runs done" in done.stdout.decode("latin-1")
    folder = StudyFolder(tmp_path / "out")
    assert folder.cell(RunId("toy", "off_policy", 0)).result["status"] == "done"  # type: ignore
    assert json.loads((tmp_path / "out" / "results.json").read_text())
