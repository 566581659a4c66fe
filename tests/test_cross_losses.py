"""Losses across two tokenizers, by value and by gradient against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from potstill.algorithms.losses import GOLD, JSD, REVERSE_KL_SAMPLED, loss, loss_to_toml, over_spans
from potstill.algorithms.losses.gold import uld
from potstill.engines.cross_tokenizer.alignment import (
    align,
    span_numbers,
    spread_scores,
)
from potstill.errors import PotstillError

Table = dict[bytes, torch.Tensor]  # logits by text so far
SAMPLED = "reverse_kl_sampled"


class Toy:
    """A student over a few byte strings and a teacher over others; texts of a few bytes."""

    def __init__(self, mine: list[bytes], its: list[bytes], size: int) -> None:
        torch.manual_seed(len(mine) + 7 * len(its))
        self.mine, self.its, self.size = mine, its, size
        starts = [bytes(x) for n in range(size + 1) for x in itertools.product(b"ab", repeat=n)]
        self.p: Table = {s: torch.randn(len(mine)).double().requires_grad_() for s in starts}
        self.q: Table = {s: torch.randn(len(its)).double() for s in starts}

    @staticmethod
    def logs(table: Table, tokens: list[bytes], text: bytes, y: bytes, t: float) -> torch.Tensor:
        return (table[text] / t).log_softmax(-1)[tokens.index(y)]

    def score(
        self, table: Table, tokens: list[bytes], ids: list[bytes], t: float = 1.0
    ) -> list[torch.Tensor]:
        return [self.logs(table, tokens, b"".join(ids[:i]), y, t) for i, y in enumerate(ids)]

    def texts(self, begun: tuple[bytes, ...] = ()) -> Iterator[list[bytes]]:
        """Everything that the student can write: its tokens until there are enough bytes."""
        if len(b"".join(begun)) >= self.size:
            yield list(begun)
            return
        for token in self.mine:
            yield from self.texts((*begun, token))

    def read(self, text: bytes) -> list[bytes]:
        """The teacher's tokens: its longest one at every place."""
        ids = []
        while text:
            ids.append(max((t for t in self.its if text.startswith(t)), key=len))
            text = text[len(ids[-1]) :]
        return ids


TOYS = {
    "teacher's tokens are longer": ([b"a", b"b"], [b"aa", b"ab", b"ba", b"bb"], 4),
    "student's tokens are longer": ([b"aa", b"ab", b"ba", b"bb"], [b"a", b"b"], 4),
    "three for two": (
        [b"aa", b"ab", b"ba", b"bb"],
        [bytes(x) for x in itertools.product(b"ab", repeat=3)],
        6,
    ),
    "tokens of both lengths": ([b"a", b"b", b"ab"], [b"a", b"b"], 3),
    "the same tokens": ([b"a", b"b"], [b"a", b"b"], 3),
}


def expected(toy: Toy) -> torch.Tensor:
    """Sum over spans of KL(p, q) at the places that the student gets to, by enumeration; the places
    are held fixed, so that autograd gives the gradient of the divergences alone."""
    total = torch.zeros((), dtype=torch.double)
    seen: set[tuple] = set()
    for ids in toy.texts():
        its = toy.read(b"".join(ids))
        for span in align(ids, its):
            start, action = tuple(ids[: span.student.start]), tuple(ids[span.student])
            if (start, action) in seen:
                continue
            seen.add((start, action))
            reach = sum(toy.score(toy.p, toy.mine, list(start)), torch.zeros(())).exp().detach()
            logp = sum(toy.score(toy.p, toy.mine, ids[: span.student.stop])[span.student.start :])
            logq = sum(toy.score(toy.q, toy.its, its[: span.teacher.stop])[span.teacher.start :])
            total = total + reach * logp.exp() * (logp - logq)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", TOYS)
