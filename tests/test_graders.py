"""Graders: a table of answers with a careful human's verdicts, options, hostile text, bad input."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from potstill.cli.ls import listing
from potstill.errors import PotstillError
from potstill.problems import Grade, Problem
from potstill.tasks import load_task
from potstill.tasks.graders import GRADERS, GraderError, load_grader
from potstill.tasks.graders.base import Extractor
from potstill.tasks.grading import grade_exact, grade_number

ANSWERS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text().splitlines()
]
NEEDS = {"math": "math_verify"}
CODE = {"name": "code", "allow_code": True, "timeout": 2}
SCHEMA = {"type": "object", "required": ["x"]}
CITIES = ["Rome", "Paris"]


def problem(answer: str, question: str = "q", **extra: str) -> Problem:
    return Problem("test-3", question, answer, extra=extra)


def load(spec: Any) -> Any:
    name = spec["name"] if isinstance(spec, dict) else spec
    if isinstance(name, str) and name in NEEDS and not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} is not installed")
    return load_grader(spec)


def test_the_table_is_long_and_of_many_kinds() -> None:
    kinds = Counter(row["kind"] for row in ANSWERS)
    assert len(ANSWERS) >= 200 and len(kinds) >= 15
    assert {row["human"] for row in ANSWERS} == {True, False}


def test_graders_agree_with_a_careful_human() -> None:
    wrong = []
    for row in ANSWERS:
        grade = load_grader(row["grader"]).grade(problem(row["reference"]), row["text"])
        if grade.correct != row["human"]:
            wrong.append(row)
    assert ANSWERS and not wrong


def test_the_references_of_the_table_are_accepted() -> None:
    for row in ANSWERS:
        load_grader(row["grader"]).check(problem(row["reference"]))


def test_lm_eval_is_reproduced() -> None:
    """The column was made by lm-eval's own filters and metric, see docs/graders.md."""
    grader = load_grader("lm_eval")
    for row in ANSWERS:
        grade = grader.grade(problem(row["reference"]), row["text"])
        assert [grade.strict == 1, grade.flexible == 1] == row["lm_eval"], row


@pytest.mark.parametrize("column", [0, 1], ids=["strict-match", "flexible-extract"])
def test_the_docs_count_where_lm_eval_differs(column: int) -> None:
    differ = sum(row["lm_eval"][column] != row["human"] for row in ANSWERS)
    page = (Path(__file__).parents[1] / "docs" / "graders.md").read_text()
    name = ["strict-match", "flexible-extract"][column]
    assert f"{name} differs on {differ} of the {len(ANSWERS)}" in " ".join(page.split())


def test_gsm8k_is_the_grader_of_today() -> None:
    texts = [row["text"] for row in ANSWERS]
    assert texts
    for text in texts:
        for answer in ("42", "-5", "1,234", "many"):
            assert load_grader("gsm8k").grade(problem(answer), text) == grade_number(answer, text)
            assert load_grader("exact").grade(problem(answer), text) == grade_exact(answer, text)


