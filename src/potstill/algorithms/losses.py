"""The divergences: a registry of names for engines and recipes, and pure functions for the
tensors.

Each function maps log-probability rows to one value per position, in nats: `p` is the student,
`q` the model it is pulled towards; rows are `(..., V)` and normalised (`log_softmax`), results
`(...)`. Gradients flow through `p` alone, since `q` comes without a graph. Reduction, masks and
weights are the objective's business. Only tensor methods are used, so that names can be listed
without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from potstill.errors import PotstillError, did_you_mean
from potstill.types import Loss

if TYPE_CHECKING:
    from torch import Tensor

Needs = Literal["tokens", "token_scores", "row"]

# What each loss asks of an engine: the tokens alone, the teacher's log-probability of each token,
# or the teacher's whole row.
LOSSES: dict[str, Needs] = {
    "cross_entropy": "tokens",
    "forward_kl": "row",
    "reverse_kl": "row",
    "jsd": "row",
    "reverse_kl_sampled": "token_scores",
    "topk_forward_kl": "row",
    "topk_reverse_kl": "row",
    "topk_jsd": "row",
    "truncated_reverse_kl": "row",
    "gold": "row",
}

# For a teacher of another tokenizer, and for none other.
CROSSING = frozenset({"gold"})
CROSSED = CROSSING | {"cross_entropy", "reverse_kl_sampled"}  # all that works for such a one
GOLD_HINT = (
    'losses for a teacher of another tokenizer: "reverse_kl_sampled" on the spans that both have, '
    '{ gold = 0.5 } on the rows of common tokens; student_loss = "reverse_kl_sampled" at the top '
    "of the study sets it for all methods"
)

# Known to be wrong, kept to show how: no recipe may ask for one.
FAULTY = frozenset({"truncated_reverse_kl"})

ONE_TOKENIZER = "gold compares two vocabularies, and this pair's models share theirs"
NOTHING = math.log(1e-30)  # an empty bucket

CROSS_ENTROPY = Loss("cross_entropy")
FORWARD_KL = Loss("forward_kl")
REVERSE_KL = Loss("reverse_kl")
REVERSE_KL_SAMPLED = Loss("reverse_kl_sampled")


def JSD(beta: float) -> Loss:
    """The generalised Jensen-Shannon divergence of GKD as a recipe's loss."""
    return check_loss(Loss("jsd", beta=beta))


def GOLD(beta: float) -> Loss:
    """The hybrid of two vocabularies' rows as a recipe's loss, see `gold`."""
    return check_loss(Loss("gold", beta=beta))


def top_k(loss: Loss, k: int) -> Loss:
    """The same divergence on the target's `k` likeliest ids and one tail bucket."""
    return check_loss(Loss(f"topk_{loss.name}", beta=loss.beta, top_k=k, to=loss.to))


def check_loss(loss: Loss) -> Loss:
    """Return the loss, or raise `PotstillError` where its name or settings make no sense."""
    if loss.name not in LOSSES:
        raise PotstillError(
            f'unknown loss "{loss.name}"', did_you_mean(loss.name, LOSSES, "losses")
        )
    if loss.name.endswith(("jsd", "gold")) and not (loss.beta is not None and 0 <= loss.beta <= 1):
        raise PotstillError(
            f"{loss.name} has a beta in [0, 1], got {loss.beta}",
            f"write {{ {loss.name} = 0.5 }}" if loss.top_k is None else "write beta = 0.5",
        )
    if loss.name.startswith("topk_") and not (loss.top_k is not None and loss.top_k >= 1):
        raise PotstillError(
            f"{loss.name} keeps at least one id, got {loss.top_k}",
            "write { topk_reverse_kl = 64 }",
        )
    return loss


