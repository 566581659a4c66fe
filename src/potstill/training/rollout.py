"""Who writes each token of a step: the split between student and teacher, the seeded prefix,
replay.

Every random choice comes from (seed, step, purpose), never from a running generator, so that a
resumed run makes the same choices without having stored any. It decides no loss: that is the
objective's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from potstill.algorithms.recipe import Recipe
from potstill.engines.protocol import Engine
from potstill.training.speculative import interleave
from potstill.types import Limits, Problem, Role, Trajectory


def generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """An independent random generator for one purpose of one step."""
    return np.random.default_rng([seed, step, zlib.crc32(purpose.encode())])


def draw(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The step's `count` training problems: shuffled epochs, one after the other."""
    picked = []
    for place in range(step * count, (step + 1) * count):
        epoch, offset = divmod(place, len(problems))
        picked.append(problems[_order(len(problems), seed, epoch)[offset]])
    return picked


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
) -> list[Trajectory]:
    """Have one completion written for each problem.

    The first round(on_policy(t) * B) problems go to the student, who continues from int(prefix(t))
    teacher tokens, the rest to the teacher. Where `success` is given, the prefix runs over it.
    """
    share = round(recipe.on_policy(t) * len(problems))
    prefix = int(recipe.prefix(t if success is None else success))
    seeded = _write(engine, "teacher", problems[:share], [], prefix, step, seed, limits)
    mine = _write(
        engine, "student", problems[:share], seeded, limits.max_tokens, step, seed, limits
    )
    if recipe.interleave and mine:
        chance = partial(generator, seed, step)
        mine = interleave(engine, mine, recipe.interleave, limits, chance)
    its = _write(engine, "teacher", problems[share:], [], limits.max_tokens, step, seed, limits)
    return mine + its


def _write(
    engine: Engine,
    role: Role,
    problems: Sequence[Problem],
    begun: list[Trajectory],
    limit: int,
    step: int,
    seed: int,
    limits: Limits,
) -> list[Trajectory]:
    """Let `role` complete the problems from what is `begun`, up to `limit` tokens in all."""
    if not problems or not limit:
        return []
    heads = [b.completion for b in begun] or [()] * len(problems)
    logprobs = [b.logprobs for b in begun] or [np.zeros(0, np.float32)] * len(problems)
    prompts = [b.prompt for b in begun] or [engine.prompt(problem) for problem in problems]
    samples = engine.sample(
        role,
        [prompt.then(head) for prompt, head in zip(prompts, heads, strict=True)],
        [0 if head and head[-1] in engine.eos else limit - len(head) for head in heads],
        limits.temperature if role == "student" else limits.teacher_temperature,
        generator(seed, step, f"{role}:{len(begun)}:{limit}"),
    )
    return [
        Trajectory(
            prompt=prompt,
            completion=head + sample.tokens,
            logprobs=np.concatenate([scores, sample.logprobs]),
            source="student" if role == "student" else "teacher",
            prefix=len(head),
            version=step,
        )
        for prompt, head, scores, sample in zip(prompts, heads, logprobs, samples, strict=True)
    ]
