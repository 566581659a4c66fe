"""Compares expressions by math-verify, in the process that `latex` starts.

The library is imported, and used once, when this module is: a comparison's time limit leaves that
out. The library's own limits are off: they need signals, and the process is ended anyway.
"""

from __future__ import annotations

import logging

import math_verify

logging.disable(logging.CRITICAL)


def equal(answer: str, text: str) -> bool:
    """True if a completion's expression is the reference.

    Without a completion it is true if the reference is an expression.
    """
    marked = "\\boxed" in answer or "$" in answer or "\\(" in answer or "\\[" in answer
    gold = math_verify.parse(answer if marked else f"${answer}$", parsing_timeout=0)
    if not text:  # the reference alone is checked; one that is not parsed is a text
        return any(not isinstance(one, str) for one in gold)
    given = math_verify.parse(text, parsing_timeout=0)
    return bool(gold and given and math_verify.verify(gold, given, timeout_seconds=0))


equal("x + 1", "$1 + x$")
