"""The process that renders chat templates, with limits on time, memory and length.

A template is a program that comes with a model: it may loop for ever, or build a text of any size
in one operation that no Python code can interrupt. So may a regular expression, by which an adapter
names modules. Here the operating system ends them. `templates`
starts this file as a script, with the seconds of CPU time of a text; it imports nothing of potstill
and no torch. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MEMORY = 1 << 30  # bytes, in addition to those of the libraries
ADDED = 100_000  # characters that a template may add to a conversation
COPIES = 10  # of the conversation in a text, at most
ADDRESS = re.compile(r" at 0x[0-9a-f]{4,}")  # of a Python object: another one in each process


def main() -> None:
    """Answer requests until the other process ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the other process
    refuse_randomness()
    from transformers.utils import chat_template_utils

    limit_memory()
    _send(answers, {"ready": True})
    for line in sys.stdin:
        with _time_limit(float(sys.argv[1])):
            try:
                request = json.loads(line)
                if "patterns" in request:
                    match(request["patterns"], request["names"])
                    reply = {"text": ""}
                else:
                    reply = {"text": rendered(chat_template_utils, request)}
            except MemoryError:
                reply = {"error": f"it needs more than {MEMORY >> 30} GB of memory"}
            except Exception as error:  # a template is a program: it can raise anything
                reply = {"error": " ".join(str(error).split()) or type(error).__name__}
        _send(answers, reply)


def rendered(utils: Any, request: Mapping[str, Any]) -> str:
    """Render a conversation as transformers does, on a given day."""
    utils.datetime = fixed_clock(datetime.date.fromisoformat(request["day"]))
    texts, _ = utils.render_jinja_template(
        conversations=[request["messages"]],
        chat_template=request["template"],
        add_generation_prompt=request["prompt"],
        **request["arguments"],
    )
    text = str(texts[0])
    own = json.dumps(request["messages"])
    limit = ADDED + COPIES * len(own)
    if len(text) > limit:
        raise ValueError(f"it makes {len(text):,} characters of {len(own):,}")
    if (match := ADDRESS.search(text)) and match[0] not in own:
        raise ValueError(f"it writes the address of an object ({match[0].strip()})")
    return text


def match(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Try every pattern on every name, in the ways that peft tries them."""
    for pattern in patterns:
        for name in names:
            re.fullmatch(pattern, name)
            re.match(rf"(.*\.)?({pattern})$", name)


def fixed_clock(day: datetime.date) -> type[datetime.datetime]:
    """A `datetime` whose `now` is a given day: what `strftime_now` of transformers reads."""

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Fixed:
            return cls(day.year, day.month, day.day, tzinfo=tz)

    return Fixed


def refuse_randomness() -> None:
    """A prompt that is drawn is another one at each call: in training, and in evaluation."""
    from jinja2 import defaults

    def draw(*args: Any, **kwargs: Any) -> str:
        raise ValueError("it draws at random, so the same question has other prompts")

    filters: dict[str, Any] = vars(defaults)["DEFAULT_FILTERS"]
    filters["random"] = vars(defaults)["DEFAULT_NAMESPACE"]["lipsum"] = draw


def limit_memory() -> None:
    """Limit the address space and the size of files, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as pages:
            used = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file


@contextlib.contextmanager
def _time_limit(seconds: float) -> Any:
    """End this process after some CPU time; the default action of the signal needs no Python."""
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    if timed:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _send(answers: Any, reply: Mapping[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
