"""The kinds of context: values that add their text to the teacher's prompt.

A part knows neither files nor tasks: a `Library` gives it what it needs besides the problem.
Templates are filled by replacement, not by `str.format`, because questions and documents contain
braces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, limits, reported
from potstill.problems import Messages, Problem


class Library(Protocol):
    """Problems and files that parts take their texts from."""

    def examples(self, part: FewShot, problem: Problem) -> Sequence[Problem]:
        """Solved problems to show before this one, never the problem itself."""

    def documents(self, part: Retrieval, problem: Problem) -> Sequence[str]:
        """The documents that match the problem best, best first."""

    def hint(self, part: Hint, problem: Problem) -> str:
        """Privileged information of the problem; empty if the teacher may not read it."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """The teacher's prompt, before it is a conversation."""

    question: str
    system: tuple[str, ...] = ()
    turns: Messages = ()  # solved examples
    earlier: Messages = ()  # the problem's own turns before its question

    @classmethod
    def of(cls, problem: Problem) -> Draft:
        """The draft of a problem, with the texts that the student reads."""
        own = problem.messages[:-1]
        system = tuple(text for role, text in own if role == "system")
        return cls(problem.question, system, (), tuple(one for one in own if one[0] != "system"))

    def messages(self) -> Messages:
        head = (("system", "\n".join(self.system)),) if self.system else ()
        return (*head, *self.turns, *self.earlier, ("user", self.question))


def shown_turns(problem: Problem) -> Messages:
    """The turns of an example up to its question, without its system text."""
    turns = tuple(turn for turn in problem.messages if turn[0] != "system")
    return turns or (("user", problem.question),)


class ContextPart(Protocol):
    """One kind of context."""

    kind: ClassVar[str]

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        """The draft with this part's text in front of its own."""


def _fill(template: str, **values: str) -> str:
    """Replace {names} by values; names inside values are left as they are."""
    name, rest = next(iter(values)), dict(list(values.items())[1:])
    pieces = template.split("{" + name + "}")
    return values[name].join(_fill(piece, **rest) if rest else piece for piece in pieces)


def _with(*names: str) -> AfterValidator:
    """Validator of a template that has each of {names} once."""

    def check(template: str) -> str:
        for name in names:
            if template.count("{" + name + "}") != 1:
                raise PotstillError(
                    f"a template has {{{name}}} once, got {brief(template)}",
                    f"write {{{name}}} in its place",
                )
        return template

    return AfterValidator(check)


def _filled(text: str) -> str:
    if not text.strip():
        raise PotstillError(
            f"a text is not empty, got {brief(text)}", "write the teacher's instruction"
        )
    return text


@reported("system")
@dataclass(frozen=True, config=CLOSED)
class System:
    """A system message: how the teacher is to answer."""

    text: Annotated[str, AfterValidator(_filled)]
    kind: ClassVar[str] = "system"

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        return replace(draft, system=(self.text, *draft.system))


@reported("few_shot")
@dataclass(frozen=True, config=CLOSED)
class FewShot:
    """Solved training problems in front of the question.

    Args:
        n: how many.
        by: "seed" shows the same ones to every problem, "similarity" the nearest by BM25.
        seed: picks them.
        path: take them from this JSON Lines file of "question" and "answer" instead.
        answer: the field shown as the answer; empty: the worked solution if the task has one,
            otherwise the answer.
    """

    n: Annotated[int, limits("a whole number, at least 1", "4 is usual", ge=1, strict=True)] = 4
    by: Literal["seed", "similarity"] = "seed"
    seed: Annotated[int, limits("0 to 2**63 - 1", ge=0, lt=2**63, strict=True)] = 0
    path: str = ""
    answer: str = ""
    kind: ClassVar[str] = "few_shot"

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        turns = [
            turn
            for one in library.examples(self, problem)
            for turn in (*shown_turns(one), ("assistant", self.shown(one)))
        ]
        return replace(draft, turns=(*turns, *draft.turns))

    def shown(self, example: Problem) -> str:
        """The text of an example's answer."""
        return example.text(self.answer) if self.answer else example.solution or example.answer


@reported("chain_of_thought")
@dataclass(frozen=True, config=CLOSED)
class ChainOfThought:
    """A template around the question that asks for reasoning before the answer."""

    template: Annotated[str, _with("question")] = (
        "{question}\nThink step by step, then give the answer."
    )
    kind: ClassVar[str] = "chain_of_thought"

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        return replace(draft, question=_fill(self.template, question=draft.question))


@reported("retrieval")
@dataclass(frozen=True, config=CLOSED)
class Retrieval:
    """Documents of the user's that match the question best by BM25.

    Args:
        path: a folder of .txt and .md files, or a JSON Lines file.
        k: how many are shown.
        key: the key of a document's text in a JSON Lines file.
        template: the documents and the question.
    """

    path: Annotated[str, limits("a folder or a file", min_length=1)]
    k: Annotated[int, limits("a whole number, at least 1", "3 is usual", ge=1, strict=True)] = 3
    key: str = "text"
    template: Annotated[str, _with("documents", "question")] = "{documents}\n\n{question}"
    kind: ClassVar[str] = "retrieval"

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        documents = "\n\n".join(library.documents(self, problem))
        question = _fill(self.template, documents=documents, question=draft.question)
        return replace(draft, question=question)


@reported("hint")
@dataclass(frozen=True, config=CLOSED)
class Hint:
    """Privileged information about the problem: on-policy self-distillation.

    Args:
        field: "solution", "answer", or another key of the data.
        template: the hint and the question.
        graded: evaluate the teacher with the hints of the evaluated problems (a ceiling), or
            without them.

    Source: Self-Distilled Reasoner (2026): the teacher is the same model after it has read the
    solution, the student answers without.
    """

    field: str = "solution"
    template: Annotated[str, _with("hint", "question")] = (
        "A worked solution of the problem:\n{hint}\n\n{question}"
    )
    graded: bool = True
    kind: ClassVar[str] = "hint"

    def add(self, draft: Draft, problem: Problem, library: Library) -> Draft:
        hint = library.hint(self, problem)
        if not hint:
            return draft
        return replace(draft, question=_fill(self.template, hint=hint, question=draft.question))


KINDS: dict[str, type[Any]] = {
    part.kind: part for part in (FewShot, System, ChainOfThought, Retrieval, Hint)
}
