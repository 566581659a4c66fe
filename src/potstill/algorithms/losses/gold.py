"""A loss of two models whose vocabularies differ, at positions where both wrote the same token.

Which positions those are is decided by the alignment of the cross-tokenizer engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potstill.algorithms.losses.divergences import JSD, bucket
from potstill.algorithms.losses.kinds import TwoVocabularies, check_beta

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = math.log(1e-30)  # an empty bucket


@dataclass(frozen=True)
class GOLD(TwoVocabularies):
    """The generalised JSD on the tokens that two vocabularies share, `uld` on the others.

    Args:
        beta: as in `JSD`.
    """

    beta: float

    name = "gold"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_beta(self.name, self.beta))

    def value(self, logp: Tensor, logq: Tensor, shared: Tensor) -> Tensor:
        """JSD(p', q') + uld(p'', q''): nats plus a probability.

        p' and q' hold the shared tokens and one tail bucket for all others, so that mass cannot
        drain off the shared tokens unnoticed, as it can in the published loss; p'' and q'' hold the
        others. It takes the next token of the student and of the teacher for one event, which they
        are not: after "1" a teacher that has a token "+8" has no mass on the "+" that the student
        means by it. So it is used only where both wrote the same single token, and is an
        approximation even there.

        Source: GOLD (Hugging Face 2025), both parts with weight 1.

        Args:
            logp: (..., V) the student's log-probabilities.
            logq: (..., W) the teacher's.
            shared: (K, 2) pairs of ids.

        >>> import torch
        >>> p = torch.tensor([0.5, 0.5]).log(); q = torch.tensor([0.2, 0.5, 0.3]).log()
        >>> abs(round(GOLD(0.5).value(p, q, torch.tensor([[0, 1]])).item(), 4))
        0.4
        """
        (kept_p, rest_p), (kept_q, rest_q) = (
            _parted(rows, ids) for rows, ids in ((logp, shared[:, 0]), (logq, shared[:, 1]))
        )
        return JSD(self.beta).value(kept_p, kept_q) + uld(rest_p, rest_q)


def uld(logp: Tensor, logq: Tensor) -> Tensor:
    """sum_k |p_(k) - q_(k)| over probabilities in falling order; the shorter row ends in zeros.

    The least L1 distance of the two rows over all ways to pair their ids: it compares how sure the
    models are, and of nothing in particular. Rows (..., V) and (..., W); a probability, not nats.

    Source: Universal Logit Distillation, arXiv 2402.12030, eq. 6.

    >>> import torch
    >>> p = torch.tensor([0.5, 0.5]).log(); q = torch.tensor([0.3, 0.5, 0.2]).log()
    >>> round(uld(p, q).item(), 4)
    0.4
    """
    size = max(logp.shape[-1], logq.shape[-1])
    p, q = (_padded(x.exp().sort(-1, descending=True).values, size) for x in (logp, logq))
    return (p - q).abs().sum(-1)


def _padded(rows: Tensor, size: int) -> Tensor:
    from torch import cat

    return cat((rows, rows.new_zeros((*rows.shape[:-1], size - rows.shape[-1]))), -1)


def _parted(logp: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the kept ids and a bucket for the others (..., K + 1), and of the others alone."""
    from torch import cat

    others = ids.new_ones(logp.shape[-1]).index_fill(0, ids, 0).nonzero()[:, 0]
    rest = logp[..., others]
    tail = bucket(rest) if len(others) else logp.new_full((*logp.shape[:-1], 1), NOTHING)
    return cat((logp[..., ids], tail), -1), rest
