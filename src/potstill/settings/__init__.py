"""The tables of a study file: one field, one line, one unit."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from potstill.errors import PotstillError, did_you_mean
from potstill.fields import brief, listed
from potstill.settings.base import (
    COLD,
    HOT,
    MOST_DOLLARS,
    MOST_PROBLEMS,
    MOST_PROMPTS,
    MOST_RANK,
    MOST_ROWS,
    MOST_SAMPLES,
    MOST_SEED,
    MOST_STEPS,
    MOST_TOKENS,
    SLOWEST,
    Modules,
    Norm,
    Table,
)
from potstill.settings.train import Adam, Train
from potstill.types import ModelSpec, Truncation
from potstill.urls import Url

__all__ = [
    "COLD",
    "HOT",
    "MOST_DOLLARS",
    "MOST_PROMPTS",
    "MOST_RANK",
    "MOST_ROWS",
    "MOST_PROBLEMS",
    "MOST_SAMPLES",
    "MOST_SEED",
    "MOST_STEPS",
    "MOST_TOKENS",
    "SLOWEST",
    "Adam",
    "Budget",
    "Eval",
    "FakeSettings",
    "Lora",
    "Modules",
    "Norm",
    "Pair",
    "Price",
    "RaySettings",
    "Table",
    "TinkerSettings",
    "TorchSettings",
    "Train",
    "check_placement",
    "flatten",
]

# Arguments of `apply_chat_template` that are not the template's own.
RESERVED = frozenset(
    {"conversation", "messages", "chat_template", "add_generation_prompt", "tokenizer_kwargs"}
    | {"continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation"}
    | {"max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"}
)


_URL = r"^(https?://[!-~]+)?$"
# Kinds of devices of torch, with a number where there are several.
DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of accelerate
ATTENTION = (
    *("auto", "eager", "sdpa", "flex_attention"),
    *("flash_attention_2", "flash_attention_3", "flash_attention_4"),
)


class Pair(Table):
    """A student and the teacher it learns from, by hub name or local folder."""

    student: str = Field(min_length=1)
    teacher: str = ""  # empty: it learns from the completions that the data have
    context: dict[str, Any] = Field(default_factory=dict)  # read by the teacher alone
    route: str = ""  # key of the data that chooses a problem's teacher
    teachers: dict[str, str] = Field(default_factory=dict)  # further teachers, by that key's value


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(listed)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(listed)]


class Eval(Table):
    """Held-out problems, their completions, and intervals of the evaluations."""

    every: int = Field(25, ge=1)  # steps between evaluations; the last step always has one
    problems: int = Field(500, ge=1)  # held-out problems of the task's test split
    seed: int | None = Field(None, ge=0, le=MOST_SEED)  # draws them; unset: the first ones
    samples: int = Field(1, ge=1, le=MOST_SAMPLES)  # completions of each problem
    temperature: float = Field(0.0, ge=0, le=HOT)  # of these; 0 is greedy
    top_k: int = Field(0, ge=0, le=MOST_TOKENS)  # likeliest tokens to draw from; 0: all
    top_p: float = Field(1.0, gt=0, le=1)  # fewest likeliest tokens with this probability
    min_p: float = Field(0.0, ge=0, lt=1)  # least share of the likeliest token's probability
    pass_at: Counts = ()  # values k of pass@k, at most samples
    max_tokens: int = Field(0, ge=0, le=MOST_TOKENS)  # per evaluated completion; 0: as in training
    probe: int = Field(16, ge=1)  # training problems sampled for score and KL
    probe_every: int = Field(5, ge=1)  # steps between probes
    examples: int = Field(4, ge=0)  # completions kept per evaluation
    lm_eval: Words = ()  # tasks of lm-eval, by name or YAML file, before and after training
    lm_eval_limit: int = Field(0, ge=0, le=MOST_PROBLEMS)  # documents of each; 0: all
    lm_eval_chat_template: bool = False  # true: the student's chat template around their prompts
    drift: str = ""  # a text file on which the student's loss is measured before and after training

    @property
    def truncation(self) -> Truncation:
        """The tokens that evaluated completions are drawn from."""
        return Truncation(self.top_k, self.top_p, self.min_p)

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        """Greedy completions of one prompt are all the same."""
        if 0 < self.temperature < COLD:
            raise PotstillError(
                f"temperature is 0 (greedy) or at least {COLD:g}, got {self.temperature:g}",
                "write 0, or a temperature such as 0.7",
            )
        plain = type(self).model_fields
        names = ("samples", "top_k", "top_p", "min_p")
        drawn = [name for name in names if getattr(self, name) != plain[name].default]
        if self.temperature == 0 and drawn:
            raise PotstillError(
                f"{drawn[0]} = {getattr(self, drawn[0])} draws completions, and "
                "temperature is 0, which is greedy",
                "write temperature = 1.0, or leave both out",
            )
        if self.pass_at and max(self.pass_at) > self.samples:
            raise PotstillError(
                f"pass@k needs k samples of a problem: pass_at has {max(self.pass_at)}, "
                f"samples is {self.samples}",
                f"write samples = {max(self.pass_at)} or more",
            )
        return self


class Lora(Table):
    """LoRA adapters of the student."""

    rank: int = Field(0, ge=0, le=MOST_RANK)  # 0 trains all weights
    alpha: int = Field(0, ge=0, le=10**6)  # scale is alpha / rank; 0: twice the rank
    dropout: float = Field(0.0, ge=0, lt=1)  # share of an adapter's inputs that a step drops
    target: Modules = "all-linear"  # modules with adapters, by name


class TorchSettings(Table):
    """The torch engine: this machine's CPU or GPUs."""

    name: Literal["torch"] = "torch"
    student: ModelSpec = ModelSpec()
    teacher: ModelSpec = ModelSpec()
    batch_tokens: int = Field(16_384, ge=1, le=MOST_ROWS)  # padded tokens per micro-batch: memory
    sample_tokens: int = Field(16_384, ge=1, le=MOST_ROWS)  # the same for sampling: a cache alone
    gradient_checkpointing: bool = False  # recompute activations to save memory
    threads: int = Field(1, ge=0, le=1024)  # CPU threads per run; 0: one per core
    shard_teacher: bool = True  # over the processes of torchrun; false: a whole one in each
    gather_for_sampling: bool = True  # false: sample layer by layer, for what no GPU can hold

    @field_validator("student", "teacher")
    @classmethod
    def _readable(cls, spec: ModelSpec) -> ModelSpec:
        if taken := sorted(RESERVED & set(spec.template)):
            raise ValueError(f"template has the template's own arguments, not {taken[0]}")
        try:
            datetime.date.fromisoformat(spec.date)
        except ValueError:
            raise ValueError(f"date is a day as YYYY-MM-DD, not {spec.date!r}") from None
        if wrong := [key for key in spec.template if not key.isidentifier()]:
            raise ValueError(f"template has names that a template can read, not {brief(wrong[0])}")
        check_placement(spec)
        return spec


