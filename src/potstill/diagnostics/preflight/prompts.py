"""Checks of rendered prompts: special tokens, length, a context that is read; and of adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from potstill.diagnostics.preflight.check import Check
from potstill.diagnostics.preflight.rehearsal import Rehearsal
from potstill.problems import Problem
from potstill.tasks.selecting import containing, messages
from potstill.tasks.selecting import longest as largest_problems
from potstill.training.completing import held_out
from potstill.training.evaluation import has_teacher
from potstill.types import Role

PROBED = 32  # problems of each split whose prompts are rendered
LONGEST = 16  # longest problems, whose prompts are measured


def _problems(rehearsal: Rehearsal) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Training problems and evaluated problems."""
    task = rehearsal.any_run().task
    return task.train, held_out(task, rehearsal.evaluation)


def special_tokens(rehearsal: Rehearsal) -> list[Check]:
    """Look for special tokens in the problems, which tokenizers read as real, and unknown ones."""
    engine: Any = rehearsal.engine
    splits, special = _problems(rehearsal), engine.special_texts
    count = sum(map(len, splits))
    spelled = [problem for split in splits for problem in containing(split, special)]
    if spelled:
        text = "\n".join(content for _, content in messages(spelled[0]))
        evidence = (
            f"{len(spelled)} of {count} problems contain special tokens "
            f"(first: {spelled[0].id}, {engine.special_in(text)[0]}), which end or divide their "
            "prompts"
        )
        return [Check("prompts", "warning", evidence, "remove them from the data")]
    probed = [problem for split in splits for problem in split[:PROBED]]
    if unknown := [p.id for p in probed if engine.unknown_in(engine.prompt(p))]:
        evidence = (
            f"the prompts of {len(unknown)} of {len(probed)} problems have characters that the "
            f"tokenizer does not know (first: {unknown[0]})"
        )
        return [Check("prompts", "warning", evidence, "use a tokenizer of the data's language")]
    return [Check("prompts", "passed", f"none of {count} problems has a special token")]


def context_is_read(rehearsal: Rehearsal) -> list[Check]:
    """Check that the teacher's context changes its prompts."""
    engine: Any = rehearsal.engine
    if not engine.has_context:
        return []
    probed = [problem for split in _problems(rehearsal) for problem in split[:PROBED]]
    read = sum(engine.prompt(p) != engine.without_context(p) for p in probed)
    evidence = f"the context changes the teacher's prompts of {read} of {len(probed)} problems"
    if read:
        return [Check("context", "passed", evidence)]
    hint = (
        "its chat template drops the context: give it a template that renders system messages, or "
        'write the text into the question, for example with chain_of_thought = "..."'
    )
    return [Check("context", "refused", evidence, hint)]


def lengths(rehearsal: Rehearsal) -> Iterator[Check]:
    """Compare the longest prompt and its completion with the positions of each model."""
    engine: Any = rehearsal.engine
    tokens = max(rehearsal.settings.max_tokens, rehearsal.evaluation.max_tokens)
    problems = [p for split in _problems(rehearsal) for p in largest_problems(split, LONGEST)]
    measured = longest_prompts(engine, problems)
    for role, (problem, size) in measured.items():
        window = engine.windows.get(role)
        if window is None or not window.tokens:
            continue
        evidence = (
            f"the {role} has {window.tokens} positions; its longest prompt ({problem}) has {size} "
            f"tokens, and up to {tokens} of completion follow"
        )
        if size + tokens <= window.tokens:
            yield Check("length", "passed", evidence)
            continue
        hint = "show fewer or shorter examples, documents or hints, or lower max_tokens"
        beyond = ": it cannot read on" if window.fixed else ": it was not trained beyond"
        yield Check("length", "refused" if window.fixed else "warning", evidence + beyond, hint)


def longest_prompts(engine: Any, problems: Sequence[Problem]) -> dict[Role, tuple[str, int]]:
    """Id and tokens of each model's longest prompt, among the longest problems."""
    by_text = largest_problems(problems, LONGEST)
    prompts = [engine.prompt(problem) for problem in by_text]
    longest: dict[Role, tuple[str, int]] = {}
    for role in ("student", "teacher") if has_teacher(engine) else ("student",):
        ids = [p.foreign or p.teacher if role == "teacher" else p.student for p in prompts]
        if ids:
            best = max(range(len(ids)), key=lambda i: len(ids[i]))
            longest[role] = by_text[best].id, len(ids[best])
    return longest


def adapters(rehearsal: Rehearsal) -> list[Check]:
    """Report the share of weights that have LoRA adapters."""
    covered = getattr(rehearsal.engine, "coverage", None)
    if covered is None:
        return []
    share, with_adapter, experts = covered
    evidence = f"{share:.0%} of the student's weights (embeddings and head aside) have adapters"
    if not experts:
        return [Check("adapters", "passed", evidence)]
    evidence += f", {with_adapter} of {experts} expert tensors"
    if with_adapter:
        return [Check("adapters", "passed", evidence)]
    hint = (
        "the experts are not trained: name their weights in train.lora_target, or train all "
        "weights with lora_rank = 0"
    )
    return [Check("adapters", "warning", evidence, hint)]
