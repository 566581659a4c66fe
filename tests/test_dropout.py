"""Dropout of LoRA adapters: training steps drop, everything else reads the whole student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launching import run_study
from potstill.engines import zoo
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.settings import Lora
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.storage import RunId
from potstill.types import Datum, Prompt
from test_torch_engine import batch_of


def open_pair(dropout: float = 0.5, seed: int = 0, student: str = "", **options: Any) -> Any:
    names = [str(zoo.folder("tiny-llama", role)) for role in ("student", "teacher")]
    names[0] = student or names[0]
    lora = Lora(dropout=dropout)
    return TorchEngine(*names, seed=seed, lora_rank=4, lora=lora, max_grad_norm=0.0, **options)


@pytest.fixture(scope="module")
def data() -> list[Datum]:
    return batch_of(open_pair(0.0))


def trained(dropout: float, data: list[Datum], steps: int = 2, **options: Any) -> Any:
    engine = open_pair(dropout, **options)
    for _ in range(steps):
        engine.step(data, 0.01)
    return engine


@pytest.mark.parametrize("recompute", [False, True])
def test_the_measured_step_is_the_step_itself(data: list[Datum], recompute: bool) -> None:
    engine = trained(0.5, data, gradient_checkpointing=recompute)
    whole, expected = engine.measure(data).loss, engine.measure(data, dropout=True).loss
    assert abs(whole - expected) > 1e-3
    assert engine.measure(data, dropout=True).loss == expected
    assert engine.measure(data).loss == whole
    assert engine.step(data, 0.0).loss == expected
    assert engine.step(data, 0.0).loss != expected  # other inputs at the next step
    assert engine.measure(data).loss == whole


def test_the_gradient_is_that_of_the_inputs_kept(data: list[Datum]) -> None:
    """Recomputed activations drop what the forward pass dropped."""
    norms = [
        trained(0.5, data, gradient_checkpointing=recompute).step(data, 0.0).grad_norm
        for recompute in (False, True)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_losses_are_unbiased_to_first_order(data: list[Datum]) -> None:
    """Over many steps the mean of adapters' outputs is that without dropout."""
    engine = trained(0.2, data)
    whole = engine.measure(data).loss
    losses = []
    for _ in range(40):
        losses.append(engine.measure(data, dropout=True).loss)
        engine.step(data, 0.0)
    error = np.std(losses) / np.sqrt(len(losses))
    assert np.std(losses) > 0
    assert np.mean(losses) == pytest.approx(whole, abs=5 * error + 0.02 * whole)


def test_a_seed_decides_what_is_dropped(data: list[Datum]) -> None:
    torch.manual_seed(1)
    first = [trained(0.5, data, seed=seed).measure(data).loss for seed in (0, 1)]
    torch.manual_seed(2)
    assert trained(0.5, data).measure(data).loss == first[0] != first[1]


def test_the_global_random_numbers_are_left_alone(data: list[Datum]) -> None:
    engine = open_pair()
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    engine.step(data, 0.01)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_resumed_run_drops_the_same(data: list[Datum], tmp_path: Path, steps: int) -> None:
    engine = trained(0.5, data, steps)
    engine.save(tmp_path)
    wanted = [engine.step(data, 0.01).loss for _ in range(2)]
    resumed = open_pair()
    resumed.load(tmp_path)
    assert [resumed.step(data, 0.01).loss for _ in range(2)] == wanted


def test_sampling_and_scoring_drop_nothing(data: list[Datum]) -> None:
    engine = trained(0.9, data)
    prompt = Prompt.of((5, 9, 3))
    (sample,) = engine.sample("student", [prompt], [6], 1.0, np.random.default_rng(0))
    row = prompt, sample.tokens
    rows = engine.rows("student", *row)[np.arange(len(sample.tokens)), list(sample.tokens)]
    np.testing.assert_allclose(sample.logprobs, rows, atol=1e-4)
    np.testing.assert_allclose(engine.score("student", [row])[0], rows, atol=1e-4)


def test_an_adapter_that_goes_on_has_the_dropout_of_the_study(
    data: list[Datum], tmp_path: Path
) -> None:
    trained(0.9, data).export(tmp_path / "out")
    adapter = str(tmp_path / "out" / "adapter")
    assert '"lora_dropout": 0.9' in (tmp_path / "out/adapter/adapter_config.json").read_text()
    plain = open_pair(0.0, student=adapter)
    assert plain.measure(data, dropout=True).loss == plain.measure(data).loss
    dropping = open_pair(0.5, student=adapter)
    assert dropping.measure(data, dropout=True).loss != dropping.measure(data).loss


@pytest.mark.parametrize("train", [{"lora_dropout": 0.1}, {"lora_rank": 4, "lora_dropout": 1.0}])
def test_dropout_without_adapters_or_of_everything_is_an_error(train: dict[str, float]) -> None:
    table = {"name": "x", "pairs": ["tiny-llama"], "methods": ["off_policy"], "train": train}
    with pytest.raises(PotstillError, match="lora_dropout"):
        read_study(table)


def test_a_run_with_dropout_has_no_finding(tmp_path: Path) -> None:
    """Pre-flight and the monitor compute the losses of the steps that drop."""
    table = {
        "name": "drop",
        "pairs": ["tiny-llama"],
        "methods": ["mixture"],
        "seeds": [0],
        "train": {"steps": 6, "batch_size": 8, "lora_rank": 4, "lora_dropout": 0.3},
        "eval": {"problems": 16, "every": 6, "probe": 8, "probe_every": 1},
    }
    study = read_study(table)
    checks = preflight_pair(study, "tiny-llama", ("steps", "identity", "fresh sampler"))
    assert checks and {check.status for check in checks} == {"passed"}, checks
    folder = run_study(study, tmp_path / "out", workers=0)
    rows = folder.cell(RunId("tiny-llama", "mixture", 0)).metrics
    compared = [row for row in rows if "checks" in row and row["step"] > 0]
    assert len(compared) == 6 and not any(row["checks"] for row in compared), compared
