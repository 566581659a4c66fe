"""Shapes of data: columns that make a problem, recognised by their names or mapped by `columns`.

    question, answer              a question and its reference answer
    prompt                        a prompt alone: a text, or a list of messages
    prompt, completion            a prompt and one or several completions of a teacher
    messages or conversations     a conversation; its last reply is the reference
    text                          a raw text, of which the first words are the prompt

The names are those of TRL's data set types. It leaves out preferences and stepwise supervision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from potstill.errors import PotstillError, did_you_mean

Columns = Mapping[str, str | Sequence[str]]
Kind = Literal["question", "prompt", "messages", "text"]

# The names by which a role of `columns` is recognised, in addition to its own.
NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question",),
    "prompt": ("prompt",),
    "messages": ("messages", "conversations"),
    "text": ("text",),
    "answer": ("answer",),
    "completion": ("completion", "completions"),
    "solution": ("solution",),
    "system": (),
}
PROMPTS: tuple[Kind, ...] = ("question", "prompt", "messages", "text")
SHAPES = "question and answer, prompt, prompt and completion, messages (or conversations), text"
# Columns that data sets have under other names, with the role that they are likely to have.
LIKELY: dict[str, str] = {
    **{name: role for role, names in NAMES.items() for name in names},  # in other case
    **dict.fromkeys(("problem", "query", "question_text", "input_text"), "question"),
    **dict.fromkeys(("instruction", "input", "inputs", "source"), "prompt"),
    **dict.fromkeys(("conversation", "chat", "dialog", "dialogue", "turns"), "messages"),
    **dict.fromkeys(("content", "body", "document", "story"), "text"),
    **dict.fromkeys(("answers", "gold", "reference", "target", "targets", "label"), "answer"),
    **dict.fromkeys(("ground_truth", "expected", "expected_answer", "final_answer"), "answer"),
    **dict.fromkeys(("response", "responses", "output", "outputs", "generation"), "completion"),
    **dict.fromkeys(("generations", "reply", "teacher", "teacher_completion"), "completion"),
}


@dataclass(frozen=True)
class DataShape:
    """The columns of a problem's parts; "" or () where there are none."""

    kind: Kind
    prompt: str
    answer: str = ""
    completions: tuple[str, ...] = ()
    solution: str = ""
    system: str = ""

    @cached_property
    def own(self) -> frozenset[str]:
        """All of its columns."""
        named = (self.prompt, self.answer, self.solution, self.system, *self.completions)
        return frozenset(named) - {""}


def check_columns(columns: Columns) -> None:
    """Check the roles of a mapping, and that no column has two.

    Raises:
        PotstillError: an unknown role, or a column twice.
    """
    if unknown := [role for role in columns if role not in NAMES]:
        raise PotstillError(
            f'columns: unknown role "{unknown[0]}"', did_you_mean(unknown[0], NAMES, "roles")
        )
    names = [name for role in columns for name in _mapped(columns, role)]
    if empty := [role for role in columns if not all(_mapped(columns, role)) or not columns[role]]:
        raise PotstillError(f"columns: {empty[0]} names no column", "name one, or leave it out")
    for role, value in columns.items():
        if role != "completion" and not isinstance(value, str):
            raise PotstillError(
                f"columns: {role} is one column, got {list(value)}",
                "completion alone may be several columns",
            )
    if twice := [name for name in names if names.count(name) > 1]:
        raise PotstillError(f'columns names "{twice[0]}" twice', "a column has one role")
    if several := [role for role in PROMPTS if role in columns][1:]:
        raise PotstillError(
            f"columns maps {PROMPTS[0] if 'question' in columns else 'several'} and {several[0]}, "
            "which are prompts of two shapes",
            f"shapes: {SHAPES}",
        )


