"""The losses of a micro-batch: weights, caps, and what is infinite or not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    CROSSING,
    GOLD,
    LOSSES,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
)
from potstill.engines.fake import FakeEngine
from potstill.engines.torch import loss_terms
from potstill.engines.torch.loss_terms import Columns, Tally, expectation, idle, needs_rows, take
from potstill.errors import PotstillError
from potstill.types import Datum, Loss, Prompt, Role, Term, TokenMatch

V, T = 6, 4
CPU = torch.device("cpu")
FULL = [
    loss.with_settings(**loss.settings | {"k": 3}) if "k" in loss.settings else loss
    for name, loss in LOSSES.items()
    if name not in CROSSING
]


def taken(
    loss: Loss, logits: torch.Tensor, other: torch.Tensor, weights: list[float]
) -> tuple[float, torch.Tensor]:
    """The loss of one row, and its gradient with respect to the student's logits (T, V)."""
    ids = tuple(range(T))
    score = other.log_softmax(-1)[range(T), ids].numpy()
    own = logits.log_softmax(-1)[range(T), ids].numpy()
    spans = np.arange(T)
    both = np.stack([np.arange(V - 1)] * 2, 1)
    match = TokenMatch(spans, both, spans) if isinstance(loss, GOLD) else None
    term = Term(loss, np.float32(weights))
    datum = Datum(Prompt.of((0,)), ids, ids, (term,), "student", own, score, match=match)
    tally, grad = Tally(), logits.clone()
    columns = Columns([datum], [loss], CPU)
    take([loss], columns, slice(0, T), grad, {"teacher": other}, tally, backward=True)
    return tally.loss, grad


@pytest.mark.parametrize("loss", [*FULL, GOLD(0.5), GOLD(0.0)], ids=str)
def test_a_weight_of_zero_is_zero_whatever_the_loss(loss: Loss) -> None:
    """The teacher rules out the first position's token, and the student another one's."""
    torch.manual_seed(0)
    logits, other = torch.randn(T, V), torch.randn(T, V)
    want = taken(loss, logits, other, [0, 0, 1, 0.5])
    other[0, 0] = logits[1, 1] = -torch.inf
    other[1] = torch.nan
    got = taken(loss, logits, other, [0, 0, 1, 0.5])
    assert got[0] == pytest.approx(want[0]) and not got[1][:2].any()
    torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("loss", [*FULL, GOLD(0.5)], ids=str)
def test_ids_that_no_model_has_change_nothing(loss: Loss) -> None:
    torch.manual_seed(1)
    logits, other = torch.randn(T, V), torch.randn(T, V)
    for rows in (logits, other):
        rows[:, V - 1] = -1e3  # next to nothing
    want = taken(loss, logits, other, [0, 0.3, 1, 0.5])
    for rows in (logits, other):
        rows[:, V - 1] = -torch.inf
    got = taken(loss, logits, other, [0, 0.3, 1, 0.5])
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("cap", [0.5, None])
def test_an_infinite_divergence_is_capped_without_a_gradient_or_raised(cap: float | None) -> None:
    torch.manual_seed(2)
    logits, other = torch.randn(T, V), torch.randn(T, V)
    other[2, 3] = -torch.inf
    loss, grad = taken(replace(REVERSE_KL, cap=cap), logits, other, [1, 1, 1, 1])
    if cap is None:
        assert loss == np.inf
    else:
        assert loss < 4 * cap + 1e-6 and grad.isfinite().all() and not grad[2].any()
        alone, _ = taken(replace(REVERSE_KL, cap=cap), logits, other, [0, 0, 1, 0])
        assert alone == pytest.approx(cap)


def test_a_student_that_is_not_a_number_is_never_hidden() -> None:
    logits, other = torch.randn(T, V), torch.randn(T, V)
    logits[1, 2] = torch.nan
    for loss in (replace(REVERSE_KL, cap=0.5), CROSS_ENTROPY):
        assert np.isnan(taken(loss, logits, other, [1, 1, 1, 1])[0])


