"""From a row of data to the parts of a problem, by the shape of its columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from potstill.errors import PotstillError
from potstill.fields import brief
from potstill.problems import Messages, Problem
from potstill.tasks.data.conversations import messages_of, split
from potstill.tasks.data.shapes import Columns, DataShape, shape_of
from potstill.tasks.data.sources import DataRow
from potstill.tasks.data.values import check_characters, number, text_of
from potstill.tasks.graders import Grader, checked

WORKED = ("gsm8k",)  # graders whose references are numbers, which may follow ####
HINT = "a text is not blank, and a number is finite; leave the row out, or map another column"


class Record(NamedTuple):
    """The parts of a problem, as texts; lists and objects are JSON."""

    question: str
    role: str  # of the question: "user", or "text" for a raw text
    earlier: str  # messages before the question, [[role, text], ...]
    answer: str
    solution: str
    completions: str  # [text, ...]
    extra: str  # {column: text, ...}
    given: str  # where the answer comes from: "answer", "completion" or ""

    def problem(self, name: str) -> Problem:
        """The problem with an id."""
        return Problem(
            name,
            self.question,
            self.answer,
            self.solution,
            json.loads(self.extra) if self.extra else {},
            self.messages if self.earlier or self.role != "user" else (),
            tuple(json.loads(self.completions)) if self.completions else (),
        )

    @property
    def messages(self) -> Messages:
        """The conversation that ends in the question."""
        earlier = json.loads(self.earlier) if self.earlier else ()
        return (*((role, text) for role, text in earlier), (self.role, self.question))


@dataclass(frozen=True)
class Reading:
    """Makes records from rows.

    Args:
        columns: the user's mapping.
        system: the text of a system message for conversations without one.
        prompt: the text around a question.
        words: of a raw text that are its prompt.
        grader: has to accept the reference answers; None: no grades are wanted.
        completions: whether replies and completions are kept to be trained on.
    """

    columns: Columns
    system: str = ""
    prompt: str = "{question}"
    words: int = 32
    grader: Grader | None = None
    completions: bool = True

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that records depend on."""
        grader = self.grader.identity if self.grader else ""
        columns = sorted(self.columns.items())
        return columns, self.system, self.prompt, self.words, grader, self.completions

    def records(self, rows: Iterable[DataRow]) -> Iterator[tuple[Record, DataShape]]:
        """The records of the rows of one file, and the shape that all of them have.

        Raises:
            PotstillError: a row cannot be read, with its place.
        """
        first, place, known = None, "", dict[tuple[str, ...], DataShape]()
        for row in rows:
            names = tuple(row.values)
            if names not in known:
                shape = shape_of(names, self.columns, row.where, self.grader is not None)
                if first and shape != first:
                    raise PotstillError(
                        f"{row.where}: the columns are {', '.join(sorted(shape.own))}, those of "
                        f"{place} are {', '.join(sorted(first.own))}",
                        "write a file for each shape",
                    )
                known[names] = shape
                first, place = first or shape, place or row.where
            yield self.record(row, known[names]), known[names]

    def record(self, row: DataRow, shape: DataShape) -> Record:
        """The record of a row."""
        where, values = row
        if values.get("tools"):
            raise PotstillError(
                f'{where}: "tools" has tools, and prompts are texts alone',
                "leave these conversations out, or write the tools into the system text",
            )
        extra = _extra(values, shape, where)
        if shape.kind == "text":
            if self.system or self.prompt != "{question}":
                raise PotstillError(
                    f"{where}: a raw text has no messages, got a system text or a prompt template",
                    "leave system and prompt out, or map the column to question",
                )
            return self._raw(text_of(values[shape.prompt], shape.prompt, where, HINT), extra, where)
        prompt, reply = self._prompt(values, shape, where)
        completions = [reply] if reply is not None else []
        for name in (name for name in shape.completions if values[name] is not None):
            completions += completions_of(values[name], name, where)
        answer = reference = completions[0] if completions else ""
        if shape.answer:
            answer = text_of(values[shape.answer], shape.answer, where, HINT)
        solution = _optional(values, shape.solution, where)
        if self.grader and self.grader.name in WORKED:
            answer = answer.rsplit("####", 1)[-1].strip()
            if not shape.answer and not solution and answer != reference:
                solution = reference  # a worked one, whose end is the answer
        *earlier, (role, question) = prompt
        record = Record(
            self.prompt.replace("{question}", question),
            role,
            _json(earlier),
            answer,
            solution,
            _json(completions) if self.completions else "",
            _json(extra),
            "answer" if shape.answer else "completion" if answer else "",
        )
        if self.grader and answer:
            checked(self.grader, record.problem(""), where)
        return record

    def _prompt(
        self, values: Mapping[str, Any], shape: DataShape, where: str
    ) -> tuple[Messages, str | None]:
        """The conversation that ends in the question, and the last reply if there is one."""
        value, name, reply = values[shape.prompt], shape.prompt, None
        if shape.kind == "messages" or (shape.kind == "prompt" and isinstance(value, list)):
            messages, reply = split(messages_of(value, name, where), name, where)
            if shape.kind == "prompt" and reply is not None:
                raise PotstillError(
                    f'{where}: "{name}" ends in a user\'s message, got a reply',
                    f'write columns = {{ messages = "{name}" }} for conversations with their reply',
                )
        else:
            messages = (("user", text_of(value, name, where, HINT)),)
        system = self.system
        if shape.system and values[shape.system] not in (None, ""):
            system = text_of(values[shape.system], shape.system, where, HINT)
        if system and messages[0][0] != "system":
            messages = (("system", system), *messages)
        return messages, reply

    def _raw(self, text: str, extra: dict[str, str], where: str) -> Record:
        """A raw text: its first words are the prompt, the rest is the completion."""
        match = re.match(rf"\s*(?:\S+\s+){{{self.words - 1}}}\S+(?=\s+\S)", text)
        if match is None:
            raise PotstillError(
                f"{where}: a text has more than {self.words} words, the prompt, got "
                f"{len(text.split())}",
                "lower prompt_words, or leave short texts out",
            )
        rest = text[match.end() :]
        return Record(match[0], "text", "", "", "", _json([rest]), _json(extra), "")


