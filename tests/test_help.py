"""Help pages, version, errors, --verbose and shell completion of the command line."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer

from potstill import cli
from potstill.cli import entry, options
from potstill.cli.app import PANELS, RUN, SUMMARY
from potstill.cli.ls import LISTS
from test_cli import call, refused

ROOT: Any = typer.main.get_command(cli.app)
IN_ORDER = (
    *("check", "study", "run", "race", "watch"),
    *("report", "compare", "diagnose", "eval"),
    *("bench", "audit", "probe", "track"),
    *("ls", "zoo"),
)
PAGES = [[], *([name] for name in ROOT.commands)]
PAGES += [["zoo", name] for name in ROOT.commands["zoo"].commands]


def page(words: list[str]) -> Any:
    """The command that some words name."""
    command = ROOT
    for word in words:
        command = command.commands[word]
    return command


@pytest.mark.parametrize("words", PAGES, ids=lambda words: " ".join(words) or "potstill")
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_command_has_a_page_that_fits(
    words: list[str],
    width: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(*words, "-h") == 0
    text = capsys.readouterr().out
    assert call(*words, "--help") == 0
    assert capsys.readouterr().out == text
    lines, examples = text.splitlines(), text.partition("\nExamples:\n")[2].splitlines()
    assert all(len(line) <= width for line in lines if line not in examples)
    assert lines[0].startswith(f"Usage: {' '.join(['potstill', *words])} ")
    assert "-v, --verbose" in text and "-h, --help" in text
    assert not set(text) & set("\x1b│╭─") and "<" not in text  # no colour, no box, no type


@pytest.mark.parametrize("words", PAGES, ids=lambda words: " ".join(words) or "potstill")
def test_a_page_explains_every_parameter_and_has_examples_that_parse(words: list[str]) -> None:
    command = page(words)
    sentence = " ".join(command.help.split("\n\n")[0].split())
    assert sentence[0].isupper() != (not words) and sentence.endswith("."), sentence
    params = [param for param in command.params if param.name != "help"]
    for param in params:
        assert param.help and param.help.endswith((".", "]")), param.name
    if not words or words == ["zoo"]:
        return
    assert command.epilog
    for line in command.epilog.splitlines():
        first, *rest = shlex.split(line)
        assert first == "potstill" and rest[: len(words)] == words
        command.make_context(line, rest[len(words) :])


def test_commands_are_listed_by_panel_in_the_order_of_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tuple(ROOT.commands) == IN_ORDER
    assert tuple(dict.fromkeys(c.rich_help_panel for c in ROOT.commands.values())) == PANELS
    assert call("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    places = [next(i for i, x in enumerate(lines) if x.startswith(f"  {n} ")) for n in IN_ORDER]
    assert places == sorted(places)
    heads = [lines.index(f"{panel}:") for panel in PANELS]
    assert heads == sorted(heads) and heads[0] < places[0] and heads[-1] < places[-1]


def test_potstill_alone_shows_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    text = capsys.readouterr().out
    assert " ".join(text.split()).startswith(SUMMARY)
    for name in IN_ORDER:
        assert name in text
    for line in text.splitlines():
        if line.startswith("  potstill "):
            words = shlex.split(line.strip().partition("  ")[0])[1:]
            page(words[:1]).make_context(line, words[1:])
    assert f"  {RUN}" in text and "potstill COMMAND -h" in text


def test_a_group_alone_shows_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("zoo") == 0
    alone = capsys.readouterr().out
    assert call("zoo", "--help") == 0
    assert alone == capsys.readouterr().out and "  build " in alone


def test_ls_alone_shows_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "list\twhat"
    assert [row.split("\t")[0] for row in rows] == list(LISTS)
    assert all(row.split("\t")[1] for row in rows)


def test_versions_are_printed_without_torch() -> None:
    code = (
        "import sys\n"
        "from potstill.cli import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    python = ".".join(map(str, sys.version_info[:3]))
    expected = [f"potstill {version('potstill')}", f"Python {python}", f"torch {version('torch')}"]
    assert done.stdout.splitlines() == [*expected, "False"]


@pytest.fixture
def quiet_after() -> Iterator[None]:
    """Undo what --verbose does to logging."""
    root, own = logging.getLogger(), logging.getLogger("potstill")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.mark.parametrize("words", [["-v", "check", "no.toml"], ["check", "no.toml", "--verbose"]])
@pytest.mark.usefixtures("quiet_after")
def test_verbose_logs_and_shows_the_traceback_of_a_refusal(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "in load_study" in err
    assert err.splitlines()[-2:] == [
        'error: no study file "no.toml"',
        "hint: see the files in studies/; an override is key=value",
    ]


@pytest.mark.usefixtures("quiet_after")
def test_verbose_logs_versions_and_the_command(caplog: pytest.LogCaptureFixture) -> None:
    assert call("-v", "ls", "schedules") == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"torch {version('torch')}" in line and line.endswith(": -v ls schedules")


def test_a_near_word_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (["chek"], "hint: did you mean 'check'?"),
        (["check", "--preflite"], "hint: possible options: --no-preflight, --preflight"),
        (["check", "--nothing-like-it"], "hint: see potstill check --help"),
        (["zoo", "sav"], "hint: did you mean 'save'?"),
    ):
        assert call(*words) == 2
        assert hint in capsys.readouterr().err


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`potstill check` raises the error."""

    def read(words: Any, default: Any = None) -> Any:
        raise error

    monkeypatch.setattr("potstill.cli.check.study_of", read)


def test_an_error_of_the_system_is_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "/root/x"))
    refused(capsys, call("check"), 'Permission denied: "/root/x"')
    fail_with(monkeypatch, TimeoutError("no answer"))
    refused(capsys, call("check"), "TimeoutError (no answer)")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["potstill", "check"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


def test_an_interrupted_command_leaves_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert call("check") == entry.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"


def completed(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The words that bash offers after some typed text."""
    monkeypatch.setenv("_POTSTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    assert call() == 0
    return capsys.readouterr().out.split()


def test_names_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.toml").touch()
    for typed, words in (
        ("potstill di", ["diagnose"]),
        ("potstill ls ta", ["tasks"]),
        ("potstill ls ", list(LISTS)),
        ("potstill run --method rev", ["reverse_curriculum"]),
        ("potstill bench --pair tiny-l", ["tiny-llama"]),
        ("potstill eval tiny-cross/", ["tiny-cross/student", "tiny-cross/teacher"]),
        ("potstill eval x --task gs", ["gsm8k"]),
        ("potstill track x --to tr", ["trackio"]),
        ("potstill zoo build --role te", ["teacher"]),
        ("potstill zoo save tiny-l --dtype bf", ["bfloat16"]),
        ("potstill study --on ra", ["ray", "ray://"]),
        ("potstill check train.st", ["train.steps="]),
        ("potstill check train", ["training.toml", *options.completion.words("train")[1:]]),
    ):
        offered = completed(typed, monkeypatch, capsys)
        assert [w for w in words if w.startswith(typed.split(" ")[-1])] == offered, typed


def test_keys_that_are_offered_are_keys() -> None:
    from potstill.study.loading import read_study

    offered = list(options.completion.keys())
    assert "seeds=" in offered and "eval.problems=" in offered and "pair=" in offered
    table = read_study({"price": {"hour": 1}, "budget": {"usd": 1}}).to_toml()
    for key in offered:
        parts = key.removesuffix("=").split(".")
        assert parts[0] in table or parts[0] in ("pair", "recipe", "student_loss"), key