def row_of(
    completion: tuple[int, ...], source: str, *terms: Term, spans: list[int] | None = None
) -> Datum:
    """Its scores are -0.1, -0.2, ...; twice that drawn, three times the teacher's."""
    scores = -0.1 * np.arange(1, len(completion) + 1, dtype=np.float32)
    match = None
    if spans is not None:
        numbers = np.array(spans)
        match = TokenMatch(numbers, np.array([[0, 1]]), numbers)
    return Datum(
        *(Prompt.of((0,)), completion, completion[::-1], terms, source, scores, 3 * scores),
        match=match,
        behavior_logprobs=2 * scores,
    )


def term(loss: Loss, *weights: float) -> Term:
    return Term(loss, np.array(weights, np.float32))


def test_columns_are_the_rows_one_after_another() -> None:
    anchor = replace(REVERSE_KL, to="init")
    rows = [
        row_of((1, 2, 3), "student", term(REVERSE_KL_SAMPLED, 0, 1, 2), term(anchor, 3, 4, 5)),
        row_of((4, 5), "teacher", term(REVERSE_KL_SAMPLED, 6, 7), term(anchor, 8, 9)),
    ]
    columns = Columns(rows, [REVERSE_KL_SAMPLED, anchor], CPU)
    assert columns.source.tolist() == ["student"] * 3 + ["teacher"] * 2
    assert columns.targets.tolist() == [3, 2, 1, 5, 4]
    assert [w.tolist() for w in columns.weights] == [[0, 1, 2, 6, 7], [3, 4, 5, 8, 9]]
    own = [-0.1, -0.2, -0.3, -0.1, -0.2]
    behavior, then, scores = columns.sampled["teacher"]
    assert scores is not None
    for found, factor in ((then, 1), (behavior, 2), (scores, 3)):
        assert found.tolist() == pytest.approx([factor * x for x in own])
    again, then, none = columns.sampled["init"]
    assert again is columns.sampled["teacher"][0] and none is None and columns.spans is None
    assert not hasattr(Columns(rows, [REVERSE_KL, anchor], CPU), "sampled")
    unscored = [replace(rows[0], teacher_logprobs=None), rows[1]]
    assert "teacher" not in Columns(unscored, [REVERSE_KL_SAMPLED], CPU).sampled


def test_spans_are_numbered_over_all_rows_and_share_their_sum() -> None:
    sampled = REVERSE_KL_SAMPLED
    rows = [
        row_of((1, 2, 3), "student", term(sampled, 1, 1, 1), spans=[0, 0, -1]),
        row_of((4, 5), "student", term(sampled, 1, 1), spans=[-1, 0]),
        row_of((4,), "student", term(sampled, 1), spans=[0]),
    ]
    columns = Columns(rows, [sampled], CPU)
    assert columns.spans is not None and columns.spans.tolist() == [0, 0, -1, -1, 3, 5]
    assert columns.shared is not None and columns.shared.tolist() == [[0, 1]]
    columns.credit(torch.full((6,), -1.0))
    # the student's -1, and the sum over the span of each other's distance from it
    for found, factor in zip(columns.sampled["teacher"], (2, 1, 3), strict=True):
        first = -1 + 2 + factor * (-0.1 - 0.2)
        want = [first, first, -1.0, -1.0, factor * -0.2, factor * -0.1]
        assert found is not None and found.tolist() == pytest.approx(want)


