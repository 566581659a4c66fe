"""The kinds of context, each a value that adds its text to what the teacher is about to read.

A part knows neither files nor tasks: what it needs beside the problem comes from a `Library`.
Templates are filled by replacement, not by `str.format`: questions and documents have braces of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from potstill.errors import PotstillError
from potstill.tasks.rendering import Messages
from potstill.types import Problem


class Library(Protocol):
    """What a briefing has at hand for a part."""

    def examples(self, part: FewShot, problem: Problem) -> Sequence[Problem]:
        """Solved problems to show before this one, never the problem itself."""

    def documents(self, part: Retrieval, problem: Problem) -> Sequence[str]:
        """The documents that fit the problem best, best first."""

    def hint(self, part: Hint, problem: Problem) -> str:
        """What is known of the problem beside its question; empty where it may not be told."""


@dataclass(frozen=True)
class Draft:
    """What the teacher is about to read, before it is a conversation."""

    question: str
    system: tuple[str, ...] = ()
    turns: Messages = ()  # solved examples

    def messages(self) -> Messages:
        head = (("system", "\n".join(self.system)),) if self.system else ()
        return (*head, *self.turns, ("user", self.question))


class Part(Protocol):
    """One kind of context."""

    kind: ClassVar[str]

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        """The draft with this part's text in front of what is there already."""


def _fill(template: str, **values: str) -> str:
    """Put values in the place of {names}; what they contain is not filled again."""
    name, rest = next(iter(values)), dict(list(values.items())[1:])
    pieces = template.split("{" + name + "}")
    return values[name].join(_fill(piece, **rest) if rest else piece for piece in pieces)


def _needs(what: str, template: str, *names: str) -> None:
    for name in names:
        if template.count("{" + name + "}") != 1:
            raise PotstillError(
                f"{what} has {{{name}}} once, got {template!r}", f"write {{{name}}} in its place"
            )


@dataclass(frozen=True)
class System:
    """A text that stands in front of everything: what to do and how to answer."""

    text: str
    kind: ClassVar[str] = "system"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PotstillError("a system text is empty", "write what the teacher is told")

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        return replace(draft, system=(self.text, *draft.system))


@dataclass(frozen=True)
class FewShot:
    """Solved training problems before the one that is asked.

    Args:
        n: how many.
        by: "seed" shows the same ones to every problem, "similarity" the nearest by BM25.
        seed: picks them.
        path: take them from this JSON Lines file of "question" and "answer" instead.
        answer: which field is shown as the answer; empty: the worked solution where the task has
            one, else the answer.
    """

    n: int = 4
    by: Literal["seed", "similarity"] = "seed"
    seed: int = 0
    path: str = ""
    answer: str = ""
    kind: ClassVar[str] = "few_shot"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise PotstillError(f"n is at least 1, got {self.n}", "4 is usual")

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        turns = [
            turn
            for one in library.examples(self, problem)
            for turn in (("user", one.question), ("assistant", self.shown(one)))
        ]
        return replace(draft, turns=(*turns, *draft.turns))

    def shown(self, example: Problem) -> str:
        """What stands as an example's answer."""
        return example.text(self.answer) if self.answer else example.solution or example.answer


@dataclass(frozen=True)
class ChainOfThought:
    """A template around the question that asks for the way before the answer."""

    template: str = "{question}\nThink step by step, then give the answer."
    kind: ClassVar[str] = "chain_of_thought"

    def __post_init__(self) -> None:
        _needs("template", self.template, "question")

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        return replace(draft, question=_fill(self.template, question=draft.question))


@dataclass(frozen=True)
class Retrieval:
    """The documents of your own that fit the question best, by BM25.

    Args:
        path: a folder of .txt and .md files, or a JSON Lines file.
        k: how many are shown.
        key: the key that holds a document's text in a JSON Lines file.
        template: how they stand before the question.
    """

    path: str
    k: int = 3
    key: str = "text"
    template: str = "{documents}\n\n{question}"
    kind: ClassVar[str] = "retrieval"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise PotstillError(f"k is at least 1, got {self.k}", "3 is usual")
        _needs("template", self.template, "documents", "question")

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        found = "\n\n".join(library.documents(self, problem))
        asked = _fill(self.template, documents=found, question=draft.question)
        return replace(draft, question=asked)


@dataclass(frozen=True)
class Hint:
    """Privileged information of the problem: on-policy self-distillation.

    Args:
        field: "solution", "answer", or another key of the data.
        template: how it stands before the question.
        graded: whether the teacher's row is graded with the graded problems' hints (a ceiling) or
            without them.

    Source: Self-Distilled Reasoner (2026): the teacher is the same model after it has read the
    solution, the student answers without.
    """

    field: str = "solution"
    template: str = "A worked solution of the problem:\n{hint}\n\n{question}"
    graded: bool = True
    kind: ClassVar[str] = "hint"

    def __post_init__(self) -> None:
        _needs("template", self.template, "hint", "question")

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        told = library.hint(self, problem)
        if not told:
            return draft
        return replace(draft, question=_fill(self.template, hint=told, question=draft.question))


KINDS: dict[str, type[Any]] = {
    part.kind: part for part in (FewShot, System, ChainOfThought, Retrieval, Hint)
}