def completions_of(value: Any, name: str, where: str) -> list[str]:
    """The completions of a column: a text, a reply as messages, or a list of either.

    Raises:
        PotstillError: there are none, or one is neither.
    """
    if not isinstance(value, list):
        return [text_of(value, name, where, HINT)]
    if value and isinstance(value[0], Mapping):
        messages = messages_of(value, name, where)
        if [role for role, _ in messages] != ["assistant"]:
            roles = ", ".join(role for role, _ in messages)
            raise PotstillError(
                f'{where}: "{name}" is one message of the assistant, got {roles[:200] or "none"}',
                "write the turns before the last reply into the prompt",
            )
        return [messages[0][1]]
    if not value:
        raise PotstillError(f'{where}: "{name}" must be text, got {brief(value)}', HINT)
    return [text for one in value for text in _one(one, name, where)]


def _one(value: Any, name: str, where: str) -> list[str]:
    """A completion in a list of several."""
    if isinstance(value, list) and not (value and isinstance(value[0], Mapping)):
        raise PotstillError(f'{where}: "{name}" must be text, got {brief(value)}', HINT)
    return completions_of(value, name, where)


def _optional(values: Mapping[str, Any], name: str, where: str) -> str:
    """The text of a column that a row need not have."""
    value = values.get(name) if name else None
    text = value if isinstance(value, str) else number(value) or ""
    return check_characters(text, name, where, HINT)


def _extra(values: Mapping[str, Any], shape: DataShape, where: str) -> dict[str, str]:
    """The texts and numbers of other columns, for contexts and for choosing teachers."""
    rest = {}
    for name in values:
        if name in shape.own:
            continue
        if text := _optional(values, name, where):
            rest[name] = text
    return rest


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""