CASES: list[tuple[Any, str, str, float, float]] = [  # grader, reference, text, strict, flexible
    ({"name": "number", "take": "first"}, "3", "3 of 4", 1, 1),
    ({"name": "number", "take": "last"}, "3", "3 of 4", 0, 0),
    ({"name": "number", "after": "####"}, "5", "It is 5", 0, 1),
    ({"name": "number", "after": "####"}, "5", "#### 5 km", 1, 1),
    ({"name": "number", "tolerance": 0.1, "absolute_tolerance": 3}, "10", "13", 1, 1),
    ("number", "5 km", "5 miles", 0, 1),
    ("number", "0.5", "0.5%", 0, 1),
    ("number", "#### 1,234", "1234", 1, 1),
    ("numeric", "5", "#### 5", 1, 1),
    ("choice", "B", "the answer is b", 1, 1),
    ("choice", "B", "(A) is wrong, so (B) it is", 0, 1),
    ({"name": "choice", "letters": "1234"}, "2", "2", 1, 1),
    ({"name": "regex", "pattern": r"answer: (\w+)"}, "x", "answer: y answer: x", 1, 1),
    ({"name": "regex", "pattern": r"answer: (\w+)", "take": "first"}, "y", "answer: y x", 1, 1),
    ({"name": "regex", "pattern": r"^{answer}$"}, "a.b", "a.b", 1, 1),
    ({"name": "regex", "pattern": r"^{answer}$"}, "a.b", "acb", 0, 0),
    ({"name": "regex", "pattern": r"\d+"}, "", "has 5", 1, 1),
    ({"name": "regex", "pattern": "YES", "ignore_case": True}, "", "yes", 1, 1),
    ("after", "5", "x\n#### 5\ny", 1, 1),
    ({"name": "after", "mark": "A:"}, "b", "A: c\nA: B", 0, 1),
    ("line", "yes", "no\nyes\n\n", 1, 1),
    ({"name": "line", "take": "first"}, "no", "no\nyes", 1, 1),
    ({"name": "contains", "text": ["a b", "c"]}, "", "C and A b", 0, 1),
    ("json", '{"a": 1}', '{"a": 1.0}', 1, 1),
    ("json", '{"a": 1}', '```json\n{"a": 1}\n```', 1, 1),
    ("json", '{"a": 1}', 'It is {"a": 1}.', 0, 1),
    ("json", '{"a": 1}', '{"a": true}', 0, 0),
    ("json", '{"a": 1}', '{"a": 2, "a": 1}', 0, 0),
    ("json", "[NaN]", "[NaN]", 0, 0),
    ({"name": "json", "fields": ["a.b"]}, '{"a": {"b": 2}}', '{"a": {"b": 2}, "c": 3}', 1, 1),
    ({"name": "json", "schema": SCHEMA}, "", '{"x": 1}', 1, 1),
    ({"name": "json", "schema": SCHEMA}, "", '{"y": 1}', 0, 0),
    ("math", "1/2", r"\boxed{0.5}", 1, 1),
    ("math", "x^2+2x+1", "$(x+1)^2$", 1, 1),
    ("math", "5", "6", 0, 0),
    (["boxed", "number"], "0.5", r"7 \boxed{\frac{1}{2}} 8", 1, 1),
    (["boxed", "number"], "0.5", "It is 0.5", 0, 1),
    ([{"name": "after", "mark": "Answer:"}, "choice"], "B", "Answer: b", 1, 1),
    ([{"name": "json", "fields": "answer"}, "number"], "5", '{"answer": "5 km"}', 1, 1),
    (["line", ["boxed", "number"]], "5", "\\boxed{4}\n\\boxed{5}", 1, 1),
    ({"name": "any", "graders": ["exact", "number"]}, "5", "it's 5", 1, 1),
    ({"name": "all", "graders": ["exact", "number"]}, "5", "it's 5", 0, 0),
    ({"name": "all", "graders": ["contains", "number"]}, "5", "it's 5", 1, 1),
    (lambda completion, answer: completion == answer, "5", "5", 1, 1),
]


@pytest.mark.parametrize(("spec", "answer", "text", "strict", "flexible"), CASES)
def test_grades(spec: Any, answer: str, text: str, strict: float, flexible: float) -> None:
    grade = load(spec).grade(problem(answer), text)
    assert (grade.strict, grade.flexible) == (strict, flexible)
    assert type(grade.strict) is type(grade.flexible) is float


def test_options_of_a_choice_come_from_the_question_or_a_column() -> None:
    grader = load_grader("choice")
    asked = problem("B", "Which city?\nA) Rome\nB) Paris\nC. Oslo")
    assert grader.grade(asked, "Paris").strict and not grader.grade(asked, "Oslo").strict
    for column in (json.dumps(CITIES), json.dumps({"text": CITIES}), "Rome\nParis"):
        assert grader.grade(problem("Paris", choices=column), "B").strict


MOST_HOSTILE = 40_000  # characters
HOSTILE = [
    "1" * 10**5, "1," * 50_000, "1 " * 50_000, "1/" * 50_000, "½" * 50_000, "1e9" * 30_000,
    "1 or " * 20_000, "10^" * 30_000, "-" * 10**5 + "1", "answer is " * 10_000, "#### " * 20_000,
    "\\boxed{" * 10_000, "\\boxed{" * 5_000 + "}" * 5_000, "{" * 10**5, "[" * 10**5, "$" * 10**5,
    "\n" * 10**5, " " * 10**5 + "5", "*" * 10**5, "(A" * 50_000, "A or " * 20_000, "\0" * 10**5,
    "\\frac{" * 20_000, "1e999999999999999999999", "\u202e" * 10**5, "\ud800",
    "```python\n" * 9_000, "'" * 10**5, "1'" * 50_000, "²" * 50_000, "1.5 million" * 9_000,
    "{\"a\":" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [name for name in GRADERS if name not in ("any", "all", "chain", "regex", "code", "math")]
    + [["boxed", "number"], {"name": "choice", "choices": CITIES}],
    ids=str,
)
def test_hostile_text_is_wrong(spec: Any) -> None:
    """A quadratic expression would take minutes here: see how long with --durations."""
    grader = load_grader(spec)
    for text in HOSTILE:
        assert not grader.grade(problem("77"), text[:MOST_HOSTILE]).strict


