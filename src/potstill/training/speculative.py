"""Student and teacher write one text together: the teacher puts a token of its own wherever the
student's is not among the teacher's likeliest.

Source: speculative knowledge distillation, arXiv 2410.11325. Theirs goes token by token; here the
student writes on and the teacher looks at all of it at once, which gives the same distribution of
texts: what follows the first replaced token is thrown away and written anew.

The texts are the student's: every token is told the student's loss, whoever wrote it, as in the
source, and has the student's own log-probability. It needs an engine that ranks ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from potstill.engines.protocol import Engine
from potstill.types import Floats, Ids, Limits, Role, Trajectory


def interleave(
    engine: Engine,
    begun: Sequence[Trajectory],
    top: int,
    limits: Limits,
    chance: Callable[[str], np.random.Generator],
) -> list[Trajectory]:
    """Put teacher tokens where the student's are not among the teacher's `top` likeliest.

    Args:
        engine: has both models, and whole rows of the teacher.
        begun: what the student has written, prefix included.
        top: ids that the teacher lets pass.
        limits: lengths and temperatures.
        chance: random numbers by purpose.
    """
    done, open_ = list(begun), list(range(len(begun)))
    sound = [t.prefix for t in begun]  # tokens of each that have been looked at
    replaced: set[int] = set()
    for turn in range(limits.max_tokens):
        looks = engine.inspect("teacher", [(done[i].prompt, done[i].completion) for i in open_])
        found = {i: _first(look.rank, sound[i], top) for i, look in zip(open_, looks, strict=True)}
        open_ = [i for i in open_ if found[i] is not None]
        if not open_:
            break
        for i in open_:
            done[i] = _cut(done[i], found[i] or 0)
        _write(engine, "teacher", done, open_, 1, limits, chance(f"put:{turn}"))
        sound = [len(done[i].completion) if i in open_ else at for i, at in enumerate(sound)]
        _write(engine, "student", done, open_, None, limits, chance(f"on:{turn}"))
        replaced |= set(open_)
    return _own_scores(engine, done, sorted(replaced))


def _first(rank: Floats, start: int, top: int) -> int | None:
    """The first token from `start` on that has `top` or more likelier ones before it."""
    outside = np.flatnonzero(rank[start:] >= top)
    return start + int(outside[0]) if len(outside) else None


def _cut(t: Trajectory, at: int) -> Trajectory:
    return replace(t, completion=t.completion[:at], logprobs=t.logprobs[:at])


def _write(
    engine: Engine,
    role: Role,
    texts: list[Trajectory],
    which: Sequence[int],
    most: int | None,
    limits: Limits,
    rng: np.random.Generator,
) -> None:
    """Let a model go on with some of the texts, where they have room and have not ended."""

    def room(head: Ids) -> int:
        left = 0 if head and head[-1] in engine.eos else limits.max_tokens - len(head)
        return left if most is None else min(left, most)

    samples = engine.sample(
        role,
        [texts[i].prompt.then(texts[i].completion) for i in which],
        [room(texts[i].completion) for i in which],
        limits.temperature if role == "student" else limits.teacher_temperature,
        rng,
    )
    for i, sample in zip(which, samples, strict=True):
        texts[i] = replace(
            texts[i],
            completion=texts[i].completion + sample.tokens,
            logprobs=np.concatenate([texts[i].logprobs, sample.logprobs]),
        )


def _own_scores(engine: Engine, texts: list[Trajectory], which: Sequence[int]) -> list[Trajectory]:
    """Give tokens that the teacher put in the student's log-probabilities; its prefix keeps its."""
    scores = engine.score("student", [(texts[i].prompt, texts[i].completion) for i in which])
    for i, score in zip(which, scores, strict=True):
        known = np.concatenate([texts[i].logprobs[: texts[i].prefix], score[texts[i].prefix :]])
        texts[i] = replace(texts[i], logprobs=known)
    return texts
