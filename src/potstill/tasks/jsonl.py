"""`jsonl`: a user's own prompts and answers, and the reader of JSON Lines files for other tasks.

One object a line with a question and an answer. The file is read as a whole and validated line by
line before anything else happens; an error names the line by its number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, reported
from potstill.tasks.grading import grade_exact, grade_number, to_number
from potstill.types import Grade, Problem


def read_jsonl(path: str | Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read objects that each have `keys` as non-empty text.

    Raises:
        PotstillError: the file is missing or empty, or a line is empty, malformed or lacks a key.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")  # with or without a BOM
    except (OSError, ValueError) as error:  # not UTF-8, or no path at all
        raise PotstillError(
            f'cannot read "{path}": {error}', "give a JSON Lines file in UTF-8"
        ) from None
    if not text:
        raise PotstillError(f'"{path}" is empty', "give at least one JSON object, one a line")
    want = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    # not splitlines: U+2028 and others of its kind may be part of a JSON string
    lines = text.removesuffix("\n").split("\n")
    return [_row(line, f"{path}, line {n}", keys, want) for n, line in enumerate(lines, 1)]


def _row(line: str, where: str, keys: Sequence[str], want: str) -> dict[str, Any]:
    hint = f"every line is one object: {want}"
    if not line.strip():
        raise PotstillError(f"{where}: the line is empty", hint)
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PotstillError(
            f"{where}: not JSON ({error.msg} at column {error.colno})", hint
        ) from None
    if not isinstance(row, dict):
        raise PotstillError(f"{where}: not an object, got {type(row).__name__}", hint)
    for key in keys:
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            row[key] = value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise PotstillError(f'{where}: "{key}" must be text, got {value!r}', hint)
    return row


def _text(value: Any) -> str:
    """A further value of a record as text; empty if it is neither text nor a number."""
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if plain else ""


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
        question_key: the key of the question.
        answer_key: the key of the reference answer.
        prompt: the text that the model reads, with `{question}` in the question's place.
    """

    train_path: str
    test_path: str
    match: Literal["exact", "numeric"] = "exact"
    question_key: str = "question"
    answer_key: str = "answer"
    prompt: str = "{question}"

    name = "jsonl"

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self._problems(self.train_path, "train")

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self._problems(self.test_path, "test")

    def grade(self, problem: Problem, text: str) -> Grade:
        return (grade_number if self.match == "numeric" else grade_exact)(problem.answer, text)

    def _problems(self, path: str, split: str) -> list[Problem]:
        rows = read_jsonl(path, (self.question_key, self.answer_key))
        problems = []
        for n, row in enumerate(rows, 1):
            answer = row[self.answer_key]
            if self.match == "numeric":
                answer = answer.rsplit("####", 1)[-1].strip()
            if self.match == "numeric" and to_number(answer) is None:
                raise PotstillError(
                    f"{path}, line {n}: a numeric answer is a number, got {answer!r}",
                    'write the number, or set match = "exact"',
                )
            question = self.prompt.replace("{question}", row[self.question_key])
            own = {self.question_key, self.answer_key}
            rest = {key: _text(value) for key, value in row.items() if key not in own}
            solution = rest.pop("solution", "")
            problems.append(Problem(f"{split}-{n - 1}", question, answer, solution, rest))
        return problems