def loss(value: Any) -> Loss:
    """Read a loss from its name, a `Loss` or a TOML table.

    >>> str(loss("reverse_kl")), str(loss({"jsd": 0.5})), str(loss({"topk_reverse_kl": 64}))
    ('reverse_kl', 'jsd(0.5)', 'topk_reverse_kl(64)')
    """
    if isinstance(value, Loss):
        return check_loss(value)
    if isinstance(value, str):
        return check_loss(Loss(value))
    if not isinstance(value, Mapping) or not value:
        raise PotstillError(f"a loss is a name or a table, got {value!r}", 'write "reverse_kl"')
    table = dict(value)
    beta = table.pop("beta", None)
    if len(table) != 1:
        raise PotstillError(f"a loss has one name, got {sorted(table)}", "write { jsd = 0.5 }")
    ((name, knob),) = table.items()
    if not isinstance(knob, int | float) or isinstance(knob, bool):
        raise PotstillError(f"{name} takes a number, got {knob!r}", "write { jsd = 0.5 }")
    if str(name).startswith("topk_"):
        return check_loss(Loss(name, beta=beta, top_k=int(knob)))
    return check_loss(Loss(name, beta=float(knob)))


def loss_to_toml(value: Loss) -> str | dict[str, Any]:
    """What `loss` reads back."""
    if value.top_k is not None:
        table: dict[str, Any] = {value.name: value.top_k}
        return table if value.beta is None else {**table, "beta": value.beta}
    return value.name if value.beta is None else {value.name: value.beta}


def cross_entropy(logp: Tensor, target: Tensor) -> Tensor:
    """-log p(y).

    Args:
        logp: (..., V) student log-probabilities.
        target: (...) ids y.
    """
    return -logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def forward_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(q, p) = sum_v q(v) (log q(v) - log p(v)): covers every mode of the teacher.

    >>> import torch
    >>> q = torch.tensor([0.5, 0.5]).log(); p = torch.tensor([0.9, 0.1]).log()
    >>> round(forward_kl(p, q).item(), 4)
    0.5108
    """
    return (logq.exp() * (logq - logp)).sum(-1)


def reverse_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p, q) = sum_v p(v) (log p(v) - log q(v)): settles on modes that the teacher has.

    >>> import torch
    >>> q = torch.tensor([0.5, 0.5]).log(); p = torch.tensor([0.9, 0.1]).log()
    >>> round(reverse_kl(p, q).item(), 4)
    0.3681
    """
    return (logp.exp() * (logp - logq)).sum(-1)