def check_placement(spec: ModelSpec) -> None:
    """Raise a `PotstillError` for a device or an attention that no machine has."""
    named: list[tuple[str, str, tuple[str, ...]]] = [("device", spec.device, ("auto",))]
    named += [("device_map", spec.device_map, MAPS)] if spec.device_map is not None else []
    for key, value, words in named:
        kind, colon, number = value.partition(":")
        device = kind in DEVICES and re.fullmatch(r"(:[0-9]{1,3})?", colon + number)
        if not device and value not in words:
            hint = did_you_mean(kind, (*words, *DEVICES), "devices")
            raise PotstillError(f'{key} is a device such as "cuda:1", got "{value}"', hint)
    if "/" in spec.attention and not spec.trust_remote_code:
        raise PotstillError(
            f'attention "{spec.attention}" is a kernel of the Hub, whose code would run',
            "set trust_remote_code = true for this model if you trust it, or leave attention out",
        )
    if "/" not in spec.attention and spec.attention not in ATTENTION:
        raise PotstillError(
            f'attention is an implementation of transformers, got "{spec.attention}"',
            did_you_mean(spec.attention, ATTENTION, "implementations")
            + ', or leave attention out (or write attention = "eager")',
        )


def _is_address(url: Url) -> Url:
    if not re.fullmatch(_URL, url.full):
        raise ValueError("must be a URL with http:// or https://, or empty")
    return url


Address = Annotated[Url, AfterValidator(_is_address)]


class TinkerSettings(Table):
    """The tinker engine: a training service, hosted or your own. The key is TINKER_API_KEY."""

    name: Literal["tinker"]
    base_url: Address = Url("")  # the student's server; empty: the hosted service
    teacher_url: Address = Url("")  # the teacher's, if another; a server has one base model
    in_flight: int = Field(64, ge=1, le=10_000)  # requests that wait for an answer at once


class FakeSettings(Table):
    """The fake engine: a bigram table, for tests."""

    name: Literal["fake"]


class Price(Table):
    """Prices in US dollars of a machine's hours, a service's tokens, or both."""

    hour: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per hour of one run
    prompt: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million tokens of prompts
    student_sampled: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million, evaluations included
    teacher_sampled: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million
    student_scored: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million
    teacher_scored: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million
    trained: float = Field(0.0, ge=0, le=MOST_DOLLARS)  # per million


class Budget(Table):
    """Limits of a whole study; at one it stops between two steps, and can be continued."""

    usd: float | None = Field(None, gt=0)  # at the study's prices
    hours: float | None = Field(None, gt=0)  # summed over its runs
    tokens: float | None = Field(None, gt=0)  # sampled, scored and trained


class RaySettings(Table):
    """Resources of one run on a Ray cluster, see `potstill study --on`."""

    cpus: float = Field(0.0, ge=0, le=10**5)  # cores; 0: as many as engine.threads, at least one
    gpus: float = Field(0.0, ge=0, le=10**5)  # below 1, several runs share one
    memory: float = Field(0.0, ge=0, le=10**6)  # GB reserved; 0: none
    retries: int = Field(3, ge=0, le=1000)  # restarts of a run whose worker or node died
    runtime_env: dict[str, Any] = Field({}, exclude=True)  # Ray's own; never written: it has keys

    @field_validator("cpus", "gpus")
    @classmethod
    def _shared(cls, share: float) -> float:
        if 0 < share < 1e-4:
            raise ValueError("Ray counts in units of 0.0001")
        return share

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("more than one GPU is a whole number of them")
        return gpus


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys.

    >>> flatten({"train": {"steps": 5}, "seed": 0})
    {'train.steps': 5, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
