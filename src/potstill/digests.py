"""Digests of records and files, so that a flipped bit is noticed before it becomes a number.

A record is JSON text that ends with the digest of its own text:

    {"step": 3, "train/loss": 0.25, "digest": "5b2c1f0e9a7d4c83"}
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGITS = 16  # of a digest, hexadecimal: the first 64 bits of SHA-256
_MARK = ', "digest": "'
_TAIL = len(_MARK) + DIGITS + len('"}')


def to_json(value: Any) -> str:
    """JSON text of a record; non-finite numbers become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def digest_of(text: str | bytes) -> str:
    """The first digits of SHA-256."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def file_digest(path: Path) -> str | None:
    """The digest of a file's bytes, whatever its size; None if there is no such file.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    except FileNotFoundError:
        return None


def sealed(record: Mapping[str, Any]) -> str:
    """JSON text of a record that ends with its digest.

    >>> sealed({"step": 1})
    '{"step": 1, "digest": "66acd07fcea20439"}'
    """
    return seal(to_json(dict(record)))


def seal(text: str) -> str:
    """Add the digest of the JSON text of an object, which has at least one field."""
    return f'{text[:-1]}{_MARK}{digest_of(text)}"}}'


def unsealed(text: str) -> dict[str, Any]:
    """The record in a JSON text, without its digest.

    Raises:
        ValueError: it is not a JSON object, or not the text that was written.
    """
    body = text
    if is_sealed(text):
        body = text[:-_TAIL] + "}"
        if digest_of(body) != text[-DIGITS - 2 : -2]:
            raise ValueError("its digest does not fit its contents")
    try:
        value = json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not an object")
    return value


def is_sealed(text: str) -> bool:
    """True if a text ends with a digest, right or wrong."""
    return text[-_TAIL:].startswith(_MARK)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