def jsd(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """beta KL(q, m) + (1 - beta) KL(p, m), with m = beta q + (1 - beta) p.

    beta = 0 and 1 are defined as forward and reverse KL (their limits up to scale).
    Source: GKD, arXiv 2306.13649, eq. 1. The gradient shrinks with beta: a sweep over beta at one
    learning rate compares step sizes too.
    """
    if beta == 0:
        return forward_kl(logp, logq)
    if beta == 1:
        return reverse_kl(logp, logq)
    logm = (logq + math.log(beta)).logaddexp(logp + math.log1p(-beta))
    return beta * forward_kl(logm, logq) + (1 - beta) * forward_kl(logm, logp)


def reverse_kl_sampled(logp_y: Tensor, sampler_y: Tensor, logq_y: Tensor) -> Tensor:
    """-r A with r = p(y) / p_sampler(y), A = log q(y) - log p_sampler(y), no gradient through A.

    All three are (...) log-probabilities of the sampled token. At r = 1 its gradient is, in
    expectation over the student's own samples, that of the sequence's next-token reverse KL.
    Source: on-policy distillation as in tinker-cookbook; the importance ratio as in PPO.
    """
    advantage = (logq_y - sampler_y).detach()
    return -(logp_y - sampler_y.detach()).exp() * advantage


def anchor_sampled(logp_y: Tensor, sampler_y: Tensor, logp0_y: Tensor) -> Tensor:
    """r (log p(y) - log p0(y)), r = p(y) / p_sampler(y), no gradient through the bracket.

    `reverse_kl_sampled` towards the student of step 0: in expectation over whoever sampled the
    token, KL(p, p0) and its gradient. All three are (...) log-probabilities of the token.
    Source: importance sampling; the gradient of the bracket is 0 in expectation.
    """
    distance = (logp_y - logp0_y).detach()
    return (logp_y - sampler_y.detach()).exp() * distance


def with_tail(logp: Tensor, kept: Tensor) -> Tensor:
    """Reduce rows to the kept ids and one bucket that holds the rest of the mass.

    Args:
        logp: (..., V) log-probabilities.
        kept: (..., K) ids, K < V.

    Returns:
        (..., K + 1) log-probabilities that still sum to one.
    """
    rest = logp.scatter(-1, kept, float("-inf")).logsumexp(-1, keepdim=True)
    return _cat(logp.gather(-1, kept), rest)


def _cat(left: Tensor, right: Tensor) -> Tensor:
    from torch import cat

    return cat((left, right), -1)


def truncated_reverse_kl(logp: Tensor, logq: Tensor, k: int) -> Tensor:
    """sum over the target's k likeliest ids of p (log p - log q), and nothing for the rest.

    Not a divergence: it can go below zero, and moving mass off the kept ids lowers it.
    """
    kept = logq.topk(min(k, logq.shape[-1]), dim=-1).indices
    return reverse_kl(logp.gather(-1, kept), logq.gather(-1, kept))


def row_divergence(loss: Loss, logp: Tensor, logq: Tensor) -> Tensor:
    """Per-position value of any loss that needs the whole row: (..., V), (..., V) -> (...)."""
    name = loss.name
    if name == "truncated_reverse_kl":
        assert loss.top_k is not None
        return truncated_reverse_kl(logp, logq, loss.top_k)
    if name.startswith("topk_"):
        name = name.removeprefix("topk_")
        if loss.top_k is not None and loss.top_k < logq.shape[-1]:
            kept = logq.topk(loss.top_k, dim=-1).indices
            logp, logq = with_tail(logp, kept), with_tail(logq, kept)
    if name == "jsd":
        assert loss.beta is not None
        return jsd(logp, logq, loss.beta)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[name](logp, logq)


def uld(logp: Tensor, logq: Tensor) -> Tensor:
    """sum_k |p_(k) - q_(k)| over probabilities in falling order; the shorter row ends in zeros.

    The least L1 distance of the two rows over all ways to pair their ids: it compares how sure the
    models are, and of nothing in particular. Rows (..., V) and (..., W); in probability, not nats.
    Source: Universal Logit Distillation, arXiv 2402.12030, eq. 6.
    """
    size = max(logp.shape[-1], logq.shape[-1])
    p, q = (_padded(x.exp().sort(-1, descending=True).values, size) for x in (logp, logq))
    return (p - q).abs().sum(-1)


def _padded(rows: Tensor, size: int) -> Tensor:
    return _cat(rows, rows.new_zeros((*rows.shape[:-1], size - rows.shape[-1])))


def gold(logp: Tensor, logq: Tensor, shared: Tensor, beta: float) -> Tensor:
    """The generalised JSD on the tokens that two vocabularies share, `uld` on the others.

    What is not shared is one tail bucket in the JSD, so that the two sides are distributions and
    mass cannot drain off the shared tokens unseen, as it can in the published loss.

    It takes the next token of the student and of the teacher for one event, which they are not:
    after "1" a teacher that knows "+8" has no mass on the "+" that the student means by it. So it
    is asked only where both wrote the same single token, and is an approximation even there.
    Source: GOLD (Hugging Face 2025), both parts with weight 1.

    Args:
        logp: (..., V) student log-probabilities.
        logq: (..., W) teacher log-probabilities.
        shared: (K, 2) pairs of ids.
        beta: as in `jsd`.
    """
    (kept_p, rest_p), (kept_q, rest_q) = (
        _parted(row, ids) for row, ids in ((logp, shared[:, 0]), (logq, shared[:, 1]))
    )
    return jsd(kept_p, kept_q, beta) + uld(rest_p, rest_q)


def _parted(logp: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the kept ids and a bucket for the others (..., K + 1), and of the others alone."""
    others = ids.new_ones(logp.shape[-1]).index_fill(0, ids, 0).nonzero()[:, 0]
    rest = logp[..., others]
    if not len(others):
        tail = logp.new_full((*logp.shape[:-1], 1), NOTHING)
    else:
        tail = rest.logsumexp(-1, keepdim=True)
    return _cat(logp[..., ids], tail), rest
