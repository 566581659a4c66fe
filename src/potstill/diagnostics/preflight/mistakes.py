"""What well-known mistakes would make of a step's loss, so that a finding gets a name.

Each is computed from logits like the reference, on the same trajectories; none looks at how the
run was wired. The names are those of `potstill.diagnostics.faults`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from potstill.diagnostics.faults.wrappers import twice_rendered
from potstill.diagnostics.preflight.reference import Terms, moments, reference, trained_mask
from potstill.engines.protocol import Engine
from potstill.types import Floats, Prompt, Reading, Role, Rows, Trajectory


def mistakes(
    engine: Engine, written: Sequence[Trajectory], terms: Terms
) -> Iterator[tuple[str, str, Rows]]:
    """Yield fault, words and the mean loss per token that it would give."""

    def straight(t: Trajectory, role: Role) -> Rows:
        return engine.rows(role, t.prompt, t.completion)

    def ahead(t: Trajectory, role: Role) -> Rows:
        return engine.rows(role, *_advanced(t))

    def teacher_ahead(t: Trajectory, role: Role) -> Rows:
        return ahead(t, role) if role == "teacher" else straight(t, role)

    def scores_ahead(t: Trajectory, role: Role) -> Rows:
        rows, y = straight(t, role), (np.arange(len(t.completion)), np.array(t.completion))
        if role == "teacher":
            rows[y] = np.concatenate([rows[y][1:], rows[y][-1:]])
        return rows

    def promptless(t: Trajectory, role: Role) -> Rows:
        rows = straight(t, role)
        if role == "student" and len(t.completion) > 1:
            first, rest = Prompt.of(t.completion[:1]), t.completion[1:]
            rows[1:] = engine.rows("student", first, rest)
        return rows

    def twice(t: Trajectory, role: Role) -> Rows:
        prompt = twice_rendered(engine, t.prompt) if role == "teacher" else t.prompt
        return engine.rows(role, prompt, t.completion)

    def without_first(t: Trajectory) -> Floats:
        return trained_mask(t) * (np.arange(len(t.completion)) > 0)

    def without_eos(t: Trajectory) -> Floats:
        return trained_mask(t) * np.array([y not in engine.eos for y in t.completion])

    for fault, words, view, mask in (
        ("unshifted_targets", "asking position i for token i", ahead, trained_mask),
        ("prompt_dropped", "a forward pass without the prompt", promptless, without_first),
        ("eos_untrained", "leaving EOS out", straight, without_eos),
        ("teacher_shifted", "the teacher's row one position on", teacher_ahead, trained_mask),
        ("teacher_shifted", "the teacher's score of the next token", scores_ahead, trained_mask),
        ("template_mismatch", "the teacher under a doubled template", twice, trained_mask),
    ):
        yield fault, words, reference(engine, written, terms, view, mask)
    if any(t.prefix for t in written):
        for words, view, mask in (
            ("training the prefix", straight, trained_mask),
            ("training the prefix, without the prompt", promptless, without_first),
        ):
            value = reference(engine, written, terms, view, mask) + _push(engine, written)
            yield "prefix_trained", words, value


def _advanced(t: Trajectory) -> Reading:
    return t.prompt.then(t.completion[:1]), t.completion[1:] + t.completion[-1:]


def _push(engine: Engine, written: Sequence[Trajectory]) -> Rows:
    """Sampled reverse KL on prefix tokens whose sampler log-probability is taken for 0."""
    total = np.zeros(2)
    for t in written:
        y = (np.arange(len(t.completion)), np.array(t.completion))
        p, q = (engine.rows(role, t.prompt, t.completion)[y] for role in ("student", "teacher"))
        total -= moments((1 - trained_mask(t)) * np.exp(p) * q)
    return total / sum(t.trained for t in written)
