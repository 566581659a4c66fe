"""The methods of the published study, each a line of data, and `off_policy`, which its text
names.

To add one, append a Recipe here; the command line, the tests, the README's table and the
report's legend read this tuple.
"""

from __future__ import annotations

from potstill.algorithms.recipe import Recipe, Replay
from potstill.algorithms.schedules import constant, linear, switch

GKD = "GKD, arXiv 2306.13649"
CLIFF = "The Distribution Cliff"

_RECIPES = (
    Recipe(
        name="on_policy_gkd",
        hypothesis="The student learns most from being corrected on its own text.",
        rule="student writes, reverse KL on every token",
        source=GKD,
    ),
    Recipe(
        name="extended_on_policy",
        budget=2.0,
        hypothesis="On-policy training has not converged; twice the steps help.",
        rule="on_policy_gkd for twice the steps",
        source=CLIFF,
    ),
    Recipe(
        name="teacher_seeded",
        prefix=linear(20, 0, until=0.5),
        hypothesis="A few teacher tokens in front bring the student to good states.",
        rule="teacher writes the first k tokens, k from 20 to 0 at half time",
        source=CLIFF,
    ),
    Recipe(
        name="mixture",
        on_policy=constant(0.7),
        hypothesis="A share of teacher completions adds coverage without leaving the policy.",
        rule="70 % student prompts (reverse KL), 30 % teacher prompts (cross-entropy)",
        source=GKD,
    ),
    Recipe(
        name="replay_buffer",
        on_policy=constant(0.8),
        replay=Replay(capacity=50),
        hypothesis="Reusing recent trajectories saves sampling.",
        rule="80 % student prompts, batches drawn from the last 50 steps, recent first",
        source=CLIFF,
    ),
    Recipe(
        name="kl_anchored",
        on_policy=constant(0.0),
        anchor=0.1,
        hypothesis="Imitation is safe when the student stays close to where it started.",
        rule="teacher writes, cross-entropy plus 0.1 KL(p, p0)",
        source=CLIFF,
    ),
    Recipe(
        name="hybrid",
        on_policy=switch(0.0, 1.0, at=0.5),
        hypothesis="Imitate first for a warm start, then learn from one's own text.",
        rule="off-policy, then on-policy from half time",
        source=CLIFF,
    ),
    Recipe(
        name="reverse_curriculum",
        on_policy=switch(1.0, 0.0, at=0.7),
        hypothesis="Explore first, then polish on the teacher's completions.",
        rule="on-policy, then off-policy from 0.7",
        source=CLIFF,
    ),
    Recipe(
        name="off_policy",
        on_policy=constant(0.0),
        hypothesis="Imitating the teacher's completions is enough.",
        rule="teacher writes, cross-entropy on every token",
        source="sequence-level distillation, arXiv 1606.07947",
    ),
)

METHODS: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}

SFT = Recipe(
    name="sft",
    on_policy=constant(0.0),
    from_data=True,
    hypothesis="The completions that the data have are enough.",
    rule="the data's completions, cross-entropy on every token",
    source="supervised fine-tuning: the baseline of distillation",
)

KNOWN: dict[str, Recipe] = {**METHODS, SFT.name: SFT}  # a study names `sft`, or does not have it
