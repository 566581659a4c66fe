"""Every divergence against brute-force enumeration, value and gradient, and against published
formulas."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    CROSSING,
    FAULTY,
    FORWARD_KL,
    GOLD,
    JSD,
    LOSSES,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
    Divergence,
    ReverseKLSampled,
    TopK,
    TruncatedReverseKL,
    loss,
    loss_to_toml,
    token_logprobs,
    top_k,
)
from potstill.algorithms.losses.divergences import with_tail
from potstill.errors import PotstillError
from potstill.types import Loss

V = 5


def softmax(logits: list[float]) -> list[float]:
    exps = [math.exp(x) for x in logits]
    return [x / sum(exps) for x in exps]


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))


def bucket(p: list[float], kept: list[int]) -> list[float]:
    return [p[i] for i in kept] + [sum(x for i, x in enumerate(p) if i not in kept)]


def enumerated(name: str, p: list[float], q: list[float], beta: float, k: int) -> float:
    """The definition, written as sums over the vocabulary in plain Python."""
    if name.startswith("topk_"):
        kept = sorted(range(len(q)), key=lambda i: -q[i])[:k]
        return enumerated(name.removeprefix("topk_"), bucket(p, kept), bucket(q, kept), beta, k)
    if name == "forward_kl":
        return kl(q, p)
    if name == "reverse_kl":
        return kl(p, q)
    m = [beta * x + (1 - beta) * y for x, y in zip(q, p, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


CASES = [
    (FORWARD_KL, 0.0, 0),
    (REVERSE_KL, 0.0, 0),
    *((JSD(b), b, 0) for b in (0.1, 0.5, 0.9)),
    *((TopK(REVERSE_KL, k), 0.0, k) for k in (1, 2, 4)),
    (TopK(FORWARD_KL, 3), 0.0, 3),
    (TopK(JSD(0.3), 2), 0.3, 2),
]


@pytest.mark.parametrize(("case", "beta", "k"), CASES, ids=str)
def test_divergences_match_enumeration(case: Divergence, beta: float, k: int) -> None:
    torch.manual_seed(0)
    student = torch.randn(3, V, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, V, dtype=torch.float64)
    values = case.value(student.log_softmax(-1), teacher.log_softmax(-1))
    (gradient,) = torch.autograd.grad(values.sum(), student)
    for row in range(3):
        logits, q = student[row].tolist(), softmax(teacher[row].tolist())
        assert values[row].item() == pytest.approx(
            enumerated(case.name, softmax(logits), q, beta, k), abs=1e-12
        )
        for i in range(V):
            sides = []
            for shift in (1e-6, -1e-6):
                moved = [x + shift * (j == i) for j, x in enumerate(logits)]
                sides.append(enumerated(case.name, softmax(moved), q, beta, k))
            slope = (sides[0] - sides[1]) / 2e-6
            assert gradient[row, i].item() == pytest.approx(slope, abs=1e-8)


def test_every_divergence_has_a_case() -> None:
    names = {name for name, example in LOSSES.items() if example.needs == "full_logprobs"}
    assert names - FAULTY - CROSSING == {case.name for case, _, _ in CASES}


def test_the_truncated_loss_is_what_it_is_accused_of() -> None:
    """It equals its sum, goes below zero, and falls as mass leaves the kept ids."""
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    values = []
    for kept in (0.9, 0.5, 0.1):
        p = [kept * 0.6, kept * 0.4, 1 - kept]
        want = sum(p[i] * (math.log(p[i]) - q[i].item()) for i in range(2))
        logp = torch.tensor(p, dtype=torch.float64).log()
        values.append(TruncatedReverseKL(2).value(logp, q).item())
        assert values[-1] == pytest.approx(want, abs=1e-12)
    assert min(values) < 0 and values[1] < values[0]


def test_cross_entropy_value_and_gradient() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, V, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, 4, 1])
    values = CROSS_ENTROPY.value(logits.log_softmax(-1), target)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    for row, y in enumerate(target.tolist()):
        p = softmax(logits[row].tolist())
        assert values[row].item() == pytest.approx(-math.log(p[y]))
        expected = [p[i] - (i == y) for i in range(V)]
        assert gradient[row].tolist() == pytest.approx(expected, abs=1e-12)


def drawn(logits: torch.Tensor, temperature: float = 1.0, top_k: int = V) -> torch.Tensor:
    """Log-probabilities of the distribution that a sampler really draws from."""
    kept = logits >= logits.topk(top_k).values[-1]
    return (logits / temperature).masked_fill(~kept, -torch.inf).log_softmax(-1)


def reverse_gradient(logits: torch.Tensor, logq: torch.Tensor) -> tuple[float, torch.Tensor]:
    """KL(p, q) and its gradient, summed over the vocabulary by hand: p (log p/q - KL)."""
    p = logits.detach().softmax(-1)
    gap = p.log() - logq
    value = (p * gap).sum()
    return value.item(), p * (gap - value)


@pytest.mark.parametrize("to", ["teacher", "init"])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6])
def test_sampled_reverse_kl_is_exact_at_any_temperature(temperature: float, to: str) -> None:
    """Enumerate every token that p_T can draw: value and gradient are those of KL(p, q)."""
    for seed in range(20):
        torch.manual_seed(seed)
        logits = (2 * torch.randn(V, dtype=torch.float64)).requires_grad_()
        logq = torch.randn(V, dtype=torch.float64).log_softmax(-1)
        sampler, logp = drawn(logits.detach(), temperature), logits.log_softmax(-1)
        loss = ReverseKLSampled(to=to, clip_ratio=2.0)  # limits nothing: the student has not moved
        mean = (sampler.exp() * loss.value(logp, sampler, logq, logp.detach())).sum()
        (got,) = torch.autograd.grad(mean, logits)
        value, gradient = reverse_gradient(logits, logq)
        assert mean.item() == pytest.approx(value, abs=1e-12)
        assert torch.allclose(got, gradient, atol=1e-12)


def test_tokens_that_top_k_leaves_out_are_all_that_is_missing() -> None:
    """From k ids, the gradient is the sum over them alone, and unbiased there."""
    torch.manual_seed(1)
    logits = torch.randn(V, dtype=torch.float64, requires_grad=True)
    logq = torch.randn(V, dtype=torch.float64).log_softmax(-1)
    sampler, logp = drawn(logits.detach(), 0.7, top_k=3), logits.log_softmax(-1)
    kept = sampler.isfinite()
    values = REVERSE_KL_SAMPLED.value(logp[kept], sampler[kept], logq[kept], logp[kept].detach())
    (got,) = torch.autograd.grad((sampler[kept].exp() * values).sum(), logits)
    p = logits.detach().softmax(-1)
    gap, one = (p.log() - logq)[kept], torch.eye(V, dtype=torch.float64)[kept]
    want = (p[kept] * gap) @ (one - p)
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_replayed_tokens_pull_towards_the_teacher_alone(temperature: float) -> None:
    """Enumerate the tokens of older weights: KL(p, q), and nothing that pushes off p_then."""
    torch.manual_seed(3)
    logits = torch.randn(V, dtype=torch.float64, requires_grad=True)
    older, logq = torch.randn(V, dtype=torch.float64), torch.randn(V, dtype=torch.float64)
    then, sampler, logq = older.log_softmax(-1), drawn(older, temperature), logq.log_softmax(-1)
    values = REVERSE_KL_SAMPLED.value(logits.log_softmax(-1), sampler, logq, then)
    (got,) = torch.autograd.grad((sampler.exp() * values).sum(), logits)
    value, gradient = reverse_gradient(logits, logq)
    assert (sampler.exp() * values).sum().item() == pytest.approx(value, abs=1e-12)
    assert torch.allclose(got, gradient, atol=1e-12)


def test_the_ratio_to_older_weights_is_limited_and_the_temperatures_part_is_not() -> None:
    """Each token's gradient is -A grad log p times min(p / p_then, C) p_then / s."""
    logits = torch.tensor([2.0, 0.0, -1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    older = torch.tensor([-3.0, 0.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    logq = torch.randn(V, dtype=torch.float64).log_softmax(-1)
    then, sampler = older.log_softmax(-1), drawn(older, 0.5)
    loss, p = ReverseKLSampled(clip_ratio=2.0), logits.detach().softmax(-1)
    ratios = p / then.exp()
    assert loss.clipped(p.log(), then).tolist() == (ratios > 2).tolist() and (ratios > 100).any()
    for y in range(V):
        value = loss.value(logits.log_softmax(-1)[y], sampler[y], logq[y], then[y])
        (got,) = torch.autograd.grad(value, logits)
        weight = min(ratios[y].item(), 2.0) * (then[y] - sampler[y]).exp()
        want = -weight * (logq[y] - p[y].log()) * (torch.eye(V, dtype=torch.float64)[y] - p)
        assert torch.allclose(got, want, atol=1e-12)
        assert value.item() == pytest.approx((-weight * (logq[y] - p[y].log())).item())


def test_a_ratio_at_its_limit_is_not_clipped_and_without_a_limit_none_is() -> None:
    now, then = torch.tensor([2.1, 2.0, 1.9], dtype=torch.float64).log(), torch.zeros(3)
    limit = replace(ReverseKLSampled(), clip_ratio=2.0)
    assert limit.clipped(now, then).tolist() == [True, False, False]
    assert not ReverseKLSampled().clipped(torch.tensor([1e3]), then[:1]).any()


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_the_log_probability_of_an_id_is_its_entry(shape: tuple[int, ...]) -> None:
    rows = torch.arange(math.prod(shape) * 4.0).reshape(*shape, 4)
    ids = torch.full(shape, 2)
    assert torch.equal(token_logprobs(rows, ids), rows[..., 2])


@pytest.mark.parametrize("k", [0, -1, 2.5, 1.5, True, None, "x", float("nan")])
def test_a_count_of_ids_is_a_whole_number(k: Any) -> None:
    for kind in (lambda k: TopK(REVERSE_KL, k), TruncatedReverseKL):
        with pytest.raises(PotstillError, match=r"reverse_kl keeps at least one id, got") as caught:
            kind(k)
        assert "_reverse_kl = 64 }" in caught.value.hint
    assert [TruncatedReverseKL(k).k for k in (1, 2, 3.0)] == [1, 2, 3]


def test_an_advantage_is_clipped_either_way() -> None:
    now = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    logq = torch.tensor([-9.0, -0.5, 0.25, 9.0], dtype=torch.float64)
    values = ReverseKLSampled(cap=1.0).value(now, now.detach(), logq)
    assert (-values).tolist() == [-1.0, -0.5, 0.25, 1.0]


NEVER = -torch.inf  # of an id that a model cannot write


@pytest.mark.parametrize("case", [*(case for case, _, _ in CASES), TruncatedReverseKL(3)], ids=str)
def test_ids_that_neither_model_writes_change_nothing(case: Divergence) -> None:
    """Logits of -inf, as of a padded vocabulary: value and gradient are those without the ids."""
    torch.manual_seed(6)
    student, teacher = (torch.randn(2, V, dtype=torch.float64) for _ in range(2))
    results = []
    for pad in (0, 3):
        p = torch.cat([student, torch.full((2, pad), NEVER, dtype=torch.float64)], 1)
        q = torch.cat([teacher, torch.full((2, pad), NEVER, dtype=torch.float64)], 1)
        p.requires_grad_()
        values = case.value(p.log_softmax(-1), q.log_softmax(-1))
        (gradient,) = torch.autograd.grad(values.sum(), p)
        assert not gradient[:, V:].any()
        results.append((values, gradient[:, :V]))
    for with_pad, without in zip(*results, strict=True):
        torch.testing.assert_close(with_pad, without, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", [case for case, _, _ in CASES], ids=str)
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_one_model_without_an_id_gives_the_limit(case: Divergence, who: str) -> None:
    """0 log 0 is 0: the value is finite, or infinite where the definition is, never not a number;
    a finite one has the gradient of a model with next to nothing there."""
    torch.manual_seed(7)
    p, q = (torch.randn(V, dtype=torch.float64) for _ in range(2))
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    for low in (-60.0, NEVER):
        a, b = p.clone(), q.clone()
        (b if who == "teacher" else a)[1] = low
        a.requires_grad_()
        value = case.value(a.log_softmax(-1), b.log_softmax(-1))
        (gradient,) = torch.autograd.grad(value, a)
        rows.append((value.detach(), gradient))
    (near, slope), (value, gradient) = rows
    base = case.base if isinstance(case, TopK) else case
    bounded = isinstance(base, JSD) or (base.name == "forward_kl") == (who == "teacher")
    if isinstance(case, TopK) and who == "teacher":
        bounded |= case.k < V - 1  # the id is in the bucket, which has more
    if isinstance(case, TopK) and who == "student" and 1 not in b.topk(case.k).indices:
        bounded |= case.k < V - 1
    assert not value.isnan()
    if bounded:
        torch.testing.assert_close(value, near, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gradient, slope, atol=1e-9, rtol=1e-9)
    else:
        assert value == torch.inf and near > 1


def trl_generalized_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """TRL's published formula for GKD, written from its documentation with torch's kl_div."""
    from torch.nn.functional import kl_div

    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    if beta == 0:
        return kl_div(p, q, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return kl_div(q, p, reduction="none", log_target=True).sum(-1)
    weight = torch.tensor(beta, dtype=p.dtype)
    mixture = torch.logsumexp(torch.stack([p + torch.log1p(-weight), q + weight.log()]), dim=0)
    to_teacher = kl_div(mixture, q, reduction="none", log_target=True).sum(-1)
    to_student = kl_div(mixture, p, reduction="none", log_target=True).sum(-1)
    return weight * to_teacher + (1 - weight) * to_student


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_divergences_agree_with_trl(beta: float) -> None:
    torch.manual_seed(4)
    student = torch.randn(7, 50, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, 50, dtype=torch.float64)
    mine = JSD(beta).value(student.log_softmax(-1), teacher.log_softmax(-1))
    its = trl_generalized_jsd(student, teacher, beta)
    assert torch.allclose(mine, its, atol=1e-12)
    both = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (mine, its)]
    assert torch.allclose(*both, atol=1e-12)


def test_jsd_ends_are_the_two_kls() -> None:
    p, q = (torch.randn(3, V).log_softmax(-1) for _ in range(2))
    assert torch.equal(JSD(0.0).value(p, q), FORWARD_KL.value(p, q))
    assert torch.equal(JSD(1.0).value(p, q), REVERSE_KL.value(p, q))


def test_tail_bucket_keeps_the_mass_and_divergences_stay_positive() -> None:
    torch.manual_seed(5)
    p, q = (3 * torch.randn(64, 20, dtype=torch.float64) for _ in range(2))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    kept = q.topk(4).indices
    assert torch.allclose(with_tail(p, kept).exp().sum(-1), torch.ones(64, dtype=torch.float64))
    for base in (REVERSE_KL, FORWARD_KL):
        values = TopK(base, 4).value(p, q)
        assert (values >= 0).all()
        exact = base.value(p, q)
        assert (values <= exact + 1e-12).all()  # merging outcomes never raises a KL
        assert torch.allclose(TopK(base, 20).value(p, q), exact)


def test_equal_models_give_zero_and_no_gradient() -> None:
    logits = torch.randn(3, V, dtype=torch.float64, requires_grad=True)
    logq = logits.detach().log_softmax(-1)
    for case, _, _ in CASES:
        values = case.value(logits.log_softmax(-1), logq)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert values.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    "value", ["reverse_kl", {"jsd": 0.5}, {"topk_reverse_kl": 64}, {"topk_jsd": 8, "beta": 0.3}]
)
def test_losses_survive_toml(value: object) -> None:
    assert loss_to_toml(loss(value)) == value
    assert loss(loss_to_toml(loss(value))) == loss(value)


@pytest.mark.parametrize("example", LOSSES.values(), ids=str)
def test_every_loss_is_a_value(example: Loss) -> None:
    """It is read from its own TOML form, and differs from itself towards another model."""
    again = loss(loss_to_toml(example))
    assert again == example and hash(again) == hash(example) and str(again) == str(example)
    assert pickle.loads(pickle.dumps(example)) == example
    changes: list[dict[str, Any]] = [{"to": "init"}, {"cap": 2.0}]
    changes += [{"clip_ratio": 2.0}] * (example.needs == "token_scores")
    for change in changes:
        other = replace(example, **change)
        assert other != example and (other.name, other.needs) == (example.name, example.needs)
    assert (example.to, example.cap) == ("teacher", None)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("revers_kl", "unknown loss"),
        ({"jsd": 1.5}, "beta in [0, 1]"),
        ({"jsd": "x"}, "takes a number"),
        ({"topk_reverse_kl": 0}, "at least one id"),
        ({"topk_reverse_kl": 2.5}, "at least one id"),
        ({"topk_jsd": 8}, "beta in [0, 1]"),
        ({"topk_reverse_kl": 8, "beta": 0.5}, 'has no "beta"'),
        ({"reverse_kl": 0.5}, "takes no number"),
        ("jsd", "beta in [0, 1]"),
        ({}, "a name or a table"),
        ({"jsd": 0.5, "forward_kl": 1}, "one name"),
        (3, "a name or a table"),
    ],
)
def test_wrong_losses_are_refused(value: object, says: str) -> None:
    with pytest.raises(PotstillError, match=says.replace("[", r"\[").replace("]", r"\]")):
        loss(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ({"topk_jsd": 8, "beta": "x"}, "write { topk_jsd = 64, beta = 0.5 }"),
        ({"gold": 2}, "write { gold = 0.5 }"),
        ({"reverse_kl": 2}, 'write "reverse_kl"'),
    ],
)
def test_a_wrong_loss_is_shown_as_it_is_written(value: object, hint: str) -> None:
    with pytest.raises(PotstillError) as refused:
        loss(value)
    assert refused.value.hint == hint


def test_python_names_read_like_the_table() -> None:
    assert str(JSD(0.5)) == "jsd(0.5)"
    assert str(top_k(REVERSE_KL, 16)) == "topk_reverse_kl(16)"
    assert str(top_k(JSD(0.5), 16)) == "topk_jsd(16)"
    assert JSD(1) == loss({"jsd": 1}) and str(JSD(1)) == "jsd(1.0)"
    assert top_k(JSD(0.3), 8) == TopK(JSD(0.3), 8) == loss({"topk_jsd": 8, "beta": 0.3})
    assert str(GOLD(1)) == "gold(1.0)" and type(GOLD(1).beta) is float
    limited = top_k(replace(JSD(0.5), to="init", cap=2.0), 8)
    assert (limited.to, limited.base) == ("init", JSD(0.5))  # the base has no model of its own
    pairs = itertools.combinations([JSD(0.5), JSD(0.4), REVERSE_KL], 2)
    assert all(a != b for a, b in pairs)


@pytest.mark.parametrize(
    "base", [CROSS_ENTROPY, REVERSE_KL_SAMPLED, GOLD(0.5), TopK(REVERSE_KL, 2)]
)
def test_top_k_takes_a_divergence_over_the_whole_vocabulary(base: Any) -> None:
    with pytest.raises(PotstillError, match="a divergence over the whole vocabulary") as refused:
        top_k(base, 4)
    assert "top_k(REVERSE_KL, 64)" in refused.value.hint


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan"), None, "x", True])
def test_a_share_is_a_number_in_the_unit_interval(beta: Any) -> None:
    for kind in (JSD, GOLD):
        with pytest.raises(PotstillError, match=rf"^{kind.name} has a beta in \[0, 1\]"):
            kind(beta)


def test_losses_are_listed_without_torch() -> None:
    code = "import sys, potstill.algorithms.losses; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
