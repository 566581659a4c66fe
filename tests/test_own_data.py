"""The task `data`: every shape, source and format of a user's data, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.tasks import check_disjoint, load_task
from potstill.tasks.context import read_context
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.data import cache
from potstill.tasks.data.values import number
from potstill.tasks.overlap import question_key
from potstill.tasks.rendering import plain, render
from potstill.tasks.rendering import written as written_prompt
from potstill.tasks.selecting import (
    Indexed,
    completion_counts,
    containing,
    finder,
    longest,
    messages,
)

USER = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})


PAIR_OF_TURNS = (("user", "Hello"), ("assistant", "Hi"))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(folder: Path, name: str, data: bytes | str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def first(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Problem:
    """The first training problem of some rows; a further row is held out."""
    path = written(tmp_path, "rows.jsonl", lines(list(rows)))
    return load_task("data", train_path=path, test_path=path, **options).train[0]


# name: (row, options, the problem)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], Problem]] = {
    "question and answer": (
        {"question": "2+2?", "answer": "4", "solution": "2+2=4", "topic": "sums", "n": 3},
        {},
        Problem("train-0", "2+2?", "4", "2+2=4", {"topic": "sums", "n": "3"}),
    ),
    "numbers are text": ({"question": 1, "answer": 2.50}, {}, Problem("train-0", "1", "2.5")),
    "question, answer and completions": (
        {"question": "2+2?", "answer": "4", "completion": ["It is 4", "4"]},
        {},
        Problem("train-0", "2+2?", "4", completions=("It is 4", "4")),
    ),
    "a question alone": ({"question": "2+2?"}, {}, Problem("train-0", "2+2?", "")),
    "prompt": ({"prompt": "2+2?"}, {}, Problem("train-0", "2+2?", "")),
    "prompt of messages": (
        {"prompt": [SYSTEM, *EARLIER, USER]},
        {},
        Problem(
            *("train-0", "2+2?", "", "", {}),
            (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "2+2?")),
        ),
    ),
    "prompt and completion": (
        {"prompt": "2+2?", "completion": " 4"},
        {},
        Problem("train-0", "2+2?", " 4", completions=(" 4",)),
    ),
    "prompt and completion of messages": (
        {"prompt": [USER], "completion": [REPLY]},
        {},
        Problem("train-0", "2+2?", "4", completions=("4",)),
    ),
    "completions, each of messages": (
        {"prompt": [USER], "completions": [[REPLY], [REPLY]]},
        {},
        Problem("train-0", "2+2?", "4", completions=("4", "4")),
    ),
    "several columns of completions": (
        {"q": "2+2?", "a": "4", "b": "four"},
        {"columns": {"prompt": "q", "completion": ["b", "a"]}},
        Problem("train-0", "2+2?", "four", completions=("four", "4")),
    ),
    "messages": (
        {"messages": [USER, REPLY]},
        {},
        Problem("train-0", "2+2?", "4", completions=("4",)),
    ),
    "messages with an answer": (
        {"messages": [USER, REPLY], "answer": "5"},
        {},
        Problem("train-0", "2+2?", "5", completions=("4",)),
    ),
    "several turns with a system text": (
        {"messages": [SYSTEM, *EARLIER, USER, REPLY]},
        {},
        Problem(
            *("train-0", "2+2?", "4", "", {}),
            (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "2+2?")),
            ("4",),
        ),
    ),
    "a conversation that ends with the user": (
        {"messages": [*EARLIER, USER]},
        {},
        Problem(
            *("train-0", "2+2?", "", "", {}),
            (("user", "Hello"), ("assistant", "Hi"), ("user", "2+2?")),
        ),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {},
        Problem("train-0", "2+2?", "4", completions=("4",)),
    ),
    "an empty system text": (
        {"messages": [{"role": "system", "content": ""}, USER]},
        {},
        Problem("train-0", "2+2?", ""),
    ),
    "contents in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]},
        {},
        Problem("train-0", "2+2?", ""),
    ),
    "text": (
        {"text": "  one two\nthree four five\n"},
        {"prompt_words": 3},
        Problem(
            *("train-0", "  one two\nthree", "", "", {}),
            (("text", "  one two\nthree"),),
            (" four five\n",),
        ),
    ),
    "columns of other names": (
        {"problem": "2+2?", "gold": "4", "question": "other"},
        {"columns": {"question": "problem", "answer": "gold"}},
        Problem("train-0", "2+2?", "4", "", {"question": "other"}),
    ),
    "one of two shapes": (
        {"prompt": "2+2?", "messages": [USER, REPLY]},
        {"columns": {"messages": "messages"}},
        Problem("train-0", "2+2?", "4", "", {"prompt": "2+2?"}, completions=("4",)),
    ),
    "a system text of the task": (
        {"question": "2+2?", "answer": "4"},
        {"system": "Be brief."},
        Problem(*("train-0", "2+2?", "4", "", {}), (("system", "Be brief."), ("user", "2+2?"))),
    ),
    "a system text of the conversation": (
        {"messages": [SYSTEM, USER]},
        {"system": "Be long."},
        Problem(*("train-0", "2+2?", "", "", {}), (("system", "Be brief."), ("user", "2+2?"))),
    ),
    "a column of system texts": (
        {"prompt": "2+2?", "role": "Be brief."},
        {"columns": {"system": "role"}, "system": "Be long."},
        Problem(*("train-0", "2+2?", "", "", {}), (("system", "Be brief."), ("user", "2+2?"))),
    ),
    "a template": (
        {"question": "2+{question}?", "answer": "4"},
        {"prompt": "Q: {question} A:"},
        Problem("train-0", "Q: 2+{question}? A:", "4"),
    ),
    "a worked answer": (
        {"question": "2+2?", "answer": "2+2=4\n#### 4"},
        {"grade": "numeric"},
        Problem("train-0", "2+2?", "4"),
    ),
    "a worked completion": (
        {"prompt": "2+2?", "completion": "2+2=4\n#### 4"},
        {"grade": "numeric"},
        Problem("train-0", "2+2?", "4", "2+2=4\n#### 4", completions=("2+2=4\n#### 4",)),
    ),
    "line separators in a text": (
        {"question": "a\u2028b\u0085c", "answer": "4\u2029"},
        {},
        Problem("train-0", "a\u2028b\u0085c", "4\u2029"),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_recognised_by_its_columns(tmp_path: Path, name: str) -> None:
    row, options, problem = SHAPES[name]
    read = first(tmp_path, row, **options)
    assert read == problem and dict(read.extra) == dict(problem.extra)


ROWS = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(5)]


def as_csv(rows: list[dict[str, Any]], mark: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


PARQUET = as_parquet(pa.Table.from_pylist(ROWS))
FILES: dict[str, tuple[str, bytes]] = {  # name: (name of the file, its bytes)
    "JSON Lines": ("a.jsonl", lines(ROWS).encode()),
    "JSON Lines, ndjson": ("a.ndjson", lines(ROWS).encode()),
    "JSON Lines named json": ("a.json", lines(ROWS).encode()),
    "blank last lines": ("a.jsonl", lines(ROWS).encode() + b"\n \r\n\n"),
    "a byte order mark and CRLF": (
        "a.jsonl",
        b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n").encode(),
    ),
    "JSON": ("a.json", json.dumps(ROWS, indent=2).encode()),
    "JSON with a byte order mark": ("a.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
    "JSON with one list": ("a.json", json.dumps({"version": 1, "data": ROWS}).encode()),
    "CSV": ("a.csv", as_csv(ROWS).encode()),
    "CSV with a byte order mark, LF and blank last lines": (
        "a.CSV",
        b"\xef\xbb\xbf" + as_csv(ROWS).replace("\r", "").encode() + b"\n\n",
    ),
    "TSV": ("a.tsv", as_csv(ROWS, "\t").encode()),
    "Parquet": ("a.parquet", PARQUET),
    "JSON Lines, gzipped": ("a.jsonl.gz", gzip.compress(lines(ROWS).encode())),
    "JSON, gzipped": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "CSV, gzipped": ("a.csv.gz", gzip.compress(as_csv(ROWS).encode())),
    "Parquet, gzipped": ("a.parquet.gz", gzip.compress(PARQUET)),
}
PROBLEMS = [Problem(f"train-{n}", row["question"], row["answer"]) for n, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", FILES)
def test_every_format_reads_the_same(tmp_path: Path, name: str) -> None:
    file, data = FILES[name]
    path = written(tmp_path, file, data)
    task = load_task("data", train_path=path, test_path=path)
    assert list(task.train) == PROBLEMS


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "json"])
def test_separators_of_unicode_end_no_line(tmp_path: Path, form: str) -> None:
    rows = [{"question": "a\u2028b\u0085c\x0bd", "answer": "4\u2029"}]
    data = {
        "csv": as_csv(rows).encode(),
        "tsv": as_csv(rows, "\t").encode(),
        "parquet": as_parquet(pa.Table.from_pylist(rows)),
        "json": json.dumps(rows, ensure_ascii=False).encode(),
    }[form]
    path = Path(written(tmp_path, f"a.{form}", data))
    (problem,) = load_task("data", train_path=path, test_path=[path]).train
    assert (problem.question, problem.answer) == ("a\u2028b\u0085c\x0bd", "4\u2029")


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    written(tmp_path, "data/b.csv", as_csv(ROWS[3:]))
    written(tmp_path, "data/a/1.jsonl", lines(ROWS[:3]))
    written(tmp_path, "data/README.md", "notes")
    written(tmp_path, "data/.hidden.jsonl", "{")
    folder = str(tmp_path / "data")
    task = load_task("data", train_path=folder, test_path=folder)
    assert list(task.train) == PROBLEMS
    both = [str(tmp_path / "data" / "a"), str(tmp_path / "data" / "b.csv")]
    assert list(load_task("data", train_path=both, test_path=folder).train) == PROBLEMS


def test_a_data_set_that_the_library_opens(tmp_path: Path) -> None:
    written(tmp_path, "set/train.jsonl", lines(ROWS[:4]))
    written(tmp_path, "set/test.jsonl", lines(ROWS[4:]))
    task = load_task("data", dataset=str(tmp_path / "set"))
    assert list(task.train) == PROBLEMS[:4]
    assert [p.question for p in task.test] == ["4+1?"]
    held = load_task(
        "data", dataset=str(tmp_path / "set"), held_out=0.5, columns={"question": "question"}
    )
    assert sorted(p.question for p in (*held.train, *held.test)) == ["0+1?", "1+1?", "2+1?", "3+1?"]
    part = load_task("data", dataset=str(tmp_path / "set"), train_split="train[1:3]")
    assert [p.question for p in part.train] == ["1+1?", "2+1?"]
    for options, says in (
        ({"test_split": "validation"}, 'cannot load split "validation"'),
        ({"subset": "main"}, "cannot load split"),
        ({"dataset": str(tmp_path / "none")}, "cannot load split"),
    ):
        with pytest.raises(PotstillError, match=says) as caught:
            _ = load_task("data", **{"dataset": str(tmp_path / "set"), **options}).test
        assert caught.value.hint


NUMBERS: list[tuple[Any, pa.DataType, str]] = [
    (3, pa.int8(), "3"),
    (2**63 - 1, pa.int64(), "9223372036854775807"),
    (0.1, pa.float32(), "0.1"),
    (0.1, pa.float16(), "0.1"),
    (72.0, pa.float64(), "72.0"),
    (1e16, pa.float64(), "10000000000000000.0"),
    (1.25e-5, pa.float64(), "0.0000125"),
    (1e300, pa.float64(), "1e+300"),
    (Decimal("12.50"), pa.decimal128(6, 2), "12.50"),
]


@pytest.mark.parametrize(("value", "kind", "text"), NUMBERS)
def test_numbers_of_parquet_keep_their_digits(
    tmp_path: Path, value: Any, kind: pa.DataType, text: str
) -> None:
    table = pa.table({"question": ["q"], "answer": pa.array([value], kind)})
    path = written(tmp_path, "a.parquet", as_parquet(table))
    assert load_task("data", train_path=path, test_path=path).train[0].answer == text


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_itself(value: float) -> None:
    text = number(value)
    assert text is not None and float(text) == value


GOOD = lines(ROWS[:1])
# name: (name of the file, its contents, options, a part of the rule, a part of the hint)
REFUSED: dict[str, tuple[str, bytes | str, dict[str, Any], str, str]] = {
    "no shape": (
        *("a.jsonl", '{"id": 1, "problem": "x", "gold": "y"}\n', {}),
        'line 1: the columns are "id", "problem", "gold", which make no shape of data',
        'columns = { question = "problem", answer = "gold" }',
    ),
    "a column that is not there": (
        *("a.jsonl", GOOD, {"columns": {"question": "qestion"}}),
        'line 1: columns maps question to "qestion", the columns are "question", "answer"',
        'did you mean "question"?',
    ),
    "an answer of another name": (
        *("a.jsonl", '{"question": "x", "label": "y"}\n', {}),
        'none of which is the answer; "label" may be it',
        'answer = "label"',
    ),
    "two shapes": (
        *("a.jsonl", '{"question": "x", "prompt": "y"}\n', {}),
        '"question", "prompt" are prompts of several shapes',
        'columns = { question = "question" }',
    ),
    "two lists of messages": (
        *("a.jsonl", '{"messages": [], "conversations": []}\n', {}),
        "are prompts of several shapes",
        'columns = { messages = "messages" }',
    ),
    "a row of another shape": (
        *("a.jsonl", GOOD + '{"prompt": "x"}\n', {}),
        "line 2: the columns are prompt, those of ",
        "a file for each shape",
    ),
    "a row without its answer": (
        *("a.jsonl", GOOD + '{"question": "x"}\n', {}),
        "line 2: the columns are question, those of ",
        "a file for each shape",
    ),
    "a null answer": (
        *("a.jsonl", GOOD + '{"question": "x", "answer": null}\n', {}),
        'line 2: "answer" must be text, got None',
        "leave the row out",
    ),
    "a blank question": (
        *("a.jsonl", '{"question": " \\u2003", "answer": "1"}\n', {}),
        'line 1: "question" must be text',
        "leave the row out",
    ),
    "a flag": (
        *("a.jsonl", '{"question": "x", "answer": true}\n', {}),
        'line 1: "answer" must be text, got True',
        "leave the row out",
    ),
    "a lone surrogate": (
        *("a.jsonl", GOOD + '{"question": "\\ud800", "answer": "1"}\n', {}),
        r"line 2: \ud800 is half of a pair",
        "JSON Lines",
    ),
    "a lone surrogate in another column": (
        *("a.jsonl", GOOD + '{"question": "x", "answer": "1", "note": "\\udfff"}\n', {}),
        r"line 2: \udfff is half of a pair",
        "JSON Lines",
    ),
    "a lone surrogate in an array": (
        *("a.json", '[{"question": "a", "answer": "1"}, {"question": "\\ud800"}]', {}),
        r"item 2: \ud800 is half of a pair",
        "list of objects",
    ),
    "a blank line between": (
        *("a.jsonl", GOOD + "\n" + GOOD, {}),
        "line 2: the line is empty",
        "JSON Lines",
    ),
    "no rows": ("a.jsonl", "", {}, '" is empty', "at least one row"),
    "an empty array": ("a.json", "[ ]", {}, '" is empty', "at least one row"),
    "an array without an end": (
        *("a.json", '[{"question": "a", "answer": "1"}', {}),
        "the array has no end",
        "list of objects",
    ),
    "text after an array": (
        *("a.json", '[{"question": "a", "answer": "1"}] {"x": 1}', {}),
        "text follows the array",
        "list of objects",
    ),
    "an array of texts": ("a.json", '["a"]', {}, "item 1: not an object", "list of objects"),
    "a comma too many": (
        *("a.json", '[{"question": "a", "answer": "1"},]', {}),
        "a comma follows the last item",
        "list of objects",
    ),
    "a key twice in an array": (
        *("a.json", '[{"question": "a", "question": "b"}]', {}),
        "item 1: the key 'question' is there twice",
        "list of objects",
    ),
    "two lists in an object": (
        *("a.json", '{"a": [{"question": "x"}], "b": [{"question": "x"}]}', {}),
        'has several lists of objects: "a", "b"',
        "list of objects",
    ),
    "bytes that are not UTF-8": (
        *("a.csv", b"question,answer\nx,\xff\n", {}),
        "0xff is not UTF-8",
        "CSV in UTF-8",
    ),
    "values without a column": (
        *("a.csv", "question,answer\nx,1\nx,1,2\n", {}),
        "line 3: 2 columns have 3 values",
        "CSV in UTF-8",
    ),
    "names in other case": (
        *("a.jsonl", '{"Question": "x", "Answer": "1"}\n', {}),
        'the columns are "Question", "Answer", which make no shape of data',
        'columns = { question = "Question", answer = "Answer" }',
    ),
    "two columns of a prompt": (
        *("a.jsonl", '{"instruction": "x", "input": "y", "output": "z"}\n', {}),
        "which make no shape of data",
        'join "instruction", "input" into one column',
    ),
    "another separator": (
        *("a.csv", "question;answer\nx;1\n", {}),
        "line 1: values are separated by commas, got 'question;answer'",
        "write commas",
    ),
    "a quote without an end": (
        *("a.csv", 'question,answer\n"x,1\n', {}),
        "line 2: not CSV",
        "CSV in UTF-8",
    ),
    "a column twice": (
        *("a.csv", "question,question\nx,1\n", {}),
        'the column "question" is there twice',
        "CSV in UTF-8",
    ),
    "an empty value": (
        *("a.csv", "question,answer\nx,\n", {}),
        "line 2: \"answer\" must be text, got ''",
        "leave the row out",
    ),
    "gzip that is cut off": (
        *("a.jsonl.gz", gzip.compress(lines(ROWS).encode())[:-12], {}),
        "cannot read",
        "gzipped or not",
    ),
    "gzip without its name": (
        *("a.jsonl", gzip.compress(GOOD.encode()), {}),
        "it is compressed with gzip",
        "unpack",
    ),
    "no gzip": ("a.jsonl.gz", GOOD, {}, "cannot read", "gzipped or not"),
    "no Parquet": ("a.parquet", GOOD, {}, "it is not Parquet", "Parquet file"),
    "another format": ("a.txt", "hello", {}, "is unknown by its name", ".parquet"),
    "a tool's message": (
        *("a.jsonl", lines([{"messages": [USER, {"role": "tool", "content": "5"}]}]), {}),
        'line 1: message 2 of "messages" has the role "tool"',
        "leave these conversations out",
    ),
    "a call of a tool": (
        *("a.jsonl", lines([{"messages": [USER, {**REPLY, "tool_calls": [{"id": 1}]}]}]), {}),
        'message 2 of "messages" has "tool_calls"',
        "leave these conversations out",
    ),
    "tools": (
        *("a.jsonl", lines([{"messages": [USER, REPLY], "tools": [{"name": "x"}]}]), {}),
        'line 1: "tools" has tools',
        "leave these conversations out",
    ),
    "a thought of its own": (
        *("a.jsonl", lines([{"messages": [USER, {**REPLY, "reasoning_content": "x"}]}]), {}),
        'has "reasoning_content"',
        "<think>",
    ),
    "another role": (
        *("a.jsonl", lines([{"messages": [USER, {"role": "asistant", "content": "5"}]}]), {}),
        "message 2 of \"messages\" has the role 'asistant'",
        'did you mean "assistant"?',
    ),
    "a message without a role": (
        *("a.jsonl", lines([{"messages": [{"content": "5"}]}]), {}),
        'message 1 of "messages" has the role None (keys: content)',
        '"role": "user"',
    ),
    "a message without text": (
        *("a.jsonl", lines([{"messages": [{"role": "user", "content": None}]}]), {}),
        'message 1 of "messages": "content" must be text, got None',
        '"role": "user"',
    ),
    "an image": (
        *("a.jsonl", lines([{"messages": [{**USER, "content": [{"type": "image"}]}]}]), {}),
        'has a part that is not text, got the type "image"',
        '"role": "user"',
    ),
    "a late system text": (
        *("a.jsonl", lines([{"messages": [USER, SYSTEM]}]), {}),
        'message 2 of "messages" is a system text',
        '"role": "user"',
    ),
    "messages that are text": (
        *("a.jsonl", '{"messages": "hello"}\n', {}),
        "\"messages\" must be a list of messages, got 'hello'",
        '"role": "user"',
    ),
    "no message": (
        *("a.jsonl", '{"messages": []}\n', {}),
        '"messages" must be a list of messages, got []',
        '"role": "user"',
    ),
    "a reply alone": (
        *("a.jsonl", lines([{"messages": [REPLY]}]), {}),
        "ends in a user's message",
        "leave it out",
    ),
    "two replies": (
        *("a.jsonl", lines([{"messages": [USER, REPLY, REPLY]}]), {}),
        "its roles are user, assistant, assistant",
        "leave it out",
    ),
    "a prompt with its reply": (
        *("a.jsonl", lines([{"prompt": [USER, REPLY]}]), {}),
        '"prompt" ends in a user\'s message, got a reply',
        'columns = { messages = "prompt" }',
    ),
    "a completion of several turns": (
        *("a.jsonl", lines([{"prompt": [USER], "completion": [REPLY, USER]}]), {}),
        '"completion" is one message of the assistant, got assistant, user',
        "into the prompt",
    ),
    "no completions": (
        *("a.jsonl", '{"prompt": "x", "completions": []}\n', {}),
        '"completions" must be text, got []',
        "leave the row out",
    ),
    "a short text": (
        *("a.jsonl", '{"text": "one two three"}\n', {"prompt_words": 3}),
        "line 1: a text has more than 3 words, the prompt, got 3",
        "prompt_words",
    ),
    "a raw text in a template": (
        *("a.jsonl", '{"text": "one two three"}\n', {"prompt_words": 1, "system": "x"}),
        "a raw text has no messages",
        "map the column to question",
    ),
    "a reference that its grader refuses": (
        *("a.jsonl", GOOD + '{"question": "x", "answer": "many"}\n', {"grade": "numeric"}),
        "line 2: a numeric answer is a number, got 'many'",
        "write the number",
    ),
    "a question of lists": (
        *("a.jsonl", '{"question": ["x"], "answer": "y"}\n', {}),
        "line 1: \"question\" must be text, got ['x']",
        "leave the row out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_data_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    file, data, options, rule, hint = REFUSED[name]
    path = written(tmp_path, file, data)
    with pytest.raises(PotstillError) as caught:
        _ = load_task("data", train_path=path, test_path=path, **options).train
    assert rule in str(caught.value) and path in str(caught.value)
    assert hint in caught.value.hint


TYPES: dict[str, tuple[pa.Array, str]] = {
    "flags": (pa.array([True]), "got True"),
    "lists": (pa.array([["x"]]), "got ['x']"),
    "bytes": (pa.array([b"x"]), "got bytes b'x'"),
    "nulls": (pa.array([None], pa.string()), "got None"),
    "no numbers": (pa.array([float("nan")]), "got nan"),
    "dates": (pa.array([0], pa.date32()), "got datetime.date"),
    "objects": (pa.array([{"x": 1}]), "got {'x': 1}"),
}


@pytest.mark.parametrize("column", ["question", "answer"])
@pytest.mark.parametrize("name", TYPES)
def test_a_parquet_of_the_wrong_types_names_its_row(tmp_path: Path, name: str, column: str) -> None:
    values, got = TYPES[name]
    columns = {"question": pa.array(["q"]), "answer": pa.array(["a"]), column: values}
    path = written(tmp_path, "a.parquet", as_parquet(pa.table(columns)))
    with pytest.raises(PotstillError) as caught:
        _ = load_task("data", train_path=path, test_path=path).train
    assert f'a.parquet, row 1: "{column}" must be text, {got}' in str(caught.value)


# options: (rule, hint)
OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "data come from train_path or from dataset, got neither", "train.jsonl"),
    ({"train_path": "a", "dataset": "b"}, "got both", "train.jsonl"),
    ({"train_path": "a"}, "there are no held-out problems", "held_out = 0.1"),
    ({"train_path": "a", "test_path": "b", "held_out": 0.1}, "is for data without", "leave one"),
    ({"train_path": "a", "held_out": 1.0}, "held_out is a share", "default, 0.0"),
    ({"train_path": "a", "limit": -1}, "limit is 0, which is all, or a number", "default, 0"),
    ({"train_path": "a", "prompt": "Question:"}, "a prompt has {question}", "{question}"),
    ({"train_path": "a", "columns": {"reply": "x"}}, 'unknown role "reply"', "roles: answer"),
    ({"train_path": "a", "columns": {"answer": ""}}, "answer names no column", "name one"),
    ({"train_path": "a", "columns": {"answer": ["x", "y"]}}, "answer is one column", "completion"),
    ({"train_path": "a", "columns": {"answer": "x", "question": "x"}}, '"x" twice', "one role"),
    ({"train_path": "a", "columns": {"prompt": "x", "text": "y"}}, "two shapes", "shapes: "),
    ({"train_path": "a", "gradr": "x"}, 'unknown key "gradr"', 'did you mean "grade"?'),
    ({"train": "a"}, 'unknown key "train"', "train_path"),
]


@pytest.mark.parametrize(("options", "rule", "hint"), OPTIONS)
def test_options_that_cannot_be_meant(options: dict[str, Any], rule: str, hint: str) -> None:
    with pytest.raises(PotstillError) as caught:
        load_task("data", **options)
    assert rule in str(caught.value) and str(caught.value).startswith('task "data": ')
    assert hint in caught.value.hint


MANY = [{"question": f"What is {n} + {n % 7}?", "answer": str(n + n % 7)} for n in range(200)]


def split(path: str, **options: Any) -> tuple[list[str], list[str]]:
    """Ids of the training and the held-out problems."""
    task = load_task("data", train_path=path, **options)
    return [p.id.split("-")[1] for p in task.train], [p.id.split("-")[1] for p in task.test]


def test_a_share_of_the_training_file_is_held_out(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines(MANY))
    train, test = split(path, held_out=0.1)
    assert len(test) == 20 and sorted(train + test, key=int) == [str(n) for n in range(200)]
    assert split(path, held_out=0.1) == (train, test) != split(path, held_out=0.1, seed=1)
    longer = written(tmp_path, "b.jsonl", lines([*MANY, *MANY[:3]]))
    again, held = split(longer, held_out=0.1)
    assert set(test) <= set(held) and not set(held) & set(again)


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["a", "A ", "b", "b.", "c", "d", "\u00a0D"]), min_size=8, max_size=30),
    st.floats(0.01, 0.9),
    st.integers(0, 2**63 - 1),
)
def test_no_problem_is_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], share: float, seed: int
) -> None:
    rows = [{"question": question, "answer": "x"} for question in [*questions, "a", "b"]]
    path = written(tmp_path_factory.getbasetemp(), "split.jsonl", lines(rows))
    task = load_task("data", train_path=path, held_out=share, seed=seed)
    train, test = ({question_key(p.question) for p in part} for part in (task.train, task.test))
    assert train and test and not train & test and len(task.train) + len(task.test) == len(rows)


def test_an_order_is_drawn_before_the_first_are_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines(MANY))
    assert split(path, test_path=path, limit=3, test_limit=2) == (["0", "1", "2"], ["0", "1"])
    drawn, _ = split(path, test_path=path, limit=3, shuffle=True)
    assert drawn == split(path, test_path=path, shuffle=True)[0][:3] != ["0", "1", "2"]
    assert drawn != split(path, test_path=path, limit=3, shuffle=True, seed=1)[0]
    train, test = split(path, held_out=0.1, limit=5, test_limit=4)
    assert len(train) == 5 and len(test) == 4


LEAKS = {  # a held-out question that is "What is 2² + 2?", and one that is not
    "as it is": ("What is 2² + 2?", True),
    "case": ("WHAT is 2² + 2?", True),
    "white space": ("\tWhat  is\u00a02² + 2?\n", True),
    "full-width letters": ("\uff37\uff48\uff41\uff54 is 2² + 2?", True),
    "no mark at the end": ("What is 2² + 2", True),
    "quotes": ("“What is 2² + 2?”", True),
    "a power": ("What is 22 + 2?", False),
    "a sign": ("What is 2² - 2?", False),
    "a factorial": ("What is 2² + 2!?", False),
    "another word": ("What's 2² + 2?", False),
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("form", ["question", "messages"])
def test_held_out_problems_that_are_trained_on_are_refused(
    tmp_path: Path, name: str, form: str
) -> None:
    question, same = LEAKS[name]
    rows = [[*EARLIER, {"role": "user", "content": text}] for text in ("x", "What is 2² + 2?")]
    rows += [[*EARLIER, {"role": "user", "content": text}] for text in ("y", question)]
    if form == "question":
        texts = [{"question": messages[-1]["content"], "answer": "6"} for messages in rows]
    else:
        texts = [{"messages": messages} for messages in rows]
    train = written(tmp_path, "train.jsonl", lines(texts[:2]))
    test = written(tmp_path, "test.jsonl", lines(texts[2:]))
    task = load_task("data", train_path=train, test_path=test)
    if not same:
        return check_disjoint(task, task.test)
    with pytest.raises(PotstillError, match=r"1 of 2 graded problems .*test-1 is train-1"):
        check_disjoint(task, task.test)


def test_the_same_question_of_another_conversation_is_another_problem(tmp_path: Path) -> None:
    train = written(tmp_path, "train.jsonl", lines([{"messages": [*EARLIER, USER]}]))
    test = written(tmp_path, "test.jsonl", lines([{"messages": [SYSTEM, USER]}]))
    task = load_task("data", train_path=train, test_path=test)
    check_disjoint(task, task.test)


@pytest.mark.parametrize(
    ("row", "options", "graded"),
    [
        (ROWS[0], {}, True),
        (ROWS[0], {"grade": "none"}, False),
        ({"prompt": "x"}, {}, False),
        ({"prompt": "x", "completion": "y"}, {}, False),
        ({"prompt": "x", "completion": "y"}, {"grade": "exact"}, True),
        ({"messages": [USER, REPLY]}, {"grade": "numeric"}, True),
        ({"question": "x", "label": "y"}, {"grade": "none"}, False),
    ],
)
def test_prompts_alone_are_not_graded(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], graded: bool
) -> None:
    path = written(tmp_path, "a.jsonl", lines([row]))
    assert load_task("data", train_path=path, test_path=path, **options).graded is graded


def test_graded_problems_have_a_reference(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines([{"messages": [USER, REPLY]}, {"messages": [USER]}]))
    task = load_task("data", train_path=path, test_path=path, grade="exact")
    assert len(task.train) == 2
    with pytest.raises(PotstillError, match=r"1 of 2 held-out problems have no reference .*test-1"):
        _ = task.test


def test_completions_are_counted_in_the_table(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "completion": ["x"] * (n % 3) or ["y"]} for n in range(9)]
    path = written(tmp_path, "a.jsonl", lines(rows))
    train = load_task("data", train_path=path, test_path=path, shuffle=True).train
    assert completion_counts(train) == [len(p.completions) for p in train]
    assert sorted(completion_counts(train)) == [1] * 6 + [2] * 3


def test_problems_are_a_sequence(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines(ROWS))
    train = load_task("data", train_path=path, test_path=path).train
    assert list(train[1:3]) == PROBLEMS[1:3] and train[-1] == PROBLEMS[-1] == train[4]
    assert train[:0] == [] and train == PROBLEMS and train != PROBLEMS[1:] and train != 3
    with pytest.raises(IndexError):
        train[5]


def test_a_digest_is_of_all_parts_and_of_the_order(tmp_path: Path) -> None:
    def digest(*rows: dict[str, Any], **options: Any) -> str:
        path = written(tmp_path, "a.jsonl", lines(list(rows)))
        task: Any = load_task("data", train_path=path, test_path=path, **options)
        return str(task.train.digest)

    rows = ROWS[:3]
    same = digest(*rows)
    assert same == digest(*rows) == digest(*rows, ROWS[3], limit=3)
    others = [
        digest(*rows, ROWS[3]),
        digest(rows[1], rows[0], rows[2]),
        digest(*({**row, "note": "x"} for row in rows)),
        digest(*({**row, "completion": "x"} for row in rows)),
        digest(*({**row, "answer": "x"} for row in rows)),
        digest(*rows, system="Be brief."),
    ]
    assert len({same, *others}) == 7


def test_large_data_are_a_file_that_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGE", 1000)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    path = written(tmp_path, "a.jsonl", lines(MANY))

    def read(**options: Any) -> list[Problem]:
        return list(load_task("data", train_path=path, test_path=path, **options).train)

    def files() -> list[Path]:
        return sorted((tmp_path / "cache" / "data").glob("*.arrow"))

    problems = read()
    (file,) = files()
    before = file.stat()
    assert read() == problems and file.stat().st_mtime_ns == before.st_mtime_ns
    read(system="Be brief.")
    assert len(files()) == 2 and not list(file.parent.glob("*.partial"))
    file.write_bytes(file.read_bytes()[:-20])  # a damaged file is made again
    assert read() == problems and file.stat().st_size == before.st_size
    data = bytearray(file.read_bytes())
    place = data.index(problems[5].question.encode())
    data[place : place + 1] = b"X"  # one letter of a question
    file.write_bytes(data)
    assert read() == problems
    written(tmp_path, "a.jsonl", lines(MANY[1:]))
    assert read() != problems and len(files()) == 3
    monkeypatch.setenv("POTSTILL_CACHE", "/dev/null/cache")  # in memory then
    assert len(read()) == 199
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    written(tmp_path, "a.jsonl", lines(MANY) + "{")
    with pytest.raises(PotstillError, match="line 201: not JSON"):
        read()
    assert len(files()) == 3 and not list(file.parent.glob("*.partial"))


class Characters:
    """A tokenizer of characters with a chat template, as far as rendering needs one."""

    chat_template = "{{ messages[0]['content'] }}!"

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=[0] * add_special_tokens + [ord(c) for c in text])


def test_a_raw_text_is_rendered_as_it_is(tmp_path: Path) -> None:
    problem = first(tmp_path, {"text": "one two three"}, prompt_words=2)
    assert written_prompt(Characters(), problem.conversation) == "one two"
    assert render(Characters(), problem.conversation) == (0, *map(ord, "one two"))
    assert plain((("user", "a"), ("assistant", "b"))) == "a\nb\n"


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"]),
    st.binary(max_size=80) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
)
def test_any_file_is_problems_or_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    path = written(tmp_path, name, data)
    task = load_task("data", train_path=path, test_path=path, columns={"prompt": "a"})
    try:
        assert all(problem.question.strip() for problem in task.train)
    except PotstillError as error:
        assert path in str(error) and error.hint


CONTEXTS: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {
    "system": (
        {"system": "Think."},
        (("system", "Think.\nBe brief."), *PAIR_OF_TURNS, ("user", "2+2?")),
    ),
    "chain_of_thought": (
        {"chain_of_thought": {"template": "Q: {question}"}},
        (("system", "Be brief."), *PAIR_OF_TURNS, ("user", "Q: 2+2?")),
    ),
    "hint": (
        {"hint": {"field": "answer", "template": "{hint}! {question}"}},
        (("system", "Be brief."), *PAIR_OF_TURNS, ("user", "4! 2+2?")),
    ),
    "few_shot": (
        {"few_shot": {"n": 1}},
        (
            ("system", "Be brief."),
            *(("user", "Hello"), ("assistant", "Hi"), ("user", "3+3?"), ("assistant", "6")),
            *PAIR_OF_TURNS,
            ("user", "2+2?"),
        ),
    ),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_precedes_the_whole_conversation(tmp_path: Path, name: str) -> None:
    table, expected = CONTEXTS[name]
    other = [{"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6"}]
    rows = [{"messages": [SYSTEM, *EARLIER, *end]} for end in ([USER, REPLY], other)]
    path = written(tmp_path, "a.jsonl", lines(rows))
    task = load_task("data", train_path=path, test_path=path, grade="exact")
    builder = PromptBuilder(read_context(table), task)
    assert builder.conversation(task.train[0]) == expected


def test_a_raw_text_has_no_context(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines([{"text": "one two three"}]))
    task = load_task("data", train_path=path, test_path=path, prompt_words=1)
    builder = PromptBuilder(read_context({"system": "Think."}), task)
    for call in (lambda: builder.check(task.test), lambda: builder.conversation(task.train[0])):
        with pytest.raises(PotstillError, match=r"test-0|train-0"):
            call()


@pytest.mark.parametrize("count", [1, 3, 300])
def test_what_a_table_knows_is_what_a_list_has(tmp_path: Path, count: int) -> None:
    rows = [
        {"messages": [SYSTEM, {"role": "user", "content": "x" * (7 * n % 11) + 'a"b'}]}
        for n in range(300)
    ] + [{"prompt": "é<s>" * 5}]
    paths = [
        written(tmp_path, "a.jsonl", lines(rows[:300])),
        written(tmp_path, "b.jsonl", lines(rows[300:])),
    ]
    train = load_task("data", train_path=paths, test_path=paths[1]).train
    assert isinstance(train, Indexed)
    plain_list = list(train)
    lengths = [sum(len(m.encode()) for _, m in messages(p)) for p in longest(train, count)]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == count
    for texts in (["<s>"], ['a"b'], ["xxxxxxxxxx", "é"], ["none"], []):
        assert containing(train, texts) == containing(plain_list, texts)
    assert completion_counts(train) == completion_counts(plain_list) == [0] * 301
    for problem in plain_list[::50]:
        assert finder(train)(problem.id) == finder(plain_list)(problem.id) == problem
    for name in ("train-301", "test-0", "train", "train--1"):
        with pytest.raises(KeyError):
            finder(train)(name)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is it?", "completion": "This."},
        {"prompt": "What is it?", "completion": ["This.", "That."]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "This."}]},
    ],
    ids=["one", "several", "messages"],
)
def test_completions_can_be_left_to_the_teacher(tmp_path: Path, row: dict[str, Any]) -> None:
    used = first(tmp_path, row)
    assert used.completions[0] == "This."
    left = first(tmp_path, row, use_completions=False)
    assert left.completions == () and left.answer == used.answer
