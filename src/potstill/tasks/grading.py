"""Reading a number out of a model's text: the two extractors of GSM8K's standard harness.

Strict takes the number after `####`, flexible the last number anywhere. A text that cannot be read
is wrong, never an exception: it comes from a model.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from potstill.problems import Grade

NUMBER = r"-?\$?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
THOUGHT = ("<think>", "</think>")  # around the hidden reasoning of models that think
_NUMBER = re.compile(NUMBER)
_STRICT = re.compile(rf"####\s*({NUMBER})")


def to_number(text: str) -> Decimal | None:
    """Read one number; thousands separators, `$`, a trailing full stop and `12.00` are handled.

    >>> to_number("$1,234.00.") == 1234
    True
    >>> to_number("twelve") is None
    True
    """
    cleaned = text.strip().replace(",", "").replace("$", "").rstrip(".")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def strict_number(text: str) -> Decimal | None:
    """The number after the first `####`, or None.

    >>> strict_number("2+2=4\\n#### 4")
    Decimal('4')
    """
    match = _STRICT.search(text)
    return to_number(match.group(1)) if match else None


def flexible_number(text: str) -> Decimal | None:
    """The last number in the text, or None.

    >>> flexible_number("so 3 + 4 is 7.")
    Decimal('7')
    """
    numbers = _NUMBER.findall(text)
    return to_number(numbers[-1]) if numbers else None


def answer_of(text: str) -> str:
    """The part of a completion after its thought; nothing if the thought has no end.

    >>> answer_of("<think>3, or #### 4?</think>#### 5"), answer_of("<think>3"), answer_of("7")
    ('#### 5', '', '7')
    """
    _, closed, answer = text.rpartition(THOUGHT[1])
    return answer if closed or THOUGHT[0] not in text else ""


def grade_number(answer: str, text: str) -> Grade:
    """Grade a completion against a numeric reference answer."""
    text = answer_of(text)
    gold = to_number(answer)
    if gold is None:
        return Grade(strict=False, flexible=False, format=strict_number(text) is not None)
    strict = strict_number(text)
    return Grade(strict == gold, flexible_number(text) == gold, format=strict is not None)


def grade_exact(answer: str, text: str) -> Grade:
    """Grade by equality; flexible ignores case and folds white space, strict strips the ends."""
    text = answer_of(text)
    same = answer.casefold().split() == text.casefold().split()
    return Grade(strict=answer.strip() == text.strip(), flexible=same)
