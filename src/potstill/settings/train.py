"""The table of training: length, sampling, optimizer, adapters, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from potstill.algorithms.schedules import Schedule, schedule
from potstill.errors import PotstillError, did_you_mean
from potstill.fields import brief
from potstill.settings.base import (
    COLD,
    HOT,
    MOST_PROMPTS,
    MOST_RANK,
    MOST_STEPS,
    MOST_TOKENS,
    SLOWEST,
    Modules,
    Norm,
    Table,
)
from potstill.types import Truncation

NAMED = ("constant", "linear", "cosine")  # from the learning rate to its `min_rate`
FASTEST = 1e3  # a schedule's largest multiple of the learning rate
MOST_EPOCHS = 1e6


def _schedule(value: Any) -> Any:
    """A name, or a table of multiples of the learning rate."""
    rule = f"schedule is {', '.join(NAMED)} or a table"
    if isinstance(value, str):
        if value not in NAMED:
            hint = did_you_mean(value, NAMED, "schedules")
            raise PotstillError(f"{rule}, got {brief(value)}", hint)
        return value
    table = "{ linear = [1, 0.1], until = 0.5 }"
    if not isinstance(value, Mapping):
        hint = f'write "cosine", or multiples of the learning rate such as {table}'
        raise PotstillError(f"{rule}, got {brief(value)}", hint)
    low, high = schedule(value).range
    if low < 0 or not 0 < high <= FASTEST:
        raise PotstillError(
            f"schedule has multiples of the learning rate from 0 to {FASTEST:g}, not all of them "
            f"0, got {brief(dict(value))}",
            f"1 is the learning rate itself: {table}",
        )
    return dict(value)


def _warmup(value: float) -> float:
    """Whole steps, or a share of the run."""
    if value >= 1 and value != int(value):
        raise PotstillError(
            f"warmup is a number of steps or, below 1, a share of the run, got {value:g}",
            "write whole steps such as 5, or a share such as 0.03",
        )
    return value if 0 < value < 1 else int(value)


def _betas(value: Any) -> Any:
    numbers = isinstance(value, list | tuple) and len(value) == 2
    if not numbers or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in value):
        raise PotstillError(
            f"betas are two numbers from 0 to below 1, got {brief(value)}",
            "leave it out for the default, [0.9, 0.95]",
        )
    return value


Betas = Annotated[tuple[float, float], BeforeValidator(_betas)]
Warmup = Annotated[int | float, Field(ge=0, le=MOST_STEPS), AfterValidator(_warmup)]
TopK = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, lt=1)]


class Adam(Table):
    """AdamW of the student."""

    betas: Betas = (0.9, 0.95)  # decay of the means of the gradient and of its square
    weight_decay: float = Field(0.0, ge=0, le=1e3)  # decoupled; none of biases and norms


class Train(Table):
    """Length, sampling, optimizer and checkpoints of the training of one run."""

    steps: int = Field(100, ge=1, le=MOST_STEPS)  # times a recipe's budget: optimizer steps
    epochs: float | None = Field(None, gt=0, le=MOST_EPOCHS)  # passes over the problems, for steps
    batch_size: int = Field(32, ge=1, le=MOST_PROMPTS)  # prompts per step
    max_tokens: int = Field(32, ge=1, le=MOST_TOKENS)  # per completion, prefix included
    learning_rate: float | None = Field(None, ge=SLOWEST)  # unset: the embedded pairs' own
    on_policy_rate: float = Field(1.0, ge=1e-6, le=1e6)  # multiple of it on the student's own text
    warmup: Warmup = 5  # steps of linear warm-up; below 1: a share of the run
    schedule: Annotated[str | dict[str, Any], BeforeValidator(_schedule)] = "constant"
    min_rate: float = Field(0.0, ge=0, lt=1)  # share of the learning rate at its schedule's end
    betas: Betas = (0.9, 0.95)  # of AdamW
    weight_decay: float = Field(0.0, ge=0, le=1e3)  # of AdamW; biases and norms have none
    temperature: float = Field(1.0, ge=COLD, le=HOT)  # the student's sampling temperature
    top_k: TopK = 0  # likeliest tokens that it draws from; 0: all
    top_p: TopP = 1.0  # fewest likeliest tokens with this probability
    min_p: MinP = 0.0  # least share of the likeliest token's probability
    max_prompt_tokens: int = Field(0, ge=0, le=MOST_TOKENS)  # longer prompts are left out; 0: off
    teacher_temperature: float = Field(1.0, ge=COLD, le=HOT)  # the teacher's, where it writes
    teacher_top_k: TopK = 0
    teacher_top_p: TopP = 1.0
    teacher_min_p: MinP = 0.0
    lora_rank: int = Field(0, ge=0, le=MOST_RANK)  # 0 trains all weights
    lora_alpha: int = Field(0, ge=0, le=10**6)  # scale is alpha / rank; 0: twice the rank
    lora_dropout: float = Field(0.0, ge=0, lt=1)  # share of an adapter's inputs that a step drops
    lora_target: Modules = "all-linear"  # modules with adapters, by name
    max_grad_norm: Norm = 1.0  # clip to this norm; 0 is off
    checkpoint_every: int = Field(25, ge=1)  # steps between checkpoints
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"  # rollback: to the last good one
    validation: int = Field(0, ge=0, le=MOST_STEPS)  # training problems that are kept out of it
    validate_every: int = Field(25, ge=1)  # steps between validations; the last step has one
    keep: Literal["last", "best"] = "last"  # the student of a run: best by validation
    best_by: Literal["loss", "accuracy"] = "loss"  # what validation chooses by
    save: bool = True  # keep each trained student as a model folder
    save_every: int = Field(0, ge=0)  # keep every n-th step's student too; 0: none
    keep_state: bool = False  # keep a finished run's checkpoint, from which it can go on

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        """Refuse settings that contradict each other, or that do nothing."""
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise PotstillError(
                f"the length of a run is in steps or in epochs, got steps = {self.steps} and "
                f"epochs = {self.epochs:g}",
                "leave one of them out",
            )
        if self.min_rate and self.schedule not in ("linear", "cosine"):
            raise PotstillError(
                f"min_rate ends a linear or cosine schedule, got schedule = {self.schedule!r}",
                'write schedule = "cosine", or leave min_rate out',
            )
        if self.keep == "best" and not self.validation:
            raise PotstillError(
                'keep = "best" chooses by validation problems, got validation = 0',
                "write validation = 100: so many training problems are kept out of training",
            )
        if self.keep == "best" and self.on_collapse == "rollback":
            raise PotstillError(
                'keep = "best" and on_collapse = "rollback" both choose the student of a run',
                'write on_collapse = "stop"',
            )
        return self

    @property
    def truncation(self) -> Truncation:
        """The tokens that the student draws from."""
        return Truncation(self.top_k, self.top_p, self.min_p)

    @property
    def teacher_truncation(self) -> Truncation:
        """The tokens that the teacher draws from."""
        return Truncation(self.teacher_top_k, self.teacher_top_p, self.teacher_min_p)

    @property
    def adam(self) -> Adam:
        """The optimizer's settings."""
        return Adam(betas=self.betas, weight_decay=self.weight_decay)

    def settled(self, problems: int) -> Train:
        """The same training with `epochs` written as `steps`.

        Args:
            problems: number of problems in the training set.
        """
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * problems / self.batch_size - 1e-9)
        if steps > MOST_STEPS:
            raise PotstillError(
                f"a run has at most {MOST_STEPS:,} steps, {self.epochs:g} epochs of {problems:,} "
                f"problems are {steps:,}",
                "lower train.epochs, or raise train.batch_size",
            )
        return self.model_copy(update={"steps": max(1, steps), "epochs": None})

    def rate(self, step: int, student: float, total: int) -> float:
        """Learning rate of a step.

        Args:
            step: its index, from 0.
            student: the share of student completions in it.
            total: steps of the run.
        """
        if self.learning_rate is None:
            raise PotstillError("train.learning_rate is not set", "write Train(learning_rate=1e-4)")
        blend = (1 - student) + student * self.on_policy_rate
        warmup = math.ceil(self.warmup * total - 1e-9) if self.warmup < 1 else self.warmup
        warm = min(1.0, (step + 1) / (warmup + 1))
        return self.learning_rate * blend * warm * self._multiple(step, int(warmup), total)

    def _multiple(self, step: int, warmup: int, total: int) -> float:
        """Multiple of the learning rate that the schedule sets after the warm-up."""
        if isinstance(self.schedule, dict):
            return schedule(self.schedule)(step / total)
        if self.schedule == "constant":
            return 1.0
        left = max(0, step - warmup) / max(1, total - warmup)
        return Schedule(self.schedule, 1.0, self.min_rate)(left)