@pytest.mark.parametrize(
    ("spec", "answer", "rule"),
    [
        ("gsm8k", "3,14", "a comma separates thousands"),
        ("gsm8k", "1e16", "written in digits"),
        ("gsm8k", "many", "a numeric answer is a number"),
        ("number", "3,14", 'set decimal = ","'),
        ("number", "10/0", "one number"),
        ("number", "5 or 6", "one number"),
        ("number", "1.2.3", "one number"),
        ("number", "2^10", "one number"),
        ("number", "", "reference answer"),
        ({"name": "number", "decimal": ","}, "3.14.15", "one number"),
        ({"name": "number", "unit": "km"}, "5 kg", "has the unit km"),
        ("lm_eval", "1e16", "lm-eval reads digits"),
        ("lm_eval", "1/2", "lm-eval reads digits"),
        ("exact", " ", "reference answer"),
        ("normalised", "...", "words or digits"),
        ({"name": "choice", "choices": CITIES}, "Oslo", "A: Rome, B: Paris"),
        ({"name": "choice", "choices": CITIES}, "C", "A: Rome, B: Paris"),
        ("choice", "Paris", "no options are known"),
        ("json", "{", "a reference is JSON"),
        ({"name": "json", "fields": ["b"]}, '{"a": 1}', 'the field "b"'),
        ({"name": "json", "fields": ["x"], "schema": SCHEMA}, '{"y": 1}', 'the field "x"'),
        ("math", "\\frac{", "math-verify reads"),
        (["boxed", "number"], "many", "one number"),
        ({"name": "all", "graders": ["exact", "number"]}, "many", "one number"),
        ({"name": "any", "graders": ["number", "json"]}, "many", "one number"),
        (CODE, "x = 1", "assert nothing"),
        (CODE, "(", "not Python"),
        (CODE, "", "there are none"),
    ],
)
def test_a_reference_that_its_grader_does_not_accept(spec: Any, answer: str, rule: str) -> None:
    with pytest.raises(PotstillError) as caught:
        load(spec).check(problem(answer))
    assert rule in f"{caught.value} {caught.value.hint}" and caught.value.hint


@pytest.mark.parametrize("number", ["1e16", "1E-5", "12.50", "1_000", "-3", "5 km", "50%", "1/3"])
def test_numbers_as_files_write_them_are_references(number: str) -> None:
    grader = load_grader("number")
    grader.check(problem(number))
    assert grader.grade(problem(number), f"The answer is {number}.").strict


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("numbr", 'did you mean "number"?'),
        (5, "a grader is given by its name"),
        ({"nam": "number"}, "a grader is given by its name"),
        ({"name": "number", "tolerence": 1}, "unknown key"),
        ({"name": "number", "tolerance": -1}, "tolerance is 0 to 1"),
        ({"name": "number", "tolerance": "much"}, "tolerance"),
        ({"name": "number", "tolerance": True}, "tolerance is 0 to 1"),
        ({"name": "number", "absolute_tolerance": float("inf")}, "absolute_tolerance"),
        ({"name": "number", "unit": "kmm"}, 'unknown unit "kmm"'),
        ({"name": "number", "decimal": ";"}, "decimal"),
        ({"name": "regex"}, "pattern is required"),
        ({"name": "regex", "pattern": "("}, "regular expression"),
        ({"name": "regex", "pattern": "a{1000000000}"}, "at most 100,000 times"),
        ({"name": "regex", "pattern": "(" * 5000}, "regular expression"),
        ({"name": "choice", "choices": ["one"]}, "choices are two to 26 texts"),
        ({"name": "choice", "letters": "AA"}, "letters are two or more"),
        ({"name": "contains", "text": ["..."]}, "words or digits"),
        ({"name": "json", "schema": {"type": "strin"}}, "not a JSON schema"),
        ({"name": "json", "schema": "nothing-here.json"}, "cannot read"),
        ({"name": "json", "schema": [1]}, "a schema is a table"),
        ({"name": "after", "mark": ""}, "mark is not empty"),
        ([], "a list of graders"),
        (["exact", "number"], '"exact" extracts nothing'),
        ({"name": "any", "graders": "number"}, "a list of graders"),
        ({"name": "all", "graders": ["numbr"]}, 'unknown grader "numbr"'),
        ("code", "must be allowed"),
        ({"name": "code", "allow_code": False}, "must be allowed"),
        ({"name": "code", "allow_code": "yes"}, "allow_code is true or false"),
        ("mine.py", "write mine.py:grade"),
        ({"name": "mine.py:grade", "place": "a.py:b"}, "unknown grader"),
    ],
)
def test_a_wrong_grader(spec: Any, rule: str) -> None:
    with pytest.raises(PotstillError) as caught:
        load_grader(spec)
    assert rule in f"{caught.value} {caught.value.hint}" and caught.value.hint


def test_graders_that_are_nested_too_deeply() -> None:
    spec: Any = "exact"
    for _ in range(5000):
        spec = [spec]
    with pytest.raises(PotstillError, match="nested too deeply"):
        load_grader(spec)


