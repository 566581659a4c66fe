"""Render a problem as a prompt for each model, and dispatch calls to several teachers.

The student reads only the problem. The teacher reads it under its own template, after the pair's
context. With several teachers a key of the problem data names the teacher. A prompt keeps the id of
its problem, so two problems with the same question can have different hints and teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.rendering import Messages
from potstill.types import Datum, Ids, Problem, Prompt, Role

T = TypeVar("T")


class Prompting:
    """Base class of engines: turn problems into prompts."""

    notes: tuple[str, ...] = ()
    _builder: PromptBuilder | None = None
    _route = ""

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        """Return prompt ids (P,), see `protocol.Engine`."""
        raise NotImplementedError

    def inform(self, builder: PromptBuilder | None, route: str = "") -> None:
        """Set the teacher's context and the key that selects a teacher, see `protocol.Engine`."""
        self._builder, self._route = builder, route
        self._prompts: dict[int, tuple[Problem, Prompt]] = {}
        if builder:
            self.notes += (f"only the teacher reads a context: {builder.context}",)
        if route:
            self.notes += (f'the problem field "{route}" selects the teacher',)

    def prompt(self, problem: Problem) -> Prompt:
        """Render a problem as each model reads it, and cache it if the teacher has a context."""
        if self._builder is None:
            return self._rendered(problem)
        cached = self._prompts.get(id(problem))  # searching for examples is slow
        if cached is None or cached[0] is not problem:
            cached = self._prompts[id(problem)] = problem, self._rendered(problem)
        return cached[1]

    def _rendered(self, problem: Problem) -> Prompt:
        student = teacher = self.encode(problem.question)
        if self._builder:
            teacher = self.encode(self._builder.conversation(problem))
        route = problem.text(self._route) if self._route else ""
        return Prompt(student, teacher, problem.id, route)


def by_reader(
    role: Role, prompts: Sequence[Prompt], call: Callable[[Role, list[int]], list[T]]
) -> list[T]:
    """Group prompts by the model that reads them, and return the results in the prompts' order.

    Args:
        role: the model; "teacher" means the teacher that each prompt selects.
        prompts: the prompts of all results.
        call: maps a model and the indices of its prompts to their results.
    """
    readers = [prompt.reader(role) for prompt in prompts] or [role]
    if len(set(readers)) == 1:
        return call(readers[0], list(range(len(prompts))))
    results: dict[int, T] = {}
    for reader in dict.fromkeys(readers):
        rows = [i for i, name in enumerate(readers) if name == reader]
        results.update(zip(rows, call(reader, rows), strict=True))
    return [results[i] for i in range(len(prompts))]


def addressed(datum: Datum) -> Datum:
    """Replace "teacher" in the losses of a datum by the teacher that its prompt selects."""
    reader = datum.prompt.reader("teacher")
    if reader == "teacher":
        return datum
    terms = tuple(
        replace(term, loss=replace(term.loss, to=reader)) if term.loss.to == "teacher" else term
        for term in datum.terms
    )
    return replace(datum, terms=terms)
