"""Losses of single tokens: cross-entropy, and the reverse KL from samples.

They need no more than log-probabilities of the written tokens, so training services have them too.
"""

from __future__ import annotations

import math
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

    def value(
        self, logp_y: Tensor, sampler_y: Tensor, logq_y: Tensor, then_y: Tensor | None = None
    ) -> Tensor:
        """-r A in nats, with r = p(y) / s(y), A = log q(y) - log p(y), no gradient through A.

        In expectation over s, value and gradient are those of KL(p, q) of the next token, whatever
        s is: p itself, p at another temperature, or what wrote a replayed token. (The gradient of A
        would add E_p[grad log p] = 0.) With `to="init"`, the anchor, q is the student of step 0.

        r is the product of p(y) / p_then(y), which grows as the student moves on from the weights
        p_then that wrote the token, and p_then(y) / s(y), which does not. `clip_ratio` limits the
        first from above, as truncated importance sampling does: the token keeps its gradient, with
        the limit as its weight. `cap` limits A either way.

        Source: on-policy distillation as in tinker-cookbook; the ratio as in PPO, truncated as in
        Espeholt et al. 2018 (IMPALA, arXiv 1802.01561), eq. 1.

        Args:
            logp_y: (...) log p(y), the student's.
            sampler_y: (...) log s(y), of the distribution that the token was drawn from.
            logq_y: (...) log q(y), or log p0(y).
            then_y: (...) log p_then(y), at temperature 1; default: `sampler_y`.

        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.25]).log()
        >>> round(ReverseKLSampled().value(p, p, q).item(), 4)
        0.6931
        """
        now, then = logp_y.detach(), sampler_y if then_y is None else then_y
        moved, advantage = now - then, logq_y - now
        if self.clip_ratio is not None:
            moved = moved.clamp_max(math.log(self.clip_ratio))
        if self.cap is not None:
            advantage = advantage.clamp(-self.cap, self.cap)
        weight = (moved + (then - sampler_y)).exp() * advantage
        return -weight.detach() * (logp_y - now).exp()


def over_spans(logx_y: Tensor, now_y: Tensor, spans: Tensor) -> Tensor:
    """Log-probabilities under which each token's distance to the student is that of its span.

    A span is one action of a student whose teacher has another tokenizer, so its tokens share the
    sum of their advantages, and the product of their importance ratios.

    Args:
        logx_y: (N,) log x(y) of any model.
        now_y: (N,) log p(y), the student's.
        spans: (N,) number of each token's span from 0 on; -1: none, with the distance 0.

    Returns:
        (N,) log p(y_i) + the sum over the tokens j of i's span of log x(y_j) - log p(y_j).

    >>> import torch
    >>> x, p = torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([-3.0, -3.0, -3.0])
    >>> over_spans(x, p, torch.tensor([0, 0, -1])).tolist()
    [0.0, 0.0, -3.0]
    """
    inside, out = spans >= 0, now_y.clone()
    ids, gaps = spans[inside], (logx_y - now_y)[inside]
    sums = now_y.new_zeros(len(spans)).index_add(0, ids, gaps)
    out[inside] += sums[ids]
    return out
