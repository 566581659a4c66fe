"""Two tokenizers in a study: what its file refuses, and pre-flight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from potstill.algorithms.methods import METHODS
from potstill.cli import main
from potstill.engines.cross_tokenizer.alignment import (
    match_tokens,
    spread_scores,
)
from potstill.errors import PotstillError
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from test_cross import SAMPLED


def table(**changes: object) -> dict:
    small = {"train": {"batch_size": 8}, "eval": {"problems": 16}}
    return {"pairs": ["tiny-cross"], "methods": ["on_policy_gkd"], **small, **changes}


def test_a_studys_loss_is_that_of_all_its_methods() -> None:
    mine = {"plain": {}, "kept": {"from": "hybrid", "student_loss": {"gold": 0.5}}}
    study = read_study(
        table(methods=["mixture", "plain", "kept"], recipe=mine, student_loss=SAMPLED)
    )
    losses = {name: str(recipe.student_loss) for name, recipe in study.recipes.items()}
    assert losses == {"mixture": SAMPLED, "plain": SAMPLED, "kept": "gold(0.5)"}
    assert read_study(study.to_toml()).recipes == study.recipes
    assert str(METHODS["mixture"].student_loss) == "reverse_kl"
    assert "tiny-cross" not in read_study({}).models


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({}, "on_policy_gkd needs reverse_kl", "reverse_kl_sampled"),
        ({"student_loss": {"topk_reverse_kl": 8}}, "tokenizers of pair", "gold = 0.5"),
        ({"pairs": ["tiny-qwen"], "student_loss": {"gold": 0.5}}, "share theirs", "jsd = 0.5"),
        ({"student_loss": "reverse_kl_sample"}, "unknown loss", "reverse_kl_sampled"),
        (
            {
                "methods": ["mine"],
                "recipe": {"mine": {"from": "kl_anchored", "anchor_loss": SAMPLED}},
            },
            "has sampled other tokens",
            "reverse_kl",
        ),
        (
            {"methods": ["m"], "recipe": {"m": {"on_policy": 0, "teacher_loss": "forward_kl"}}},
            "m needs forward_kl",
            "gold",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_read(changes: dict, says: str, hint: str) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        read_study(table(**changes))
    assert hint in caught.value.hint


def test_preflight_prints_the_alignment_and_passes() -> None:
    study = read_study(
        table(methods=["teacher_seeded", "kl_anchored", "rows"], student_loss=SAMPLED)
        | {"recipe": {"rows": {"from": "mixture", "student_loss": {"gold": 0.5}}}}
    )
    checks = preflight_pair(study, "tiny-cross")
    assert {check.status for check in checks} == {"passed"}, checks
    evidence = {check.name: check.evidence for check in checks}
    assert evidence["alignment"].startswith("100.0% of")
    assert "1.28 tokens of the student's" in evidence["alignment"]
    assert "352 tokens spell the same" in evidence["shared vocabulary"]
    assert "</s> aligns with the other's EOS" in evidence["special tokens"]
    assert "as computed from logits" in evidence["rows: student tokens"]


@pytest.mark.parametrize("which", [SAMPLED, "gold"])
def test_preflight_sees_a_wrong_translation(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of the teacher one token late; the row of the token before."""

    def late(spans: list, scores: np.ndarray, size: int) -> np.ndarray:
        return np.roll(spread_scores(spans, scores, size), 1)

    def before(spans: list, size: int) -> np.ndarray:
        return np.maximum(match_tokens(spans, size) - 1, -1)

    wrong: Callable = late if which == SAMPLED else before
    name = "spread_scores" if which == SAMPLED else "match_tokens"
    monkeypatch.setattr(f"potstill.engines.cross_tokenizer.engine.{name}", wrong)
    chosen = SAMPLED if which == SAMPLED else {"gold": 0.5}
    checks = preflight_pair(read_study(table(student_loss=chosen)), "tiny-cross")
    assert [c.name for c in checks if c.status == "refused"] == ["on_policy_gkd: student tokens"]


def test_faults_are_refused_here_too() -> None:
    study = read_study(
        table(methods=["mixture"], student_loss=SAMPLED, faults=["unshifted_targets"])
    )
    refused = [c for c in preflight_pair(study, "tiny-cross") if c.status == "refused"]
    assert [(c.name, c.cause) for c in refused] == [
        ("mixture: teacher tokens", "unshifted_targets")
    ]


def test_an_opened_pair_is_asked_for_losses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hub names, whose files are not looked at when a study is read."""
    monkeypatch.setattr("potstill.study.loading.differ", lambda *_: None)
    checks = preflight_pair(read_study(table()), "tiny-cross")
    (found,) = checks
    assert found.status == "refused" and "reverse_kl_sampled" in found.hint


def test_the_command_line_refuses_with_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["potstill", "check", "pairs=tiny-cross"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: on_policy_gkd needs reverse_kl") and "hint: losses for" in err
