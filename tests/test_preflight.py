"""Pre-flight: sound runs pass every check, each fault is refused by its name before step 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import prompt_of, toy_table
from potstill.algorithms.losses import CROSS_ENTROPY, CROSSING, LOSSES, token_logprobs
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS, PUBLISHED
from potstill.diagnostics.preflight import Check
from potstill.diagnostics.preflight.reference import definition
from potstill.engines.registry import open_engine
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.schema import Study
from potstill.types import Datum, Prompt, StepStats, Trajectory

# What no look at step 0 can know.
LATER = {"learning_rate_spike"}


def embedded(pair: str, **changes: object) -> Study:
    return read_study({"pairs": [pair], **changes})


def causes(checks: list[Check]) -> set[str]:
    return {check.cause for check in checks if check.status == "refused"}


@pytest.mark.parametrize("pair", ["tiny-qwen", "tiny-llama"])
def test_sound_runs_pass_every_check(pair: str) -> None:
    checks = preflight_pair(embedded(pair), pair)
    assert {check.status for check in checks} == {"passed"}, [
        c for c in checks if c.status != "passed"
    ]
    names = {check.name for check in checks}
    assert {"train and test", "seed", "sampler", "identity", "fresh sampler"} <= names
    assert {"capability gap", "hybrid: student tokens", "hybrid: teacher tokens"} <= names


# The check that sees each fault, and a method that it touches.
SEEN_BY = {
    "unshifted_targets": ("steps", "off_policy"),
    "prompt_dropped": ("steps", "on_policy_gkd"),
    "stale_sampler": ("fresh sampler", "on_policy_gkd"),
    "prefix_trained": ("steps", "teacher_seeded"),
    "anchor_absent": ("steps", "kl_anchored"),
    "mixture_unblended": ("steps", "mixture"),
    "eval_on_train": ("train and test", "on_policy_gkd"),
    "seeds_ignored": ("seed", "on_policy_gkd"),
    "eos_untrained": ("steps", "off_policy"),
    "template_mismatch": ("steps", "on_policy_gkd"),
    "teacher_shifted": ("steps", "on_policy_gkd"),
    "vocab_permuted": ("capability gap", "on_policy_gkd"),
    "learning_rate_spike": ("steps", "on_policy_gkd"),
    "top_k_without_tail": ("steps", "on_policy_gkd"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_refused_by_its_name(fault: str) -> None:
    check, method = SEEN_BY[fault]
    study = embedded("tiny-llama", faults=[fault], methods=[method])
    checks = preflight_pair(study, "tiny-llama", only=[check])
    assert checks and causes(checks) == ({fault} if fault not in LATER else set())
    for refused in (c for c in checks if c.status == "refused"):
        assert refused.hint == FAULTS[fault].remedy
        assert any(char.isdigit() for char in refused.evidence) or fault == "anchor_absent"


@pytest.mark.parametrize("check", ["steps", "forward pass"])
def test_an_engine_that_computes_its_own_numbers_is_refused(
    check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of the engine's own, where the whole forward pass has another one."""
    from potstill.engines.torch.lm_head import States

    logits = States.logits
    monkeypatch.setattr(States, "logits", lambda self, part: 0.2 * logits(self, part))
    study = embedded("tiny-llama", methods=["off_policy"])
    refused = [c for c in preflight_pair(study, "tiny-llama", only=[check]) if c.cause == ""]
    assert [c.status for c in refused] == ["refused"], refused
    assert "own forward passes" in refused[0].evidence and "class" in refused[0].hint


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_check_of_any_method_names_another_fault(fault: str) -> None:
    checks = preflight_pair(embedded("tiny-llama", faults=[fault]), "tiny-llama")
    assert causes(checks) == ({fault} if fault not in LATER else set())


def test_the_published_code_is_refused_with_evidence() -> None:
    checks = preflight_pair(embedded("tiny-qwen", faults=list(PUBLISHED)), "tiny-qwen")
    assert causes(checks) == set(PUBLISHED)
    evidence = {c.cause: c.evidence for c in checks if c.status == "refused"}
    assert "predicting token i at position i gives" in evidence["unshifted_targets"]
    assert "500 of 500" in evidence["eval_on_train"]


@pytest.mark.parametrize(
    "loss", ["reverse_kl_sampled", {"jsd": 0.5}, {"topk_reverse_kl": 16}, "forward_kl"]
)
def test_other_losses_pass_and_are_caught_too(loss: object) -> None:
    recipe = {"mine": {"from": "mixture", "student_loss": loss}}
    for faults, want in (([], set()), (["teacher_shifted"], {"teacher_shifted"})):
        study = embedded("tiny-llama", methods=["mine"], recipe=recipe, faults=faults)
        assert causes(preflight_pair(study, "tiny-llama", only=["steps"])) == want


