"""A method as a value: who writes the tokens, from where, what each token is told, what holds it
back.

A recipe is checked when it is made, long before a model loads. Nothing here runs: `rollout`
reads the sources, `objective` the losses, `loop` the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
    loss,
    loss_to_toml,
)
from potstill.algorithms.schedules import Schedule, constant, schedule
from potstill.errors import PotstillError, did_you_mean
from potstill.types import Loss

ALWAYS, NEVER = constant(1.0), constant(0.0)


@dataclass(frozen=True)
class Replay:
    """A bounded buffer between sampling and training.

    A batch is drawn from the buffer with weight 1 + step_added / step, so that recent work is
    likelier. The fresh trajectories enter first.
    """

    capacity: int = 50  # steps' worth of trajectories: capacity * batch_size entries

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise PotstillError(
                f"replay keeps at least one step, got capacity {self.capacity}",
                "leave replay out to train on fresh trajectories only",
            )


@dataclass(frozen=True)
class Recipe:
    """One method. The defaults are on-policy distillation with the exact reverse KL.

    Args:
        name: how tables and folders call it.
        on_policy: share of each step's prompts that the student answers, in [0, 1].
        prefix: leading completion tokens that the teacher writes for the student.
        student_loss: loss on the student's tokens.
        teacher_loss: loss on the teacher's tokens.
        anchor: weight of KL(p, p0), the pull towards the student of step 0.
        anchor_loss: how it is worked out: "reverse_kl" over whole rows, or "reverse_kl_sampled"
            from the tokens' own log-probabilities, where an engine has no rows.
        replay: train on draws from a buffer instead of the fresh batch.
        reject_wrong: leave out teacher texts that the task's strict grader finds wrong.
        clip_advantage: cut the advantages of `reverse_kl_sampled` to this, in nats; 0 is off.
        kl_cap: most nats of one token's divergence; what is above is not trained. 0 is off.
        prefix_over: what the prefix's schedule runs over: "time", or "success", the running share
            of the student's texts that are right, so that the seed shrinks as the student learns.
        interleave: the student writes, and the teacher puts a token of its own wherever the
            student's is not among its so many likeliest; 0 is off.
        budget: multiple of the study's steps.
        hypothesis: what the method bets on, in a sentence.
        rule: the method in symbols.
        source: where it comes from.

    >>> Recipe(name="seed_long", prefix=40).prefix(0.3)
    40.0
    """

    name: str
    on_policy: Schedule = ALWAYS
    prefix: Schedule = NEVER
    student_loss: Loss = REVERSE_KL
    teacher_loss: Loss = CROSS_ENTROPY
    anchor: float = 0.0
    anchor_loss: Loss = REVERSE_KL
    replay: Replay | None = None
    reject_wrong: bool = False
    clip_advantage: float = 0.0
    kl_cap: float = 0.0
    prefix_over: Literal["time", "success"] = "time"
    interleave: int = 0
    budget: float = 1.0
    hypothesis: str = field(default="", compare=False)
    rule: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key, read in (
            ("on_policy", schedule),
            ("prefix", schedule),
            ("student_loss", loss),
            ("teacher_loss", loss),
            ("anchor_loss", loss),
        ):
            object.__setattr__(self, key, read(getattr(self, key)))
        if isinstance(self.replay, Mapping):
            object.__setattr__(self, "replay", Replay(**self.replay))
        elif not isinstance(self.replay, Replay | None):
            raise PotstillError(
                f'recipe "{self.name}": replay is a table, got {self.replay!r}',
                "write { capacity = 50 }",
            )
        self._check()

    def _check(self) -> None:
        def refuse(rule: str, hint: str = "") -> None:
            raise PotstillError(f'recipe "{self.name}": {rule}', hint)

        if not self.name.isidentifier():
            refuse("a name is letters, digits and underscores", 'for example "seed_long"')
        low, high = self.on_policy.range
        if low < 0 or high > 1:
            refuse(
                f"on_policy is a share in [0, 1], got {self.on_policy}", "0.7 is 70 % of prompts"
            )
        if self.prefix.range[0] < 0:
            refuse(f"prefix counts tokens, got {self.prefix}", "0 is no prefix")
        if self.prefix.range[1] > 0 and high == 0:
            refuse("a prefix needs student prompts, but on_policy is 0", "leave prefix out")
        if not 0 <= self.anchor < float("inf"):
            refuse(f"anchor is a weight >= 0, got {self.anchor}", "0 is off, 0.1 is usual")
        if self.anchor_loss not in (REVERSE_KL, REVERSE_KL_SAMPLED):
            refuse(
                f"an anchor is KL(p, p0), got anchor_loss {self.anchor_loss}",
                'write "reverse_kl", or "reverse_kl_sampled" where an engine has no whole rows',
            )
        if not 0 < self.budget <= 1000:
            refuse(
                f"budget is a multiple of the steps above 0 and up to 1000, got {self.budget}",
                "1 is the study's steps, 2 is twice as many",
            )
        self._check_sources(refuse)
        if self.teacher_loss.needs == "token_scores":
            refuse(
                f"{self.teacher_loss} needs tokens that the student sampled, and the teacher wrote "
                "these",
                'use "cross_entropy" or a whole-row loss as teacher_loss',
            )

    def _check_sources(self, refuse: Callable[..., None]) -> None:
        """Fields about who writes and what is capped: each needs what it is about."""
        needs = {loss.needs for loss in self.losses if loss.to == "teacher"}
        for key in ("clip_advantage", "kl_cap"):
            value = getattr(self, key)
            if isinstance(value, bool) or not 0 <= value < float("inf"):
                refuse(f"{key} is in nats and >= 0, got {value}", "0 is off")
        if self.clip_advantage and "token_scores" not in needs:
            refuse(
                f"clip_advantage is about advantages, and {self.student_loss} has none",
                'write student_loss = "reverse_kl_sampled", or kl_cap for whole rows',
            )
        if self.kl_cap and "full_logprobs" not in needs:
            refuse(
                "kl_cap is about divergences over whole rows, and no loss here is one",
                'write student_loss = "reverse_kl", or clip_advantage for the sampled one',
            )
        if isinstance(self.interleave, bool) or not isinstance(self.interleave, int):
            refuse(f"interleave counts ids, got {self.interleave!r}", "5 lets the 5 likeliest pass")
        if self.interleave < 0:
            refuse(f"interleave counts ids, got {self.interleave}", "0 is off")
        if self.interleave and (
            not self.uses_student or self.student_loss.needs != "full_logprobs"
        ):
            refuse(
                "interleave needs student prompts and a loss over whole rows, as not every token "
                "is the student's",
                'write student_loss = "reverse_kl" or { jsd = 0.5 }',
            )
        if self.reject_wrong not in (True, False):
            refuse(f"reject_wrong is true or false, got {self.reject_wrong!r}")
        if self.reject_wrong and not self.uses_teacher:
            refuse("reject_wrong is about teacher text, but on_policy is 1", "lower on_policy")
        if self.prefix_over not in ("time", "success"):
            refuse(f"prefix_over is time or success, got {self.prefix_over!r}", 'write "success"')
        if self.prefix_over == "success" and self.prefix.kind == "constant":
            refuse(
                "a prefix over success has a schedule to run over, got a constant",
                "write prefix = { linear = [20, 0], until = 0.8 }: none from 80 % right on",
            )

    def total_steps(self, steps: int) -> int:
        """Optimizer steps of one run in a study of so many steps."""
        return max(1, round(steps * self.budget))

    @property
    def uses_student(self) -> bool:
        return self.on_policy.range[1] > 0

    @property
    def uses_teacher(self) -> bool:
        return self.on_policy.range[0] < 1

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Every loss that a run of this recipe computes, the anchor included."""
        used = [self.student_loss] * self.uses_student + [self.teacher_loss] * self.uses_teacher
        return (*used, *(anchor_losses(self)))

    def to_toml(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as `recipe_from_toml` reads them."""
        table: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("name", "hypothesis", "rule", "source") or value == item.default:
                continue
            if isinstance(value, Schedule):
                value = value.to_toml()
            elif isinstance(value, Loss):
                value = loss_to_toml(value)
            elif isinstance(value, Replay):
                value = {"capacity": value.capacity}
            table[item.name] = value
        return table


def anchor_losses(recipe: Recipe) -> tuple[Loss, ...]:
    """The anchor is the reverse KL towards the model of step 0, where its weight is not zero."""
    return (dataclasses.replace(recipe.anchor_loss, to="init"),) if recipe.anchor else ()


def recipe_from_toml(name: str, table: Mapping[str, Any], known: Mapping[str, Recipe]) -> Recipe:
    """Read `[recipe.NAME]`: the fields of a Recipe, on top of the one named by `from`."""
    fields = dict(table)
    base = fields.pop("from", None)
    if base is not None and str(base) not in known:
        raise PotstillError(
            f'recipe "{name}" starts from the unknown method "{base}"',
            did_you_mean(str(base), known, "methods"),
        )
    allowed = {item.name for item in dataclasses.fields(Recipe)} - {"name"}
    for key in fields:
        if key not in allowed:
            raise PotstillError(
                f'unknown key "{key}" in [recipe.{name}]',
                did_you_mean(key, allowed | {"from"}, "keys"),
            )
    start = known[base] if base is not None else Recipe(name=name)
    if base is not None:
        fields.setdefault("hypothesis", f"a variant of {base}")
    try:
        return dataclasses.replace(start, name=name, **fields)
    except PotstillError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # a value of another type
        raise PotstillError(f"[recipe.{name}]: {error}", "see the recipes in the README") from None
