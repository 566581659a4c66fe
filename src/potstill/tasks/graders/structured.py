"""`json`: a JSON value that has the reference's fields, or that a schema accepts.

Strict requires that the answer is JSON and nothing else, a code fence around it aside; flexible
takes the last object or list in the text. A value that writes a key twice is not read. A schema is
validated by jsonschema (extra `potstill[json]`) in a process of its own, as its patterns may take
for ever.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import GraderError, Identified, need_reference
from potstill.tasks.graders.process import ProcessError, function_process
from potstill.tasks.graders.text import Texts
from potstill.tasks.grading import answer_of
from potstill.tasks.reading import read_text

LONGEST = 20_000  # characters of an answer that are read, the last ones
LARGEST = 2**20  # bytes of a schema
MOST_TRIES = 200  # places where a value could begin
SECONDS = 5.0  # of a validation
MEMORY = 1.0  # GB
VALIDATE = "potstill.tasks.graders.schemas:valid"
NOTHING: Any = object()  # no value: None is one
_FENCE = re.compile(r"\s*```(?:json|JSON)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_START = re.compile(r"[{\[]")


def read_schema(value: Any) -> Any:
    """Validator of a schema: a table, or the path of a JSON file."""
    if isinstance(value, str) and value:
        text = read_text(value, "give a JSON file with a schema", LARGEST)
        value = parsed(text)
        if value is NOTHING:
            raise PotstillError("a schema's file is JSON", "see json-schema.org")
    if value and not isinstance(value, dict):
        raise PotstillError(
            f"a schema is a table or a file's path, got {brief(value)}", "see json-schema.org"
        )
    if value and importlib.util.find_spec("jsonschema") is None:
        raise PotstillError(
            "a schema needs jsonschema, which is not installed", 'pip install "potstill[json]"'
        )
    if value:
        _checked_schema(json.dumps(value, sort_keys=True))
    return value or {}


@lru_cache(maxsize=64)
def _checked_schema(schema: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except SchemaError as error:
        raise PotstillError(f"not a JSON schema: {error.message}", "see json-schema.org") from None


@reported('grader "json"')
@dataclass(frozen=True, config=CLOSED)
class Json(Identified):
    """A JSON value.

    Args:
        fields: those that must equal the reference's, such as ["name", "address.city"]; default:
            the whole value, unless there is a schema.
        schema: a JSON schema as a table, or the path of its file.
    """

    fields: Texts = ()
    schema: Annotated[Any, BeforeValidator(read_schema)] = None

    name = "json"

    def grade(self, problem: Problem, text: str) -> Grade:
        answer = answer_of(text)[-LONGEST:]
        gold = parsed(problem.answer) if self._compares else NOTHING
        whole = parsed(_unfenced(answer))
        inner = last_value(answer) if whole is NOTHING else whole
        right = inner is not NOTHING and self._right(problem, inner, gold)
        there = whole is not NOTHING
        return Grade(float(right and there), float(right), format=there)

    def extract(self, text: str) -> str | None:
        """The value of the only field as text, or the value as JSON."""
        value = parsed(_unfenced(text))
        value = last_value(text) if value is NOTHING else value
        if len(self.fields) == 1 and value is not NOTHING:
            value = field_of(value, self.fields[0])
        if value is NOTHING:
            return None
        return value if isinstance(value, str) else json.dumps(value)

    def check(self, problem: Problem) -> None:
        if not self._compares:
            return
        need_reference(self, problem)
        gold = parsed(problem.answer)
        if gold is NOTHING:
            raise self.refuse(problem, "a reference is JSON", "write the value that is expected")
        for name in self.fields:
            if field_of(gold, name) is NOTHING:
                raise self.refuse(problem, f'a reference has the field "{name}"', "add it")
        if self.schema and not self._right(problem, gold, gold):
            raise self.refuse(problem, "the schema accepts the reference", "change one of them")

    @property
    def _compares(self) -> bool:
        """True if a reference is needed."""
        return bool(self.fields) or not self.schema

    def _right(self, problem: Problem, value: Any, gold: Any) -> bool:
        if self.schema and not self._valid(problem, value):
            return False
        if not self._compares:
            return True
        if not self.fields:
            return equal(value, gold)
        return all(equal(field_of(value, name), field_of(gold, name)) for name in self.fields)

    def _valid(self, problem: Problem, value: Any) -> bool:
        process = function_process(VALIDATE, MEMORY)
        arguments = {"schema": self.schema, "value": value}
        try:
            return bool(process.call({"arguments": arguments}, SECONDS))
        except ProcessError as error:
            raise GraderError(
                f'grader "json" failed on problem "{problem.id}": {error}',
                "the schema may have a pattern with nested repeats, or a $ref that is not there",
            ) from None


def parsed(text: str) -> Any:
    """The value of a JSON text, or NOTHING."""
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return NOTHING


def last_value(text: str) -> Any:
    """The last object or list in a text that is not inside another one, or NOTHING."""
    last, at = NOTHING, 0
    for _ in range(MOST_TRIES):
        match = _START.search(text, at)
        if not match:
            break
        try:
            last, at = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.end()
    return last


def field_of(value: Any, name: str) -> Any:
    """The value of a field such as "address.city", or NOTHING."""
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return NOTHING
        value = value[part]
    return value


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON: 1 is 1.0, but true is not 1.

    >>> equal({"a": [1.0]}, {"a": [1]}), equal(True, 1), equal(NOTHING, NOTHING)
    (True, False, False)
    """
    if a is NOTHING or b is NOTHING or isinstance(a, bool) is not isinstance(b, bool):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def _unfenced(text: str) -> str:
    match = _FENCE.fullmatch(text)
    return match[1] if match else text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is there twice")
    return row


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
