"""The predicted memory of a step, and what torch's profiler counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import memory

from families import FAMILIES, write_pair
from potstill.engines.torch.footprint import Footprint, Live

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = "llama", "gpt_oss"


def cases() -> list[object]:
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in FAMILIES}
    return [pytest.param(name, marks=marks[name]) for name in FAMILIES]


@pytest.mark.parametrize("family", cases())
def test_the_prediction_is_within_a_fifth_of_what_is_used(family: str, tmp_path: Path) -> None:
    ratios = dict(memory.ratios(write_pair(tmp_path, family)))
    assert ratios.keys() == memory.SHAPES.keys()
    assert {n: r for n, r in ratios.items() if abs(r - 1) > memory.WITHIN} == {}


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
