"""Values of a row as text: numbers keep the digits that a person sees, all else is refused.

Readers of files with types (Parquet, the Hub) have turned their numbers into text by `number`; JSON
numbers are text already.
"""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.fields import brief

WHOLE = 1e21  # from here on, and below SMALL, a float is written with its exponent
SMALL = 1e-7


def number(value: Any) -> str | None:
    """A number as text; None if the value is not a finite number.

    >>> number(3), number(2.5), number(1e16), number(np.float32(0.1)), number(True)
    ('3', '2.5', '10000000000000000.0', '0.1', None)
    """
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f") if value.is_finite() else None
    if not isinstance(value, float | np.floating) or not math.isfinite(value):
        return None
    if value and not SMALL <= abs(float(value)) < WHOLE:
        return str(value)
    return np.format_float_positional(value, unique=True, trim="0")


def text_of(value: Any, name: str, where: str, hint: str) -> str:
    """A text that is not blank, or a number as text.

    Args:
        value: of a row.
        name: of its column.
        where: the place of its row.
        hint: what to do otherwise.

    Raises:
        PotstillError: it is neither.
    """
    text = value if isinstance(value, str) else number(value)
    if text is None or not text.strip():
        got = f"bytes {value[:20]!r}" if isinstance(value, bytes) else brief(value)
        raise PotstillError(f'{where}: "{name}" must be text, got {got}', hint)
    return check_characters(text, name, where, hint)


def check_characters(text: str, name: str, where: str, hint: str) -> str:
    """Return a text that tokenizers can read.

    Raises:
        PotstillError: it has half of a pair of surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        rule = f'{where}: "{name}" has {half}, half of a pair of surrogates, not a character'
        raise PotstillError(rule, hint) from None
    return text
