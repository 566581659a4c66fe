"""Runs a grader's function in a process of its own, with limits on time and memory.

One process serves all calls of a function; it is started at the first one. A call that takes too
long ends it, with all processes that it has started; the next call gets a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
START = 120.0  # seconds in which a module is imported
LARGEST = 2**24  # bytes of a reply
FLAGS = {signal.SIGKILL: "memory may have run out", signal.SIGSEGV: "a segmentation fault"}


class ProcessError(Exception):
    """A function cannot be loaded, raised or exceeded a limit; the text is the reason."""


class OutOfTime(ProcessError):
    """A function took too long."""


class FunctionProcess:
    """A process that calls one function, started when it is needed."""

    def __init__(self, place: str, memory: float) -> None:
        self.place, self.memory = place, memory
        self.digest = ""
        self._number = 0  # of the latest request
        self._rest = b""  # what was read after the latest reply
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, request: Mapping[str, Any], seconds: float) -> Any:
        """The result of a call.

        Args:
            request: see `worker.reply_to`.
            seconds: of wall time, the start of the process left out.

        Raises:
            ProcessError: see there.
        """
        with self._lock:
            self._number += 1
            numbered = {**request, "number": self._number}
            data = json.dumps(numbered, default=str).encode("ascii") + b"\n"
            try:
                process = self._ready()
                assert process.stdin
                limit = time.monotonic() + seconds
                threading.Thread(target=_write, args=(process.stdin, data), daemon=True).start()
                late = f"it takes more than {seconds:g} seconds"
                reply = self._reply(limit, late)
                while reply.get("number") != self._number:  # a copy of the process replies too
                    reply = self._reply(limit, late)
            except BaseException:  # the next call must not get the reply of this one
                self.close()
                raise
        if "error" in reply:
            raise ProcessError(reply["error"])
        return reply["value"]

    def load(self) -> str:
        """Start the process, and return the digest of the function's file.

        Raises:
            ProcessError: the module does not import, or has no such function.
        """
        with self._lock:
            try:
                self._ready()
            except BaseException:
                self.close()
                raise
        return self.digest

    def close(self) -> None:
        """End the process and those that it has started."""
        process, self._process, self._rest = self._process, None, b""
        if process:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream
                    stream.close()

    def _ready(self) -> subprocess.Popen[bytes]:
        """The process, which is started if there is none or it has ended."""
        if self._process and self._process.poll() is not None:
            self.close()
        if not self._process:
            path = os.pathsep.join(place for place in sys.path if place)
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), self.place, str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            late = f"its import takes more than {START:g} seconds"
            reply = self._reply(time.monotonic() + START, late)
            if "error" in reply:
                raise ProcessError(reply["error"])
            self.digest = reply["digest"]
        return self._process

    def _reply(self, limit: float, late: str) -> dict[str, Any]:
        """One line of the process."""
        assert self._process and self._process.stdout
        stream, line = self._process.stdout, self._rest
        while b"\n" not in line:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise OutOfTime(late)
            data = os.read(stream.fileno(), 65536)
            if not data or len(line) > LARGEST:
                raise ProcessError(self._ended())
            line += data
        line, _, self._rest = line.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ended(self) -> str:
        assert self._process
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed the pipe to its process"
        if code >= 0:
            return f"it ended its process with exit code {code}"
        with contextlib.suppress(ValueError):
            number = signal.Signals(-code)
            note = f", {FLAGS[number]}" if number in FLAGS else ""
            return f"its process was ended by {number.name}{note}"
        return f"its process was ended by signal {-code}"


def _write(stream: Any, data: bytes) -> None:
    """Write a request in a thread: a function that reads nothing would block this process."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(data)
        stream.flush()


def function_process(place: str, memory: float) -> FunctionProcess:
    """The process of a function; a fork of this process has its own."""
    return _process(os.getpid(), place, memory)


@functools.cache
def _process(owner: int, place: str, memory: float) -> FunctionProcess:
    process = FunctionProcess(place, memory)
    atexit.register(lambda: process.close() if os.getpid() == owner else None)
    return process
