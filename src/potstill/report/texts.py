"""What the models wrote, side by side on the same problem, and text made safe to look at.

Model text is untrusted: the page escapes it, and here it is shortened and its invisible
characters are written out, so that it cannot reorder or hide what stands beside it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.data import Run, StudyData
from potstill.store import Cell

LONGEST = 700  # characters shown of one text
PROBLEMS = 3  # problems shown of one pair
KEPT = "\n\t"


@dataclass(frozen=True)
class Answer:
    """One model's text on a problem."""

    method: str
    seed: int | None
    step: int | None  # None for a reference row
    text: str
    right: bool | None  # strict extractor
    ended: bool | None  # False where the token limit cut it


@dataclass(frozen=True)
class Sampled:
    """One problem with every model's answer."""

    question: str
    reference: str
    answers: Sequence[Answer]


def visible(text: Any, longest: int = LONGEST) -> str:
    """Text cut to `longest` characters, with control and direction marks written out.

    >>> visible("a" + chr(0x202e) + "b" + chr(7))
    'a⟨U+202E⟩b⟨U+0007⟩'
    """
    whole = str(text)
    shown = "".join(
        f"⟨U+{ord(c):04X}⟩" if c not in KEPT and unicodedata.category(c) in HIDDEN else c
        for c in whole[:longest]
    )
    left = len(whole) - longest
    return shown if left <= 0 else f"{shown} … [{left:,} more characters]"


HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # unicode categories that print nothing


def samples(data: StudyData, pair: str) -> list[Sampled]:
    """The first problems that some method kept texts of at its last grading."""
    written = {run: _last(data, run.cell) for run in _shown_runs(data, pair)}
    problems = list(dict.fromkeys(name for rows in written.values() for name in rows))[:PROBLEMS]
    references = {
        role: _by_problem(data.folder.cell(Cell(pair, role)).texts, problems)
        for role in ("untrained", "teacher")
    }
    found = []
    for name in problems:
        rows = [(run, rows[name]) for run, rows in written.items() if name in rows]
        first = rows[0][1]
        answers = [_answer(run.cell, row) for run, row in rows]
        before = references["untrained"].get(name)
        after = references["teacher"].get(name)
        top = [_answer(Cell(pair, "untrained"), before)] if before else []
        end = [_answer(Cell(pair, "teacher"), after)] if after else []
        question, reference = visible(first.get("question", "")), visible(first.get("answer", ""))
        found.append(Sampled(question, reference, [*top, *answers, *end]))
    return found


def _shown_runs(data: StudyData, pair: str) -> Iterable[Run]:
    """One run a method: the lowest seed that is done, else the lowest that recorded something."""
    for method in data.recipes:
        runs = [run for run in data.of(pair, method) if run.metrics]
        yield from ([r for r in runs if r.status == "done"] or runs)[:1]


def _last(data: StudyData, cell: Cell) -> dict[str, Mapping[str, Any]]:
    rows = data.folder.cell(cell).texts
    step = max((row["step"] for row in rows), default=0)
    return _by_problem([row for row in rows if row["step"] == step])


def _by_problem(
    rows: Sequence[Mapping[str, Any]], problems: Sequence[str] | None = None
) -> dict[str, Mapping[str, Any]]:
    found = {str(row.get("problem")): row for row in rows}
    return found if problems is None else {n: found[n] for n in problems if n in found}


def _answer(cell: Cell, row: Mapping[str, Any]) -> Answer:
    return Answer(
        method=cell.method,
        seed=cell.seed,
        step=None if cell.seed is None else row.get("step"),
        text=visible(row.get("text", "")),
        right=row.get("strict"),
        ended=row.get("ended"),
    )
