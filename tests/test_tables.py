"""Tables of the command line: they fit a terminal of any width and are not padded in a pipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from potstill.cli.ls import LISTS, listing
from potstill.cli.tables import cleaned, columns, fitted, print_table, separated
from studies import small_study, write_study
from test_cli import call

WIDTHS = (60, 80, 120)
ANSI = re.compile(r"\x1b\[\d+m")


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\s,]+", text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LISTS)
def test_every_list_fits_and_loses_no_word(name: str, width: int) -> None:
    texts = cleaned(listing(name))
    assert texts and all(any(row[key] not in ("", "-") for row in texts) for key in texts[0])
    lines = [line for line, _ in fitted(texts, width)]
    assert all(len(line) <= width and line == line.rstrip() for line in lines)
    shown = words(" ".join(lines))
    for row in texts:
        values = [value for value in row.values() if value != "-"]
        assert words(" ".join(values)) <= shown


@pytest.mark.parametrize("name", LISTS)
def test_a_piped_list_is_separated_by_tabs_and_not_padded(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("ls", name) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(listing(name))
    for line, row in zip(lines, listing(name), strict=True):
        values = {key: str(value) for key, value in row.items()}
        assert line.split("\t") == [values[key] for key in head.split("\t")]


def test_an_empty_column_is_left_out_of_both_forms() -> None:
    rows = [{"a": "x", "b": None, "c": "-", "d": ""}, {"a": "y", "b": "", "c": "1", "d": ""}]
    texts = cleaned(rows)
    assert list(separated(texts)) == ["a\tc", "x\t-", "y\t1"]
    assert next(line for line, _ in fitted(texts, 80)) == "a  c"
    assert cleaned([]) == [] == list(separated([])) == list(fitted([], 80))


def test_columns_go_in_order_before_a_row_becomes_a_paragraph() -> None:
    row = {"name": "a" * 10, "one": "b" * 10, "two": "c" * 10, "three": "d" * 10}
    assert columns([row], 46, ["two", "one"]) == (list(row), [])
    assert columns([row], 45, ["two", "one"]) == (["name", "one", "three"], ["two"])
    assert columns([row], 33, ["two", "one"]) == (["name", "three"], ["two", "one"])
    assert columns([row], 21, ["two", "one"]) == ([], [])
    lines = [line for line, _ in fitted([row], 45, ["two"])]
    assert lines[-1] == "hidden at this width: two"
    assert [line for line, _ in fitted([row], 30)] == [
        "a" * 10,
        f"  one: {'b' * 10},",
        f"  two: {'c' * 10},",
        f"  three: {'d' * 10}",
    ]


def test_numbers_are_aligned_to_the_right_and_texts_wrap() -> None:
    long = "a sentence that is longer than a column of this width is"
    texts = cleaned(
        [
            {"n": "7", "what": long, "p": "< 0.001", "seeds": "2 of 2"},
            {"n": "1,204", "what": "-", "p": "0.4", "seeds": "done"},
        ]
    )
    lines = [line for line, _ in fitted(texts, 60)]
    assert lines == [
        "    n  what                                        p  seeds",
        "    7  a sentence that is longer than a      < 0.001  2 of 2",
        "       column of this width is",
        "1,204  -                                         0.4  done",
    ]


def test_a_value_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_table([{"a": "x\x1b[2J\ny\tz", "b": "[bold]1[/]"}])
    assert capsys.readouterr().out == "a\tb\nx [2J y z\t[bold]1[/]\n"
    at_terminal(monkeypatch, 80)
    print_table([{"a": "x\x1b[2J", "b": "[bold]1[/]"}])
    out = capsys.readouterr().out
    assert ANSI.sub("", out) == "a      b\nx [2J  [bold]1[/]\n" and "\x1b[2J" not in out


def at_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Make stdout a terminal of a width."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("tables")
    pairs = ["tiny-qwen", "tiny-llama"]
    for name, seeds in (("a", [0, 1]), ("b", [5, 6])):
        write_study(root / name, small_study(pairs=pairs, seeds=seeds))
    return [root / "a", root / "b"]


@pytest.mark.parametrize("width", WIDTHS)
def test_results_fit_the_terminal(
    folders: list[Path],
    width: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = folders[0].parent / "c.html"
    for command in (["watch", folders[0]], ["compare", *folders, "--out", page]):
        at_terminal(monkeypatch, width)
        assert call(*command) == 0
        out = ANSI.sub("", capsys.readouterr().out)
        tabled = [x for x in out.splitlines() if x.startswith(("hybrid", "on_policy", "method"))]
        assert len(tabled) >= 6 and all(len(line) <= width for line in tabled)
        assert width == 80 or ("hidden at this width:" in out) == (width < 80)
        assert not set(out) & set("─│|\t")


def test_a_report_prints_tables_verdict_and_counts(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", folders[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    for pair in ("tiny-qwen", "tiny-llama"):
        head = lines.index(pair) + 1
        assert lines[head].startswith("method\taccuracy %\tvs on_policy_gkd\t")
        methods = [line.split("\t")[0] for line in lines[head + 1 : head + 5]]
        assert sorted(methods) == ["hybrid", "on_policy_gkd", "teacher", "untrained"]
        assert any(line.startswith(f"{pair}: ") for line in lines)
    assert "synthetic: 12 of 12 runs done" in lines
    assert lines[-1] == f"report: {folders[0] / 'report.html'}"


def test_the_columns_that_may_go_are_columns() -> None:
    from potstill.report.tables.methods import DEFAULT, common, spare, terminal_keys
    from potstill.stats.metric import KL, STUDENT_LOSS

    for measured in (DEFAULT, (KL, STUDENT_LOSS)):
        known = common(measured)
        shown = {known[key].title for key in terminal_keys(measured)}
        assert {*spare(measured)} < shown and measured[0].title not in spare(measured)
