"""`jsonl`: a user's own prompts and answers, and the reader of JSON Lines files for other tasks.

One object a line with a question and an answer. The file is read as a whole and validated line by
line before anything else happens; an error names the line by its number.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders import Grader, GraderOption, checked, load_grader
from potstill.tasks.reading import read_lines


def read_jsonl(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read objects that each have `keys` as non-empty text.

    Numbers become the text that the file has for them, so that no digit is lost.

    Raises:
        PotstillError: the file is missing or empty, or a line is empty, malformed or lacks a key.
    """
    want = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    hint = f"give a JSON Lines file in UTF-8; every line is one object: {want}"
    rows = [_row(line, f"{path}, line {n}", keys, hint) for n, line in read_lines(path, hint)]
    if not rows:
        raise PotstillError(f'"{path}" is empty', "give at least one JSON object, one a line")
    return rows


def _row(line: str, where: str, keys: Sequence[str], hint: str) -> dict[str, Any]:
    if not line.strip():
        raise PotstillError(f"{where}: the line is empty", hint)
    row = _parsed(line, where, hint)
    if not isinstance(row, dict):
        raise PotstillError(f"{where}: not an object, got {_kind(row)}", hint)
    for key in keys:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise PotstillError(f'{where}: "{key}" must be text, got {brief(value)}', hint)
    return row


def _parsed(line: str, where: str, hint: str) -> Any:
    """One JSON value."""
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
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _kind(value: Any) -> str:
    """A JSON value's type; numbers have become text."""
    return "a list" if isinstance(value, list) else f"{brief(value)}"


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


@reported('task "jsonl"')
@dataclass(frozen=True, config=CLOSED)
class Jsonl:
    """Problems from two files of one JSON object a line.

    A record may have a worked "solution", and other keys for a context or for choosing its teacher.

    Args:
        train_path: file of the training problems.
        test_path: file of the held-out problems.
        match: "numeric" grades the number after #### (strict) and the last number (flexible);
            "exact" compares the text.
        grade: another grader in the place of `match`, see `potstill ls graders`.
        question_key: the key of the question.
        answer_key: the key of the reference answer.
        prompt: the text that the model reads, with `{question}` in the question's place.
    """

    train_path: str
    test_path: str
    match: Literal["exact", "numeric"] = "exact"
    question_key: str = "question"
    answer_key: str = "answer"
    prompt: Annotated[str, AfterValidator(with_question)] = "{question}"
    grader: GraderOption = None

    name = "jsonl"

    def __post_init__(self) -> None:
        if self.question_key == self.answer_key:
            raise PotstillError(
                f"question_key and answer_key are two keys, got {brief(self.answer_key)} twice",
                "name the key of each",
            )
        if self.grader is not None and self.match != "exact":
            raise PotstillError(
                f'match = "{self.match}" and grade are two graders', "leave one of them out"
            )

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self._problems(self.train_path, "train")

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self._problems(self.test_path, "test")

    @cached_property
    def graded_by(self) -> Grader:
        """The grader."""
        own: Grader | None = self.grader
        return own or load_grader("gsm8k" if self.match == "numeric" else "exact")

    def grade(self, problem: Problem, text: str) -> Grade:
        return self.graded_by.grade(problem, text)

    def _problems(self, path: str, split: str) -> list[Problem]:
        rows = read_jsonl(path, (self.question_key, self.answer_key))
        problems = []
        for n, row in enumerate(rows, 1):
            answer = row[self.answer_key]
            if self.match == "numeric":
                answer = answer.rsplit("####", 1)[-1].strip()
            question = self.prompt.replace("{question}", row[self.question_key])
            own = {self.question_key, self.answer_key}
            rest = {key: as_text(value) for key, value in row.items() if key not in own}
            solution = rest.pop("solution", "")
            problem = Problem(f"{split}-{n - 1}", question, answer, solution, rest)
            problems.append(checked(self.graded_by, problem, f"{path}, line {n}"))
        return problems
