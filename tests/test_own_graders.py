"""Graders of one's own: what they are given, what they may return, and how they fail."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import PotstillError
from potstill.problems import Grade, Problem
from potstill.study.loading import read_study
from potstill.study.run import prepare, run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks.graders import GraderError, load_grader
from potstill.tasks.graders.code import run
from potstill.tasks.graders.own import Function

SOURCE = """
import os
import ctypes
import json
import time
from potstill.problems import Grade

def grade(completion, answer): return completion.strip() == answer
def share(text): return 0.25
def graded(text, problem): return Grade(0.5, 1.0, True) if problem.id == "test-3" else None
def column(completion, level): return level == "hard"
def every(**data): return data["level"] == "hard" and data["answer"] == "42"
def default(completion, depth=3): return depth == 3
def trl(prompts, completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer)]
def trl_chat(prompts, completions, **kwargs):
    return [float(c[0]["content"] == "42" and p[-1]["role"] == "user")
            for p, c in zip(prompts, completions)]
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "level": extra_info["level"]}
async def later(text): return True
def prints(text):
    print("some text")
    return not __import__("sys").stdin.read()
class Judge:
    def __init__(self): self.calls = 0
    def __call__(self, text): return True
class Rubric:
    def grade(self, text): return 1
    @staticmethod
    def part(text): return 0.5
numbers = [1, 2]

def raises(text): return 1 / 0
def leaves(text): raise SystemExit(0)
def loops(text):
    while True: pass
def sleeps(text): time.sleep(60)
def quits(text): os._exit(0)
def crashes(text): ctypes.string_at(0)
def memory(text): return [0] * 10**11
def recursive(text): return recursive(text)
def starts(text):
    os.system("sleep 60")
def nothing(text): return None
def words(text): return "yes"
def two(text): return 2
def negative(text): return -0.1
def nan(text): return float("nan")
def infinite(text): return float("inf")
def list_of_two(text): return [1, 1]
def wrong_grade(text): return Grade(2.0, 1.0)
def long(text): return "a" * 10**6
def hostile(text):
    class Bad:
        def __repr__(self): raise ValueError
    return Bad()
def unknown(completion, colour): return True
def positional(completion, /): return True
def unread(answer): return True
def forks(completion, answer):
    os.fork()
    return completion == answer
