"""Several teachers by problem: a key of the data says which of them reads it.

`route` names the key, `teachers` the teacher of each of its values. The pair's own `teacher` reads
the problems that have nothing under the key; a value without a teacher is refused before a model
opens. To what is outside there is one teacher; inside, each has a role of its own, so that an
engine works out rows of different teachers apart. All share the student's tokenizer and, where the
pair has one, its context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from potstill.engines.known import Known
from potstill.engines.protocol import Engine
from potstill.tasks import Task
from potstill.tasks.rendering import Messages
from potstill.types import (
    Datum,
    Floats,
    Ids,
    Outlook,
    Role,
    Rows,
    Sample,
    StepStats,
    teacher_role,
)

Found = TypeVar("Found")


class Routed:
    """An engine whose teacher is another one for each value of a key.

    Args:
        engine: has a role for each teacher.
        route: the key.
        task: whose problems have it.
    """

    def __init__(self, engine: Engine, route: str, task: Task) -> None:
        self.engine = engine
        problems = (*task.train, *task.test)
        self._routes = {problem.question: problem.text(route) for problem in reversed(problems)}
        self._prompts = Known(engine, lambda: self._routes)
        self.notes = (*engine.notes, f'the teacher is chosen by "{route}" of the problem')

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, asked: str | Messages) -> Ids:
        return self._prompts.encode(asked) if isinstance(asked, str) else self.engine.encode(asked)

    def role(self, role: Role, ids: Ids) -> Role:
        """Which teacher reads ids that begin with a prompt; a text that is no problem is read by
        the pair's own."""
        if role != "teacher":
            return role
        question = self._prompts.questions[self._prompts.prompt(ids)]
        return teacher_role(self._routes.get(question, ""))

    def _split(
        self, roles: Sequence[Role], ask: Callable[[Role, list[int]], list[Found]]
    ) -> list[Found]:
        """Ask each role for its rows, and put the answers back in order."""
        found: dict[int, Found] = {}
        for role in dict.fromkeys(roles):
            mine = [i for i, one in enumerate(roles) if one == role]
            found.update(zip(mine, ask(role, mine), strict=True))
        return [found[i] for i in range(len(roles))]

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        def ask(one: Role, mine: list[int]) -> list[Sample]:
            rows, limits = [prompts[i] for i in mine], [max_tokens[i] for i in mine]
            return self.engine.sample(one, rows, limits, temperature, rng)

        return self._split([self.role(role, prompt) for prompt in prompts], ask)

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        def ask(one: Role, mine: list[int]) -> list[Floats]:
            return self.engine.score(one, [rows[i] for i in mine])

        return self._split([self.role(role, prompt) for prompt, _ in rows], ask)

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        def ask(one: Role, mine: list[int]) -> list[Outlook]:
            return self.engine.inspect(one, [rows[i] for i in mine])

        return self._split([self.role(role, prompt) for prompt, _ in rows], ask)

    def rows(self, role: Role, prompt: Ids, completion: Ids) -> Rows:
        return self.engine.rows(self.role(role, prompt), prompt, completion)

    def measure(self, data: Sequence[Datum]) -> StepStats:
        return self.engine.measure([self._sent(datum) for datum in data])

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step([self._sent(datum) for datum in data], learning_rate)

    def _sent(self, datum: Datum) -> Datum:
        """A datum whose losses ask its own teacher."""
        view = datum.seen_by("teacher")
        role = self.role("teacher", view[0])
        terms = [
            dataclasses.replace(term, loss=dataclasses.replace(term.loss, to=role))
            if term.loss.to == "teacher"
            else term
            for term in datum.terms
        ]
        views = {**datum.views, role: view}
        return dataclasses.replace(datum, terms=tuple(terms), views=views)
