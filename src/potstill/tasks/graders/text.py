"""Graders that compare text: the same text, the same words, a text within the completion."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Identified, need_reference
from potstill.tasks.grading import answer_of, grade_exact

ARTICLES = frozenset(("a", "an", "the"))
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
QUOTES = str.maketrans("‘’‚‛“”„‟´`−‐‑‒–—", "''''\"\"\"\"''------")


def words(text: str) -> list[str]:
    """The words of a text without case, accents' encoding, punctuation and articles.

    A sign before a digit and a mark between digits stay: -5 is not 5, and 3.5 is not 35.

    >>> words("The Eiffel-Tower, (Paris)."), words("−3.5")
    (['eiffel', 'tower', 'paris'], ['-3.5'])
    """
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(QUOTES).casefold()
    text = re.sub(r"(?<![\w.])-(?=\.?\d)", "\0", text)  # a sign
    text = text.replace("'", "")
    text = re.sub(r"(?<!\d)[^\w\s\0]|[^\w\s\0](?!\d)", " ", text).replace("_", " ")
    return [one for one in text.replace("\0", "-").split() if one not in ARTICLES]


def several(value: object) -> object:
    """Validator that accepts one text for a list of one."""
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(several)]


@reported('grader "exact"')
@dataclass(frozen=True, config=CLOSED)
class Exact(Identified):
    """Equal text: strict strips the ends, flexible ignores case and folds white space."""

    name = "exact"

    def grade(self, problem: Problem, text: str) -> Grade:
        grade = grade_exact(problem.answer, text)
        return Grade(float(grade.strict), float(grade.flexible), grade.format)

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)


@reported('grader "normalised"')
@dataclass(frozen=True, config=CLOSED)
class Normalised(Identified):
    """The same words: case, punctuation, articles, white space and Unicode forms do not matter.

    Strict compares the whole answer; flexible looks for the reference in its last line too.
    """

    name = "normalised"

    def grade(self, problem: Problem, text: str) -> Grade:
        answer, gold = answer_of(text), words(problem.answer)
        strict = words(answer) == gold
        lines = [line for line in answer.splitlines() if line.strip()]
        named = bool(lines) and within(gold, words(lines[-1]))
        return Grade(float(strict), float(strict or named))

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
        if not words(problem.answer):
            raise self.refuse(
                problem, "a reference has words or digits", 'grade = "exact" compares punctuation'
            )


@reported('grader "contains"')
@dataclass(frozen=True, config=CLOSED)
class Contains(Identified):
    """The completion contains the reference, as whole words.

    Strict compares the characters; flexible the words, as "normalised" does.

    Args:
        text: one or several texts that must all be there, in the place of the reference.
    """

    text: Annotated[Texts, limits("a text or a list of texts")] = ()

    name = "contains"

    def __post_init__(self) -> None:
        if not all(words(one) for one in self.text):
            raise PotstillError(f"a text has words or digits, got {brief(self.text)}", "change it")

    def grade(self, problem: Problem, text: str) -> Grade:
        answer = answer_of(text)
        required = self.text or (problem.answer,)
        strict = all(_there(one.strip(), answer) for one in required)
        has = words(answer)
        return Grade(float(strict), float(strict or all(within(words(w), has) for w in required)))

    def check(self, problem: Problem) -> None:
        if not self.text:
            need_reference(self, problem)


def _there(part: str, text: str) -> bool:
    """True if a text has a part that is not inside a longer word or number."""
    if not part:
        return False
    at = text.find(part)
    while at >= 0:
        before, after = text[at - 1 : at] if at else "", text[at + len(part) : at + len(part) + 2]
        inside = part[0].isalnum() and before.isalnum()
        inside = inside or (part[-1].isalnum() and after[:1].isalnum())
        decimal = part[-1].isdigit() and after[:1] in (".", ",") and after[1:].isdigit()
        signed = part[0].isdigit() and bool(before) and before in "-−.,"
        if not inside and not decimal and not signed:
            return True
        at = text.find(part, at + 1)
    return False


def within(part: list[str], whole: list[str]) -> bool:
    """True if words follow one another in a list of words.

    >>> within(["new", "york"], ["in", "new", "york"]), within([], ["a"])
    (True, False)
    """
    text = f" {' '.join(whole)} "
    return bool(part) and f" {' '.join(part)} " in text
