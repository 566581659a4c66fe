"""A method as a value: sampling mixture, teacher prefix, a loss for each source, KL anchor, replay.

A recipe is validated when it is made, long before a model loads. Nothing here runs: `rollout` reads
who writes the tokens, `objective` the losses, `loop` the number of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import PlainValidator, model_validator
from pydantic.dataclasses import dataclass

from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
    loss,
    loss_to_toml,
)
from potstill.algorithms.schedules import Schedule, constant, schedule
from potstill.errors import PotstillError, did_you_mean, together
from potstill.fields import CLOSED, limits, reported
from potstill.types import Loss

ALWAYS, NEVER = constant(1.0), constant(0.0)


def _strict(rule: str, hint: str = "", **bounds: Any) -> Any:
    """Limits of a field that takes values of its own type alone: no text for a number."""
    return limits(rule, hint, strict=True, **bounds)


AnyLoss = Annotated[Loss, PlainValidator(loss)]
AnySchedule = Annotated[Schedule, PlainValidator(schedule)]
Nats = Annotated[float, _strict("in nats and >= 0", "0 is off", ge=0)]
Text = Annotated[str, _strict("text")]
Ratio = Annotated[float, _strict("a ratio >= 0", "0 is off, 2 is usual", ge=0)]

# Truncated importance sampling: verl's rollout_is_threshold and slime's tis-clip are 2, TRL's
# vllm_importance_sampling_cap was 2 and is 3.
CLIP_RATIO = 2.0


@reported("replay")
@dataclass(frozen=True, config=CLOSED)
class Replay:
    """A bounded buffer between sampling and training.

    A batch is drawn from the buffer with weight 1 + step_added / step, so that recent trajectories
    are likelier. The new trajectories enter first.

    Args:
        capacity: size of the buffer in batches: capacity * batch_size trajectories.
    """

    capacity: Annotated[
        int, _strict("at least one step", "leave replay out to train on new samples only", ge=1)
    ] = 50


@reported("recipe", also=("from",))
@dataclass(frozen=True, config=CLOSED)
class Recipe:
    """One method. The defaults are on-policy distillation with the exact reverse KL.

    Args:
        name: its name in tables and folders.
        on_policy: share of each step's prompts that the student answers, in [0, 1].
        prefix: leading completion tokens that the teacher writes for the student.
        student_loss: loss on the student's tokens.
        teacher_loss: loss on the teacher's tokens.
        anchor: weight of KL(p, p0), the pull towards the student of step 0.
        anchor_loss: how the anchor is computed: "reverse_kl" from full-vocabulary log-probs, or
            "reverse_kl_sampled" from those of the tokens, where an engine has no others.
        replay: train on draws from a buffer instead of the new batch.
        from_data: the teacher's tokens are completions that the data have: a study whose training
            problems lack one is refused, and no teacher writes it.
        reject_wrong: leave out teacher completions that the task's strict grader finds wrong.
        clip_ratio: limit of the importance ratio of `reverse_kl_sampled` between the student and
            its older self that wrote a replayed token; 0 is off.
        clip_advantage: clip the advantages of `reverse_kl_sampled` to this, in nats; 0 is off.
        kl_cap: cap of one token's divergence in nats; above it there is no gradient. 0 is off.
        prefix_over: the variable of the prefix's schedule: "time", or "success", the running
            share of the student's completions that are right.
        interleave: the student writes, and the teacher replaces each token that is not among its
            so many likeliest; 0 is off.
        budget: multiple of the study's steps.
        hypothesis: the method's claim, in a sentence.
        rule: the method in symbols.
        source: where it comes from.

    >>> Recipe(name="seed_long", prefix=40).prefix(0.3)
    40.0
    """

    name: Text
    on_policy: AnySchedule = ALWAYS
    prefix: AnySchedule = NEVER
    student_loss: AnyLoss = REVERSE_KL
    teacher_loss: AnyLoss = CROSS_ENTROPY
    anchor: Annotated[float, _strict("a weight >= 0", "0 is off, 0.1 is usual", ge=0)] = 0.0
    anchor_loss: AnyLoss = REVERSE_KL
    replay: Annotated[Replay | None, limits("a table", "write { capacity = 50 }")] = None
    from_data: Annotated[bool, _strict("true or false")] = False
    reject_wrong: Annotated[bool, _strict("true or false")] = False
    clip_ratio: Ratio = CLIP_RATIO
    clip_advantage: Nats = 0.0
    kl_cap: Nats = 0.0
    prefix_over: Annotated[
        Literal["time", "success"], limits("time or success", 'write "success"')
    ] = "time"
    interleave: Annotated[int, _strict("a count of ids", "0 is off, 5 is usual", ge=0)] = 0
    budget: Annotated[
        float,
        _strict(
            "a multiple of the steps above 0 and up to 1000",
            "1 is the study's steps, 2 is twice as many",
            gt=0,
            le=1000,
        ),
    ] = 1.0
    hypothesis: Text = field(default="", compare=False)
    rule: Text = field(default="", compare=False)
    source: Text = field(default="", compare=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        errors = [PotstillError(text, hint) for text, hint in self._conflicts()]
        if errors:
            raise together(errors)
        return self

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """Rules that are broken by fields together, each with a hint."""
        if not self.name.isidentifier():
            yield (
                f'a name is letters, digits and underscores, got "{self.name}"',
                'for example "seed_long"',
            )
        low, high = self.on_policy.range
        if low < 0 or high > 1:
            yield f"on_policy is a share in [0, 1], got {self.on_policy}", "0.7 is 70 % of prompts"
        if self.prefix.range[0] < 0:
            yield f"prefix counts tokens, got {self.prefix}", "0 turns the prefix off"
        if self.prefix.range[1] > 0 and high == 0:
            yield "a prefix needs student prompts, but on_policy is 0", "leave prefix out"
        if self.anchor_loss not in (REVERSE_KL, REVERSE_KL_SAMPLED):
            yield (
                f"an anchor is KL(p, p0), got anchor_loss {self.anchor_loss}",
                'write "reverse_kl", or "reverse_kl_sampled" where an engine has no '
                "full-vocabulary log-probs",
            )
        if self.teacher_loss.needs == "token_scores":
            yield (
                f"{self.teacher_loss} needs tokens that the student sampled, and the teacher wrote "
                "these",
                'use "cross_entropy" or a full-vocabulary loss as teacher_loss',
            )
        yield from self._caps_without_losses()
        yield from self._sources_without_prompts()

    def _caps_without_losses(self) -> Iterator[tuple[str, str]]:
        ratios = any(loss.needs == "token_scores" for loss in (*self.losses, self.anchor_loss))
        if self.clip_ratio != CLIP_RATIO and not ratios:
            yield (
                f"clip_ratio is about importance ratios, and {self.student_loss} has none",
                'write student_loss = "reverse_kl_sampled", or leave clip_ratio out',
            )
        if 0 < self.clip_ratio < 1:
            yield (
                f"clip_ratio limits a ratio that is 1 for new samples, got {self.clip_ratio:g}",
                "0 is off, 2 is usual",
            )
        needs = {loss.needs for loss in self.losses if loss.to == "teacher"}
        if self.clip_advantage and "token_scores" not in needs:
            yield (
                f"clip_advantage is about advantages, and {self.student_loss} has none",
                'write student_loss = "reverse_kl_sampled", or kl_cap for full-vocabulary losses',
            )
        if self.kl_cap and "full_logprobs" not in needs:
            yield (
                "kl_cap is about full-vocabulary divergences, and no loss here is one",
                'write student_loss = "reverse_kl", or clip_advantage for the sampled one',
            )

    def _sources_without_prompts(self) -> Iterator[tuple[str, str]]:
        full = self.student_loss.needs == "full_logprobs"
        if self.interleave and not (self.uses_student and full):
            yield (
                "interleave needs student prompts and a full-vocabulary loss, as not every token "
                "is the student's",
                'write student_loss = "reverse_kl" or { jsd = 0.5 }',
            )
        if self.reject_wrong and not self.uses_teacher:
            yield "reject_wrong is about teacher completions, but on_policy is 1", "lower on_policy"
        if self.from_data and not self.asks_teacher:
            yield "from_data is about teacher tokens, but on_policy is 1", "lower on_policy"
        if self.prefix_over == "success" and self.prefix.kind == "constant":
            yield (
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
    def asks_teacher(self) -> bool:
        """True if tokens of a teacher are trained on, or begin the student's completions."""
        return self.uses_teacher or self.prefix.range[1] > 0

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Every loss that a run of this recipe computes, including the anchor."""
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
    if "name" in fields:
        raise PotstillError(
            f'recipe "{name}": unknown key "name"',
            "it is the name of the table, [recipe.NAME]",
        )
    start = known[str(base)] if base is not None else Recipe(name=name)
    if base is not None:
        fields.setdefault("hypothesis", f"a variant of {base}")
    return dataclasses.replace(start, name=name, **fields)
