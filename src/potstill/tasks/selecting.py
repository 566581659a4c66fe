"""Problems of a set that may be too large for a list: by id, the longest, those with a text.

A set that knows the answer (`data.table.Problems`) is asked; any other sequence is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from potstill.problems import Problem


@runtime_checkable
class Indexed(Protocol):
    """Problems in a table."""

    def by_id(self, name: str) -> Problem:
        """The problem with an id; raises KeyError if there is none."""

    def longest(self, count: int) -> list[Problem]:
        """Some of the longest problems, longest first."""

    def containing(self, texts: Collection[str]) -> list[Problem]:
        """The problems with one of some texts in a message, in order."""

    def without_answer(self) -> list[int]:
        """Places of the problems without a reference answer."""

    def completion_counts(self) -> list[int]:
        """The number of completions of each problem."""


def finder(problems: Sequence[Problem]) -> Callable[[str], Problem]:
    """Finds problems by their ids; raises KeyError for an id that none has."""
    if isinstance(problems, Indexed):
        return problems.by_id
    return {problem.id: problem for problem in problems}.__getitem__


def longest(problems: Sequence[Problem], count: int) -> list[Problem]:
    """Some of the problems with the most text to read, longest first; of equals the first ones."""
    if isinstance(problems, Indexed):
        return problems.longest(count)
    return heapq.nlargest(count, problems, key=length)


def containing(problems: Sequence[Problem], texts: Collection[str]) -> list[Problem]:
    """The problems with one of some texts in a message, in order."""
    if isinstance(problems, Indexed):
        return problems.containing(texts)
    return [p for p in problems if any(text in m for _, m in messages(p) for text in texts)]


def completed(problems: Sequence[Problem]) -> Sequence[int]:
    """Places of the problems with completions."""
    return [place for place, count in enumerate(completion_counts(problems)) if count]


def completion_counts(problems: Sequence[Problem]) -> list[int]:
    """The number of completions of each problem."""
    if isinstance(problems, Indexed):
        return problems.completion_counts()
    return [len(problem.completions) for problem in problems]


def without_answer(problems: Sequence[Problem]) -> list[int]:
    """Places of the problems without a reference answer."""
    if isinstance(problems, Indexed):
        return problems.without_answer()
    return [place for place, problem in enumerate(problems) if not problem.answer]


def length(problem: Problem) -> int:
    """Characters of a problem's messages."""
    return sum(len(text) for _, text in messages(problem))


def messages(problem: Problem) -> Sequence[tuple[str, str]]:
    """The messages of a problem; a question alone is the user's."""
    return problem.messages or (("user", problem.question),)
