"""Calls a user's grader function with the arguments that it declares, and reads its result.

Names are those that people use: of this project, of TRL's reward functions (`completions` and
lists of one) and of verl's `compute_score`. Other names are columns of the data. It leaves out
where the function runs: in this process, or in one of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

from potstill.problems import Grade, Problem

COMPLETION = ("completion", "text", "response", "solution_str")
ANSWER = ("answer", "ground_truth", "reference")
QUESTION = ("question", "prompt")
UNREAD = "(completion)"  # a function that reads none grades nothing
ROUNDING = 1e-9  # by which a sum of weights may differ from 1
LISTS = {"completions": "completion", "prompts": "prompt"}  # TRL's, a list of one each
NAMES = (*COMPLETION, *ANSWER, *QUESTION, "problem", "solution", "messages", "extra_info")


def values_of(problem: Problem, text: str) -> dict[str, Any]:
    """Every argument that a function can declare, by name."""
    messages = [{"role": role, "content": content} for role, content in problem.messages]
    values: dict[str, Any] = {"data_source": "", **problem.extra}
    values |= dict.fromkeys(COMPLETION, text)
    values |= dict.fromkeys(ANSWER, problem.answer)
    values |= dict.fromkeys(QUESTION, problem.question)
    values |= {"problem": problem, "solution": problem.solution, "messages": messages}
    return {**values, "extra_info": dict(problem.extra)}


def missing(function: Callable[..., Any], problem: Problem) -> list[str]:
    """Parameters that must be given and that neither the problem nor its columns have."""
    known, parameters = {*values_of(problem, ""), *LISTS}, _parameters(function)
    reads = {*COMPLETION, "completions"} & {one.name for one in parameters}
    if not reads and not any(one.kind is one.VAR_KEYWORD for one in parameters):
        return [UNREAD]
    return [
        str(one)
        for one in parameters
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and (one.name not in known or one.kind is one.POSITIONAL_ONLY)
    ]


def call(function: Callable[..., Any], problem: Problem, text: str) -> Any:
    """The result of a function that is called with the arguments that it declares."""
    values, parameters = values_of(problem, text), _parameters(function)
    names = {one.name for one in parameters}
    if names & LISTS.keys():
        values = _in_lists(values, problem, text)
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        values = {name: value for name, value in values.items() if name in names}
    result = function(**values)
    if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    if names & LISTS.keys() and isinstance(result, list | tuple) and len(result) == 1:
        return result[0]
    return result


async def _awaited(result: Any) -> Any:
    return await result


def _in_lists(values: Mapping[str, Any], problem: Problem, text: str) -> dict[str, Any]:
    """Arguments as TRL gives them: lists of one; a conversation has lists of messages."""
    lists: dict[str, Any] = {name: [value] for name, value in values.items()}
    if problem.messages:
        message = [{"role": "assistant", "content": text}]
        return {**lists, "completions": [message], "prompts": [values["messages"]]}
    return {**lists, "completions": [text], "prompts": [problem.question]}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def to_grade(result: Any) -> Grade | None:
    """A grade from a function's result; None if it is neither a bool, a share nor a `Grade`.

    >>> to_grade(0.5), to_grade("yes")
    (Grade(strict=0.5, flexible=0.5, format=None), None)
    """
    if isinstance(result, Mapping) and "score" in result:  # verl's
        result = result["score"]
    if isinstance(result, Grade):
        strict, flexible = share(result.strict), share(result.flexible)
        right = strict is not None and flexible is not None
        right = right and result.format in (True, False, None)
        return Grade(strict, flexible, result.format) if right else None  # type: ignore[arg-type]
    value = share(result)
    return None if value is None else Grade(value, value)


def share(value: Any) -> float | None:
    """A finite number in [0, 1], of Python, numpy or torch; else None.

    >>> share(0.1 + 0.2 + 0.7 + 1e-16), share(1.01)
    (1.0, None)
    """
    if not isinstance(value, Real | Decimal) and hasattr(value, "item"):
        try:
            value = value.item()  # of one element, else it raises
        except (ValueError, TypeError, RuntimeError):
            return None
    if not isinstance(value, Real | Decimal) or not math.isfinite(value):
        return None
    number = float(value)
    return min(1.0, max(0.0, number)) if -ROUNDING <= number <= 1 + ROUNDING else None
