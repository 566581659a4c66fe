"""Tasks: graders on hostile text, disjoint splits, readers that name the bad line."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.errors import PotstillError, PotstillErrors
from potstill.problems import Grade, Problem
from potstill.tasks import check_disjoint, load_task
from potstill.tasks.arithmetic import Arithmetic, split_of
from potstill.tasks.grading import (
    answer_of,
    flexible_number,
    grade_exact,
    grade_number,
    strict_number,
    to_number,
)
from potstill.tasks.gsm8k import GSM8K
from potstill.tasks.overlap import overlap

GSM8K_FILES = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("answer", "text", "strict", "flexible"),
    [
        ("42", "6*7=42\n#### 42", True, True),
        ("42", "the answer is 42.", False, True),
        ("42", "#### 42.00", True, True),
        ("1234", "#### 1,234", True, True),
        ("1234", "#### $1,234", True, True),
        ("-5", "#### -5", True, True),
        ("-5", "#### -$5", True, True),
        ("5", "#### -5", False, False),
        ("42", "#### 42 and then 7", True, False),
        ("42", "#### forty-two", False, False),
        ("42", "", False, False),
        ("42", "####", False, False),
        ("42", "#### 421", False, False),
        ("12", "#### 12.5", False, False),
        ("0.5", "#### .5", True, True),
        ("42", "\x00#### ٤٢ 1e9999 --- 4.2.3,,", False, False),
        ("42", "9" * 5000, False, False),
        ("100", "#### 1,0,0", True, True),
    ],
)
def test_number_grading(answer: str, text: str, strict: bool, flexible: bool) -> None:
    assert grade_number(answer, text) == Grade(strict, flexible)


@pytest.mark.parametrize(
    ("text", "there"), [("#### 421", True), ("#### forty-two", False), ("so 42", False)]
)
def test_an_answer_in_the_format_is_there_right_or_wrong(text: str, there: bool) -> None:
    assert grade_number("42", text).format == grade_number("no number", text).format == there
    assert grade_exact("42", text).format is None


def test_extractors_read_what_the_harness_reads() -> None:
    assert strict_number("#### 3\n#### 4") == 3  # the first mark
    assert flexible_number("3 then 4") == 4  # the last number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("$1,234.00.", 1234), ("42..", 42), (" -7\n", -7), ("-$.5", Decimal("-0.5"))),
        *(("12X", None), ("Infinity", None), ("nan", None), ("", None), ("1 2", None)),
    ],
)
def test_a_grading_reads_numbers_as_people_write_them(text: str, number: Decimal | None) -> None:
    assert to_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>3</think>#### 5", "#### 5"),
        ("<think>3", ""),
        ("3</think>4</think>5", "5"),
        ("3</think>", ""),
        ("#### 7", "#### 7"),
    ],
)
def test_a_grading_reads_what_follows_the_thought(text: str, answer: str) -> None:
    assert answer_of(text) == answer


def test_a_grading_without_a_reference_is_wrong() -> None:
    for text in ("", "#### 4"):
        grade = grade_number("four", text)
        assert grade.strict is False and grade.flexible is False


def test_exact_grading() -> None:
    assert grade_exact("Paris", " Paris\n") == Grade(True, True)
    assert grade_exact("New York", "new  york") == Grade(False, True)
    assert grade_exact("Paris", "Paris, France") == Grade(False, False)


@pytest.mark.parametrize("style", ["words", "expressions"])
@pytest.mark.parametrize("difficulty", [1, 2, 4])
def test_arithmetic_is_right_and_its_solution_grades_right(style: str, difficulty: int) -> None:
    task = load_task("arithmetic", style=style, difficulty=difficulty, train_size=300, test_size=50)
    for problem in task.train:
        *steps, last = problem.solution.split("\n")
        assert len(steps) == difficulty
        for step in steps:
            left, right = step.split("=")
            assert eval(left) == int(right)  # our own digits and signs
        assert last == f"#### {problem.answer}"
        assert problem.text("first") == ("gain" if "+" in steps[0] else "loss")
        assert task.grade(problem, problem.solution) == Grade(True, True)


def test_arithmetic_splits_are_disjoint_across_seeds_and_sizes() -> None:
    def numbers(problem: Problem) -> str:
        lines = problem.solution.split("\n")[:-1]
        first = lines[0].split("=")[0]
        rest = [line.split("=")[0].lstrip("0123456789") for line in lines[1:]]
        return first + "".join(rest)

    seen = {}
    for split in ("train", "dev", "test"):
        seen[split] = {
            numbers(p) for seed in (0, 1) for p in Arithmetic(seed=seed).problems(split, 2000)
        }
        assert {split_of(expression) for expression in seen[split]} == {split}
    assert not seen["train"] & seen["test"] and not seen["dev"] & seen["test"]


def test_arithmetic_seeds() -> None:
    first, again, other = (Arithmetic(seed=s).problems("train", 20) for s in (1, 1, 2))
    assert first == again != other
    check_disjoint(Arithmetic(), Arithmetic().test)
    assert Arithmetic(held_out="dev").test[0] == Arithmetic().problems("dev", 1)[0]


def test_arithmetic_says_when_it_has_too_few() -> None:
    with pytest.raises(PotstillError, match="fewer than"):
        _ = Arithmetic(difficulty=1, digits=1, test_size=1000).test


@pytest.mark.parametrize(
    ("name", "options", "says", "hint"),
    [
        ("gsm9k", {}, "unknown task", "gsm8k"),
        ("arithmetic", {"dificulty": 2}, 'unknown key "dificulty"', "difficulty"),
        ("arithmetic", {"difficulty": "hard"}, "difficulty is 1 to 8 .* got 'hard'", "default, 2"),
        ("arithmetic", {"difficulty": 99}, "difficulty is 1 to 8 operations, got 99", "default, 2"),
        ("arithmetic", {"digits": 0}, "digits is 1 to 4 digits, got 0", "default, 2"),
        ("arithmetic", {"train_size": 0}, "1 to 1,000,000 problems, got 0", "default, 5000"),
        ("arithmetic", {"style": "poems"}, "style: .*'words' or 'expressions'", "default, 'words'"),
        ("jsonl", {"test_path": "x"}, "train_path is required, got test_path", "keys: train_path"),
        ("gsm8k", {"promt": "x"}, 'task "gsm8k": unknown key "promt"', "prompt"),
    ],
)
def test_wrong_tasks_are_refused(name: str, options: dict, says: str, hint: str) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        load_task(name, **options)
    assert hint in caught.value.hint


def test_all_errors_of_a_task_are_reported_together() -> None:
    options = {"difficulty": 0, "digits": 9, "stile": "words"}
    with pytest.raises(PotstillErrors, match=r"^3 errors\n") as caught:
        load_task("arithmetic", **options)
    for error, key in zip(caught.value.errors, ("difficulty", "digits", "stile"), strict=True):
        assert str(error).startswith('task "arithmetic": ') and key in str(error)
    with pytest.raises(PotstillError, match="1 to 8 operations, got 99"):
        Arithmetic(difficulty=99)


GOOD = '{"question": "2+2", "answer": "4"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (GOOD + "\n" + GOOD, "line 2: the line is empty"),
        (GOOD + "{nope}\n", "line 2: not JSON"),
        (GOOD + "[1]\n", "line 2: not an object"),
        (GOOD + '{"question": "x"}\n', 'line 2: "answer" must be text'),
        (GOOD + '{"question": " ", "answer": "1"}\n', 'line 2: "question" must be text'),
        (GOOD + '{"question": "x", "answer": null}\n', 'line 2: "answer" must be text'),
        (GOOD + '{"question": "x", "answer": "many"}\n', "line 2: a numeric answer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    task = load_task("jsonl", train_path=str(path), test_path=str(path), match="numeric")
    with pytest.raises(PotstillError, match=says) as caught:
        _ = task.train
    assert caught.value.hint


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c"])
def test_a_line_ends_at_a_newline_alone(tmp_path: Path, end: str) -> None:
    """A JSON string may hold what Unicode takes for the end of a line."""
    path = tmp_path / "lines.jsonl"
    row = json.dumps({"question": f"a{end}b", "answer": f"4{end}"}, ensure_ascii=False)
    path.write_text(f"{row}\n{GOOD}", encoding="utf-8")
    task = load_task("jsonl", train_path=str(path), test_path=str(path))
    assert [problem.question for problem in task.train] == [f"a{end}b", "2+2"]
    assert task.train[0].answer == f"4{end}"
    path.write_text(f'{GOOD}{{"question": "a{end}\n', encoding="utf-8")
    with pytest.raises(PotstillError, match="line 2: not JSON"):
        _ = load_task("jsonl", train_path=str(path), test_path=str(path)).train


@pytest.mark.parametrize("control", ["\x0b", "\x0c"])
def test_a_raw_control_character_is_an_error_of_its_line(tmp_path: Path, control: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{GOOD}{{"question": "a{control}b", "answer": "4"}}\n{GOOD}')
    with pytest.raises(PotstillError, match=r"line 2: not JSON \(Invalid control character"):
        _ = load_task("jsonl", train_path=str(path), test_path=str(path)).train


@pytest.mark.parametrize(
    "form", ["\ufeff{0}\n{0}\n", "{0}\r\n{0}\r\n", "{0}\n{0}", "\ufeff{0}\r\n{0}"]
)
def test_files_of_other_systems_read_the_same(tmp_path: Path, form: str) -> None:
    """A byte order mark, CRLF, a last line without an end."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(form.format(GOOD.strip()).encode())
    task = load_task("jsonl", train_path=str(path), test_path=str(path))
    assert [(problem.question, problem.answer) for problem in task.train] == [("2+2", "4")] * 2


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", "binary"):
        task = load_task("jsonl", train_path=str(tmp_path / name), test_path="x")
        with pytest.raises(PotstillError, match="cannot read"):
            _ = task.train


