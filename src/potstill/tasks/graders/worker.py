"""The process in which a grader's function runs, with a limit on memory.

`process` starts this file as a script, with the place of a function, and ends it when a call takes
too long. Whatever the function does (an endless loop, a crash, an exit), only this process is hit.
Requests and replies are lines of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.problems import Grade, Problem
from potstill.tasks.graders import binding

MOST_SHOWN = 150  # characters of a result in a message


def main() -> None:
    """Load the function, then answer requests until the other process ends."""
    place, memory = sys.argv[1], float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 0)  # a function that reads its input gets none
    os.dup2(silent, 1)  # whatever it prints is not a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the other process
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    limit_memory(memory)
    try:
        function, digest = loaded(place)
    except BaseException as error:  # SystemExit of a script too
        _send(answers, {"error": reason(error, place)})
        return
    _send(answers, {"digest": digest})
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"value": reply_to(function, request)}
        except MemoryError:
            reply = {"error": f"it needs more than {memory:g} GB of memory"}
        except BaseException as error:  # a user's function can raise anything
            reply = {"error": reason(error, place)}
        _send(answers, {**reply, "number": request["number"]})


def reply_to(function: Callable[..., Any], request: Mapping[str, Any]) -> Any:
    """The result of a call as JSON has it."""
    if "arguments" in request:  # of one of our own functions
        return function(**request["arguments"])
    fields = request["problem"]
    messages = tuple((role, text) for role, text in fields.pop("messages"))
    problem = Problem(**fields, messages=messages)
    if request["text"] is None:
        return binding.missing(function, problem)
    result = binding.call(function, problem, request["text"])
    grade = binding.to_grade(result)
    return {"got": brief(result)} if grade is None else grade_fields(grade)


def grade_fields(grade: Grade) -> list[Any]:
    """A grade's three fields."""
    return [grade.strict, grade.flexible, grade.format]


def brief(value: Any) -> str:
    """A result in a message."""
    try:
        text = repr(value)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return shortened(text, MOST_SHOWN)


def shortened(text: str, most: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else f"{text[:most]}..."


def loaded(place: str) -> tuple[Callable[..., Any], str]:
    """A function, or an instance of a class, by its place, and the digest of its file."""
    where, _, name = place.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(f"grader_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        sys.path.append(os.getcwd())
        module = importlib.import_module(where)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            names = [key for key, one in vars(module).items() if callable(one) and key[0] != "_"]
            raise AttributeError(f'there is no "{name}" in it, there is {", ".join(names) or "-"}')
        target = getattr(target, part)
    if inspect.isclass(target):
        target = target()
    if not callable(target):
        target = getattr(target, "grade", target)
    if not callable(target):
        raise TypeError(f"{name} is not a function, got {brief(target)}")
    inspect.signature(target)
    file = getattr(module, "__file__", None)
    return target, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def reason(error: BaseException, place: str) -> str:
    """An error in one line, with the last line of the user's file that it passed."""
    try:
        text = shortened(" ".join(str(error).split()), 4 * MOST_SHOWN)
    except Exception:
        text = "its text cannot be read"
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return message
    ours = str(Path(__file__).parent)
    lines = [one for one in traceback.extract_tb(error.__traceback__) if ours not in one.filename]
    lines = [one for one in lines if not one.filename.startswith("<frozen")]
    own = [one for one in lines if one.filename.endswith(Path(place.rpartition(":")[0]).name)]
    last = (own or lines)[-1:]
    return message + "".join(f" ({Path(one.filename).name}, line {one.lineno})" for one in last)


def limit_memory(gigabytes: float) -> None:
    """Limit writable memory, where the system can; libraries reserve more addresses than that."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        size = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _exit_with(parent: int) -> None:
    """Exit when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _send(answers: Any, reply: Mapping[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
