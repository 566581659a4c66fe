"""What the teacher alone sees before the problem: context distillation.

A context is a value, read from `context = { KIND = ... }` of a pair: one kind, or `hybrid`, a list
of several in order. `parts` says what each kind adds, `briefing` gives it the task's problems,
`informed` puts it in front of what an engine's teacher reads, `window` holds it against the
model's limit.

Decided here, where no rule was written:

- The student, the student of step 0 (the anchor) and the untrained row read the problem alone.
- The teacher reads its context wherever it writes, scores or is graded, so that the teacher row is
  the pair's teacher. With a hint its row has read the graded problems' solutions: a ceiling, and
  shown as one; `graded = false` grades it without. No text that the student trains on comes from
  a graded problem, whatever the context.
- Examples come from training problems or from a file, never from what is graded, and a problem is
  no example of itself. Of the hybrid's texts the first one named stands first.

It leaves out contexts that change while a run trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potstill.errors import PotstillError, did_you_mean
from potstill.tasks.context.kinds import KINDS, Hint, Part

__all__ = ["KINDS", "Context", "read_context"]


@dataclass(frozen=True)
class Context:
    """What a pair's teacher reads beside the problem, part after part."""

    parts: tuple[Part, ...]

    @property
    def ceiling(self) -> bool:
        """Whether the teacher's row is graded with the graded problems' own hints."""
        return any(isinstance(part, Hint) and part.graded for part in self.parts)

    def __str__(self) -> str:
        return ", then ".join(part.kind for part in self.parts)


def read_context(table: Mapping[str, Any], where: str = "context") -> Context:
    """Read `{ KIND = VALUE }`; opens no file.

    Args:
        table: as in a study file.
        where: how errors call it.

    Raises:
        PotstillError: an unknown kind, an unknown key or a value of another type.
    """
    if len(table) != 1:
        raise PotstillError(
            f"{where} has one kind, got {sorted(table) or 'none'}",
            "several in order are { hybrid = [{ system = ... }, { few_shot = ... }] }",
        )
    ((kind, value),) = table.items()
    if kind != "hybrid":
        return Context((_part(str(kind), value, where),))
    if not isinstance(value, list | tuple) or not value:
        raise PotstillError(
            f"{where}.hybrid is a list of contexts, got {value!r}",
            "write hybrid = [{ system = ... }, { few_shot = ... }]",
        )
    parts: list[Part] = []
    for n, inner in enumerate(value):
        if not isinstance(inner, Mapping):
            raise PotstillError(
                f"{where}.hybrid: a context is a table, got {inner!r}", "write { few_shot = 4 }"
            )
        if "hybrid" in inner:
            raise PotstillError(f"{where}.hybrid holds a hybrid", "write one list of all parts")
        parts += read_context(inner, f"{where}.hybrid[{n}]").parts
    return Context(tuple(parts))


def _part(kind: str, value: Any, where: str) -> Part:
    """One part from its table, or from the bare value of its first field."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if kind not in KINDS:
        raise PotstillError(
            f'{where}: unknown context "{kind}"', did_you_mean(kind, {*KINDS, "hybrid"}, "contexts")
        )
    known = [item.name for item in fields(KINDS[kind])]
    given = dict(value) if isinstance(value, Mapping) else {known[0]: value}
    for key in given:
        if key not in known:
            raise PotstillError(
                f'{where}.{kind}: unknown key "{key}"', did_you_mean(str(key), known, "keys")
            )
    KINDS[kind].__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        found: Part = TypeAdapter(KINDS[kind]).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), PotstillError):
            raise PotstillError(f"{where}.{kind}: {cause}", cause.hint) from None
        key = ".".join(map(str, first["loc"])) or kind
        raise PotstillError(
            f"{where}.{kind}, {key}: {first['msg']}, got {first['input']!r}",
            f"its keys: {', '.join(known)}",
        ) from None
    return found
