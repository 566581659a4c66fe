"""Strict JSON: keys that are there once, finite numbers as they are written, whole characters.

Reads JSON Lines files and JSON arrays piece by piece; an error names the line or the item. Numbers
become the text that the file has for them, so that no digit is lost.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.fields import brief
from potstill.tasks.reading import LONGEST_LINE, read_lines


def read_jsonl(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read objects that each have `keys` as non-empty text.

    Raises:
        PotstillError: the file is missing or empty, or a line is empty, malformed or lacks a key.
    """
    want = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    hint = f"give a JSON Lines file in UTF-8; every line is one object: {want}"
    rows = []
    for where, row in objects(read_lines(path, hint), path, hint):
        for key in keys:
            value = row.get(key)
            if not isinstance(value, str) or not value.strip():
                raise PotstillError(f'{where}: "{key}" must be text, got {brief(value)}', hint)
        rows.append(row)
    if not rows:
        raise PotstillError(f'"{path}" is empty', "give at least one JSON object, one a line")
    return rows


def objects(
    lines: Iterable[tuple[int, str]], path: str | Path, hint: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON Lines with their places; the last lines may be blank.

    Raises:
        PotstillError: a line is blank and not at the end, or not one object.
    """
    blank = 0
    for n, line in lines:
        if not line.strip():
            blank = blank or n
            continue
        if blank:
            raise PotstillError(f"{path}, line {blank}: the line is empty", hint)
        where = f"{path}, line {n}"
        yield where, _object(parsed(line, where, hint), where, hint)


def array(
    pieces: Iterable[str], path: str | Path, hint: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array, from pieces of its text, bracket and all.

    Raises:
        PotstillError: it is not an array of objects, or has no end.
    """
    text = _Pieces(iter(pieces), f"{path}: the array has no end", hint)
    text.expect("[", str(path))
    n, mark = 0, text.next()
    while mark != "]":
        n += 1
        where = f"{path}, item {n}"
        if mark != "{":
            raise PotstillError(f"{where}: not an object, got {text.shown()}", hint)
        yield where, _object(parsed(text.item(where), where, hint), where, hint)
        if text.next() != "]":
            text.expect(",", where)
            if text.next() == "]":
                raise PotstillError(f"{where}: a comma follows the last item", hint)
        mark = text.next()
    text.expect("]", str(path))
    text.end(str(path))


class _Pieces:
    """A text of which a piece is in memory."""

    def __init__(self, source: Iterator[str], endless: str, hint: str) -> None:
        self._source, self._endless, self._hint = source, endless, hint
        self._text, self._at = "", 0

    def next(self) -> str:
        """The next character that is not white space, which is not consumed."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                raise PotstillError(self._endless, self._hint)

    def expect(self, character: str, where: str) -> None:
        """Consume a character."""
        if self.next() != character:
            raise PotstillError(f"{where}: not JSON, got {self.shown()}", self._hint)
        self._at += 1

    def item(self, where: str) -> str:
        """Consume an object, and return its text."""
        while True:
            try:
                _, end = _PLAIN.raw_decode(self._text, self._at)
            except RecursionError:
                rule = f"{where}: lists or objects are nested too deeply"
                raise PotstillError(rule, self._hint) from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > LONGEST_LINE or not self._more():
                    column = error.pos - self._at + 1
                    rule = f"{where}: not JSON ({error.msg} at character {column} of the item)"
                    raise PotstillError(rule, self._hint) from None
            else:
                text, self._at = self._text[self._at : end], end
                return text

    def end(self, where: str) -> None:
        """Check that white space alone follows."""
        while self._more() or self._text[self._at :].strip():
            if self._text[self._at :].strip():
                rule = f"{where}: text follows the array, got {self.shown()}"
                raise PotstillError(rule, self._hint)

    def shown(self) -> str:
        return repr(self._text[self._at :].lstrip()[:20])

    def _more(self) -> bool:
        piece = next(self._source, None)
        self._text, self._at = self._text[self._at :] + (piece or ""), 0
        return piece is not None


def _object(value: Any, where: str, hint: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else f"{brief(value)}"  # numbers are text here
        raise PotstillError(f"{where}: not an object, got {kind}", hint)
    return value


def parsed(line: str, where: str, hint: str) -> Any:
    """One JSON value.

    Raises:
        PotstillError: it is not strict JSON, with its place.
    """
    try:
        value = _DECODER.decode(line)
        if _SURROGATE.search(line):  # half of a character: no tokenizer reads it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at column {error.colno})"
        if "\0" in line:
            reason += ", it has NUL characters"
    except RecursionError:
        reason = "lists or objects are nested too deeply"
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        reason = f"{half} is half of a pair of surrogates, not a character"
    except PotstillError as error:
        reason = str(error)
    raise PotstillError(f"{where}: {reason}", hint)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different; JSON leaves open which of two values counts."""
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in counts if counts[key] > 1)
        raise PotstillError(f"the key {brief(twice)} is there twice")
    return row


def _no_number(name: str) -> Any:
    raise PotstillError(f"{name} is not JSON, a number is finite")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=_no_number
)
_PLAIN = json.JSONDecoder(parse_int=str, parse_float=str)  # finds ends
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def with_question(prompt: str) -> str:
    """Validator of the text around a question; without it all problems would be the same."""
    if "{question}" not in prompt:
        raise PotstillError(
            f"a prompt has {{question}}, got {brief(prompt)}", "write {question} in its place"
        )
    return prompt


def as_text(value: Any) -> str:
    """A further value of a record as text; empty if it is neither text nor a number."""
    return value if isinstance(value, str) else ""
