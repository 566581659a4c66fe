"""Types that every package shares: prompts, trajectories, training data, losses, findings.

Frozen values with numpy arrays, so that they can be pickled, saved and compared without torch. The
comment of a field gives its shape: P prompt tokens, T completion tokens, V vocabulary ids. Nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

Role = str  # "student", "init" (the student of step 0), "teacher", or "teacher:NAME" of several
Source = Literal["student", "teacher"]
Origin = Literal["model", "file"]  # of tokens: sampled by the model that is their source, or read
Ids = tuple[int, ...]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float64]  # (T, V) log-probabilities

# Inputs of a loss: tokens, the teacher's log-probability of each, or its full-vocabulary log-probs.
Needs = Literal["tokens", "token_scores", "full_logprobs"]


def teacher_role(name: str) -> Role:
    """The role of a named teacher; the pair's own teacher has no name."""
    return f"teacher:{name}" if name else "teacher"


def is_teacher(role: Role) -> bool:
    """True for the role of any teacher."""
    return role.split(":")[0] == "teacher"


class Written:
    """Tokens with two log-probabilities each, which are equal where the second is not given."""

    logprobs: Floats
    behavior_logprobs: Floats

    def __post_init__(self) -> None:
        if self.behavior_logprobs is None:
            object.__setattr__(self, "behavior_logprobs", self.logprobs)


@dataclass(frozen=True)
class Sample(Written):
    """Completion of one prompt by an engine's sampler."""

    tokens: Ids  # (T,), EOS included if it was sampled
    logprobs: Floats  # (T,) under the weights that sampled them, at temperature 1
    # (T,) under the distribution that they were drawn from; NaN: unknown; default: the same
    behavior_logprobs: Floats = None  # type: ignore[assignment]


def _nothing() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Expectation:
    """A model's expectations at each completion token; empty where the engine has none."""

    logprobs: Floats = field(default_factory=_nothing)  # (T,) of the token itself, in nats
    entropy: Floats = field(default_factory=_nothing)  # (T,) of the whole distribution, in nats
    copy: Floats = field(default_factory=_nothing)  # (T,) probability of the token just read
    end: Floats = field(default_factory=_nothing)  # (T,) probability of EOS
    rank: Floats = field(default_factory=_nothing)  # (T,) ids that are likelier than the token


@dataclass(frozen=True)
class Prompt:
    """A problem as each model reads it, up to the next token to sample or score.

    Args:
        student: (P,) ids for the student and the student of step 0.
        teacher: (Q,) ids for the teacher; with a privileged context, more than the student's.
        problem: id of the problem; "" if the prompt belongs to no problem of the task.
        route: name of the teacher of this problem; "": the pair's own.
        begun: completion tokens so far; every model reads them after its prompt.
        foreign: (R,) the teacher's prompt in the teacher's vocabulary, if that is different.
    """

    student: Ids
    teacher: Ids
    problem: str = ""
    route: str = ""
    begun: Ids = ()
    foreign: Ids | None = None

    @classmethod
    def of(cls, ids: Ids) -> Prompt:
        """A prompt with the same ids for every model.

        >>> Prompt.of((5, 6)).then((7,)).read_by("teacher")
        (5, 6, 7)
        """
        return cls(ids, ids)

    def then(self, tokens: Ids) -> Prompt:
        """The prompt followed by further completion tokens."""
        return replace(self, begun=self.begun + tokens) if tokens else self

    def read_by(self, role: Role) -> Ids:
        """Ids for a model, in the student's vocabulary."""
        return (self.teacher if is_teacher(role) else self.student) + self.begun

    def reader(self, role: Role) -> Role:
        """The model that has a role for this problem; with several teachers, the problem's own."""
        return teacher_role(self.route) if role == "teacher" else role


Reading = tuple[Prompt, Ids]  # a prompt and the completion (T,) after it


@dataclass(frozen=True, eq=False)
class Trajectory(Written):
    """A completion with its prompt, its source and the version of the weights."""

    prompt: Prompt
    completion: Ids  # (T,) the teacher's prefix included
    logprobs: Floats  # (T,) the sampler's, at temperature 1; replay keeps them unchanged
    source: Source  # the model that sampled the tokens after the prefix
    prefix: int = 0  # leading tokens sampled by the teacher: context, never trained
    version: int = 0  # optimizer steps of the weights that sampled it
    behavior_logprobs: Floats = None  # type: ignore[assignment]  # (T,) see `Sample`
    origin: Origin = "model"  # of the tokens after the prefix; from a file, logprobs are NaN

    @property
    def problem(self) -> str:
        """Id of the problem."""
        return self.prompt.problem

    @property
    def trained(self) -> int:
        """Number of completion tokens with a loss."""
        return len(self.completion) - self.prefix


@dataclass(frozen=True)
class ModelSpec:
    """Placement and precision of one model of a pair."""

    device: str = "auto"  # "cpu", "cuda:1", ...; auto: the first GPU, else the CPU
    device_map: str | None = None  # accelerate's placement over several devices, e.g. "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU
    attention: str = "auto"  # transformers' attn_implementation; auto: transformers' own choice
    trust_remote_code: bool = False  # run code from the model's repository
    template: Mapping[str, Any] = field(default_factory=dict)  # arguments of the chat template
    date: str = "2024-07-26"  # of templates that write today's, as YYYY-MM-DD

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the study file's parser