def test_credit_gives_the_gradient_of_the_divergence_over_spans(
    name: str, temperature: float
) -> None:
    """Expectation of the sampled loss over all texts that a sampler writes, its gradient by
    autograd, both enumerated. The sampler has a temperature inside of a span, and reaches each
    span's start as the student does, because the states visited are the sampler's."""
    toy = Toy(*TOYS[name])
    exact = expected(toy)
    sampled, counted, mass = torch.zeros(()).double(), 0.0, 0.0
    for ids in toy.texts():
        its = toy.read(b"".join(ids))
        spans = align(ids, its)
        logp = torch.stack(toy.score(toy.p, toy.mine, ids))
        scores = torch.stack(toy.score(toy.q, toy.its, its)).numpy()
        now = logp.detach()
        shared = torch.from_numpy(spread_scores(spans, scores, len(ids))).double()
        drawn = torch.stack(toy.score(toy.p, toy.mine, ids, temperature)).detach()
        numbers = torch.from_numpy(span_numbers(spans, len(ids)))
        sampler, then, found = (over_spans(x, now, numbers) for x in (drawn, now, shared))
        values = REVERSE_KL_SAMPLED.value(logp, sampler, found, then)
        mass += now.sum().exp().item()
        for span in spans:
            place = span.student  # reached by p, drawn by the sampler, and what follows by p
            chance = (now.sum() - now[place].sum() + drawn[place].sum()).exp()
            sampled = sampled + chance * values[place].sum()
            counted += chance.item() * values[place].mean().item()  # a span's divergence, once
    assert mass == pytest.approx(1.0)
    assert counted == pytest.approx(exact.item(), abs=1e-5)
    leaves = list(toy.p.values())
    wanted = torch.autograd.grad(exact, leaves, allow_unused=True)
    for got, want in zip(
        torch.autograd.grad(sampled, leaves, allow_unused=True), wanted, strict=True
    ):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert any(want is not None and want.abs().max() > 1e-2 for want in wanted)


def test_uld_is_the_least_distance_over_all_pairings() -> None:
    torch.manual_seed(0)
    logp = torch.randn(4).double().log_softmax(-1)
    logq = torch.randn(5).double().log_softmax(-1)
    p, q = [*logp.exp().tolist(), 0.0], logq.exp().tolist()
    least = min(
        sum(abs(x - y) for x, y in zip(p, other, strict=True))
        for other in itertools.permutations(q)
    )
    assert uld(logp, logq).item() == pytest.approx(least)
    assert uld(logq, logp).item() == pytest.approx(least)
    assert uld(logp, logp.flip(-1)).item() == pytest.approx(0.0)  # it knows no identities


def written_out(
    p: list[float], q: list[float], shared: list[tuple[int, int]], beta: float
) -> float:
    """The hybrid in plain Python."""
    a, b = [p[i] for i, _ in shared], [q[j] for _, j in shared]
    rest_p = [x for i, x in enumerate(p) if i not in [i for i, _ in shared]]
    rest_q = [x for j, x in enumerate(q) if j not in [j for _, j in shared]]
    rows = [
        torch.tensor([*kept, max(sum(rest), 1e-30)], dtype=torch.double).log()
        for kept, rest in ((a, rest_p), (b, rest_q))
    ]
    size = max(len(rest_p), len(rest_q))
    falling = [sorted(r, reverse=True) + [0.0] * (size - len(r)) for r in (rest_p, rest_q)]
    return JSD(beta).value(*rows).item() + sum(abs(x - y) for x, y in zip(*falling, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shared", [[(0, 1), (2, 0)], [(0, 0), (1, 2), (2, 3), (3, 4)], [(1, 1)]])
def test_gold_by_value_and_by_gradient(beta: float, shared: list[tuple[int, int]]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(4).double()
    logq = torch.randn(6).double().log_softmax(-1)
    ids = torch.tensor(shared)

    def value(x: torch.Tensor) -> float:
        p = x.log_softmax(-1).exp().tolist()
        return written_out(p, logq.exp().tolist(), shared, beta)

    leaf = logits.clone().requires_grad_()
    got = GOLD(beta).value(leaf.log_softmax(-1), logq, ids)
    assert got.item() == pytest.approx(value(logits), abs=1e-5)
    (slope,) = torch.autograd.grad(got, leaf)
    for i in range(4):
        step = torch.zeros(4).double()
        step[i] = 1e-6
        want = (value(logits + step) - value(logits - step)) / 2e-6
        assert slope[i].item() == pytest.approx(want, abs=1e-5)
    batch = GOLD(beta).value(logits.log_softmax(-1).expand(3, 4), logq.expand(3, 6), ids)
    torch.testing.assert_close(batch, got.detach().expand(3))


def test_gold_is_nought_for_equal_rows_and_reads_as_a_loss() -> None:
    torch.manual_seed(0)
    logp = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    shared = torch.tensor([[0, 0], [3, 3]])
    assert GOLD(0.5).value(logp, logp, shared).item() == pytest.approx(0.0)
    assert loss({"gold": 0.5}) == GOLD(0.5) == loss(loss_to_toml(GOLD(0.5)))
    for wrong in ("gold", {"gold": 1.5}):
        with pytest.raises(PotstillError, match="beta in") as caught:
            loss(wrong)
        assert "gold = 0.5" in caught.value.hint
