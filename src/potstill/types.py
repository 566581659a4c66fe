"""The nouns that every part of potstill shares: problems, trajectories, training data.

Plain frozen values over numpy arrays, so that they pickle, save and compare without torch.
Shapes stand beside each field: P prompt tokens, T completion tokens. Log-probabilities are in
nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

Role = str  # "student", "init" (the student of step 0), "teacher", or "teacher:NAME" of several
Source = Literal["student", "teacher"]
Ids = tuple[int, ...]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float64]  # (T, V) log-probabilities


def teacher_role(name: str) -> Role:
    """The role of one teacher among several; the pair's own has no name."""
    return f"teacher:{name}" if name else "teacher"


def is_teacher(role: Role) -> bool:
    """Whether a role is a teacher's, whichever."""
    return role.split(":")[0] == "teacher"


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer."""

    id: str  # unique within the task, e.g. "test-17"
    question: str  # what the models read, before any chat template
    answer: str  # the final answer alone, e.g. "42"
    solution: str = ""  # a worked solution, where the task has one
    extra: Mapping[str, str] = field(default_factory=dict, compare=False)  # the data's other keys

    def text(self, key: str) -> str:
        """What the problem has under "solution", "answer" or a key of its data; else nothing."""
        own = {"solution": self.solution, "answer": self.answer}
        return own[key] if key in own else self.extra.get(key, "")


@dataclass(frozen=True)
class Grade:
    """How a completion was graded: `strict` wants the answer's format, `flexible` its value."""

    strict: bool
    flexible: bool
    # whether there is an answer in the task's format, right or wrong; None where it has none
    format: bool | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Sample:
    """What an engine's sampler returns for one prompt."""

    tokens: Ids  # (T,), EOS included where it was sampled
    logprobs: Floats  # (T,) log-probability of each token under the weights that sampled it


def _nothing() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Outlook:
    """What a model expects where each completion token stands; empty where nothing is known."""

    logprobs: Floats = field(default_factory=_nothing)  # (T,) of the token itself, in nats
    entropy: Floats = field(default_factory=_nothing)  # (T,) of the whole row, in nats
    copy: Floats = field(default_factory=_nothing)  # (T,) probability of the token just read
    end: Floats = field(default_factory=_nothing)  # (T,) probability of EOS
    rank: Floats = field(default_factory=_nothing)  # (T,) ids that are likelier than the token


@dataclass(frozen=True)
class Prompt:
    """A problem as each model reads it, up to the token that is written or scored next.

    Args:
        student: (P,) ids that the student and the student of step 0 read.
        teacher: (Q,) ids that the teacher reads in their place: with a context, more than those.
        problem: id of the problem; empty where the ids are of no problem of the task.
        route: name of the teacher that reads it, of several; empty: the pair's own.
        begun: completion tokens that are written already; every model reads them after its prompt.
        foreign: (R,) the teacher's prompt in its own vocabulary, where that is another one.
    """

    student: Ids
    teacher: Ids
    problem: str = ""
    route: str = ""
    begun: Ids = ()
    foreign: Ids | None = None

    @classmethod
    def of(cls, ids: Ids) -> Prompt:
        """The same ids for every model.

        >>> Prompt.of((5, 6)).then((7,)).read_by("teacher")
        (5, 6, 7)
        """
        return cls(ids, ids)

    def then(self, tokens: Ids) -> Prompt:
        """The prompt with further completion tokens after it."""
        return replace(self, begun=self.begun + tokens) if tokens else self

    def read_by(self, role: Role) -> Ids:
        """Ids that a model reads, in the student's vocabulary."""
        return (self.teacher if is_teacher(role) else self.student) + self.begun

    def reader(self, role: Role) -> Role:
        """The model that a role means for this problem: of several teachers, its own."""
        return teacher_role(self.route) if role == "teacher" else role


