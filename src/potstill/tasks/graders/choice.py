"""`choice`: one of several labelled options, given by its letter or by its text.

Strict reads an answer that is given as one: the letter alone ("(B)", "B.", "B) Paris"), after a
mark ("The answer is B"), or the option's text. Flexible also takes the last letter in brackets, or
the only option that the text names. Two different letters ("A or B") are not an answer, and the
"A" of "A dog" is an article.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Identified, need_reference
from potstill.tasks.graders.quantities import plain
from potstill.tasks.graders.text import Texts, within, words
from potstill.tasks.grading import answer_of

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNKNOWN = 8  # letters, the first ones, that are read where the options are not known
KEYS = ("choices", "options", "labels")
_OPTION = re.compile(
    r"(?:^|[\s;,])\(?([A-Z])[).:]\s*(\S[^\n]{0,300}?)(?=\s{0,9}(?:\n|$|[\s;,]\(?[A-Z][).:]\s))"
)
_MARK = re.compile(
    r"####|\\boxed\b|\b(?:answer|choice|option)(?:\s+(?:is|would be|should be)\b|\s*[:=])"
    r"|\b(?:i (?:would )?(?:choose|pick|select)|it is|it's)\b",
    re.IGNORECASE,
)
_FILL = re.compile(
    r"[\s*_{(\[$:\"'`]*(?:\\text\s*\{)?(?:the\s+)?(?:option|choice|letter|answer)?[\s*_{(\[:\"'`]*",
    re.I,
)
_DECOR = " \t\r\n*_{}()[]$:.,;!\"'`#"
_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]|\*\*([A-Z])\*\*")
_NAMED = re.compile(r"\b(?:option|choice|letter)\s+\(?([A-Za-z])\b", re.IGNORECASE)
_OTHER = re.compile(r"\s*[)\]*.]*\s*(?:or|and|/|,|&|nor)\s*[(\[*]*([A-Za-z])\b(?!')", re.IGNORECASE)
_LABEL = re.compile(r"(?:option|choice|letter)\b", re.IGNORECASE)
_REASONED = re.compile(r"[A-Za-z]\s*(?:[,;]|-\s|because\b|since\b)")  # B, because ...
_SENTENCE = re.compile(r"\n|[.!?](?=\s+[A-Z])")
_CLAUSE = re.compile(r"[,.;:!\n]")
LONGEST = 20_000  # characters of an answer that are read, the last ones
LONGEST_LINE = 500  # characters after a mark
MOST_MARKS = 5  # of an answer, the last ones


def letters_of(value: str) -> str:
    """Validator of the letters of options."""
    if not value.isalnum() or len({*value.upper()}) < len(value) or len(value) < 2:
        raise PotstillError(f"letters are two or more different ones, got {brief(value)}", "ABCD")
    return value.upper()


@reported('grader "choice"')
@dataclass(frozen=True, config=CLOSED)
class Choice(Identified):
    """One of several options.

    Args:
        choices: the options' texts, if all problems have the same ones, such as ["yes", "no"];
            default: a column "choices" of the data, or the lettered lines of the question.
        letters: the options' letters, in their order.
    """

    choices: Texts = ()
    letters: Annotated[str, AfterValidator(letters_of)] = ALPHABET

    name = "choice"

    def __post_init__(self) -> None:
        if len(self.choices) == 1 or len(self.choices) > len(self.letters):
            raise PotstillError(
                f"choices are two to {len(self.letters)} texts, got {len(self.choices)}",
                "give one letter for each, letters = ...",
            )

    def grade(self, problem: Problem, text: str) -> Grade:
        options = self.options(problem)
        gold = self._gold(problem.answer, options)
        answer = plain(answer_of(text)[-LONGEST:]).strip()
        given = self._given(answer, options)
        loose = given or self._mentioned(answer, options)
        right = gold is not None
        return Grade(
            float(right and given == gold),
            float(right and loose == gold),
            format=given is not None,
        )

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
        options = self.options(problem)
        if self._gold(problem.answer, options) is None:
            shown = ", ".join(f"{letter}: {text}" for letter, text in options.items())
            raise self.refuse(
                problem,
                f"a reference is a letter or an option's text ({shown or 'no options are known'})",
                "give the options as choices = [...], as a column or as lines A) ... B) ...",
            )

    def options(self, problem: Problem) -> dict[str, str]:
        """The options' texts by letter; none if the problem has none."""
        if self.choices:
            return dict(zip(self.letters, self.choices, strict=False))
        for key in KEYS:
            if texts := _listed(problem.extra.get(key, "")):
                return dict(zip(self.letters, texts, strict=False))
        return _lettered(problem.question, self.letters)

    def _gold(self, answer: str, options: dict[str, str]) -> str | None:
        """The letter of a reference: a letter, an option's text, or both."""
        answer = plain(answer).strip()
        for letter, text in options.items():
            if words(answer) == words(text) and words(text):
                return letter
        bare = answer.strip(_DECOR)
        if len(bare) == 1 and bare.upper() in (options or self.letters[:UNKNOWN]):
            return bare.upper()
        return self._letter_with_text(answer, options)

    def _given(self, answer: str, options: dict[str, str]) -> str | None:
        """The option that an answer gives as one."""
        if whole := self._one(answer, options):
            return whole
        if one := self._first_words(answer, options):
            return one
        marks = [*_MARK.finditer(answer)]
        for mark in marks[: -MOST_MARKS - 1 : -1]:
            rest = answer[mark.end() : mark.end() + LONGEST_LINE]
            fill = _FILL.match(rest)
            rest = rest[fill.end() if fill else 0 :].strip()
            line = _SENTENCE.split(rest, maxsplit=1)[0]
            if one := self._one(line, options) or self._leading(line, options):
                return one
            if re.match(r"(?:not|neither)\b", line, re.IGNORECASE):
                return None
        return None

    def _first_words(self, answer: str, options: dict[str, str]) -> str | None:
        """The option whose text begins an answer, as in "No, it is not.", if it names no other."""
        first = answer[:LONGEST_LINE].split("\n", 1)[0].strip()
        if _REASONED.match(first):
            return self._leading(first, options)
        clause = _CLAUSE.split(answer[:LONGEST_LINE], maxsplit=1)[0]
        for letter, label in options.items():
            if words(label) and words(clause) == words(label):
                return letter if self._named(answer, options) == {letter} else None
        return None

    def _one(self, text: str, options: dict[str, str]) -> str | None:
        """A letter alone, an option's text alone, or both."""
        bare = _LABEL.sub("", text.strip(_DECOR)).strip(_DECOR)
        if len(bare) == 1 and bare.upper() in (options or self.letters[:UNKNOWN]):
            return bare.upper()
        for letter, label in options.items():
            if words(text) == words(label) and words(label):
                return letter
        return self._letter_with_text(text, options)

    def _letter_with_text(self, text: str, options: dict[str, str]) -> str | None:
        """The letter of "B) Paris" or "(B) Paris", if the text is that option's."""
        match = re.match(r"[\s*_(\[]*([A-Za-z])\s*[)\]:.*]+\s*(?=\S)", text)
        if not match or match[1].upper() not in (options or self.letters[:UNKNOWN]):
            return None
        letter, rest = match[1].upper(), words(text[match.end() :])
        if not options:
            others = {(m[1] or m[2]).upper() for m in _BRACKETS.finditer(text)} - {letter}
            return letter if "\n" not in text and not others else None
        return letter if rest[: len(words(options[letter]))] == words(options[letter]) else None

    def _leading(self, line: str, options: dict[str, str]) -> str | None:
        """The letter or option at the start of a line that follows a mark."""
        match = re.match(r"([A-Za-z])(?![\w'])", line)
        letter = match[1].upper() if match else ""
        if match and letter in (options or self.letters[:UNKNOWN]):
            other = _OTHER.match(line, match.end())
            if (
                other
                and other[1].upper() in (options or self.letters[:UNKNOWN])
                and other[1].upper() != letter
            ):
                return None
            after = line[match.end() :]
            if match[1] in "AaIi" and re.match(r"\s+[a-z]", after):  # an article, not a letter
                return letter if re.match(r"\s+(?:because|since|as)\b", after) else None
            return letter
        starts = [
            letter
            for letter, label in options.items()
            if words(label) and words(line)[: len(words(label))] == words(label)
        ]
        named = self._named(line, options)
        return starts[0] if len(starts) == 1 and len(named) <= 1 else None

    def _mentioned(self, answer: str, options: dict[str, str]) -> str | None:
        """The last letter in brackets, or the only option whose text is there."""
        allowed = options or self.letters[:UNKNOWN]
        ends = [(m.end(), (m[1] or m[2]).upper()) for m in _BRACKETS.finditer(answer)]
        ends += [(m.end(), m[1].upper()) for m in _NAMED.finditer(answer)]
        ends = [(end, letter) for end, letter in sorted(ends) if letter in allowed]
        if ends:
            return ends[-1][1]
        named = self._named(answer, options)
        return named.pop() if len(named) == 1 else None

    def _named(self, text: str, options: dict[str, str]) -> set[str]:
        has = words(text)
        return {letter for letter, label in options.items() if within(words(label), has)}


def _listed(text: str) -> list[str]:
    """Options from a column: a JSON list, or that of the "text" of a JSON object."""
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(value, dict):
        value = value.get("text", list(value.values()))
    return [str(one) for one in value] if isinstance(value, list) else []


@lru_cache(maxsize=1024)
def _lettered(question: str, letters: str) -> dict[str, str]:
    """The options of a question that lists them by letter, from the first letter on.

    >>> _lettered("Which? (A) Rome (B) Paris", "ABCD")
    {'A': 'Rome', 'B': 'Paris'}
    """
    texts = {match[1]: match[2].strip() for match in _OPTION.finditer(question)}
    options: dict[str, str] = {}
    for letter in letters:
        if letter not in texts:
            break
        options[letter] = texts[letter]
    return options if len(options) > 1 else {}
