"""Checks of the teacher's completions: they end before the limit, and some are right.

A teacher that is cut off everywhere never shows where a completion ends, and a recipe that rejects
wrong completions trains on nothing if all are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.diagnostics.preflight.check import WITHOUT_TEACHER, Check
from potstill.diagnostics.preflight.rehearsal import Rehearsal
from potstill.problems import Problem
from potstill.tasks import is_graded
from potstill.training.completing import held_out
from potstill.training.evaluation import has_teacher
from potstill.training.rollout import draw
from potstill.types import Ids, Prompt

NAME = "completions"
FEW, PROBLEMS = 4, 64  # completions of the check, and where the few give a reason to doubt
MANY = 0.5  # share of truncated completions from which on it warns
LONGER = (2, 4, 8, 16)  # multiples of the limit at which a sufficient one is looked for
TRIED, MOST = 8, 4096  # completions of these, and their tokens at most


@dataclass(frozen=True)
class _Written:
    """Completions of the teacher of some problems."""

    problems: Sequence[Problem]
    prompts: Sequence[Prompt]
    tokens: Sequence[Ids]
    truncated: int


def completions(rehearsal: Rehearsal) -> Iterator[Check]:
    """Check the teacher's completions as training and evaluation have them."""
    engine = rehearsal.engine
    if not has_teacher(engine):
        yield Check(NAME, "passed", WITHOUT_TEACHER)
        return
    settings, evaluation = rehearsal.settings, rehearsal.evaluation
    task = rehearsal.any_run().task
    drawn = draw(task.train, min(PROBLEMS, len(task.train)), rehearsal.seed, 0)
    trained = [p for p in drawn if not p.completions] or drawn  # others are not written by it
    temperature = settings.teacher_temperature
    yield from _lengths(rehearsal, "train.max_tokens", settings.max_tokens, trained, temperature)
    if evaluation.max_tokens and evaluation.max_tokens < settings.max_tokens:
        evaluated = held_out(task, evaluation, PROBLEMS)
        limit = evaluation.max_tokens
        yield from _lengths(rehearsal, "eval.max_tokens", limit, evaluated, evaluation.temperature)
    rejecting = [recipe.name for recipe in rehearsal.recipes if recipe.reject_wrong]
    if rejecting and is_graded(task):
        yield _right(rehearsal, rejecting, trained)


def _lengths(
    rehearsal: Rehearsal, setting: str, limit: int, problems: Sequence[Problem], temperature: float
) -> Iterator[Check]:
    """The check that the teacher's completions end before a limit, named `setting` in a study."""
    written = _write(rehearsal, problems[:FEW], limit, temperature)
    if written.truncated == len(written.tokens):
        written = _write(rehearsal, problems, limit, temperature)
    count = len(written.tokens)
    if not written.truncated:
        longest = max(len(ids) for ids in written.tokens)
        evidence = f"{count} of {count} teacher completions end, after {longest} tokens at most"
        yield Check(NAME, "passed", evidence)
        return
    evidence = f"{written.truncated} of {count} teacher completions reach {setting} = {limit}"
    if written.truncated < MANY * count:
        yield Check(NAME, "passed", evidence)
    elif written.truncated < count:
        yield Check(NAME, "warning", evidence, f"raise {setting}")
    else:
        sufficient = _sufficient(rehearsal, problems[:TRIED], limit, temperature)
        hint = f"raise {setting}{f' to {sufficient} or more' if sufficient else ''}"
        yield Check(NAME, "refused", evidence + ": none of them ends", hint)


def _sufficient(
    rehearsal: Rehearsal, problems: Sequence[Problem], limit: int, temperature: float
) -> int | None:
    """Tokens of the longest of some completions with a higher limit; None if they do not end."""
    window = getattr(rehearsal.engine, "windows", {}).get("teacher")
    prompts = [rehearsal.engine.prompt(problem) for problem in problems]
    longest = max(len(p.foreign or p.teacher) for p in prompts)
    most = min(MOST, (window.tokens or MOST) - longest) if window else MOST
    for factor in LONGER:
        if limit * factor > most:
            return None
        written = _write(rehearsal, problems, limit * factor, temperature)
        if not written.truncated:
            return max(len(ids) for ids in written.tokens)
    return None


def _right(rehearsal: Rehearsal, names: Sequence[str], problems: Sequence[Problem]) -> Check:
    """The check that some completions of the teacher are right."""
    limit, temperature = rehearsal.settings.max_tokens, rehearsal.settings.teacher_temperature
    for count in (FEW, PROBLEMS):
        written = _write(rehearsal, problems[:count], limit, temperature)
        right = _correct(rehearsal, written)
        if right:
            break
    evidence = f"{right} of {len(written.tokens)} teacher completions are right"
    if right:
        return Check("reject_wrong", "passed", evidence)
    return Check(
        "reject_wrong",
        "refused",
        f"{evidence}, and {', '.join(names)} trains on right ones alone",
        "read the teacher's completions and check the grader, raise train.max_tokens, or leave "
        "reject_wrong out",
    )


def _correct(rehearsal: Rehearsal, written: _Written) -> int:
    engine, task = rehearsal.engine, rehearsal.any_run().task
    rows = zip(written.problems, written.prompts, written.tokens, strict=True)
    return sum(
        task.grade(problem, engine.opening(prompt, "teacher") + engine.decode(ids)).correct
        for problem, prompt, ids in rows
    )


def _write(
    rehearsal: Rehearsal, problems: Sequence[Problem], limit: int, temperature: float
) -> _Written:
    engine = rehearsal.engine
    prompts = [engine.prompt(problem) for problem in problems]
    rng = np.random.default_rng(rehearsal.seed)
    samples = engine.sample("teacher", prompts, [limit] * len(prompts), temperature, rng)
    tokens = [sample.tokens for sample in samples]
    truncated = sum(not ids or ids[-1] not in engine.eos for ids in tokens)
    return _Written(problems, prompts, tokens, truncated)
