"""The predicted memory of a step, and what torch's profiler counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import memory

from families import FAMILIES, write_pair
from potstill.diagnostics.preflight import Check
from potstill.engines.host import free_host_memory, host_memory
from potstill.engines.torch import engine as engine_module
from potstill.engines.torch import footprint
from potstill.engines.torch.footprint import Footprint, Live
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = "llama", "gpt_oss"


def cases() -> list[object]:
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in FAMILIES}
    return [pytest.param(name, marks=marks[name]) for name in FAMILIES]


@pytest.mark.parametrize("family", cases())
def test_the_prediction_is_within_a_fifth_of_what_is_used(family: str, tmp_path: Path) -> None:
    ratios = dict(memory.ratios(write_pair(tmp_path, family)))
    assert ratios.keys() == memory.SHAPES.keys()
    far = {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > memory.WITHIN}
    assert {name: ratio for name, ratio in far.items() if abs(ratio - 1) > 0.3} == {}
    assert {(family, name) for name in far} <= memory.FURTHER


def test_tensors_are_counted_while_they_live() -> None:
    outside = torch.ones(1000)
    live = Live()
    with live:
        a = outside + 1  # 4,000 bytes
        b = a.view(10, 100)  # the same storage
        outside.add_(1)  # made before
        assert (live.now, live.peak) == (4000, 4000)
        c = torch.cat([a, a])
        del a
        assert (live.now, live.peak, live.largest) == (12000, 12000, 8000)
        del b
        assert (live.now, live.peak) == (8000, 12000)
        del c
    assert (live.now, live.peak) == (0, 12000)


def test_the_peak_is_that_of_the_dearest_moment() -> None:
    parts = {"weights": 100, "moments": 20, "gradients": 10, "activations": 50}
    parts |= {"first": 3, "head": 5, "backward": 7, "sampling": 1}
    assert Footprint(**parts, accumulated=False).peak == 120 + 53 + 7
    assert Footprint(**parts, accumulated=True).peak == 120 + 60 + 7
    assert Footprint(**parts | {"head": 9}, accumulated=True).peak == 120 + 60 + 9
    assert Footprint(**parts | {"head": 9}, accumulated=False).peak == 120 + 53 + 9
    assert Footprint(**parts | {"sampling": 900}, accumulated=False).peak == 120 + 900
    assert Footprint(**parts | {"gradients": 80}, accumulated=False).peak == 120 + 87


def checks_of(engine: str = "torch", **train: object) -> list[Check]:
    table = {"pairs": ["tiny-llama"], "methods": ["mixture", "kl_anchored"], "engine": engine}
    train = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, **train}
    return preflight_pair(read_study({**table, "train": train}), "tiny-llama", ("memory", "seed"))


@pytest.mark.parametrize(
    ("share", "status"), [(2.0, "passed"), (1.05, "warning"), (0.95, "refused")]
)
def test_a_step_is_held_against_the_memory_that_is_free(
    share: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Footprint] = []

    def predicted(*arguments: object) -> Footprint:
        made.append(footprint.footprint(*arguments))  # type: ignore[arg-type]
        return made[-1]

    def free(device: torch.device) -> int:
        return round(share * (made[-1].peak - made[-1].weights))

    monkeypatch.setattr(engine_module, "footprint", predicted)
    monkeypatch.setattr(engine_module, "free_memory", free)
    (check,) = [check for check in checks_of() if check.name == "memory"]
    assert check.status == status and "GB are free" in check.evidence
    assert ("engine.batch_tokens" in check.hint) is (status != "passed")
    assert "activations" in check.evidence


def test_rows_need_activations_and_trained_weights_need_moments() -> None:
    def evidence(**train: object) -> str:
        (check,) = [check for check in checks_of(**train) if check.name == "memory"]
        return check.evidence

    def needed(text: str) -> float:
        return float(text.split("about ")[1].split(" GB")[0])

    one, many = evidence(batch_size=1), evidence(batch_size=64)
    assert needed(many) > 5 * needed(one)
    assert "moments" in one and "moments" not in many
    assert "moments" not in evidence(batch_size=1, lora_rank=2)


def test_an_engine_without_models_here_is_not_predicted() -> None:
    assert [check.name for check in checks_of("fake")] == ["seed"]


def test_what_is_free_is_less_than_the_machine_has() -> None:
    assert 0 < free_host_memory() <= host_memory()[1]
    assert footprint.free_memory(torch.device("cpu")) > 0
