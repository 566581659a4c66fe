"""Losses of single tokens: cross-entropy, and the reverse KL from samples.

They need no more than log-probabilities of the written tokens, so training services have them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from potstill.algorithms.losses.kinds import SampledLoss, TokenLoss, token_logprobs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CrossEntropy(TokenLoss):
    """Imitation of the written tokens."""

    name = "cross_entropy"

    def value(self, logp: Tensor, target: Tensor) -> Tensor:
        """-log p(y), in nats.

        Args:
            logp: (..., V) the student's log-probabilities.
            target: (...) the ids y.

        >>> import torch
        >>> p = torch.tensor([0.9, 0.1]).log()
        >>> round(CrossEntropy().value(p, torch.tensor(1)).item(), 4)
        2.3026
        """
        return -token_logprobs(logp, target)


@dataclass(frozen=True)
class ReverseKLSampled(SampledLoss):
    """The reverse KL estimated from the log-probabilities of sampled tokens."""

    name = "reverse_kl_sampled"

    def value(self, logp_y: Tensor, sampler_y: Tensor, logq_y: Tensor) -> Tensor:
        """-r A in nats, with r = p(y) / s(y) and no gradient through A.

        Towards the teacher A = log q(y) - log s(y). At r = 1 the gradient is, in expectation over
        the student's own samples, that of the reverse KL of the next token. Towards the student of
        step 0 (`to="init"`, the anchor) A = log p0(y) - log p(y): in expectation over the samples
        of any s, value and gradient are those of KL(p, p0), as the gradient of A is 0 there.

        Source: on-policy distillation as in tinker-cookbook; the importance ratio as in PPO.

        Args:
            logp_y: (...) log p(y), the student's.
            sampler_y: (...) log s(y), of the distribution that the token was drawn from.
            logq_y: (...) log q(y), or log p0(y).

        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.25]).log()
        >>> round(ReverseKLSampled().value(p, p, q).item(), 4)
        0.6931
        """
        ratio = (logp_y - sampler_y.detach()).exp()
        if self.to == "init":
            return ratio * (logp_y - logq_y).detach()
        return -ratio * (logq_y - sampler_y).detach()