def test_a_pattern_that_takes_too_long_is_an_error() -> None:
    grader = load_grader({"name": "regex", "pattern": r"^(\w|\w\w)*\d$", "timeout": 0.1})
    with pytest.raises(GraderError, match=r'takes more than 0.1 seconds on problem "test-3"'):
        grader.grade(problem("x"), "a" * 80 + "!")


def test_a_schema_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.tasks.graders import structured

    monkeypatch.setattr(structured, "SECONDS", 0.3)
    schema = {"type": "string", "pattern": r"^(\w|\w\w)*\d$"}
    grader = load_grader({"name": "json", "schema": schema})
    with pytest.raises(GraderError, match=r'problem "test-3": it takes more than 0.3 seconds'):
        grader.grade(problem(""), '"' + "a" * 80 + '!"')


def test_an_expression_that_takes_too_long_is_wrong() -> None:
    grader = load({"name": "math", "timeout": 0.5})
    assert not grader.grade(problem("2"), "$9^{9^{9^{9}}}$").strict
    assert grader.grade(problem("2"), "$2$").strict


def test_identities_differ_wherever_a_grade_can() -> None:
    default = {"name": "number", "take": "last"}
    specs = [spec for spec, *_ in CASES if not callable(spec) and spec not in ("math", default)]
    loaded = {json.dumps(spec): load_grader(spec).identity for spec in specs}
    aliases = {loaded.pop('"numeric"'), load_grader("gsm8k").identity}
    assert len(aliases) == 1 and len(set(loaded.values())) == len(loaded) > 20


def test_graders_are_listed() -> None:
    rows = {row["grader"]: row["what"] for row in listing("graders")}
    assert rows.keys() == GRADERS.keys() and all(rows.values())
    assert isinstance(load_grader("boxed"), Extractor)
    assert not isinstance(load_grader("exact"), Extractor)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def jsonl(tmp_path: Path, answer: Any, **options: Any) -> Any:
    train = write(tmp_path / "train.jsonl", [{"question": "1+1", "answer": "2"}])
    test = write(tmp_path / "test.jsonl", [{"question": "10^16", "answer": answer}])
    return load_task("jsonl", train_path=train, test_path=test, **options)


def test_a_task_has_its_grader_as_an_option(tmp_path: Path) -> None:
    task = jsonl(tmp_path, 1e16, grade={"name": "number", "tolerance": 0.01})
    assert task.test[0].answer == "1e+16"
    assert task.grade(task.test[0], "It is 10 000 000 000 000 000.") == Grade(1, 1)
    assert jsonl(tmp_path, "x").grade(task.train[0], "2").strict  # exact, as without the option


@pytest.mark.parametrize(
    ("answer", "options", "rule"),
    [
        (1e16, {"match": "numeric"}, "line 1: a numeric answer is written in digits"),
        ("3,14", {"match": "numeric"}, "line 1: a comma separates thousands, got '3,14'"),
        ("many", {"grade": "number"}, "line 1: a reference is one number"),
        ("1", {"grade": "numbr"}, 'task "jsonl": grade: unknown grader "numbr"'),
        ("1", {"grade": "number", "match": "numeric"}, "two graders"),
        ("1", {"grad": "number"}, 'unknown key "grad"'),
    ],
)
def test_a_wrong_option_or_reference(
    tmp_path: Path, answer: Any, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(PotstillError) as caught:
        _ = jsonl(tmp_path, answer, **options).test
    assert rule in str(caught.value)
    assert caught.value.hint


def test_gsm8k_has_the_option_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "2\n#### 1,234"}])
    task = load_task("gsm8k", train_path=path, test_path=path, grade="lm_eval")
    assert task.test[0].answer == "1234"
    assert task.grade(task.test[0], "#### 1,234").strict
    assert not task.grade(task.test[0], "####1,234").strict


def test_the_docs_show_where_lm_eval_and_gsm8k_differ() -> None:
    page = (Path(__file__).parents[1] / "docs" / "graders.md").read_text()
    verdicts = r"(right|wrong), (right|wrong) \| (right|wrong), (right|wrong)"
    rows = re.findall(rf"^\| `(.*?)` \| (\S+) \| {verdicts} \|", page, re.MULTILINE)
    assert len(rows) >= 10
    for text, answer, *shown in rows:
        grades = [load_grader(name).grade(problem(answer), text) for name in ("lm_eval", "gsm8k")]
        values = [value for grade in grades for value in (grade.strict, grade.flexible)]
        assert [one == "right" for one in shown] == [value == 1 for value in values], text
        assert values[:2] != values[2:]


def test_the_docs_list_all_graders() -> None:
    page = (Path(__file__).parents[1] / "docs" / "graders.md").read_text()
    for name, (_, _, what) in GRADERS.items():
        assert f"{name} " in page and what in page