Reading = tuple[Prompt, Ids]  # a prompt and the completion (T,) after it


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A completion, who wrote it and with which weights."""

    prompt: Prompt
    completion: Ids  # (T,), the teacher's prefix included
    logprobs: Floats  # (T,) the sampler's; they stay with the trajectory through replay
    source: Source  # who wrote the tokens after the prefix
    prefix: int = 0  # leading completion tokens that the teacher wrote: context, never trained
    version: int = 0  # optimizer steps the writing weights had seen

    @property
    def problem(self) -> str:
        """Id of the problem."""
        return self.prompt.problem

    @property
    def trained(self) -> int:
        """Completion tokens that carry loss."""
        return len(self.completion) - self.prefix


@dataclass(frozen=True)
class ModelSpec:
    """Where one model of a pair lives and how it computes."""

    device: str = "auto"  # "cpu", "cuda:1", ...; auto takes the first GPU, else the CPU
    device_map: str | None = None  # accelerate's placement over several devices, e.g. "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU
    attention: str = "sdpa"  # transformers' attn_implementation
    trust_remote_code: bool = False  # run code that comes with the model

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the study file's parser


@dataclass(frozen=True)
class Loss:
    """A per-token loss as data; its mathematics is in `potstill.algorithms.losses`.

    Args:
        name: one of `potstill.algorithms.losses.LOSSES`.
        beta: the teacher's share in the mixture of `jsd`, in [0, 1].
        top_k: how many ids of the target's row the `topk_*` losses keep beside the tail bucket.
        to: the model that the student is pulled towards.
        cap: nats; a token's divergence above it counts as much, and is not trained; the advantage
            of `reverse_kl_sampled` is cut to it either way.
    """

    name: str
    beta: float | None = None
    top_k: int | None = None
    to: Role = "teacher"
    cap: float | None = None

    def __str__(self) -> str:
        knob = self.beta if self.top_k is None else self.top_k
        return self.name if knob is None else f"{self.name}({knob})"


@dataclass(frozen=True, eq=False)
class Term:
    """One weighted component of the loss: sum over t of weights[t] * loss[t]."""

    loss: Loss
    weights: Floats  # (T,), already normalised over the whole batch


@dataclass(frozen=True, eq=False)
class Beside:
    """How a teacher of another tokenizer stands beside the tokens of a datum."""

    places: npt.NDArray[np.int64]  # (T,) which of its completion's tokens is the same; -1: none
    shared: npt.NDArray[np.int64]  # (K, 2) ids that mean the same in both vocabularies


@dataclass(frozen=True, eq=False)
class Datum:
    """One row of an optimizer step. The model reads prompt + completion; the position *before*
    completion token t is asked for targets[t]: the shift is written here once, for every engine."""

    prompt: Prompt  # never empty: it is always in the forward pass
    completion: Ids  # (T,)
    targets: Ids  # (T,), the completion itself unless a fault says otherwise
    terms: tuple[Term, ...]
    source: Source
    logprobs: Floats  # (T,) the sampler's: denominator of the importance ratio
    teacher_logprobs: Floats | None = None  # (T,) where a loss needs the teacher's token scores
    views: Mapping[Role, Reading] = field(default_factory=dict)  # see `reading`
    beside: Beside | None = None  # where the teacher's view is in tokens of its own

    def reading(self, role: Role) -> Reading:
        """Prompt and completion that a model reads: a view of its own, or the datum's."""
        key = "teacher" if is_teacher(role) else role
        return self.views.get(key, (self.prompt, self.completion))

    def read_by(self, role: Role) -> tuple[Ids, Ids]:
        """The same as ids."""
        prompt, completion = self.reading(role)
        return prompt.read_by(role), completion


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step reports.

    `losses` maps "student", "teacher" and "anchor" to the mean per-token loss of that part (nats);
    `loss` is what was minimised: the weighted sum over all parts.
    """

    loss: float
    grad_norm: float  # before clipping
    losses: dict[str, float] = field(default_factory=dict)
    # seconds of the step after the gradients: a clock, so equal steps may differ in it
    optimizer: float = field(default=0.0, compare=False)


# Completion tokens of a run by kind: what methods are compared at.
KINDS = ("student_sampled", "teacher_sampled", "student_scored", "teacher_scored", "trained")

# Where a run's seconds go; "other" is what is left of the wall clock: Python, disk, waiting.
ACTIVITIES = (
    "student sampling",
    "teacher sampling",
    "scoring",
    "forward and backward",
    "optimizer",
    "evaluation",
    "diagnosis",
    "other",
)


@dataclass(frozen=True)
class Graded:
    """One completion with its grade."""

    problem: Problem
    text: str
    grade: Grade
    tokens: int  # completion tokens, EOS included
    ended: bool  # finished by EOS, not by the limit


@dataclass(frozen=True)
class Evaluation:
    """Graded completions, in the order of the problems."""

    rows: tuple[Graded, ...]

    @property
    def strict(self) -> float:
        return float(np.mean([row.grade.strict for row in self.rows]))

    @property
    def flexible(self) -> float:
        return float(np.mean([row.grade.flexible for row in self.rows]))

    @property
    def format(self) -> float | None:
        """Share of completions with an answer in the task's format; None where it has none."""
        known = [row.grade.format for row in self.rows if row.grade.format is not None]
        return float(np.mean(known)) if known else None

    @property
    def outcomes(self) -> dict[str, str]:
        """Per-problem outcomes as strings of 0 and 1, by extractor."""
        return {
            name: "".join("01"[getattr(row.grade, name)] for row in self.rows)
            for name in ("strict", "flexible")
        }


@dataclass(frozen=True)
class Limits:
    """How completions are sampled."""

    max_tokens: int  # per completion, prefix included
    temperature: float  # the student's
    teacher_temperature: float


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong, with its evidence in numbers."""

    kind: Literal["collapse", "deviation"]
    cause: str
    step: int  # the first step that shows it
    found: int  # the step after which it could be said
    evidence: str
    advice: str


def pad_left(rows: Sequence[Ids], fill: int) -> npt.NDArray[np.int64]:
    """Stack id rows to (B, longest), padded on the left."""
    width = max(map(len, rows), default=0)
    return np.array([(fill,) * (width - len(row)) + row for row in rows], dtype=np.int64)
