"""Data files of strangers: each is read right, or refused with its path and line."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.errors import PotstillError
from potstill.tasks import load_task
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.gsm8k import GSM8K
from potstill.tasks.jsonl import read_jsonl
from potstill.tasks.reading import LARGEST_FILE, LONGEST_LINE

KEYS = ("question", "answer")
GOOD = b'{"question": "2+2", "answer": "4"}\n'
DIGITS = "7" * 5000


def row(question: str, answer: str) -> bytes:
    """A line with JSON values as they are written in the file."""
    return f'{{"question": {question}, "answer": {answer}}}\n'.encode()


READ: dict[str, tuple[bytes, list[tuple[str, str]]]] = {  # name: (bytes, questions and answers)
    "line separators": (
        row('"a\u2028b\u2029c\u0085d\x7f"', '"4\u2028"'),
        [("a\u2028b\u2029c\u0085d\x7f", "4\u2028")],
    ),
    "escapes": (row(r'"\u2028\ud83d\ude00\u0000"', r'"\\ud800"'), [("\u2028😀\0", r"\ud800")]),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, [("2+2", "4")]),
    "carriage returns": (GOOD.replace(b"\n", b"\r\n") * 2, [("2+2", "4")] * 2),
    "no last newline": (GOOD + GOOD.rstrip(), [("2+2", "4")] * 2),
    "5,000 digits": (row("1", DIGITS), [("1", DIGITS)]),
    "5,000 digits after the point": (row("1", f"0.{DIGITS}"), [("1", f"0.{DIGITS}")]),
    "numbers as written": (row("-0", "12.50"), [("-0", "12.50")]),
    "a float's end": (row("1", "1e400"), [("1", "1e400")]),
    "a long integer": (row("1", "12345678901234567890.5"), [("1", "12345678901234567890.5")]),
    "many lines": (GOOD * 3000, [("2+2", "4")] * 3000),
    "lists of lists": (
        row('"a"', '"b", "x": ' + "[" * 200 + "]" * 200),
        [("a", "b")],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_strange_lines_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(READ[name][0])
    rows = read_jsonl(path, KEYS)
    assert [(row["question"], row["answer"]) for row in rows] == READ[name][1]


REFUSED: dict[str, tuple[bytes, str]] = {  # name: (bytes, part of the rule)
    "empty": (b"", "is empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "an empty line": (GOOD + b"\n" + GOOD, "line 2: the line is empty"),
    "a lone surrogate": (GOOD + row(r'"\ud800"', "1"), r"line 2: \ud800 is half of a pair"),
    "a surrogate key": (GOOD + row(r'"a", "\uDFFF": 1', "1"), r"line 2: \udfff is half of a pair"),
    "a surrogate in bytes": (GOOD + b'{"question": "\xed\xa0\x80"}', "byte 15 (0xed) is not UTF-8"),
    "a NUL in a text": (GOOD + row('"a\0b"', "1"), "line 2: not JSON (Invalid control"),
    "NUL characters alone": (b"\0" * 4096, "it has NUL characters"),
    "100,000 brackets": (GOOD + b"[" * 100_000, "line 2: lists or objects are nested too deeply"),
    "100,000 objects": (GOOD + b'{"a":' * 100_000, "line 2: lists or objects are nested too deepl"),
    "a key twice": (row('"a"', '"b", "answer": "c"'), "line 1: the key 'answer' is there twice"),
    "an inner key twice": (row('"a"', '"b", "x": {"y": 1, "y": 2}'), "the key 'y' is there twice"),
    "NaN": (GOOD + row('"a"', "NaN"), "line 2: NaN is not JSON, a number is finite"),
    "infinity": (row('"a"', "-Infinity"), "line 1: -Infinity is not JSON, a number is finite"),
    "a true answer": (row('"a"', "true"), 'line 1: "answer" must be text, got True'),
    "a list answer": (row('"a"', "[1]"), "line 1: \"answer\" must be text, got ['1']"),
    "white space": (row('"\u2003"', '"a"'), 'line 1: "question" must be text'),
    "a bad byte": (GOOD + b'{"question": "\xff"}', "line 2: byte 15 (0xff) is not UTF-8"),
    "latin-1": (GOOD + '{"question": "ä"}'.encode("latin-1"), "line 2: byte 15 (0xe4) is not"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "it is in UTF-16"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "it has NUL characters"),
    "gzip": (gzip.compress(GOOD), "it is compressed with gzip"),
    "a zip archive": (b"PK\x03\x04" + GOOD, "it is a zip archive"),
    "a number alone": (GOOD + b"5\n", "line 2: not an object"),
    "a list alone": (b"[1, 2]\n", "line 1: not an object, got a list"),
    "one JSON list over lines": (b"[\n" + GOOD + b"]\n", "line 1: not JSON"),
    "two objects on a line": (GOOD.rstrip() + GOOD, "line 1: not JSON (Extra data"),
    "old line ends": (GOOD.replace(b"\n", b"\r") * 2, "line 1: not JSON (Extra data"),
    "100 MB": (b'{"question": "' + b"a" * LONGEST_LINE, "line 1: a line has at most 16,777,216 by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(REFUSED[name][0])
    with pytest.raises(PotstillError) as caught:
        read_jsonl(path, KEYS)
    assert REFUSED[name][1] in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.hint and len(str(caught.value)) < 500


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def zeros(path: Path) -> Path:
    path.touch()
    os.truncate(path, 2**30)
    return path


def too_large(path: Path) -> Path:
    path.touch()
    os.truncate(path, LARGEST_FILE + 1)
    return path


PLACES: list[tuple[Callable[[Path], Path | str], str]] = [
    (a_folder, "it is a folder"),
    (a_pipe, "it is a pipe or a device"),
    (lambda path: "/dev/zero", "it is a pipe or a device"),
    (a_loop, "cannot read"),
    (zeros, "line 1: a line has at most"),
    (too_large, "it has 4,294,967,297 bytes"),
    (lambda path: path / "absent", "cannot read"),
    (lambda path: "a\0b", "cannot read"),
    (lambda path: "x" * 5000, "cannot read"),
    (lambda path: "~no-such-user/data.jsonl", "cannot read"),
    (lambda path: "", "cannot read"),
]


@pytest.mark.parametrize(("make", "says"), PLACES)
def test_a_path_that_is_no_file_is_refused_and_does_not_hang(
    tmp_path: Path, make: Callable[[Path], Path | str], says: str
) -> None:
    path = make(tmp_path / "data")
    with pytest.raises(PotstillError) as caught:
        read_jsonl(path, KEYS)
    assert says in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(("make", "says"), PLACES)
def test_documents_are_read_with_the_same_care(
    tmp_path: Path, make: Callable[[Path], Path | str], says: str
) -> None:
    path = make(tmp_path / "data")
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    task = load_task(
        "jsonl", train_path=str(tmp_path / "train.jsonl"), test_path=str(tmp_path / "train.jsonl")
    )
    with pytest.raises(PotstillError) as caught:
        PromptBuilder(read_context({"retrieval": {"path": str(path)}}), task).check([])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a\xff", "byte 2 (0xff) is not UTF-8"),
        (b"a\n\0b", "line 2 has a NUL character"),
        ("a".encode("utf-16"), "it is in UTF-16"),
        (b"a" * (LONGEST_LINE + 1), "at most 16,777,216 are read"),
    ],
)
def test_a_document_that_is_no_text_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "one.txt").write_bytes(data)
    (tmp_path / "documents" / "pipe").symlink_to("pipe")
    context = read_context({"retrieval": {"path": str(tmp_path / "documents"), "k": 1}})
    with pytest.raises(PotstillError) as caught:
        PromptBuilder(context, Arithmetic(train_size=5, test_size=5)).check([])
    assert says in str(caught.value) and "one.txt" in str(caught.value)


def test_keys_of_an_example_that_are_no_text_are_empty(tmp_path: Path) -> None:
    """Not "None": the check then names the example that lacks its answer."""
    path = tmp_path / "examples.jsonl"
    rows = [{"question": f"q{n}", "answer": "a", "note": None} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = read_context({"few_shot": {"n": 1, "path": str(path), "answer": "note"}})
    with pytest.raises(PotstillError, match='an example shows "note", 3 of 3 have none'):
        PromptBuilder(context, Arithmetic(train_size=5, test_size=5)).check([])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("jsonl", {"prompt": "Question:"}, "a prompt has {question}, got 'Question:'"),
        ("gsm8k", {"prompt": "Question:"}, "a prompt has {question}, got 'Question:'"),
        ("jsonl", {"question_key": "answer"}, "question_key and answer_key are two keys"),
        ("arithmetic", {"seed": 10**5000}, "seed is below"),
        ("arithmetic", {"difficulty": True}, "1 to 8 operations, got True"),
        ("arithmetic", {"difficulty": 10**5000}, "1 to 8 operations, got a int"),
        ("arithmetic", {"style": "x" * 10**6}, "style: "),
    ],
)
def test_options_that_make_a_task_meaningless_are_refused(
    name: str, options: dict, says: str
) -> None:
    paths = {"train_path": "x", "test_path": "x"} if name == "jsonl" else {}
    with pytest.raises(PotstillError) as caught:
        load_task(name, **paths, **options)
    assert says in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0])
def test_a_seed_of_examples_is_one_of_numpys(value: object) -> None:
    with pytest.raises(PotstillError, match="few_shot: seed is 0 to"):
        read_context({"few_shot": {"seed": value}})


def test_arithmetic_does_not_look_for_what_does_not_exist() -> None:
    """200 million draws before; the bound counts expressions, the patience those of a split."""
    for task in (
        Arithmetic(difficulty=4, digits=1, train_size=10**6),
        Arithmetic(difficulty=1, digits=1, train_size=110),
    ):
        with pytest.raises(PotstillError, match="has fewer than"):
            _ = task.train
    assert len(Arithmetic(difficulty=1, digits=1, train_size=80).train) == 80


def test_a_solution_of_marks_alone_is_read_in_a_moment(tmp_path: Path) -> None:
    """Each "<<" looked for its end up to the end of the line: hours for 16 MB."""
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(row('"q"', json.dumps("<<" * 200_000 + "\n>> <<1+1=2>>2\n#### 2")))
    (problem,) = GSM8K(train_path=str(path)).train
    assert problem.answer == "2" and problem.solution.endswith(">> 2\n#### 2")


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    for n, (data, _) in enumerate([*READ.values(), *REFUSED.values()]):
        if len(data) < 10_000:
            (tmp_path / str(n)).write_bytes(data)
    script = Path(__file__).parent / "fuzz_jsonl.py"
    words = [sys.executable, str(script), "-max_total_time=60", "-max_len=4096", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs.group(1)) > 1000, done.stderr[-1000:]