def test_jsonl_reads_own_keys_prompts_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"q": "2+2?", "a": 4}) + "\n")
    task = load_task(
        "jsonl",
        train_path=str(path),
        test_path=str(path),
        question_key="q",
        answer_key="a",
        prompt="Q: {question} A:",
        match="numeric",
    )
    assert task.train == [Problem("train-0", "Q: 2+2? A:", "4")]
    assert task.grade(task.train[0], "so 4") == Grade(False, True)


def test_overlap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text(GOOD)
    task = load_task("jsonl", train_path=str(path), test_path=str(path))
    with pytest.raises(PotstillError, match=r"never graded on.*test-0 is train-0"):
        check_disjoint(task, task.test)


def test_questions_overlap_where_only_white_space_differs() -> None:
    train = [Problem("a", "2 +  2?", ""), Problem("b", "3?", "")]
    held_out = [Problem("c", "1?", ""), Problem("d", " 2 + 2?\n", ""), Problem("e", "2+2?", "")]
    assert [(one.id, other.id) for one, other in overlap(train, held_out)] == [("d", "a")]
    assert not overlap([], held_out) and not overlap(train, [])


def test_gsm8k_in_its_published_format(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    row = {"question": "How many?", "answer": "He has 48/2 = <<48/2=24>>24 clips.\n#### 1,024"}
    path.write_text(json.dumps(row) + "\n")
    task = GSM8K(train_path=str(path), test_path=str(path))
    (problem,) = task.train
    assert (problem.answer, problem.solution) == ("1024", "He has 48/2 = 24 clips.\n#### 1,024")
    assert problem.question.startswith("How many?\n")
    path.write_text(json.dumps({"question": "?", "answer": "no mark"}) + "\n")
    with pytest.raises(PotstillError, match="line 1: a GSM8K answer ends with"):
        _ = GSM8K(train_path=str(path)).train


@pytest.mark.skipif(not GSM8K_FILES.is_dir(), reason="GSM8K's files are not here")
def test_gsm8k_itself_reads_whole_and_grades_its_own_solutions() -> None:
    task = load_task(
        "gsm8k",
        train_path=str(GSM8K_FILES / "train.jsonl"),
        test_path=str(GSM8K_FILES / "test.jsonl"),
    )
    assert (len(task.train), len(task.test)) == (7473, 1319)
    check_disjoint(task, task.test)
    for problem in [*task.train, *task.test]:
        assert task.grade(problem, problem.solution).strict
