"""Problems that are the same: twice in one set, or in two of them.

Two problems are the same where their conversations differ in case, white space, forms of Unicode
(NFKC; superscripts stay) and punctuation at the ends alone. It leaves out paraphrases.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from potstill.problems import Messages, Problem

KEY = 16  # bytes of a problem's key
_RAISED = re.compile("([\u00b2\u00b3\u00b9\u2070-\u209c])")  # "2\u00b2" is not "22"
_FIRST = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb\u00bf\u00a1"  # quotes; not the signs of numbers
_LAST = ".,;:?\u2026" + _FIRST


@runtime_checkable
class Keyed(Protocol):
    """Problems whose keys are known without reading them."""

    def with_keys(self, keys: Mapping[bytes, object]) -> Iterable[tuple[bytes, Problem]]:
        """The problems that have one of some keys, in order."""


def question_key(text: str) -> str:
    r"""A text without what makes no other question of it, for comparison.

    >>> question_key(" What is  2 + 2?\n") == question_key("WHAT IS 2 + 2")
    True
    >>> question_key("Is it 2\u00b2?") == question_key("Is it 22?"), question_key("-5") == "5"
    (False, False)
    """
    if not text.isascii():
        parts = _RAISED.split(text)
        text = "".join(
            part if i % 2 else unicodedata.normalize("NFKC", part) for i, part in enumerate(parts)
        )
    folded = " ".join(text.casefold().split())
    end = len(folded)
    while end and (folded[end - 1] in _LAST or _exclaims(folded, end)):
        end -= 1
    return folded[:end].strip().lstrip(_FIRST) or folded


def _exclaims(text: str, end: int) -> bool:
    """True for a last mark of exclamation, which is not that of a factorial."""
    return text[end - 1] == "!" and not text[: end - 1].endswith((")", *"0123456789"))


def problem_key(problem: Problem) -> bytes:
    """The key by which a problem is the same as another one: of all of its messages."""
    return messages_key(problem.messages or (("user", problem.question),))


def messages_key(messages: Messages) -> bytes:
    """The key of a conversation."""
    text = "\x1e".join(f"{role}\x1f{question_key(content)}" for role, content in messages)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=KEY).digest()


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Held-out problems that are trained on, each with the first such training problem.

    Args:
        train: the training problems.
        held_out: the problems of an evaluation.
    """
    keys = [(problem_key(problem), problem) for problem in held_out]
    held = dict(keys)
    trained: dict[bytes, Problem] = {}
    if isinstance(train, Keyed):
        pairs = train.with_keys(held)
    else:
        pairs = ((problem_key(problem), problem) for problem in train)
    for key, problem in pairs:
        if key in held:
            trained.setdefault(key, problem)
    return [(problem, trained[key]) for key, problem in keys if key in trained]
