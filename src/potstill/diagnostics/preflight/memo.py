"""An engine that computes nothing twice while its weights stay the same.

The checks look at the same few completions, and the recipes of a study share many of them. The
key of a result has every argument and the random state, so it equals that of a second computation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from potstill.engines.protocol import Engine, Wrapper
from potstill.types import (
    WHOLE,
    Datum,
    Floats,
    Ids,
    Loss,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    StepStats,
    Truncation,
)

LIMIT = 1 << 30  # bytes of full-vocabulary log-probs that are remembered
Result = TypeVar("Result")


class Memo(Wrapper):
    """Remembers samples, scores, losses and full-vocabulary log-probs.

    A step forgets those that depend on the student.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._known: dict[tuple[Any, ...], Any] = {}
        self._rows: OrderedDict[tuple[Any, ...], Rows] = OrderedDict()  # the oldest use first
        self._recompute = False

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Compute everything in the block, so that it can be timed; results are remembered."""
        self._recompute = True
        try:
            yield
        finally:
            self._recompute = False

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Result]) -> Result:
        if self._recompute or key not in self._known:
            self._known[key] = compute()
        known: Result = self._known[key]
        return known

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        state = repr(rng.bit_generator.state)
        call = role, prompts, max_tokens, temperature, rng, truncation
        key = ("sample", role, tuple(prompts), tuple(max_tokens), temperature, truncation, state)
        return self._once(key, lambda: self.engine.sample(*call))

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        key = ("score", role, tuple(rows))
        return self._once(key, lambda: self.engine.score(role, rows))

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        key = (role, prompt, completion)
        if self._recompute or key not in self._rows:
            rows = self.engine.rows(role, prompt, completion)
            rows.flags.writeable = False
            self._rows[key] = rows
            while sum(kept.nbytes for kept in self._rows.values()) > max(LIMIT, rows.nbytes):
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        if dropout:
            return self.engine.measure(data, dropout=True)
        return self._once(("measure", "student", _plain(data)), lambda: self.engine.measure(data))

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        try:
            return self.engine.step(data, learning_rate)
        finally:
            if learning_rate:
                self._forget()

    def load(self, folder: Path) -> None:
        self._forget()
        self.engine.load(folder)

    def _forget(self) -> None:
        """Forget what depends on the student's weights; those of step 0 stay."""
        self._known = {key: value for key, value in self._known.items() if key[1] != "student"}
        for key in [key for key in self._rows if key[0] == "student"]:
            del self._rows[key]


def _plain(value: Any) -> Hashable:
    """A value that compares by its content: arrays as bytes, objects as their fields."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return tuple((key, _plain(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if is_dataclass(value) and not isinstance(value, Prompt | Loss):
        return tuple(_plain(getattr(value, field.name)) for field in fields(value))
    return cast(Hashable, value)