"""
TEST = Problem("test-3", "q", "42", "s", {"level": "hard"})
CHAT = Problem("test-3", "q", "42", messages=(("user", "q"),))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graders") / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("name", "problem", "strict"),
    [
        ("grade", TEST, 1), ("share", TEST, 0.25), ("graded", TEST, 0.5), ("column", TEST, 1),
        ("every", TEST, 1), ("default", TEST, 1), ("trl", TEST, 1), ("trl_chat", CHAT, 1),
        ("compute_score", TEST, 1), ("later", TEST, 1), ("prints", TEST, 1), ("Judge", TEST, 1),
        ("Rubric", TEST, 1), ("Rubric.part", TEST, 0.5),
    ],
)  # fmt: skip
def test_the_shapes_that_people_have(
    file: Path, name: str, problem: Problem, strict: float
) -> None:
    grader = load_grader(f"{file}:{name}")
    grader.check(problem)
    grade = grader.grade(problem, "42")
    assert grade.strict == strict
    assert (name != "graded") or (grade.flexible, grade.format) == (1.0, True)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("raises", "ZeroDivisionError: division by zero (mine.py, line"),
        ("leaves", "SystemExit: 0 (mine.py, line"),
        ("loops", "it takes more than 0.5 seconds"),
        ("sleeps", "it takes more than 0.5 seconds"),
        ("starts", "it takes more than 0.5 seconds"),
        ("quits", "it ended its process with exit code 0"),
        ("crashes", "its process was ended by SIGSEGV"),
        ("memory", "it needs more than 1 GB of memory"),
        ("recursive", "RecursionError"),
        ("nothing", "got None"),
        ("words", "got 'yes'"),
        ("two", "got 2"),
        ("negative", "got -0.1"),
        ("nan", "got nan"),
        ("infinite", "got inf"),
        ("list_of_two", "got [1, 1]"),
        ("wrong_grade", "got Grade(strict=2.0"),
        ("long", "got 'aaaa"),
        ("hostile", "got a Bad whose repr raises ValueError"),
    ],
)
def test_a_failure_names_the_grader_and_the_problem(file: Path, name: str, rule: str) -> None:
    grader = load_grader({"name": f"{file}:{name}", "timeout": 0.5, "memory": 1})
    grader.check(TEST)
    with pytest.raises(GraderError) as caught:
        grader.grade(TEST, "42")
    message = str(caught.value)
    assert f"mine.py:{name}" in message and '"test-3"' in message and rule in message
    assert caught.value.hint
    with pytest.raises(GraderError):  # the next call has a process that answers it
        grader.grade(TEST, "42")


@pytest.mark.parametrize(
    ("source", "name", "rule"),
    [
        ("import nothing_here", "grade", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("def grade(:", "grade", "SyntaxError"),
        ("1 / 0", "grade", "ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("import os\nos._exit(3)", "grade", "exit code 3"),
        ("raise SystemExit", "grade", "SystemExit"),
        ("def other(text): return 1", "grade", 'there is no "grade" in it, there is other'),
        ("grade = 5", "grade", "grade is not a function, got 5"),
        ("class Judge:\n    def __init__(self, x): pass", "Judge", "TypeError"),
        ("\0", "grade", "SyntaxError"),
    ],
)
def test_a_file_that_does_not_load(tmp_path: Path, source: str, name: str, rule: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(GraderError) as caught:
        load_grader(f"{path}:{name}").check(TEST)
    assert f'broken.py:{name}" cannot be loaded' in str(caught.value) and rule in str(caught.value)


@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("nothing-here.py:grade", 'there is no file "nothing-here.py"'),
        (".:grade", "ends with .py, or in a module"),
        ("mine.txt:grade", "there is no file|ends with .py|cannot be loaded"),
        ("a b:grade", "ends with .py, or in a module"),
        ("mine.py:", "FILE.py:FUNCTION"),
        ("mine.py:a b", "FILE.py:FUNCTION"),
        (":grade", "FILE.py:FUNCTION"),
        ("no_such_module_here:grade", "cannot be loaded: ModuleNotFoundError"),
        ("json:no_such_function", "cannot be loaded: AttributeError"),
    ],
)
def test_a_wrong_place(place: str, rule: str) -> None:
    with pytest.raises(PotstillError) as caught:
        load_grader(place).check(TEST)
    assert any(part in str(caught.value) for part in rule.split("|"))


@pytest.mark.parametrize("name", ["unknown", "positional"])
def test_parameters_without_a_value_are_refused(file: Path, name: str) -> None:
    with pytest.raises(GraderError, match="reads no completion"):
        load_grader(f"{file}:unread").check(TEST)
    with pytest.raises(GraderError, match="columns of the data: level"):
        load_grader(f"{file}:{name}").check(TEST)


def test_the_identity_has_what_the_file_imports(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("import json\nimport helper\nfrom rules.words import listed\n" + SOURCE)
    (tmp_path / "rules").mkdir()
    files = [tmp_path / "helper.py", tmp_path / "deep.py", tmp_path / "rules" / "words.py"]
    files[0].write_text("import deep\n")
    files[1].write_text("")
    files[2].write_text("listed = ()\n")
    (tmp_path / "other.py").write_text("")
    seen = [load_grader(f"{mine}:grade").identity]
    for file in files:
        file.write_text(file.read_text() + "x = 1\n")
        seen.append(load_grader(f"{mine}:grade").identity)
    assert len(set(seen)) == len(files) + 1
    (tmp_path / "other.py").write_text("x = 1\n")  # nothing imports it
    assert load_grader(f"{mine}:grade").identity == seen[-1]


def test_the_identity_has_the_files_content(file: Path, tmp_path: Path) -> None:
    grader = load_grader(f"{file}:grade")
    assert grader.identity == f"mine.py:grade {hashlib.sha256(SOURCE.encode()).hexdigest()}"
    other = tmp_path / "mine.py"
    other.write_text(SOURCE + "\n")
    assert load_grader(f"{other}:grade").identity != grader.identity
    module = load_grader("json:dumps").identity
    assert module == f"json:dumps {hashlib.sha256(Path(json.__file__).read_bytes()).hexdigest()}"


def test_no_process_is_left(file: Path) -> None:
    grader = load_grader({"name": f"{file}:starts", "timeout": 0.3})
    assert isinstance(grader, Function)
    with pytest.raises(GraderError):
        grader.grade(TEST, "x")
    assert grader._process._process is None


def test_replies_of_copies_of_the_process_are_not_mixed_up(file: Path) -> None:
    grader = load_grader(f"{file}:forks")
    for text, strict in [("42", 1), ("41", 0), ("42", 1), ("40", 0)]:
        assert grader.grade(TEST, text).strict == strict
    assert isinstance(grader, Function)
    grader._process.close()


def test_callables_of_python_run_in_this_process() -> None:
    seen_by: list[int] = []

    def grade(completion: str, answer: str) -> Any:
        seen_by.append(os.getpid())
        return np.float32(0.5) if completion == answer else np.False_

    grader = load_grader(grade)
    grader.check(TEST)
    assert grader.grade(TEST, "42") == Grade(0.5, 0.5) and not grader.grade(TEST, "1").strict
    assert seen_by == [os.getpid()] * 2 and len(grader.identity.split()[-1]) == 64
    for wrong in (lambda text: None, lambda text: 1 / 0):
        with pytest.raises(GraderError, match="<lambda>"):
            load_grader(wrong).grade(TEST, "42")
    with pytest.raises(GraderError, match="colour"):
        load_grader(lambda completion, colour: True).check(TEST)


def study(tmp_path: Path, place: str) -> Any:
    for split in ("train", "test"):
        rows = [{"question": f"{split} {n}+1", "answer": str(n + 1)} for n in range(4)]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {f"{split}_path": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    return read_study(
        {
            "name": "own",
            "task": {"name": "jsonl", **files, "grade": place},
            "engine": "fake",
            "methods": ["off_policy"],
            "train": {"steps": 1},
            "eval": {"problems": 2, "probe": 1},
        }
    )


def test_a_grader_that_fails_on_the_teacher_stops_before_training(
    file: Path, tmp_path: Path
) -> None:
    own = study(tmp_path, f"{file}:raises")
    prepare(own)  # it loads, and so it is not refused here
    folder = StudyFolder(tmp_path / "out")
    pair = next(iter(own.models))
    with pytest.raises(GraderError, match="ZeroDivisionError"):
        run_cell(own, folder, RunId(pair, "teacher"))
    assert not folder.cell(RunId(pair, "teacher")).ended  # it runs when the grader is repaired


def test_a_grader_that_does_not_load_is_refused_before_a_model(file: Path, tmp_path: Path) -> None:
    for name, rule in (("nothing_there", "cannot be loaded"), ("unknown", "colour")):
        with pytest.raises(PotstillError, match=rule):
            prepare(study(tmp_path, f"{file}:{name}"))


ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = Problem("t", "q", "assert add(1, 2) == 3")
HUMANEVAL = Problem(
    "t",
    'def add(a, b):\n    """Add."""\n',
    "",
    extra={"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"},
)
MBPP = Problem(
    "t", "q", "", extra={"test_list": '["assert add(1, 2) == 3", "assert add(0, 0) == 0"]'}
)
UNITTEST = Problem(
    "t", "q", "import unittest\nclass T(unittest.TestCase):\n"
    "    def test_it(self):\n        self.assertEqual(add(1, 2), 3)"
)  # fmt: skip
PYTEST = Problem("t", "q", "def test_it():\n    assert add(1, 2) == 3")


@pytest.mark.parametrize(
    ("problem", "code", "strict"),
    [
        (ASSERTS, ADD, 1),
        (ASSERTS, f"Here:\n```python\n{ADD}```\nDone.", 1),
        (ASSERTS, "def add(a, b): return 4", 0),
        (ASSERTS, "def add(", 0),
        (ASSERTS, "", 0),
        (HUMANEVAL, "    return a + b\n", 1),
        (HUMANEVAL, ADD, 1),
        (HUMANEVAL, "    return a - b\n", 0),
        (MBPP, ADD, 1),
        (UNITTEST, ADD, 1),
        (UNITTEST, "def add(a, b): return 0", 0),
        (PYTEST, ADD, 1),
        (PYTEST, "def add(a, b): return 0", 0),
        (ASSERTS, f"print('x' * 10**7)\n{ADD}", 1),
        (ASSERTS, f"import asyncio\nasync def f(): pass\nasyncio.run(f())\n{ADD}", 1),
        (ASSERTS, f"import threading\nthreading.Thread(target=int).start()\n{ADD}", 1),
    ],
)
def test_code(problem: Problem, code: str, strict: float) -> None:
    grader = load_grader({"name": "code", "allow_code": True})
    grader.check(problem)
    assert grader.grade(problem, code).strict == strict


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nassert os.system('true') == 0",
        "import multiprocessing as m\nm.Process(target=print).start()",
        "import os\nos.execv('/bin/true', ['true'])",
        "open('PATH/new', 'w')",
        "open('PATH/there', 'a').write('x')",
        "import os\nos.remove('PATH/there')",
        "import os\nos.rename('PATH/there', 'PATH/other')",
        "import os\nos.mkdir('PATH/new')",
        "import os\nos.symlink('PATH/there', 'PATH/new')",
        "import os\nos.chmod('PATH/there', 0)",
        "import os\nos.truncate('PATH/there', 0)",
        "import os\nos.kill(os.getppid(), 9)",
        "import os, signal\nsignal.pthread_kill(1, 9)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))",
        "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import os\nos.abort()",
        "x = [0] * 10**11",
        "while True: pass",
        "import time\ntime.sleep(60)",
        "f = lambda: f()\nf()",
        "import os\nfor fd in range(3, 20):\n"
        "  try: os.write(fd, b'ready x' * 10**6)\n  except OSError: pass",
        "import threading, time\nfor _ in range(10**5):\n"
        "  threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "x = '\ud800'",
        "\0",
        "(" * 5000,
    ],
)
def test_code_has_no_network_no_files_and_no_processes(tmp_path: Path, code: str) -> None:
    (tmp_path / "there").write_text("kept")
    code = code.replace("PATH", str(tmp_path))
    passed, _ = run(code, "pass", seconds=0.5, memory=1.0)
    assert not passed
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


def test_code_is_refused_where_nothing_closes_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.tasks.graders import code

    monkeypatch.setattr(code, "_unprotected", lambda: "this is some system")
    with pytest.raises(PotstillError, match="closed to it: this is some system"):
        load_grader({"name": "code", "allow_code": True})
