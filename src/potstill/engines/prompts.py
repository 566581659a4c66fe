"""From a problem to the prompt of each model, and calls for several teachers.

The student reads the problem alone. The teacher reads it under its own template, with the pair's
context in front; of several teachers a key of the data names the one that reads it. A prompt keeps
the name of its problem, so two problems with one question have each its own hint and its own
teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from potstill.tasks.context.builder import Briefing
from potstill.tasks.rendering import Messages
from potstill.types import Datum, Ids, Problem, Prompt, Role

T = TypeVar("T")


class Prompting:
    """The part of an engine that turns problems into prompts."""

    notes: tuple[str, ...] = ()
    _briefing: Briefing | None = None
    _route = ""

    def encode(self, asked: str | Messages, role: Role = "student") -> Ids:
        """Prompt ids (P,); see `protocol.Engine`."""
        raise NotImplementedError

    def inform(self, briefing: Briefing | None, route: str = "") -> None:
        """Put a context in front of what the teacher reads, or choose among several teachers."""
        self._briefing, self._route = briefing, route
        self._prompts: dict[int, tuple[Problem, Prompt]] = {}
        if briefing:
            self.notes += (f"the teacher alone reads a context: {briefing.context}",)
        if route:
            self.notes += (f'the teacher is chosen by "{route}" of the problem',)

    def prompt(self, problem: Problem) -> Prompt:
        """A problem as each model reads it."""
        if self._briefing is None:
            return self._rendered(problem)
        kept = self._prompts.get(id(problem))  # a search for examples takes its time
        if kept is None or kept[0] is not problem:
            kept = self._prompts[id(problem)] = problem, self._rendered(problem)
        return kept[1]

    def _rendered(self, problem: Problem) -> Prompt:
        student = teacher = self.encode(problem.question)
        if self._briefing:
            teacher = self.encode(self._briefing.tell(problem))
        route = problem.text(self._route) if self._route else ""
        return Prompt(student, teacher, problem.id, route)


def by_reader(
    role: Role, prompts: Sequence[Prompt], call: Callable[[Role, list[int]], list[T]]
) -> list[T]:
    """Call once for each model that reads some of the prompts; results in the prompts' order.

    Args:
        role: the model; "teacher" is each prompt's own of several.
        prompts: what is read.
        call: takes a model and the indices of its prompts.
    """
    readers = [prompt.reader(role) for prompt in prompts] or [role]
    if len(set(readers)) == 1:
        return call(readers[0], list(range(len(prompts))))
    results: dict[int, T] = {}
    for reader in dict.fromkeys(readers):
        rows = [i for i, one in enumerate(readers) if one == reader]
        results.update(zip(rows, call(reader, rows), strict=True))
    return [results[i] for i in range(len(prompts))]


def addressed(datum: Datum) -> Datum:
    """A datum whose losses name the teacher that reads it, of several."""
    reader = datum.prompt.reader("teacher")
    if reader == "teacher":
        return datum
    terms = tuple(
        replace(term, loss=replace(term.loss, to=reader)) if term.loss.to == "teacher" else term
        for term in datum.terms
    )
    return replace(datum, terms=terms)
