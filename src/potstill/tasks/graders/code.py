"""`code`: the code in a completion passes the tests of its problem. Off unless it is allowed.

Each completion runs in a process of its own, see `sandbox`. Tests are code with assertions
(MBPP's `test_list`), a function `check(candidate)` with an `entry_point` (HumanEval), functions
`test_...` or unittest's cases. Code that fails, crashes or exceeds a limit is wrong. It leaves out
other languages than Python, and partial credit.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import GraderError, Identified
from potstill.tasks.grading import answer_of

SANDBOX = Path(__file__).with_name("sandbox.py")
KEYS = ("test", "tests", "test_list")
SETUP = ("test_setup_code", "test_imports", "setup")
LONGEST = 200_000  # characters of a program
READY = b"ready "
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M | re.I
)
_CHECKS = (ast.Assert, ast.Raise)


@reported('grader "code"')
@dataclass(frozen=True, config=CLOSED)
class Code(Identified):
    """Code that passes the problem's tests.

    Strict runs the last fenced block, or the whole answer if there is none; flexible all blocks
    together.

    Args:
        allow_code: must be true: the model's code is executed on this machine.
        tests: the column of the tests; default: test, tests, test_list or else the answer.
        timeout: seconds of a program with its tests.
        memory: of its process.
    """

    allow_code: Annotated[bool, limits("true or false", strict=True)] = False
    tests: str = ""
    timeout: Annotated[float, limits("0.1 to 600 seconds", ge=0.1, le=600, strict=True)] = 5.0
    memory: Annotated[float, limits("0.1 to 100 GB", ge=0.1, le=100, strict=True)] = 1.0

    name = "code"

    def __post_init__(self) -> None:
        if not self.allow_code:
            raise PotstillError(
                "it executes the code that a model writes, which must be allowed",
                'grade = { name = "code", allow_code = true }',
            )
        if reason := _unprotected():
            raise PotstillError(
                f"it runs code only where the network and files can be closed to it: {reason}",
                "use Linux on x86-64, or another grader",
            )

    def grade(self, problem: Problem, text: str) -> Grade:
        answer = answer_of(text)[-LONGEST:]
        blocks = [match[1] for match in _FENCE.finditer(answer)]
        tests = self._tests(problem)
        strict = self._passes(problem, blocks[-1] if blocks else answer, tests)
        flexible = strict or (len(blocks) > 1 and self._passes(problem, "\n".join(blocks), tests))
        return Grade(float(strict), float(flexible), format=bool(blocks))

    def check(self, problem: Problem) -> None:
        tests = self._tests(problem)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings
                nodes = list(ast.walk(ast.parse(tests)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unusable(problem, f"they are not Python: {error}") from None
        named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        if not any(isinstance(node, _CHECKS) for node in nodes) and not any(
            name.startswith("assert") for name in named
        ):
            raise self._unusable(problem, "they assert nothing, so that all code passes")

    def _unusable(self, problem: Problem, reason: str) -> PotstillError:
        return PotstillError(
            f'grader "code": the tests of problem "{problem.id}" cannot be used: {reason}',
            f"give code with assertions as {', '.join(KEYS)} or answer, or name the column: tests",
        )

    def _tests(self, problem: Problem) -> str:
        """The tests of a problem as one program."""
        keys = (self.tests,) if self.tests else KEYS
        text = next((problem.text(key) for key in keys if problem.text(key).strip()), "")
        text = _joined(text or ("" if self.tests else problem.answer))
        if not text.strip():
            raise self._unusable(problem, f"there are none under {', '.join(keys)} or answer")
        setup = "\n".join(_joined(problem.text(key)) for key in SETUP)
        name = problem.text("entry_point").strip()
        call = f"\ncheck({name})\n" if name.isidentifier() and "def check(" in text else "\n"
        return f"{setup}\n{text}{call}"

    def _passes(self, problem: Problem, code: str, tests: str) -> bool:
        """True if the program passes; HumanEval's completions go on from the question."""
        name = problem.text("entry_point").strip()
        if name and f"def {name}" not in code and f"def {name}" in problem.question:
            code = f"{problem.question}{code}"
        passed, ready = run(code, tests, self.timeout, self.memory)
        if not ready:
            raise GraderError(
                f'grader "code" cannot start its process on problem "{problem.id}"',
                f"{sys.executable} -I {SANDBOX} prints why; memory below 0.5 GB may be too little",
            )
        return passed


def run(program: str, tests: str, seconds: float, memory: float) -> tuple[bool, bool]:
    """Run a program with its tests; returns whether they pass, and whether it started."""
    token = secrets.token_hex(16)
    request = {"program": program, "tests": tests, "token": token}
    data = json.dumps({**request, "seconds": seconds, "memory": memory}).encode("ascii")
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(SANDBOX)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    output = b""
    assert process.stdin and process.stdout
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.close()
        output = _read(process.stdout.fileno(), len(READY), STARTS)
        if output == READY:
            output += _read(process.stdout.fileno(), len(token) + 1, seconds)
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        process.wait()
    return output == READY + token.encode(), output.startswith(READY)


def _read(descriptor: int, size: int, seconds: float) -> bytes:
    """Up to `size` bytes, until the other end closes or the time is over."""
    data, limit = b"", time.monotonic() + seconds
    while len(data) < size and (left := limit - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        if not (part := os.read(descriptor, size - len(data))):
            break
        data += part
    return data


STARTS = 20.0  # seconds in which the process of a program starts
_PROBE = """
import os, socket, ctypes
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False
assert refused(socket.socket), "network"
assert refused(os.fork), "processes"
assert refused(open, "/tmp/potstill-probe", "w"), "files"
assert refused(os.kill, os.getppid(), 0), "signals"
assert refused(os.unlink, "/nothing-there-potstill") , "files"
"""


@functools.cache
def _unprotected() -> str:
    """The reason why code cannot be run without a network here; empty if it can."""
    if not sys.platform.startswith("linux"):
        return f"this is {sys.platform}"
    passed, ready = run("pass", _PROBE, 5.0, 1.0)
    if not ready:
        return "the kernel refuses the filter of system calls (seccomp)"
    return "" if passed else "the filter of system calls (seccomp) has no effect"


def _joined(text: str) -> str:
    """Tests of a JSON list as one program; other text as it is."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                return "\n".join(value)
    return text
