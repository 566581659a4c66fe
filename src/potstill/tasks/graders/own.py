"""Graders of one's own: a function or class in a file or module, or a callable in Python.

A function in a file runs in a process of its own, so that one that never returns or crashes is an
error with its name, not the end of a run. A callable that Python code passes runs in this process,
without a limit.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable as Function_
from pathlib import Path
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders import binding
from potstill.tasks.graders.base import GraderError
from potstill.tasks.graders.process import (
    FunctionProcess,
    OutOfTime,
    ProcessError,
    function_process,
)

RETURNS = "return True or False, a number in [0, 1], or a potstill.problems.Grade"
DECLARE = f"declare some of {', '.join(binding.NAMES)}, columns of the data, or **kwargs"
LARGEST = 2**20  # bytes of a file with a function


@reported("grader")
@dataclass(frozen=True, config=CLOSED)
class Function:
    """A function by its place, `mine.py:grade` or `package.module:function`.

    Args:
        place: the file or module, and the function or class in it.
        timeout: seconds of a call.
        memory: of its process.
    """

    place: str
    timeout: Annotated[float, limits("0.01 to 3600 seconds", ge=0.01, le=3600, strict=True)] = 10.0
    memory: Annotated[float, limits("0.1 to 1000 GB", ge=0.1, le=1000, strict=True)] = 8.0

    def __post_init__(self) -> None:
        where, _, name = self.place.rpartition(":")
        if not where or not all(part.isidentifier() for part in name.split(".")):
            raise PotstillError(
                f"a grader's place is FILE.py:FUNCTION or MODULE:FUNCTION, got {brief(self.place)}",
                "for example mine.py:grade",
            )
        if not where.endswith(".py") and not all(one.isidentifier() for one in where.split(".")):
            raise PotstillError(
                f"a grader is in a file that ends with .py, or in a module, got {brief(where)}",
                "for example mine.py:grade or package.module:function",
            )
        if where.endswith(".py") and not Path(where).expanduser().is_file():
            raise PotstillError(
                f'grader "{self.place}": there is no file "{where}"',
                "a path is relative to the study file",
            )

    @property
    def name(self) -> str:
        return self.place

    @property
    def identity(self) -> str:
        """The place's last part, and the digest of the file with those that it imports."""
        where, _, function = self.place.rpartition(":")
        if where.endswith(".py"):
            try:
                digest = content_digest(Path(where).expanduser())
            except OSError as error:
                raise GraderError(
                    f'grader "{self.place}": its file cannot be read: {error}', "put it back"
                ) from None
            where = Path(where).name
        else:
            digest = self._loaded()
        return f"{where}:{function} {digest}"

    @property
    def _process(self) -> FunctionProcess:
        return function_process(self.place, self.memory)

    def grade(self, problem: Problem, text: str) -> Grade:
        reply = self._call(problem, text)
        if isinstance(reply, dict):
            raise nonsense(self.place, problem, reply["got"])
        return Grade(*reply)

    def check(self, problem: Problem) -> None:
        """Import the function, and see that the problem has all that it must be given."""
        self._loaded()
        if lacking := self._call(problem, None):
            raise unknown(self.place, lacking, problem)

    def _loaded(self) -> str:
        try:
            return self._process.load()
        except ProcessError as error:
            raise GraderError(
                f'grader "{self.place}" cannot be loaded: {error}',
                "python -c with an import of it prints the whole traceback",
            ) from None

    def _call(self, problem: Problem, text: str | None) -> Any:
        self._loaded()
        fields = {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "solution": problem.solution,
            "extra": dict(problem.extra),
            "messages": problem.messages,
            "completions": problem.completions,
        }
        try:
            return self._process.call({"problem": fields, "text": text}, self.timeout)
        except OutOfTime as error:
            hint = f"make it faster, or raise its limit: timeout = {3 * self.timeout:g}"
            raise failed(self.place, problem, str(error), hint) from None
        except ProcessError as error:
            raise failed(self.place, problem, str(error)) from None


def content_digest(file: Path) -> str:
    """The digest of a Python file and of the modules in its folder that it imports.

    Files that the code opens itself are left out.
    """
    contents, waiting = dict[Path, bytes](), [file]
    while waiting:
        path = waiting.pop()
        if path not in contents:
            contents[path] = path.read_bytes()
            waiting += _imported(contents[path], file.parent)
    digests = [hashlib.sha256(contents[path]).hexdigest() for path in sorted(contents)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _imported(source: bytes, folder: Path) -> list[Path]:
    """Files of a folder that a module imports: modules, and all files of packages."""
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError):
        return []  # it does not import, which is reported when it is loaded
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    files: list[Path] = []
    for top in sorted({name.partition(".")[0] for name in names} - {""}):
        if (module := folder / f"{top}.py").is_file():
            files.append(module)
        files += sorted((folder / top).rglob("*.py"))
    return files


@reported("grader")
@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class Callable:
    """A callable of Python code; it runs in this process.

    Args:
        function: takes arguments by name, as a function in a file does.
    """

    function: Function_[..., Any]

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

    @property
    def identity(self) -> str:
        """The name and the digest of the source, where Python has it."""
        try:
            target: Any = self.function
            is_plain = inspect.isroutine(target) or inspect.isclass(target)
            source = inspect.getsource(target if is_plain else type(target))
        except (OSError, TypeError):
            source = ""
        return f"{self.name} {hashlib.sha256(source.encode()).hexdigest()}"

    def grade(self, problem: Problem, text: str) -> Grade:
        try:
            result = binding.call(self.function, problem, text)
        except Exception as error:
            raise failed(self.name, problem, f"{type(error).__name__}: {error}") from error
        grade = binding.to_grade(result)
        if grade is None:
            raise nonsense(self.name, problem, brief(result))
        return grade

    def check(self, problem: Problem) -> None:
        if lacking := binding.missing(self.function, problem):
            raise unknown(self.name, lacking, problem)


def failed(name: str, problem: Problem, reason: str, hint: str = "") -> GraderError:
    """The error of a function that raised or exceeded a limit."""
    return GraderError(
        f'grader "{name}" failed on problem "{problem.id}": {reason}',
        hint or "a text that it cannot read is wrong: return False for it; then run again",
    )


def nonsense(name: str, problem: Problem, got: str) -> GraderError:
    """The error of a function whose result is not a grade."""
    return GraderError(
        f'grader "{name}" returns a bool, a number in [0, 1] or a Grade, got {got} on problem '
        f'"{problem.id}"',
        RETURNS,
    )


def unknown(name: str, lacking: list[str], problem: Problem) -> GraderError:
    """The error of a function with parameters that nothing is known for."""
    if lacking == [binding.UNREAD]:
        return GraderError(
            f'grader "{name}" reads no completion: it has no parameter for one', DECLARE
        )
    columns = ", ".join(problem.extra) or "none"
    return GraderError(
        f'grader "{name}" has parameters that problem "{problem.id}" has nothing for: '
        f"{', '.join(lacking)} (other columns of the data: {columns})",
        DECLARE,
    )