@pytest.mark.parametrize("entries", [1, V, 2 * V, 3 * V + 1, 1 << 20])
@pytest.mark.parametrize("backward", [True, False])
def test_blocks_change_no_number(
    entries: int, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions 1 to 5 of a batch of six: total, means and gradient are those of one block."""
    torch.manual_seed(3)
    anchor = replace(REVERSE_KL, to="init")
    losses = [CROSS_ENTROPY, anchor]
    rows = [
        row_of((1, 2, 3), "student", term(losses[0], 9, 1, 0), term(anchor, 9, 0.5, 0.25)),
        row_of((4, 5, 0), "teacher", term(losses[0], 2, 1, 9), term(anchor, 1, 0, 9)),
    ]
    columns, at = Columns(rows, losses, CPU), slice(1, 5)
    logits, other = torch.randn(4, V), torch.randn(4, V)
    monkeypatch.setattr(loss_terms, "BLOCK", entries)
    tally, given = Tally(), logits.clone()
    take(losses, columns, at, given, {"init": other}, tally, backward=backward)

    leaf = logits.clone().requires_grad_()
    p, q = leaf.log_softmax(-1), other.log_softmax(-1)
    entropies = -p[range(4), [2, 1, 0, 5]]
    kl = (p.exp() * (p - q)).sum(-1)
    weights = torch.tensor([[1, 0, 2, 1], [0.5, 0.25, 1, 0]])
    total = (weights[0] * entropies).sum() + (weights[1] * kl).sum()
    assert tally.loss == pytest.approx(total.item(), rel=1e-5)
    want = {"student": entropies[0], "teacher": entropies[2:].mean(), "anchor": kl[:3].mean()}
    assert tally.means() == pytest.approx({k: v.item() for k, v in want.items()}, rel=1e-5)
    (gradient,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(given, gradient if backward else logits)


def test_a_step_counts_the_ratios_that_it_clips() -> None:
    """The student's log-probability is ln(1/6) everywhere, the writer's -0.1, ... -2.9, -3."""
    limited = replace(REVERSE_KL_SAMPLED, clip_ratio=2.0)
    row = row_of((1, 2, 3, 4), "student", term(limited, 1, 1, 1, 0))
    then = np.array([-0.1, -2.9, -2.0, -3.0], np.float32)  # the limit is at -1.79 - 0.69
    row, tally = replace(row, logprobs=then), Tally()
    columns, logits = Columns([row], [limited], CPU), torch.zeros(4, V)
    take([limited], columns, slice(0, 4), logits, {}, tally, backward=True)
    assert tally.clipped == pytest.approx(1 / 3)


def test_the_tallies_of_processes_add_up() -> None:
    limited = replace(REVERSE_KL_SAMPLED, clip_ratio=2.0)
    parts = []
    for first in (0.0, 10.0):
        tally = Tally()
        values = first + torch.arange(4.0)
        weights, clipped = torch.tensor([1.0, 0, 1, 1]), torch.tensor([True, True, False, False])
        source = np.array(["student", "student", "student", "teacher"])
        tally.add(limited, source, weights, values, clipped)
        tally.add(replace(limited, to="init"), source, weights, 2 * values, None)
        tally.loss = 1.0 + first
        parts.append(tally)
    one = parts[0].total(parts[:1])
    assert one is parts[0] and one.clipped == pytest.approx(1 / 3)
    assert one.means() == pytest.approx({"student": 1, "teacher": 3, "anchor": 10 / 3})
    whole = parts[0].total(parts)
    assert (whole.loss, whole.clipped) == (12.0, pytest.approx(2 / 6))
    assert whole.means() == pytest.approx({"student": 6, "teacher": 8, "anchor": 40 / 3})
    assert Tally().clipped is None and Tally().means() == {} and Tally().loss == 0.0


def test_a_process_without_rows_takes_the_shortest_with_weights_of_zero() -> None:
    rows = [
        replace(row_of((1, 2), "student", term(CROSS_ENTROPY, 1, 2)), prompt=Prompt.of((0,) * 9)),
        row_of((1, 2, 3), "student", term(CROSS_ENTROPY, 1, 2, 3), term(REVERSE_KL, 1, 1, 1)),
        row_of((1, 2, 3, 4), "student", term(CROSS_ENTROPY, 1, 2, 3, 4)),
    ]
    row = idle(rows)
    assert row.completion == (1, 2, 3) and [t.loss for t in row.terms] == [
        *(CROSS_ENTROPY, REVERSE_KL),
    ]
    assert all(t.weights.tolist() == [0, 0, 0] for t in row.terms)


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        (CROSS_ENTROPY, False),
        (REVERSE_KL, True),
        (REVERSE_KL_SAMPLED, False),
        (replace(REVERSE_KL_SAMPLED, to="init"), True),
        (GOLD(0.5), True),
    ],
)
def test_rows_of_another_model_are_computed_where_they_are_needed(loss: Loss, needed: bool) -> None:
    assert needs_rows(loss) is needed


def test_gold_needs_two_tokenizers() -> None:
    logits = torch.randn(2, V)
    rows = [row_of((1, 2), "student", term(GOLD(0.5), 1, 1))]
    with pytest.raises(PotstillError, match="two vocabularies") as refused:
        take(
            *([GOLD(0.5)], Columns(rows, [GOLD(0.5)], CPU), slice(0, 2), logits),
            *({"teacher": logits}, Tally()),
            backward=True,
        )
    assert refused.value.hint == "write { jsd = 0.5 }"


def test_expectations_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    tokens, previous = torch.tensor([1, 0]), torch.tensor([2, 3])
    found = expectation(p.log(), tokens, previous, [0, 3])
    entropy = -(p * p.log()).sum(-1)
    want = [
        [np.log(0.25), np.log(0.1)],
        entropy.tolist(),
        [0.125, 0.4],
        [0.625, 0.5],
        [1, 3],  # likelier ids
    ]
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in want]


def test_entropy_of_a_row_with_impossible_ids() -> None:
    """Half and half is ln 2, in both engines."""
    row = torch.tensor([[0.0, 0.0, -torch.inf]]).log_softmax(-1)
    one = torch.tensor([1])
    assert expectation(row, one, one, [0])[1].item() == pytest.approx(np.log(2))
    engine = FakeEngine()
    engine._tables["student"][5] = -np.inf
    engine._tables["student"][5, :2] = 0.0
    (look,) = engine.inspect("student", [(Prompt.of((5,)), (1,))])
    assert look.entropy[0] == pytest.approx(np.log(2))


@pytest.mark.parametrize("to", ["teacher", "init"])
@pytest.mark.parametrize("limit", [None, 1.25])
def test_a_sampled_loss_reads_each_of_its_four_log_probs(to: Role, limit: float | None) -> None:
    """The writer's, those drawn from, the target's and the student's own all differ."""
    torch.manual_seed(0)
    loss = replace(REVERSE_KL_SAMPLED, to=to, clip_ratio=limit)
    row = row_of((1, 2, 3), "student", term(loss, 1.0, 0.5, 0.25))
    logits, other = torch.randn(3, V), torch.randn(3, V)
    targets = torch.tensor(row.targets)[:, None]
    own, theirs = (x.log_softmax(-1).gather(1, targets)[:, 0] for x in (logits, other))
    then = own - torch.tensor([0.5, -0.5, 0.1])
    row = replace(row, logprobs=then.numpy())
    assert row.teacher_logprobs is not None and row.behavior_logprobs is not None
    behavior = torch.from_numpy(row.behavior_logprobs)
    scores = torch.from_numpy(row.teacher_logprobs) if to == "teacher" else theirs
    ratio = (own - then).exp()
    assert (ratio > 1.25).any() and (ratio < 1.25).any()
    drawn = (then - behavior).exp()  # of the old weights, where the tokens were drawn
    values = -(ratio.clamp_max(limit) if limit else ratio) * drawn * (scores - own)
    weights, others = torch.tensor([1.0, 0.5, 0.25]), {to: other} if to == "init" else {}
    tally, columns = Tally(), Columns([row], [loss], CPU)
    take([loss], columns, slice(0, 3), logits, others, tally, backward=False)
    assert tally.loss == pytest.approx((weights * values).sum().item(), rel=1e-5)


def test_the_shortest_row_is_the_shortest_for_the_student() -> None:
    prompts = [Prompt((0,), (0,) * 9), Prompt((0, 0), (0,))]
    rows = [
        replace(row_of((1, 2), "student", term(CROSS_ENTROPY, 1, 2)), prompt=p) for p in prompts
    ]
    assert idle(rows).prompt is prompts[0] and idle(rows[::-1]).prompt is prompts[0]


def test_positions_of_weight_0_and_capped_ones_are_constant_together() -> None:
    """The first position is not a number and has no weight, the second is infinite and capped."""
    torch.manual_seed(0)
    loss = replace(REVERSE_KL, cap=2.0)
    logits, other = torch.randn(T, V), torch.randn(T, V)
    other[0], other[1, 3] = torch.nan, -torch.inf
    total, grad = taken(loss, logits, other, [0, 1, 0, 0])
    assert total == 2.0 and torch.equal(grad, torch.zeros_like(grad))


def test_clipped_tokens_are_counted_over_all_micro_batches() -> None:
    tally, loss = Tally(), replace(REVERSE_KL_SAMPLED, clip_ratio=2.0)
    source, ones = np.array(["student", "student"]), torch.ones(2)
    for clipped in ([True, False], [True, True], [False, False]):
        tally.add(loss, source, ones, ones, torch.tensor(clipped))
    assert tally.clipped == 3 / 6
    tally.add(loss, source, torch.zeros(2), ones, torch.tensor([True, True]))
    assert tally.clipped == 3 / 6  # without a weight they do not count
