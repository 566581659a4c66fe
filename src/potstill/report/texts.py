"""What the models wrote, side by side on the same problem, and text made safe to look at.

A row is a method, a column one of its gradings; what differs from the teacher's text is marked.
Model text is untrusted: the page escapes it, and here it is shortened and its invisible
characters are written out, so that it cannot reorder or hide what stands beside it.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.data import Run, StudyData
from potstill.study.storage import Cell

LONGEST = 700  # characters shown of one text
PROBLEMS = 3  # problems shown of one pair
STEPS = 4  # gradings shown of one run
NEAR = 0.3  # likeness with the teacher's text, below which marks would only confuse
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
KEPT = "\n\t"

Piece = tuple[str, str]  # "same", "ins" (the student's alone) or "del" (the teacher's), and text
Texts = Mapping[str, Mapping[str, Any]]  # a grading's records by problem


@dataclass(frozen=True)
class Answer:
    """One model's text on a problem at one grading."""

    step: int | None  # None for a reference row
    pieces: Sequence[Piece]
    right: bool | None  # strict extractor
    ended: bool | None  # False where the token limit cut it


@dataclass(frozen=True)
class Line:
    """One run's answers to a problem, by step."""

    method: str
    seed: int | None
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Sampled:
    """One problem with every model's answers."""

    question: str
    reference: str
    lines: Sequence[Line]
    columns: int  # the most answers that a line has


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
    """The first problems that some method kept texts of."""
    written = {run: _gradings(data, run.cell) for run in _shown_runs(data, pair)}
    last = [texts for gradings in written.values() for texts in list(gradings.values())[-1:]]
    problems = list(dict.fromkeys(name for texts in last for name in texts))[:PROBLEMS]
    ends = {role: _reference(data, pair, role, problems) for role in ("untrained", "teacher")}
    return [_sampled(name, written, ends) for name in problems]


def _sampled(
    name: str, written: Mapping[Run, Mapping[int, Texts]], ends: Mapping[str, Texts]
) -> Sampled:
    taught = ends["teacher"].get(name)
    target = visible(taught.get("text", "")) if taught else None
    lines, first = [], None
    for run, gradings in written.items():
        rows = {step: texts[name] for step, texts in gradings.items() if name in texts}
        first = first or next(iter(rows.values()), None)
        if rows:
            answers = [_answer(rows[step], step, target) for step in _spread(list(rows))]
            lines.append(Line(run.cell.method, run.cell.seed, answers))
    before = ends["untrained"].get(name)
    top = [Line("untrained", None, [_answer(before, None, target)])] if before else []
    end = [Line("teacher", None, [_answer(taught, None, None)])] if taught else []
    told = first or {}
    return Sampled(
        question=visible(told.get("question", "")),
        reference=visible(told.get("answer", "")),
        lines=[*top, *lines, *end],
        columns=max([1, *(len(line.answers) for line in lines)]),
    )


def _shown_runs(data: StudyData, pair: str) -> Iterable[Run]:
    """One run a method: the lowest seed that is done, else the lowest that recorded something."""
    for method in data.recipes:
        runs = [run for run in data.of(pair, method) if run.metrics]
        yield from ([r for r in runs if r.status == "done"] or runs)[:1]


def _gradings(data: StudyData, cell: Cell) -> dict[int, Texts]:
    """Every grading's texts, by step."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in data.folder.cell(cell).texts:
        found.setdefault(row["step"], {})[str(row.get("problem"))] = row
    return {step: found[step] for step in sorted(found)}


def _reference(data: StudyData, pair: str, role: str, problems: Sequence[str]) -> Texts:
    rows = data.folder.cell(Cell(pair, role)).texts
    found = {str(row.get("problem")): row for row in rows}
    return {name: found[name] for name in problems if name in found}


def _spread(steps: Sequence[int]) -> list[int]:
    """At most `STEPS` of the steps, evenly, the last one among them."""
    n = len(steps)
    if n <= STEPS:
        return list(steps)
    return [steps[round((i + 1) * n / STEPS) - 1] for i in range(STEPS)]


def _answer(row: Mapping[str, Any], step: int | None, target: str | None) -> Answer:
    text = visible(row.get("text", ""))
    pieces = [("same", text)] if target is None else marked(text, target)
    return Answer(step, pieces, row.get("strict"), row.get("ended"))


def marked(text: str, target: str) -> list[Piece]:
    """A text with what is not in the target marked, and what it leaves out put in between.

    >>> marked("1+1=3", "1+1=2")
    [('same', '1+1='), ('del', '2'), ('ins', '3')]
    """
    mine, its = WORDS.findall(text), WORDS.findall(target)
    matcher = difflib.SequenceMatcher(None, its, mine, autojunk=False)
    if not text or (mine != its and matcher.quick_ratio() < NEAR):
        return [("ins", text)] if text else [("same", "")]
    found: list[Piece] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(mine[c:d])))
            continue
        found += [("del", "".join(its[a:b]))] * (b > a) + [("ins", "".join(mine[c:d]))] * (d > c)
    return found
