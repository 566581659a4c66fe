"""Render chat templates in another process, so that no template can stop or flood this one.

One process of `template_worker` serves all templates of a process, and is started when the first
one is rendered. A template that exceeds a limit ends it; the next one gets a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError

SECONDS = 5.0  # of CPU time, for one text
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)  # variables that it does not need
WORKER = Path(__file__).with_name("template_worker.py")


class TemplateError(ValueError):
    """A template or a pattern raised an error or exceeded a limit; the text is the reason."""


def render_template(
    template: str,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, Any],
    *,
    day: str,
    prompt: bool,
) -> str:
    """Render a conversation.

    Args:
        template: in Jinja.
        messages: with role and content.
        arguments: variables of the template.
        day: the date that it reads, as YYYY-MM-DD.
        prompt: whether an assistant's message follows.

    Raises:
        TemplateError: the template raises an error, or exceeds a limit.
    """
    request = {"template": template, "messages": [*messages], "arguments": dict(arguments)}
    return _renderer(os.getpid()).render({**request, "day": day, "prompt": prompt})


def check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Match regular expressions with names, in the same process and within its limits.

    Raises:
        TemplateError: a pattern is wrong, or takes too long.
    """
    if patterns:
        _renderer(os.getpid()).render({"patterns": [*patterns], "names": [*names]})


class Renderer:
    """A process that renders templates, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, request: Mapping[str, Any]) -> str:
        """Return the text of a request.

        Raises:
            TemplateError: see `render_template`.
        """
        with self._lock:
            try:
                process = self._ready()
                assert process.stdin and process.stdout
                process.stdin.write(json.dumps(request, default=_placeholder) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BaseException:  # an interrupt: the next request would get this one's answer
                if self._process:
                    self._process.kill()
                self.close()
                raise
            if not line.endswith("\n"):
                raise TemplateError(self._ended())
        reply = json.loads(line)
        if "error" in reply:
            raise TemplateError(reply["error"])
        return str(reply["text"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            assert process.stdin and process.stdout
            with contextlib.suppress(OSError):  # it has ended, and cannot read the rest
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def _ready(self) -> subprocess.Popen[str]:
        """The process, which is started if there is none or it has ended."""
        if self._process and self._process.poll() is not None:
            self.close()
        if not self._process:
            path = os.pathsep.join(place for place in sys.path if place)
            env = {key: text for key, text in os.environ.items() if not SECRET.search(key)}
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                env={**env, "PYTHONPATH": path},
            )
            assert self._process.stdout
            if not self._process.stdout.readline():
                code = self._process.wait()
                self.close()
                raise PotstillError(
                    f"the process that renders chat templates does not start (exit code {code})",
                    f"{sys.executable} -P {WORKER} prints why",
                )
        return self._process

    def _ended(self) -> str:
        """The reason why the process ended while it rendered."""
        assert self._process
        code = self._process.wait()
        self.close()
        if code == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {SECONDS:g} seconds"
        return f"its process ended with code {code}"


@functools.cache
def _renderer(process: int) -> Renderer:
    """The renderer of this process; a fork has its own."""
    renderer = Renderer()
    atexit.register(lambda: renderer.close() if os.getpid() == process else None)
    return renderer


def _placeholder(value: object) -> str:
    """A value that JSON does not have, as transformers shows it to templates."""
    return f"<{type(value).__name__}>"
