"""Privileged context: text that the teacher alone reads in front of a problem.

A context is a value, read from `context = { KIND = ... }` of a pair: one kind, or `hybrid`, a list
of several in order. `kinds` has the text of each kind, `builder` fills it with the task's problems.

Rules of this package:

- The student, the student of step 0 (the anchor) and the untrained baseline read the problem alone.
- The teacher reads its context wherever it writes, scores or is evaluated, so that the teacher
  baseline is the pair's teacher. With a hint that baseline has read the solutions of the evaluated
  problems: a ceiling, and shown as one; `graded = false` evaluates it without. No completion that
  the student trains on comes from an evaluated problem, whatever the context.
- Examples come from training problems or from a file, never from evaluated problems, and a problem
  is not an example of itself. Texts of a hybrid have the order of its list.

It leaves out contexts that change during training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from potstill.errors import Errors, PotstillError, did_you_mean
from potstill.fields import brief, explain
from potstill.tasks.context.kinds import KINDS, ContextPart, Hint

__all__ = ["KINDS", "Context", "read_context"]


@dataclass(frozen=True)
class Context:
    """The parts of a teacher's context, in order."""

    parts: tuple[ContextPart, ...]

    @property
    def ceiling(self) -> bool:
        """True if the teacher is evaluated with hints of the evaluated problems."""
        return any(isinstance(part, Hint) and part.graded for part in self.parts)

    def __str__(self) -> str:
        return ", then ".join(part.kind for part in self.parts)


def read_context(table: Mapping[str, Any], where: str = "context") -> Context:
    """Read `{ KIND = VALUE }`; opens no file.

    Args:
        table: as in a study file.
        where: its name in error messages.

    Raises:
        PotstillError: an unknown kind, an unknown key or a value that breaks its limits.
    """
    if len(table) != 1:
        raise PotstillError(
            f"{where} has one kind, got {sorted(table) or 'none'}",
            "several in order are { hybrid = [{ system = ... }, { few_shot = ... }] }",
        )
    ((kind, value),) = table.items()
    if kind == "hybrid":
        return _hybrid(value, f"{where}.hybrid")
    return Context((_part(str(kind), value, where),))


def _hybrid(tables: Any, where: str) -> Context:
    """Several contexts in order."""
    if not isinstance(tables, list | tuple) or not tables:
        raise PotstillError(
            f"{where} is a list of contexts, got {brief(tables)}",
            "write hybrid = [{ system = ... }, { few_shot = ... }]",
        )
    parts: list[ContextPart] = []
    errors = Errors()
    for n, table in enumerate(tables):
        with errors:
            if not isinstance(table, Mapping):
                raise PotstillError(
                    f"{where}: a context is a table, got {brief(table)}", "write { few_shot = 4 }"
                )
            if "hybrid" in table:
                raise PotstillError(f"{where} holds a hybrid", "write one list of all parts")
            parts += read_context(table, f"{where}[{n}]").parts
    errors.check()
    return Context(tuple(parts))


def _part(kind: str, value: Any, where: str) -> ContextPart:
    """One part from its table, or from the bare value of its first field."""
    if kind not in KINDS:
        raise PotstillError(
            f'{where}: unknown context "{kind}"', did_you_mean(kind, {*KINDS, "hybrid"}, "contexts")
        )
    part = KINDS[kind]
    first = next(iter(part.__dataclass_fields__))
    table = dict(value) if isinstance(value, Mapping) else {first: value}
    try:
        read: ContextPart = TypeAdapter(part).validate_python(table)
    except ValidationError as error:
        raise explain(error, f"{where}.{kind}", part) from None
    return read
