"""An engine whose teacher reads the pair's context: the student's prompt goes in, what the teacher
reads in its place goes on.

A completion is the same ids under either prompt, so teacher scores line up with the student's
tokens whatever stands before them; a datum says so in its `views`. It is no `Wrapper`: a context
is a part of the pair, so what looks at the bare engine (gradings, probes, pre-flight) sees it too,
and loop, methods and faults need not know of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.engines.known import Known
from potstill.engines.protocol import Engine
from potstill.tasks.context.builder import Briefing
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
    is_teacher,
)


class Informed:
    """A pair with a context, as an engine.

    Args:
        engine: the pair without it.
        briefing: what the teacher reads for a question.
    """

    def __init__(self, engine: Engine, briefing: Briefing) -> None:
        self.engine, self.briefing = engine, briefing
        self.notes = (*engine.notes, f"the teacher alone reads a context: {briefing.context}")
        self._prompts = Known(engine, lambda: briefing.problems)
        self._read: dict[Ids, Ids] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, asked: str | Messages) -> Ids:
        """Prompt ids of the student; what the teacher reads for them is known from now on."""
        return self._prompts.encode(asked) if isinstance(asked, str) else self.engine.encode(asked)

    def view(self, role: Role, ids: Ids) -> Ids:
        """What a model reads in the place of ids that begin with a prompt of the student's."""
        if not is_teacher(role):
            return ids
        prompt = self._prompts.prompt(ids)
        if prompt not in self._read:
            question = self._prompts.questions[prompt]
            self._read[prompt] = self.engine.encode(self.briefing.messages(question))
        return self._read[prompt] + ids[len(prompt) :]

    def _rows(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[tuple[Ids, Ids]]:
        return [(self.view(role, prompt), completion) for prompt, completion in rows]

    def _seen(self, data: Sequence[Datum]) -> list[Datum]:
        """The data with what the teacher reads."""
        found = []
        for datum in data:
            views = dict(datum.views)
            for role in {term.loss.to for term in datum.terms if is_teacher(term.loss.to)}:
                prompt, completion = datum.seen_by(role)
                views[role] = self.view(role, prompt), completion
            found.append(dataclasses.replace(datum, views=views))
        return found

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        read = [self.view(role, prompt) for prompt in prompts]
        return self.engine.sample(role, read, max_tokens, temperature, rng)

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        return self.engine.score(role, self._rows(role, rows))

    def rows(self, role: Role, prompt: Ids, completion: Ids) -> Rows:
        return self.engine.rows(role, self.view(role, prompt), completion)

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        return self.engine.inspect(role, self._rows(role, rows))

    # Of a pair whose tokenizers differ, see `engines.cross`:

    def seen(self, prompt: Ids, completion: Ids) -> Any:
        return self.engine.seen(self.view("teacher", prompt), completion)  # type: ignore[attr-defined]

    def translate(self, data: Sequence[Datum]) -> Any:
        return self.engine.translate(self._seen(data))  # type: ignore[attr-defined]

    def measure(self, data: Sequence[Datum]) -> StepStats:
        return self.engine.measure(self._seen(data))

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self._seen(data), learning_rate)
