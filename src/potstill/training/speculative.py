"""Speculative knowledge distillation: the teacher replaces each token of the student that is not
among the teacher's likeliest ones.

Source: arXiv 2410.11325, which proceeds token by token. Here the student generates the whole
completion and the teacher ranks all of its tokens at once. The distribution of completions is the
same, because everything after the first replaced token is discarded and generated again.

As in the source, the completions count as the student's: every token gets the student's loss,
whoever generated it, and has the student's log-probability. The engine has to rank ids (`inspect`).
The distribution that tokens are drawn from is then a mix of both models; see `with_behavior`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from potstill.engines.protocol import Engine
from potstill.types import Floats, Ids, Limits, Role, Rows, Trajectory


def interleave(
    engine: Engine,
    drafts: Sequence[Trajectory],
    top: int,
    limits: Limits,
    random: Callable[[str], np.random.Generator],
) -> list[Trajectory]:
    """Replace tokens of the student that are not among the teacher's `top` likeliest.

    Args:
        engine: an engine with full-vocabulary log-probs of the teacher.
        drafts: completions of the student, prefix included.
        top: number of ids that the teacher accepts at each position.
        limits: lengths and samplers.
        random: creates a random generator for a purpose.
    """
    result, pending = list(drafts), list(range(len(drafts)))
    accepted = [t.prefix for t in drafts]  # leading tokens of each that need no further check
    replaced: set[int] = set()
    for turn in range(limits.max_tokens):
        readings = [(result[i].prompt, result[i].completion) for i in pending]
        ranks = [expected.rank for expected in engine.inspect("teacher", readings)]
        rejected = {
            i: _first_rejected(rank, accepted[i], top)
            for i, rank in zip(pending, ranks, strict=True)
        }
        pending = [i for i in pending if rejected[i] is not None]
        if not pending:
            break
        for i in pending:
            result[i] = _truncated(result[i], rejected[i] or 0)
        _continue(engine, "teacher", result, pending, 1, limits, random(f"put:{turn}"))
        for i in pending:
            accepted[i] = len(result[i].completion)
        _continue(engine, "student", result, pending, None, limits, random(f"on:{turn}"))
        replaced |= set(pending)
    return [_unknown(t) for t in _rescored(engine, result, sorted(replaced))]


def _unknown(t: Trajectory) -> Trajectory:
    """No token after the prefix was drawn from one model alone, not even those that were kept."""
    behavior = np.full(len(t.completion), np.nan, np.float32)
    behavior[: t.prefix] = t.behavior_logprobs[: t.prefix]
    return replace(t, behavior_logprobs=behavior)


def with_behavior(
    engine: Engine, rollouts: Sequence[Trajectory], top: int, limits: Limits
) -> list[Trajectory]:
    """Fill in the log-probabilities with which interleaved tokens were drawn.

    A token is the student's if it is among the teacher's likeliest, or else the teacher's own:
    s(y) = p_T(y) [y is kept] + q_T(y) sum_v p_T(v) [v is not kept], each at its temperature. It
    takes the full-vocabulary log-probs of both models, which is slow, so only a loss with an
    importance ratio asks for it.
    """
    result = []
    for t in rollouts:
        p, q = (engine.rows(role, t.prompt, t.completion) for role in ("student", "teacher"))
        kept = q >= np.sort(q)[:, -min(top, q.shape[1]), None]
        p, q = _tempered(p, limits.temperature), _tempered(q, limits.teacher_temperature)
        drawn = p * kept + q * (p * ~kept).sum(1, keepdims=True)
        chosen = np.log(drawn[np.arange(len(drawn)), list(t.completion)])[t.prefix :]
        behavior = np.concatenate([t.behavior_logprobs[: t.prefix], chosen]).astype(np.float32)
        result.append(replace(t, behavior_logprobs=behavior))
    return result


def _tempered(logp: Rows, temperature: float) -> Rows:
    """Probabilities (T, V) at a temperature."""
    scaled = logp / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def _first_rejected(rank: Floats, start: int, top: int) -> int | None:
    """Position of the first token from `start` on whose rank is `top` or more."""
    rejected = np.flatnonzero(rank[start:] >= top)
    return start + int(rejected[0]) if len(rejected) else None


def _truncated(t: Trajectory, length: int) -> Trajectory:
    return replace(
        t,
        completion=t.completion[:length],
        logprobs=t.logprobs[:length],
        behavior_logprobs=t.behavior_logprobs[:length],
    )


def _continue(
    engine: Engine,
    role: Role,
    rollouts: list[Trajectory],
    indices: Sequence[int],
    most: int | None,
    limits: Limits,
    rng: np.random.Generator,
) -> None:
    """Continue the indexed rollouts in place, up to the limit, EOS or `most` tokens."""

    def room(head: Ids) -> int:
        left = 0 if head and head[-1] in engine.eos else limits.max_tokens - len(head)
        return left if most is None else min(left, most)

    temperature, truncation = limits.sampler(role)
    samples = engine.sample(
        role,
        [rollouts[i].prompt.then(rollouts[i].completion) for i in indices],
        [room(rollouts[i].completion) for i in indices],
        temperature,
        rng,
        truncation,
    )
    for i, sample in zip(indices, samples, strict=True):
        rollouts[i] = replace(
            rollouts[i],
            completion=rollouts[i].completion + sample.tokens,
            logprobs=np.concatenate([rollouts[i].logprobs, sample.logprobs]),
            behavior_logprobs=np.concatenate(
                [rollouts[i].behavior_logprobs, sample.behavior_logprobs]
            ),
        )


def _rescored(
    engine: Engine, rollouts: list[Trajectory], indices: Sequence[int]
) -> list[Trajectory]:
    """Replace the log-probabilities after the prefix by the student's."""
    scores = engine.score(
        "student", [(rollouts[i].prompt, rollouts[i].completion) for i in indices]
    )
    for i, score in zip(indices, scores, strict=True):
        t = rollouts[i]
        logprobs = np.concatenate([t.logprobs[: t.prefix], score[t.prefix :]])
        rollouts[i] = replace(t, logprobs=logprobs)
    return rollouts
