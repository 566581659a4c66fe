"""The objective by hand: each token's weight, and the losses of each source with their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from potstill.algorithms.recipe import Recipe, Replay
from potstill.engines.fake import FakeEngine
from potstill.errors import PotstillError
from potstill.training.objective import build, losses_for
from potstill.types import Ids, Prompt, Source, Trajectory

FIELDS = ("name", "to", "cap", "clip_ratio")
SAMPLED = "reverse_kl_sampled"


@pytest.mark.parametrize(
    ("fields", "source", "want"),
    [
        ({}, "student", [("reverse_kl", "teacher", None, None, 1.0)]),
        ({}, "teacher", [("cross_entropy", "teacher", None, None, 1.0)]),
        ({"kl_cap": 2}, "student", [("reverse_kl", "teacher", 2.0, None, 1.0)]),
        ({"kl_cap": 2}, "teacher", [("cross_entropy", "teacher", None, None, 1.0)]),
        (
            {"kl_cap": 2, "teacher_loss": "forward_kl"},
            "teacher",
            [("forward_kl", "teacher", 2.0, None, 1.0)],
        ),
        (
            {"anchor": 0.25, "kl_cap": 3},
            "student",
            [("reverse_kl", "teacher", 3.0, None, 1.0), ("reverse_kl", "init", None, None, 0.25)],
        ),
        (
            {"student_loss": SAMPLED, "clip_advantage": 1.5},
            "student",
            [(SAMPLED, "teacher", 1.5, 2.0, 1.0)],
        ),
        (
            {"student_loss": SAMPLED, "clip_ratio": 0.0},
            "student",
            [(SAMPLED, "teacher", None, None, 1.0)],
        ),
        (
            {"student_loss": SAMPLED, "anchor": 0.5, "anchor_loss": SAMPLED, "clip_ratio": 3},
            "student",
            [(SAMPLED, "teacher", None, 3.0, 1.0), (SAMPLED, "init", None, 3.0, 0.5)],
        ),
        (
            {"anchor": 0.5, "anchor_loss": SAMPLED, "clip_ratio": 3},
            "teacher",
            [("cross_entropy", "teacher", None, None, 1.0), (SAMPLED, "init", None, None, 0.5)],
        ),
    ],
)
def test_losses_and_their_limits_by_source(fields: dict, source: Source, want: list) -> None:
    found = losses_for(Recipe(name="x", **fields), source)
    assert [(*(getattr(x, f, None) for f in FIELDS), factor) for x, factor in found] == want


def written(completion: Ids, source: Source, prefix: int = 0) -> Trajectory:
    scores = -np.arange(1, len(completion) + 1, dtype=np.float32)
    prompt = Prompt.of((5, len(completion)))
    return Trajectory(prompt, completion, scores, source, prefix, 3, scores - 1)


BATCH = [
    written((5, 6, 7, 8), "student", prefix=1),  # 3 trained tokens
    written((5, 6), "student", prefix=2),  # none, which still counts as a prompt
    written((9,) * 7, "student"),  # 7
    written((4, 4, 3, 2, 1), "teacher"),  # 5
]


def test_weights_are_the_share_of_prompts_over_the_trained_tokens() -> None:
    data = build(Recipe(name="x", on_policy=0.75, anchor=0.5), BATCH, FakeEngine())
    student, teacher = 0.75 / 10, 0.25 / 5
    want = [[0.0, *[student] * 3], [student] * 7, [teacher] * 5]
    assert len(data) == 3
    for datum, weights, row in zip(data, want, (BATCH[0], *BATCH[2:]), strict=True):
        main, anchor = datum.terms
        name = "reverse_kl" if row.source == "student" else "cross_entropy"
        assert [(term.loss.name, term.loss.to) for term in datum.terms] == [
            (name, "teacher"),
            ("reverse_kl", "init"),
        ]
        assert main.weights.tolist() == pytest.approx(weights)
        assert anchor.weights.tolist() == pytest.approx([0.5 * w for w in weights])
        assert main.weights.dtype == anchor.weights.dtype == np.float32
        assert (datum.prompt, datum.completion, datum.targets, datum.source) == (
            *(row.prompt, row.completion, row.completion, row.source),
        )
        assert datum.logprobs is row.logprobs
        assert datum.behavior_logprobs is row.behavior_logprobs
        assert datum.teacher_logprobs is None and datum.fresh is True
    (again,) = build(Recipe(name="x", replay=Replay(3)), BATCH[:1], FakeEngine())
    assert again.fresh is False and again.terms[0].weights.sum() == pytest.approx(1.0)
    assert build(Recipe(name="x"), [], FakeEngine()) == []


def test_the_teacher_scores_what_the_student_wrote_and_nothing_else() -> None:
    engine = FakeEngine()
    data = build(Recipe(name="x", on_policy=0.75, student_loss=SAMPLED), BATCH, engine)
    rows = [(t.prompt, t.completion) for t in (BATCH[0], BATCH[2])]
    want = engine.score("teacher", rows)
    assert [d.teacher_logprobs is None for d in data] == [False, False, True]
    for datum, scores in zip(data, want, strict=False):
        assert datum.teacher_logprobs is not None
        assert datum.teacher_logprobs.tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("source", "hint"),
    [("student", "set train.temperature to 1"), ("teacher", "set train.teacher_temperature to 1")],
)
def test_an_unknown_probability_is_an_error_of_its_sampler(source: Source, hint: str) -> None:
    recipe = Recipe(name="x", on_policy=0.5, student_loss=SAMPLED, anchor=1, anchor_loss=SAMPLED)
    one = written((5, 6), source)
    unknown = replace(one, behavior_logprobs=np.array([-1, np.nan], np.float32))
    with pytest.raises(PotstillError, match="with which each token was drawn") as refused:
        build(recipe, [unknown], FakeEngine())
    assert refused.value.hint == hint and f"the {source}'s" in str(refused.value)
