"""Rollouts: the split of prompts between student and teacher, and the teacher's prefix.

Every random choice comes from (seed, step, purpose), never from a running generator, so that a
resumed run repeats the same choices without stored random state. Losses are left to `objective`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import whole
from potstill.engines.protocol import Engine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Train
from potstill.training.given import given
from potstill.training.speculative import interleave, with_behavior
from potstill.types import Limits, Role, Trajectory

GOLDEN = (5**0.5 - 1) / 2


def generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """An independent random generator for one purpose of one step."""
    return np.random.default_rng([seed, step, zlib.crc32(purpose.encode())])


def draw(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The step's `count` training problems, from consecutive shuffled epochs."""
    drawn = []
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, len(problems))
        drawn.append(problems[_order(len(problems), seed, epoch)[offset]])
    return drawn


def epochs(size: int, count: int, step: int) -> list[int]:
    """The epoch in which each of the step's `count` problems is drawn from `size` problems.

    >>> epochs(5, 4, 1)
    [0, 1, 1, 1]
    """
    return [position // size for position in range(step * count, (step + 1) * count)]


def limits_of(settings: Train, max_tokens: int | None = None) -> Limits:
    """Limits and samplers of training; `max_tokens` may be other ones."""
    return Limits(
        settings.max_tokens if max_tokens is None else max_tokens,
        settings.temperature,
        settings.teacher_temperature,
        settings.truncation,
        settings.teacher_truncation,
    )


def check_prefix(recipe: Recipe, max_tokens: int) -> None:
    """Check that a recipe's prefix leaves the student something to write."""
    longest = whole(recipe.prefix.range[1])
    if longest >= max_tokens:
        raise PotstillError(
            f"max_tokens counts the prefix: {recipe.name} seeds up to {longest} tokens, "
            f"train.max_tokens is {max_tokens}",
            f"raise train.max_tokens above {longest}, or shorten the prefix in a [recipe]",
        )


def student_prompts(share: float, batch: int, step: int, seed: int) -> int:
    """The number of a step's prompts that the student answers: share * batch, on average.

    Where that is not a whole number, the step gets one more than the whole part if its number in
    [0, 1) is below the remainder. These numbers are the multiples of the golden ratio (Weyl), from
    a start that the seed draws: no other sequence fills the interval as evenly, so that the share
    holds over any stretch of steps, and a step's number needs no memory.

    Args:
        share: of the prompts, in [0, 1].
        batch: B, prompts of the step.
        step: index of the step, from 0.
        seed: seed of the run.

    >>> [student_prompts(0.7, 1, step, seed=0) for step in range(10)]
    [1, 1, 1, 0, 1, 1, 0, 1, 0, 1]
    """
    least = whole(share * batch)
    start = generator(seed, 0, "share").random()
    return min(batch, least + ((start + step * GOLDEN) % 1.0 < share * batch - least))


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(size: int, seed: int, epoch: int) -> list[int]:
    key = (size, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = generator(seed, epoch, "order").permutation(size).tolist()
    return _orders[key]


def collect(
    recipe: Recipe,
    engine: Engine,
    problems: Sequence[Problem],
    t: float,
    step: int,
    seed: int,
    limits: Limits,
    success: float | None = None,
    passes: Sequence[int] = (),
) -> list[Trajectory]:
    """Generate one completion of each problem.

    The student completes the first `student_prompts` problems, each after prefix(t) tokens of the
    teacher, rounded down. The teacher completes the others. Where a problem has completions, one of
    them is read instead of asking the teacher, also for a prefix.

    Args:
        recipe: the method.
        engine: generates the completions.
        problems: the step's problems.
        t: progress of the run, in [0, 1).
        step: index of the step, from 0.
        seed: seed of the run.
        limits: lengths and samplers.
        success: argument of the prefix schedule instead of `t`, if the recipe runs it over success.
        passes: the epoch of each problem, which chooses among several completions; default: 0.
    """
    passes = passes or [0] * len(problems)
    count = student_prompts(recipe.on_policy(t), len(problems), step, seed)
    prefix = recipe.prefix.count(t if success is None else success)
    longest = limits.max_tokens
    seeded = _taught(engine, problems[:count], passes[:count], prefix, step, seed, limits)
    student = _complete(engine, "student", problems[:count], seeded, longest, step, seed, limits)
    if recipe.interleave and student:
        random = partial(generator, seed, step)
        student = interleave(engine, student, recipe.interleave, limits, random)
        if any(loss.needs == "token_scores" for loss in recipe.losses):
            student = with_behavior(engine, student, recipe.interleave, limits)
    teacher = _taught(engine, problems[count:], passes[count:], longest, step, seed, limits)
    return student + teacher


def _taught(
    engine: Engine,
    problems: Sequence[Problem],
    passes: Sequence[int],
    limit: int,
    step: int,
    seed: int,
    limits: Limits,
) -> list[Trajectory]:
    """The teacher's tokens: completions that the problems have, and else of the teacher itself."""
    if not limit:
        return []
    without = [problem for problem in problems if not problem.completions]
    sampled = iter(_complete(engine, "teacher", without, [], limit, step, seed, limits))
    return [
        given(engine, problem, limit, step, seed, epoch) if problem.completions else next(sampled)
        for problem, epoch in zip(problems, passes, strict=True)
    ]


def _complete(
    engine: Engine,
    role: Role,
    problems: Sequence[Problem],
    seeded: list[Trajectory],
    limit: int,
    step: int,
    seed: int,
    limits: Limits,
) -> list[Trajectory]:
    """Complete the problems by `role`, up to `limit` tokens including the `seeded` ones."""
    if not problems or not limit:
        return []
    heads = [t.completion for t in seeded] or [()] * len(problems)
    nothing = [np.zeros(0, np.float32)] * len(problems)
    logprobs = [t.logprobs for t in seeded] or nothing
    behavior = [t.behavior_logprobs for t in seeded] or nothing
    prompts = [t.prompt for t in seeded] or [engine.prompt(problem) for problem in problems]
    temperature, truncation = limits.sampler(role)
    samples = engine.sample(
        role,
        [prompt.then(head) for prompt, head in zip(prompts, heads, strict=True)],
        [0 if head and head[-1] in engine.eos else limit - len(head) for head in heads],
        temperature,
        generator(seed, step, f"{role}:{len(seeded)}:{limit}"),
        truncation,
    )
    return [
        Trajectory(
            prompt=prompt,
            completion=head + sample.tokens,
            logprobs=np.concatenate([scores, sample.logprobs]),
            source="student" if role == "student" else "teacher",
            prefix=len(head),
            version=step,
            behavior_logprobs=np.concatenate([drawn, sample.behavior_logprobs]),
        )
        for prompt, head, scores, drawn, sample in zip(
            prompts, heads, logprobs, behavior, samples, strict=True
        )
    ]
