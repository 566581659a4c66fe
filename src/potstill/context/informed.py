"""An engine whose teacher reads the pair's context: the student's prompt goes in, what the teacher
reads in its place goes on.

A completion is the same ids under either prompt, so teacher scores line up with the student's
tokens whatever stands before them; a datum says so in its `views`. It is no `Wrapper`: a context
is a part of the pair, so what looks at the bare engine (gradings, probes, pre-flight) sees it too,
and loop, methods and faults need not know of it.

Rows are known by their beginning. A prompt that is met for the first time, after a resume out of
the replay buffer, is looked for among all problems of the task; one that is none of them is
refused, and so is one that begins with another whole prompt: the teacher's could be either's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.context.briefing import Briefing
from potstill.engines import Engine
from potstill.errors import PotstillError
from potstill.prompts import Messages
from potstill.types import Datum, Floats, Ids, Outlook, Role, Rows, Sample, StepStats


class Informed:
    """A pair with a context, as an engine.

    Args:
        engine: the pair without it.
        briefing: what the teacher reads for a question.
    """

    def __init__(self, engine: Engine, briefing: Briefing) -> None:
        self.engine, self.briefing = engine, briefing
        self.notes = (*engine.notes, f"the teacher alone reads a context: {briefing.context}")
        self._questions: dict[Ids, str] = {}
        self._lengths: set[int] = set()
        self._read: dict[Ids, Ids] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, asked: str | Messages) -> Ids:
        """Prompt ids of the student; what the teacher reads for them is known from now on."""
        ids = self.engine.encode(asked)
        if isinstance(asked, str):
            self._questions.setdefault(ids, asked)
            self._lengths.add(len(ids))
        return ids

    def view(self, role: Role, ids: Ids) -> Ids:
        """What a model reads in the place of ids that begin with a prompt of the student's."""
        if role != "teacher":
            return ids
        prompt = self._prompt(ids)
        if prompt not in self._read:
            self._read[prompt] = self.engine.encode(self.briefing.messages(self._questions[prompt]))
        return self._read[prompt] + ids[len(prompt) :]

    def _prompt(self, ids: Ids) -> Ids:
        """The prompt that some ids begin with."""
        found = self._known(ids)
        if not found:
            for question in self.briefing.problems:
                self.encode(question)
            found = self._known(ids)
        if len(found) != 1:
            raise PotstillError(
                f"the teacher's prompt is found by the student's, {len(found)} of which begin "
                f"{self.engine.decode(ids)!r}",
                "ask for prompts with encode, and end questions so that none begins another",
            )
        return found[0]

    def _known(self, ids: Ids) -> list[Ids]:
        heads = [ids[:n] for n in self._lengths if n <= len(ids)]
        return [head for head in heads if head in self._questions]

    def _rows(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[tuple[Ids, Ids]]:
        return [(self.view(role, prompt), completion) for prompt, completion in rows]

    def _seen(self, data: Sequence[Datum]) -> list[Datum]:
        """The data with what the teacher reads."""
        found = []
        for datum in data:
            prompt, completion = datum.seen_by("teacher")
            view = self.view("teacher", prompt), completion
            found.append(dataclasses.replace(datum, views={**datum.views, "teacher": view}))
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

    def measure(self, data: Sequence[Datum]) -> StepStats:
        return self.engine.measure(self._seen(data))

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self._seen(data), learning_rate)