def test_lora_and_the_fake_engine_pass(tmp_path: Path) -> None:
    study = embedded("tiny-llama", methods=["mixture", "kl_anchored"], train={"lora_rank": 4})
    assert not causes(preflight_pair(study, "tiny-llama"))
    toy = read_study(toy_table(tmp_path))
    assert not causes(preflight_pair(toy, "toy"))


def test_a_teacher_that_is_no_better_is_a_warning() -> None:
    from potstill.engines import zoo

    folder = zoo.folder("tiny-llama", "student")
    pair = {"same": {"student": folder, "teacher": folder}}
    study = read_study(
        {
            "pair": pair,
            "pairs": ["same"],
            "methods": ["on_policy_gkd"],
            "train": {"learning_rate": 1e-4},
        }
    )
    found = {check.name: check for check in preflight_pair(study, "same")}
    assert found["capability gap"].status == "warning"
    assert found["on_policy_gkd: student tokens"].evidence.startswith(("0.0000", "-0.0000"))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - CROSSING))
def test_the_reference_agrees_with_the_losses(name: str) -> None:
    """Two implementations that share no code, on random rows."""
    import torch

    numbers = {"beta": 0.3, "k": 4}
    loss = LOSSES[name].with_settings(**{key: numbers[key] for key in LOSSES[name].settings})
    torch.manual_seed(0)
    p, q = (torch.randn(6, 11, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    y = (0, 3, 10, 2, 2, 7)
    sampler = np.linspace(-2, -1, 6).astype(np.float32)
    mine = definition(
        loss, p.numpy().copy(), q.numpy().copy(), Trajectory(Prompt.of((1,)), y, sampler, "student")
    )
    ids = torch.tensor(y)
    if name == "cross_entropy":
        its = loss.value(p, ids)
    elif name == "reverse_kl_sampled":
        its = loss.value(
            token_logprobs(p, ids), torch.from_numpy(sampler).double(), token_logprobs(q, ids)
        )
    else:
        its = loss.value(p, q)
    np.testing.assert_allclose(mine, its.numpy(), atol=1e-7)


def test_preflight_leaves_the_weights_as_they_were(models: Path) -> None:
    from potstill.diagnostics.preflight.rehearsal import restored
    from potstill.settings import Pair
    from potstill.types import Term

    folder = models / "qwen"
    pair = Pair(student=str(folder / "student"), teacher=str(folder / "teacher"))
    engine = open_engine("torch", pair)
    rows = [(prompt_of(engine, "7"), (5, 6, 7))]
    before = engine.score("student", rows)[0]
    weights = np.full(3, 1 / 3, np.float32)
    datum = Datum(*rows[0], rows[0][1], (Term(CROSS_ENTROPY, weights),), "teacher", weights)
    with restored(engine):
        engine.step([datum], 0.1)
        assert not np.array_equal(before, engine.score("student", rows)[0])
    np.testing.assert_array_equal(before, engine.score("student", rows)[0])


@pytest.mark.parametrize("pair", ["tiny-qwen", "tiny-llama"])
def test_half_precision_is_no_fault(pair: str) -> None:
    """bfloat16 moves single scores by hundredths of a nat: neither staleness nor a shift."""
    engine = {
        "name": "torch",
        "student": {"dtype": "bfloat16"},
        "teacher": {"dtype": "bfloat16"},
    }
    study = embedded(pair, methods=["mixture", "kl_anchored"], engine=engine)
    assert not causes(preflight_pair(study, pair))


def test_says_what_the_runs_will_take(tmp_path: Path) -> None:
    toy = read_study(toy_table(tmp_path, methods=["on_policy_gkd", "extended_on_policy"]))
    (found,) = (c for c in preflight_pair(toy, "toy") if c.name == "time and memory")
    assert found.status == "passed"
    assert all(
        word in found.evidence for word in ("student completions", "a run about", "peak", "GB")
    )
    assert "teacher completions" not in found.evidence  # neither method has any
    assert re.search(r"these checks took [\d.e-]+ s$", found.evidence)


def test_a_longer_method_is_estimated_longer() -> None:
    from potstill.algorithms.methods import METHODS
    from potstill.diagnostics.preflight.estimate import estimate
    from potstill.settings import Eval, Train
    from potstill.tasks import load_task

    engine = open_engine("torch", "tiny-llama")
    names = ("on_policy_gkd", "extended_on_policy", "off_policy")
    recipes = [METHODS[name] for name in names]
    task, eval_ = load_task("arithmetic"), Eval(every=50, problems=10)
    rows = [(prompt_of(engine, "7"), (5, 6, 7))]
    before = engine.score("student", rows)[0]
    found = estimate(engine, recipes, task, Train(learning_rate=1.0), eval_)
    student, teacher = (
        next(step.spent for kind, step in found.steps.items() if kind.data == f"{who} completions")
        for who in ("student", "teacher")
    )
    grading, probe = found.evaluations["student"], found.probe
    one, two, off = (found.runs[name] for name in names)
    assert one.seconds == pytest.approx(
        100 * student.seconds + 2 * grading.seconds + 21 * probe.seconds
    )
    assert two.seconds == pytest.approx(
        200 * student.seconds + 4 * grading.seconds + 41 * probe.seconds
    )
    assert off.seconds == pytest.approx(
        100 * teacher.seconds + 2 * grading.seconds + 21 * probe.seconds
    )
    assert one.tokens["student_sampled"] == pytest.approx(100 * student.tokens["student_sampled"])
    assert 0 < two.tokens["trained"] == pytest.approx(200 * student.tokens["trained"])
    assert off.tokens["student_sampled"] == 0 < off.tokens["teacher_sampled"]
    assert one.flops and two.flops and one.flops < two.flops < 2.1 * one.flops
    np.testing.assert_array_equal(before, engine.score("student", rows)[0])


def test_stretches_of_a_run_are_timed_apart_and_the_teachers_texts_once() -> None:
    from potstill.algorithms.methods import METHODS
    from potstill.diagnostics.preflight.estimate import estimate
    from potstill.diagnostics.preflight.step_kinds import kind_at, moments
    from potstill.settings import Eval, Train
    from potstill.tasks import load_task

    kinds = {name: [kind_at(r, t, 10) for _, t in moments(r)] for name, r in METHODS.items()}
    assert [kind.prefix for kind in kinds["teacher_seeded"]] == [15, 5, 0]
    assert [kind.student for kind in kinds["hybrid"]] == [0, 10]
    assert [(kind.student, kind.teacher) for kind in kinds["mixture"]] == [(7, 3)]
    assert kinds["kl_anchored"] != kinds["off_policy"] == kinds["hybrid"][:1]
    recipes = [METHODS[name] for name in ("off_policy", "hybrid")]
    engine = open_engine("torch", "tiny-llama")
    train, eval_ = Train(learning_rate=1.0, steps=10), Eval(every=50, problems=10)
    found = estimate(engine, recipes, load_task("arithmetic"), train, eval_)
    alone = estimate(engine, recipes[1:], load_task("arithmetic"), train, eval_)
    step = found.steps[kinds_of(recipes[0])]
    whole = 5 * sum(one.spent.seconds for one in found.steps.values())
    rest = found.evaluations["student"].seconds + 3 * found.probe.seconds
    assert found.runs["hybrid"].seconds == pytest.approx(whole - 5 * step.cached + rest)
    assert step.cached > 0
    for kind, tokens in found.runs["hybrid"].tokens.items():  # what is not written is counted
        assert tokens == pytest.approx(alone.runs["hybrid"].tokens[kind])


def test_a_dealt_remainder_is_estimated_by_what_it_leaves_out(tmp_path: Path) -> None:
    """At batch size 1 a mixture has steps of one source each; at 4 all have both."""
    from potstill.algorithms.methods import METHODS
    from potstill.diagnostics.preflight.step_kinds import kinds_at

    sources = {
        batch: [(k.student, k.teacher) for k in kinds_at(METHODS["mixture"], 0.0, batch)]
        for batch in (1, 2, 4, 10)
    }
    assert sources == {1: [(0, 1), (1, 0)], 2: [(1, 1), (2, 0)], 4: [(3, 1)], 10: [(7, 3)]}
    study = read_study(
        toy_table(tmp_path, methods=["mixture", "replay_buffer"], train={"batch_size": 1})
    )
    assert not [check for check in preflight_pair(study, "toy") if check.status == "refused"]


def kinds_of(recipe: Recipe) -> Any:
    from potstill.diagnostics.preflight.step_kinds import kind_at, moments

    return kind_at(recipe, moments(recipe)[0][1], 32)


def test_a_step_that_does_not_fit_is_refused_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.engines.fake import FakeEngine

    step = FakeEngine.step

    def full(self: FakeEngine, data: list[Datum], rate: float) -> StepStats:
        if rate == 0:  # the whole batch; other checks use small ones
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return step(self, data, rate)

    monkeypatch.setattr(FakeEngine, "step", full)
    toy = read_study(toy_table(tmp_path))
    (found,) = (c for c in preflight_pair(toy, "toy") if c.status == "refused")
    assert found.name == "time and memory" and "batch_tokens" in found.hint
