"""The losses of a micro-batch: weights, caps, and what is infinite or not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.algorithms.losses import CROSS_ENTROPY, CROSSING, GOLD, LOSSES, REVERSE_KL
from potstill.engines.fake import FakeEngine
from potstill.engines.torch.loss_terms import Columns, Tally, expectation, take
from potstill.types import Datum, Loss, Prompt, Term, TokenMatch

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