@dataclass(frozen=True)
class Loss(ABC):
    """A per-token loss; the classes are in `potstill.algorithms.losses`.

    Args:
        to: the model that the student is pulled towards.
        cap: nats; the part of a token's divergence above it is constant, and so is not trained; the
            advantage of `reverse_kl_sampled` is cut to it either way.
    """

    to: Role = field(default="teacher", kw_only=True)
    cap: float | None = field(default=None, kw_only=True)

    needs: ClassVar[Needs]

    @property
    @abstractmethod
    def name(self) -> str:
        """The key in `potstill.algorithms.losses.LOSSES`."""

    @property
    def settings(self) -> dict[str, float]:
        """The loss's own numbers, in the order of a study file."""
        own = (i.name for i in fields(self) if i.name not in ("to", "cap", "clip_ratio"))
        return {name: getattr(self, name) for name in own}

    def with_settings(self, **settings: Any) -> Self:
        """The loss with other numbers of its own."""
        return replace(self, **settings)

    def __str__(self) -> str:
        numbers = [*self.settings.values()]
        return f"{self.name}({numbers[0]})" if numbers else self.name


@dataclass(frozen=True, eq=False)
class Term:
    """A weighted component of the loss: sum over t of weights[t] * loss[t]."""

    loss: Loss
    weights: Floats  # (T,), already normalised over the whole batch


@dataclass(frozen=True, eq=False)
class TokenMatch:
    """Matches of a datum's tokens with those of a teacher's own tokenizer."""

    positions: npt.NDArray[np.int64]  # (T,) index of the equal teacher token; -1: no match
    shared: npt.NDArray[np.int64]  # (K, 2) student and teacher ids of the tokens in both
    spans: npt.NDArray[np.int64]  # (T,) number of the token's span; -1: the span is not aligned


@dataclass(frozen=True, eq=False)
class Datum(Written):
    """One sequence of an optimizer step.

    The model reads prompt + completion. The position *before* completion token t predicts
    targets[t]: this defines the shift for every engine.
    """

    prompt: Prompt  # never empty: the forward pass always includes it
    completion: Ids  # (T,)
    targets: Ids  # (T,) the completion, unless a fault changes it
    terms: tuple[Term, ...]
    source: Source
    logprobs: Floats  # (T,) the sampler's, at temperature 1
    teacher_logprobs: Floats | None = None  # (T,) if a loss needs the teacher's token scores
    views: Mapping[Role, Reading] = field(default_factory=dict)  # see `reading`
    match: TokenMatch | None = None  # set when the teacher has a tokenizer of its own
    behavior_logprobs: Floats = None  # type: ignore[assignment]  # (T,) see `Sample`
    fresh: bool = False  # true if the sampler's weights are those before the step
    origin: Origin = "model"  # as of the `Trajectory`

    def reading(self, role: Role) -> Reading:
        """Prompt and completion for a model: its view if it has one, else the datum's."""
        key = "teacher" if is_teacher(role) else role
        return self.views.get(key, (self.prompt, self.completion))

    def read_by(self, role: Role) -> tuple[Ids, Ids]:
        """Ids of the prompt and the completion for a model."""
        prompt, completion = self.reading(role)
        return prompt.read_by(role), completion


@dataclass(frozen=True)
class StepStats:
    """Report of one optimizer step; `losses` are means per token, in nats."""

    loss: float  # the quantity that was minimised: the weighted sum of all parts
    grad_norm: float  # before clipping
    losses: dict[str, float] = field(default_factory=dict)  # "student", "teacher", "anchor"
    clipped: float | None = None  # share of importance ratios; None: no loss with a limit
    optimizer: float = field(default=0.0, compare=False)  # seconds after the gradients
    # (N,) the weighted sum of each datum's terms, by `measure`; None: unknown to the engine
    by_datum: npt.NDArray[np.float64] | None = field(default=None, compare=False)


# Kinds of completion tokens in training: their sum is the budget at which methods are compared.
KINDS = ("student_sampled", "teacher_sampled", "student_scored", "teacher_scored", "trained")

# Activities of a run by wall time; "other" is the rest: Python, disk, waiting.
ACTIVITIES = (
    *("student sampling", "teacher sampling", "scoring", "forward and backward"),
    *("optimizer", "evaluation", "diagnosis", "other"),
)


@dataclass(frozen=True)
class Truncation:
    """Tokens that a sampler may draw from, after the temperature; the others have probability 0.

    They are applied in this order, each to what the one before has left. Ties as in transformers:
    top_k keeps all tokens that are as likely as the k-th, top_p and min_p at least one token.
    """

    top_k: int = 0  # so many likeliest tokens; 0: all
    top_p: float = 1.0  # the fewest likeliest tokens with at least this probability in total
    min_p: float = 0.0  # those with at least this share of the likeliest token's probability


WHOLE = Truncation()  # none


@dataclass(frozen=True)
class Limits:
    """Limits and temperatures of sampling."""

    max_tokens: int  # per completion, prefix included
    temperature: float  # the student's
    teacher_temperature: float
    truncation: Truncation = WHOLE  # the student's
    teacher_truncation: Truncation = WHOLE

    def sampler(self, role: Role) -> tuple[float, Truncation]:
        """Temperature and truncation of a model's sampler."""
        if role == "student":
            return self.temperature, self.truncation
        return self.teacher_temperature, self.teacher_truncation


@dataclass(frozen=True)
class Finding:
    """A problem of a run, with its cause, evidence and remedy.

    A collapse is a student that lost its skill, a deviation a step that trains something other than
    the recipe. A note is about a sound run: a setting that is worth a change.
    """

    kind: Literal["collapse", "deviation", "note"]
    cause: str  # a fault, or one of `diagnostics.diagnosis.OTHERS`
    step: int  # the first step with it
    found: int  # the step after which it was established
    evidence: str
    advice: str
