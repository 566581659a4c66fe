"""Four kinds of losses, by the numbers that their values are computed from.

An engine computes a kind and knows no single loss; a loss is a frozen class of one kind. `p` is the
student and `q` the model that it is pulled towards: the teacher, or the student of step 0. All
inputs are log-probabilities in nats, values are nats per token of shape (...). Gradients flow
through `p` alone, because `q` comes without a graph. Masks, weights and reduction belong to the
objective. Only methods of tensors are used, so that losses are listed without importing torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from potstill.errors import PotstillError
from potstill.types import Loss, Needs

if TYPE_CHECKING:
    from torch import Tensor


class TokenLoss(Loss):
    """A loss of the written tokens alone."""

    needs: ClassVar[Needs] = "tokens"

    @abstractmethod
    def value(self, logp: Tensor, target: Tensor) -> Tensor:
        """Values (...) of the student's log-probabilities (..., V) at the ids (...)."""


@dataclass(frozen=True)
class SampledLoss(Loss):
    """A loss of each sampled token's log-probability under the student, q and their sampler.

    Args:
        clip_ratio: limit from above of the importance ratio between the student and its older self
            that wrote a token.
    """

    clip_ratio: float | None = field(default=None, kw_only=True)

    needs: ClassVar[Needs] = "token_scores"

    @abstractmethod
    def value(
        self, logp_y: Tensor, sampler_y: Tensor, logq_y: Tensor, then_y: Tensor | None = None
    ) -> Tensor:
        """Values (...) of the token's log-probabilities (...).

        Args:
            logp_y: the student's.
            sampler_y: of the distribution that the token was drawn from.
            logq_y: of the model that the student is pulled towards.
            then_y: of the model that wrote it, at temperature 1; default: `sampler_y`.
        """

    def clipped(self, logp_y: Tensor, then_y: Tensor) -> Tensor:
        """Where (...) `clip_ratio` limits the ratio between the student and the token's writer."""
        limit = math.inf if self.clip_ratio is None else math.log(self.clip_ratio)
        return logp_y - then_y > limit


class Divergence(Loss):
    """A distance of two distributions over one vocabulary."""

    needs: ClassVar[Needs] = "full_logprobs"

    @abstractmethod
    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """Values (...) of two models' log-probabilities (..., V)."""


class TwoVocabularies(Loss):
    """A distance of two distributions over different vocabularies that share some tokens."""

    needs: ClassVar[Needs] = "full_logprobs"

    @abstractmethod
    def value(self, logp: Tensor, logq: Tensor, shared: Tensor) -> Tensor:
        """Values (...) of the student's log-probabilities (..., V), the teacher's (..., W).

        Args:
            logp: the student's.
            logq: the teacher's.
            shared: (K, 2) pairs of ids, the student's and the teacher's, of one token each.
        """


def token_logprobs(logp: Tensor, ids: Tensor) -> Tensor:
    """The ids' own (...) of log-probabilities (..., V)."""
    return logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def check_beta(name: str, beta: object) -> float:
    """Return a mixture's share as a float, or raise `PotstillError` where it is not in [0, 1]."""
    number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not number or not 0 <= beta <= 1:  # type: ignore[operator]
        raise PotstillError(f"{name} has a beta in [0, 1], got {beta}", f"write {{ {name} = 0.5 }}")
    return float(beta)  # type: ignore[arg-type]


def check_k(name: str, k: object) -> int:
    """Return a count of ids, or raise `PotstillError` where it is not a whole number above 0."""
    if isinstance(k, bool) or not isinstance(k, int | float) or k < 1 or k % 1:
        raise PotstillError(f"{name} keeps at least one id, got {k}", f"write {{ {name} = 64 }}")
    return int(k)