def shape_of(names: Iterable[str], columns: Columns, where: str, graded: bool = True) -> DataShape:
    """The shape of a row.

    Args:
        names: its columns.
        columns: the user's mapping.
        where: its place.
        graded: False if the user wants no grades, so that no answer is missed.

    Raises:
        PotstillError: there is no shape of these columns, or several.
    """
    names = list(names)
    for role in columns:
        if lacking := [name for name in _mapped(columns, role) if name not in names]:
            raise PotstillError(
                f'{where}: columns maps {role} to "{lacking[0]}", the columns are {_list(names)}',
                did_you_mean(lacking[0], names, "columns"),
            )
    by_role = {role: _columns(role, columns, names) for role in NAMES}
    kinds = [kind for kind in PROMPTS if kind in columns]
    kinds = kinds or [kind for kind in PROMPTS if by_role[kind]]
    if len(kinds) != 1 or len(by_role[kinds[0]]) > 1:
        raise _unclear(names, columns, kinds, where)
    kind = kinds[0]
    shape = DataShape(
        kind,
        by_role[kind][0],
        next(iter(by_role["answer"]), "") if kind != "text" else "",
        by_role["completion"] if kind != "text" else (),
        next(iter(by_role["solution"]), ""),
        next(iter(by_role["system"]), ""),
    )
    _check_missed(shape, names, columns, where, graded)
    return shape


def _check_missed(
    shape: DataShape, names: Sequence[str], columns: Columns, where: str, graded: bool
) -> None:
    """Refuse data whose answers are likely to be in a column that is not read."""
    if not graded or shape.kind in ("text", "messages") or shape.answer or shape.completions:
        return
    missed = [name for name in names if LIKELY.get(name.lower()) in ("answer", "completion")]
    if missed:
        raise PotstillError(
            f'{where}: the columns are {_list(names)}, none of which is the answer; "{missed[0]}" '
            "may be it",
            f'write {_suggestion(missed, columns)}, or grade = "none" for prompts alone',
        )


def _unclear(
    names: Sequence[str], columns: Columns, kinds: Sequence[str], where: str
) -> PotstillError:
    """The error of columns without a shape, or with several."""
    if kinds:
        both = [name for kind in kinds for name in _columns(kind, columns, names)]
        return PotstillError(
            f"{where}: the columns are {_list(names)}: {_list(both)} are prompts of several shapes",
            f'name the one to use, such as columns = {{ {kinds[0]} = "{both[0]}" }}',
        )
    likely = [name for name in names if name.lower() in LIKELY]
    hint = f"map yours, such as {_suggestion(likely, columns)}"
    prompts = [name for name in likely if LIKELY[name.lower()] in PROMPTS]
    if len(prompts) > 1:
        hint = f"join {_list(prompts)} into one column; then {hint}"
    return PotstillError(
        f"{where}: the columns are {_list(names)}, which make no shape of data ({SHAPES})", hint
    )


def _suggestion(likely: Sequence[str], columns: Columns) -> str:
    """A mapping of columns that a user may want."""
    roles: dict[str, str] = {role: str(name) for role, name in columns.items()}
    for name in likely:
        roles.setdefault(LIKELY[name.lower()], name)
    pairs = roles or {"question": "your question's column", "answer": "your answer's"}
    shown = ", ".join(f'{role} = "{name}"' for role, name in pairs.items())
    return f"columns = {{ {shown} }}"


def _columns(role: str, columns: Columns, names: Sequence[str]) -> tuple[str, ...]:
    """The columns of a role: those of the mapping, or those with its names that have no other."""
    if role in columns:
        return _mapped(columns, role)
    taken = {name for other in columns for name in _mapped(columns, other)}
    return tuple(name for name in NAMES[role] if name in names and name not in taken)


def _mapped(columns: Columns, role: str) -> tuple[str, ...]:
    value = columns[role]
    return (value,) if isinstance(value, str) else tuple(value)


def _list(names: Iterable[Any]) -> str:
    shown = [f'"{name}"' for name in names]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return (", ".join(shown[:20]) + more) or "none"
