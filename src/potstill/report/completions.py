"""Completions of the models on the same problem, with the differences from the teacher's marked.

A row is a method, a column one of its evaluations. Completions are untrusted: the page escapes
them, and `visible` shortens them and writes out invisible characters, so that they cannot reorder
or hide the text around them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.problems import HALF
from potstill.report.data import RunData, StudyData
from potstill.report.formatting import visible
from potstill.study.storage import RunId

PROBLEMS = 3  # problems shown of one pair
STEPS = 4  # evaluations shown of one run
NEAR = 0.3  # similarity with the teacher's completion, below which marks would only confuse
WORDS = re.compile(r"\s+|\w+|[^\w\s]")

Piece = tuple[str, str]  # "same", "ins" (the student's alone) or "del" (the teacher's), and text
Completions = Mapping[str, Mapping[str, Any]]  # an evaluation's records by problem


@dataclass(frozen=True)
class Answer:
    """One model's completion of a problem at one evaluation."""

    step: int | None  # None for untrained and teacher
    pieces: Sequence[Piece]
    grade: float | None  # strict extractor, in [0, 1]; None: the task has no grader
    ended: bool | None  # False where the token limit cut it

    @property
    def mark(self) -> str:
        """The grade in words."""
        if self.grade is None:
            return ""
        return {0.0: "✗ wrong", 1.0: "✓ right"}.get(self.grade, f"grade {self.grade:.2f}")

    @property
    def css(self) -> str:
        """Of the mark."""
        return "" if self.grade is None else "up" if self.grade >= HALF else "down"


@dataclass(frozen=True)
class Transcript:
    """One run's answers to a problem, by step."""

    method: str
    seed: int | None
    answers: Sequence[Answer]


@dataclass(frozen=True)
class CompletionSample:
    """One problem with every model's answers."""

    question: str
    reference: str
    lines: Sequence[Transcript]
    columns: int  # the most answers that a line has


def samples(data: StudyData, pair: str) -> list[CompletionSample]:
    """The first problems of which some method kept completions."""
    written = {run: _evaluations(data, run.cell) for run in _shown_runs(data, pair)}
    last = [kept for evaluations in written.values() for kept in list(evaluations.values())[-1:]]
    problems = list(dict.fromkeys(name for kept in last for name in kept))[:PROBLEMS]
    ends = {role: _kept(data, pair, role, problems) for role in ("untrained", "teacher")}
    return [_sample(name, written, ends) for name in problems]


def _sample(
    name: str,
    written: Mapping[RunData, Mapping[int, Completions]],
    ends: Mapping[str, Completions],
) -> CompletionSample:
    teacher = ends["teacher"].get(name)
    target = visible(teacher.get("text", "")) if teacher else None
    lines, first = [], None
    for run, evaluations in written.items():
        rows = {step: kept[name] for step, kept in evaluations.items() if name in kept}
        first = first or next(iter(rows.values()), None)
        if rows:
            answers = [_answer(rows[step], step, target) for step in _spread(list(rows))]
            lines.append(Transcript(run.cell.method, run.cell.seed, answers))
    before = ends["untrained"].get(name)
    top = [Transcript("untrained", None, [_answer(before, None, target)])] if before else []
    end = [Transcript("teacher", None, [_answer(teacher, None, None)])] if teacher else []
    problem = first or {}
    return CompletionSample(
        question=visible(problem.get("question", "")),
        reference=visible(problem.get("answer", "")),
        lines=[*top, *lines, *end],
        columns=max([1, *(len(line.answers) for line in lines)]),
    )


def _shown_runs(data: StudyData, pair: str) -> Iterable[RunData]:
    """One run a method: the lowest seed that is done, else the lowest that recorded something."""
    for method in data.recipes:
        runs = [run for run in data.of(pair, method) if run.metrics]
        yield from ([r for r in runs if r.status == "done"] or runs)[:1]


def _evaluations(data: StudyData, cell: RunId) -> dict[int, Completions]:
    """Completions of every evaluation, by step."""
    by_step: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in data.folder.cell(cell).texts:
        by_step.setdefault(row["step"], {})[str(row.get("problem"))] = row
    return {step: by_step[step] for step in sorted(by_step)}


def _kept(data: StudyData, pair: str, role: str, problems: Sequence[str]) -> Completions:
    kept = {str(row.get("problem")): row for row in data.folder.cell(RunId(pair, role)).texts}
    return {name: kept[name] for name in problems if name in kept}


def _spread(steps: Sequence[int]) -> list[int]:
    """At most `STEPS` of the steps, evenly, the last one among them."""
    n = len(steps)
    return [steps[round((i + 1) * n / STEPS) - 1] for i in range(STEPS)] if n > STEPS else [*steps]


def _answer(row: Mapping[str, Any], step: int | None, target: str | None) -> Answer:
    text = visible(row.get("text", ""))
    pieces = [("same", text)] if target is None else marked(text, target)
    grade = row.get("strict")
    return Answer(step, pieces, None if grade is None else float(grade), row.get("ended"))


def marked(text: str, target: str) -> list[Piece]:
    """A text with its additions to the target marked, and its omissions put in between.

    >>> marked("1+1=3", "1+1=2")
    [('same', '1+1='), ('del', '2'), ('ins', '3')]
    """
    words, target_words = WORDS.findall(text), WORDS.findall(target)
    matcher = difflib.SequenceMatcher(None, target_words, words, autojunk=False)
    if not text or (words != target_words and matcher.quick_ratio() < NEAR):
        return [("ins", text)] if text else [("same", "")]
    pieces: list[Piece] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(words[c:d])))
            continue
        pieces += [("del", "".join(target_words[a:b]))] * (b > a)
        pieces += [("ins", "".join(words[c:d]))] * (d > c)
    return pieces
