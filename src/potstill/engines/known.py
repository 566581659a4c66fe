"""Which question some ids begin with: rows are known by the student's prompt in front of them.

A prompt that is met for the first time, after a resume out of the replay buffer, is looked for
among all problems of the task. Ids that begin with no prompt are refused, and so are ids that
begin with two: they could be either's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from potstill.engines.protocol import Engine
from potstill.errors import PotstillError
from potstill.types import Ids


class Known:
    """The student's prompts, as they are asked for.

    Args:
        engine: encodes questions.
        questions: gives those that may be asked about unannounced.
    """

    def __init__(self, engine: Engine, questions: Callable[[], Iterable[str]]) -> None:
        self._engine, self._all = engine, questions
        self._lengths: set[int] = set()
        self.questions: dict[Ids, str] = {}  # by prompt; where two share one, the first

    def encode(self, question: str) -> Ids:
        """Prompt ids of a question, known from now on."""
        ids = self._engine.encode(question)
        self.questions.setdefault(ids, question)
        self._lengths.add(len(ids))
        return ids

    def prompt(self, ids: Ids) -> Ids:
        """The prompt that some ids begin with."""
        found = self._heads(ids)
        if not found:
            for question in self._all():
                self.encode(question)
            found = self._heads(ids)
        if len(found) != 1:
            raise PotstillError(
                f"the teacher's prompt is found by the student's, {len(found)} of which begin "
                f"{self._engine.decode(ids)!r}",
                "ask for prompts with encode, and end questions so that none begins another",
            )
        return found[0]

    def _heads(self, ids: Ids) -> list[Ids]:
        heads = [ids[:n] for n in self._lengths if n <= len(ids)]
        return [head for head in heads if head in self.questions]
