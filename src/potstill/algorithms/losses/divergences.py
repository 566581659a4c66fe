"""Divergences of two distributions over one vocabulary, of shape (..., V)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from potstill.algorithms.losses.kinds import Divergence, check_beta, check_k
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from torch import Tensor


NOWHERE = -1e4  # nats: e to this is 0 in every float format, and unlike -inf it has a gradient


def kl(loga: Tensor, logb: Tensor) -> Tensor:
    """KL(a, b) = sum_v a(v) (log a(v) - log b(v)), in nats: (..., V), (..., V) -> (...).

    Where a(v) = 0 there is nothing to add and no gradient, whatever b(v) is; where b(v) = 0 alone
    the divergence is infinite.
    """
    values = _plain_kl(loga, logb)
    if not values.isnan().any():
        return values
    a = loga.exp()  # 0 x inf: rare, and the mask would double the time of every step
    return (a * (loga - logb).masked_fill(a == 0, 0.0)).sum(-1)


def _plain_kl(loga: Tensor, logb: Tensor) -> Tensor:
    return (loga.exp() * (loga - logb)).sum(-1)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(q, p): the student covers every mode of the teacher."""

    name = "forward_kl"

    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """KL(q, p) = sum_v q(v) (log q(v) - log p(v)), in nats.

        >>> import torch
        >>> q = torch.tensor([0.5, 0.5]).log(); p = torch.tensor([0.9, 0.1]).log()
        >>> round(ForwardKL().value(p, q).item(), 4)
        0.5108
        """
        return kl(logq, logp)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(p, q): the student settles on modes that the teacher has."""

    name = "reverse_kl"

    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """KL(p, q) = sum_v p(v) (log p(v) - log q(v)), in nats.

        >>> import torch
        >>> q = torch.tensor([0.5, 0.5]).log(); p = torch.tensor([0.9, 0.1]).log()
        >>> round(ReverseKL().value(p, q).item(), 4)
        0.3681
        """
        return kl(logp, logq)


@dataclass(frozen=True)
class JSD(Divergence):
    """The generalised Jensen-Shannon divergence of GKD.

    Args:
        beta: the teacher's share in the mixture, in [0, 1].
    """

    beta: float

    name = "jsd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_beta(self.name, self.beta))

    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """beta KL(q, m) + (1 - beta) KL(p, m) with m = beta q + (1 - beta) p, in nats.

        beta = 0 and 1 are defined as forward and reverse KL (their limits up to scale). The
        gradient shrinks with beta: a sweep over beta at one learning rate compares step sizes too.

        Source: GKD, arXiv 2306.13649, eq. 1.

        >>> import torch
        >>> q = torch.tensor([0.5, 0.5]).log(); p = torch.tensor([0.9, 0.1]).log()
        >>> round(JSD(0.5).value(p, q).item(), 4)
        0.1017
        """
        beta = self.beta
        if beta == 0:
            return kl(logq, logp)
        if beta == 1:
            return kl(logp, logq)
        values = self._mixed(logp, logq)
        if not values.isnan().any():
            return values
        return self._mixed(logp.clamp_min(NOWHERE), logq.clamp_min(NOWHERE))

    def _mixed(self, logp: Tensor, logq: Tensor) -> Tensor:
        beta = self.beta
        logm = (logq + math.log(beta)).logaddexp(logp + math.log1p(-beta))
        return beta * _plain_kl(logq, logm) + (1 - beta) * _plain_kl(logp, logm)


@dataclass(frozen=True)
class TopK(Divergence):
    """A divergence on the target's likeliest ids and one tail bucket.

    Args:
        base: the divergence; its own `to` and `cap` are not used.
        k: ids that are kept.
    """

    base: Divergence
    k: int

    def __post_init__(self) -> None:
        whole = isinstance(self.base, Divergence) and not isinstance(
            self.base, TopK | TruncatedReverseKL
        )
        if not whole:
            raise PotstillError(
                f"top_k takes a divergence over the whole vocabulary, got {self.base}",
                "write top_k(REVERSE_KL, 64)",
            )
        object.__setattr__(self, "base", replace(self.base, to="teacher", cap=None))
        object.__setattr__(self, "k", check_k(self.name, self.k))

    @property
    def name(self) -> str:
        return f"topk_{self.base.name}"

    @property
    def settings(self) -> dict[str, float]:
        return {"k": self.k, **self.base.settings}

    def with_settings(self, **settings: Any) -> Self:
        k = settings.pop("k")
        return replace(self, base=self.base.with_settings(**settings), k=k)

    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """D(p', q') in nats, where p' and q' hold the k likeliest ids of q and the rest as one.

        With k at least the vocabulary's size it is the divergence itself. The bucket keeps the
        mass: without it the value can go below zero, see `TruncatedReverseKL`.

        >>> import torch
        >>> q = torch.tensor([0.5, 0.3, 0.2]).log(); p = torch.tensor([0.5, 0.2, 0.3]).log()
        >>> abs(round(TopK(ReverseKL(), 1).value(p, q).item(), 4))
        0.0
        """
        if self.k < logq.shape[-1]:
            kept = logq.topk(self.k, dim=-1).indices
            logp, logq = with_tail(logp, kept), with_tail(logq, kept)
        return self.base.value(logp, logq)


@dataclass(frozen=True)
class TruncatedReverseKL(Divergence):
    """The reverse KL cut to the target's likeliest ids: known to be wrong, kept to show how.

    It is not a divergence: it can go below zero, and moving mass off the kept ids lowers it.

    Args:
        k: ids that are kept.
    """

    k: int

    name = "truncated_reverse_kl"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", check_k(self.name, self.k))

    def value(self, logp: Tensor, logq: Tensor) -> Tensor:
        """sum over the k likeliest ids of q of p (log p - log q), in nats.

        >>> import torch
        >>> q = torch.tensor([0.6, 0.4]).log(); p = torch.tensor([0.1, 0.9]).log()
        >>> round(TruncatedReverseKL(1).value(p, q).item(), 4)
        -0.1792
        """
        kept = logq.topk(min(self.k, logq.shape[-1]), dim=-1).indices
        return kl(logp.gather(-1, kept), logq.gather(-1, kept))


def with_tail(logp: Tensor, kept: Tensor) -> Tensor:
    """Reduce rows to the kept ids and one bucket that holds the rest of the mass.

    Args:
        logp: (..., V) log-probabilities.
        kept: (..., K) ids, K < V.

    Returns:
        (..., K + 1) log-probabilities that still sum to one.
    """
    from torch import cat

    return cat((logp.gather(-1, kept), bucket(logp.scatter(-1, kept, float("-inf")))), -1)


def bucket(logp: Tensor) -> Tensor:
    """The log-probability (..., 1) of all ids of rows (..., K) together; -inf if it is 0."""
    rest = logp.logsumexp(-1, keepdim=True)
    if rest.isneginf().any():  # its gradient is not a number
        rest = logp.clamp_min(NOWHERE).logsumexp(-1, keepdim=True)
        rest = rest.masked_fill(rest < NOWHERE / 2, float("-inf"))
    return rest
