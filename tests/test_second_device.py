"""The engine on a device other than the CPU: no operation mixes devices, no number changes.

The device is emulated, see `second_device`. `python tests/test_second_device.py` runs all families.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from families import FAMILIES, write_pair
from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import constant
from potstill.engines.cross_tokenizer.engine import ENGINE
from potstill.engines.protocol import Engine
from potstill.engines.torch.decoding import fits
from potstill.engines.torch.loading import load_model
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, ModelSpec, Prompt
from second_device import DEVICE, NAME, OnCard, available, second_device

PROMPTS = [Prompt.of(ids) for ids in ((5, 300, 77, 8, 121, 9), (41,), (200, 17, 33))]
LIMITS = [7, 4, 9]  # rows leave the batch one after another
QUICK = "llama", "mamba2", "gemma2"


def open_on(device: str, folder: Path, **options: Any) -> Any:
    config = AutoConfig.from_pretrained(folder / "student")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    attention = "sdpa" if kind._supports_sdpa else "eager"
    spec = ModelSpec(device=device, dtype="float32", attention=attention)
    settings = TorchSettings(threads=0, student=spec, teacher=spec)
    names = str(folder / "student"), str(folder / "teacher")
    return ENGINE(*names, settings=settings, **options)


def batch_of(engine: Engine) -> list[Datum]:
    recipe = Recipe(name="all", on_policy=constant(0.5), prefix=constant(2), anchor=0.1)
    problems = [Problem(str(i), text, "0") for i, text in enumerate(("Tom has 3", "7", "Eva"))]
    return build(recipe, collect(recipe, engine, problems, 0.0, 0, 0, Limits(5, 1.0, 1.0)), engine)


def numbers(engine: Any, folder: Path) -> dict[str, Any]:
    """Everything that an engine computes, the saved state and the export included."""
    samples = engine.sample("student", PROMPTS, LIMITS, 1.0, np.random.default_rng(0))
    rows = [(prompt, s.tokens) for prompt, s in zip(PROMPTS, samples, strict=True)]
    looks = engine.inspect("teacher", rows)
    found = {
        "tokens": [s.tokens for s in samples],
        "sampled": np.concatenate([s.logprobs for s in samples]),
        "behavior": np.concatenate([s.behavior_logprobs for s in samples]),
        "init": np.concatenate(engine.score("init", rows)),
        "teacher": np.concatenate(engine.score("teacher", rows)),
        "entropy": np.concatenate([look.entropy for look in looks]),
        "row": engine.rows("student", *rows[0]).sum(),
    }
    data = batch_of(engine)
    found["measured"] = engine.measure(data).loss
    found["step"] = [engine.step(data, 0.01).loss for _ in range(2)]
    engine.save(folder / "state")
    engine.load(folder / "state")
    found["after"] = np.concatenate(engine.score("student", rows))
    return found


def compare(folder: Path, **options: Any) -> Any:
    """Numbers there and on the CPU; returns the engine on the second device."""
    there = open_on(DEVICE, folder, **options)
    weights = list(there.models.held["student"].parameters())
    assert weights and all(isinstance(weight, OnCard) for weight in weights)
    got = numbers(there, folder)
    want = numbers(open_on("cpu", folder, **options), folder)
    assert got.pop("tokens") == want.pop("tokens")
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, atol=2e-4, err_msg=name)
    return there


@pytest.mark.parametrize("options", [{}, {"attention": "eager"}], ids=["auto", "eager"])
def test_a_model_goes_to_its_device_whatever_the_other_settings(
    options: dict[str, Any], tmp_path: Path
) -> None:
    name = str(write_pair(tmp_path, "llama") / "student")
    model = load_model(name, ModelSpec(device="meta", dtype="float32", **options), trained=False)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def adapters(folder: Path) -> None:
    engine = compare(write_pair(folder, "qwen3"), lora_rank=2)
    assert all(weight.device.type == NAME for weight in engine.models.trained.values())


def mixtures(folder: Path) -> None:
    """The emulation itself: what a GPU refuses, and what it allows."""
    own, other = torch.ones(3, device=DEVICE), torch.ones(3)
    for mixed in (
        lambda: own + other,
        lambda: other.index_select(0, own.long()),
        lambda: other[own.bool()],
        own.numpy,
        lambda: torch.cat((own, other)),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()
    assert (own + torch.tensor(2.0)).tolist() == [3, 3, 3]
    assert own[torch.tensor([0, 1])].cpu().numpy().tolist() == [1, 1]
    assert other.to(DEVICE).device.type == NAME


OTHER = {"adapters": adapters, "mixtures": mixtures}


def run(case: str, folder: Path) -> None:
    """A case of `OTHER`, or a family."""
    if case in OTHER:
        OTHER[case](folder)
    else:
        engine = compare(write_pair(folder, case))
        assert fits(engine.models.held["student"]) == (case in ("llama", "qwen2", "qwen3"))


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """Results by case, of a process of its own: a new device is for the rest of a process."""
    if not available():
        pytest.skip("this torch has no devices made in Python")
    words = [sys.executable, __file__, *QUICK, *OTHER]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = [line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line]
    return dict(lines) or {"": done.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*QUICK, *OTHER])
def test_computes_the_same_there(case: str, results: dict[str, str]) -> None:
    assert results.get(case) == "the same", results


if __name__ == "__main__":
    with second_device(setattr):
        for name in sys.argv[1:] or [*FAMILIES, *OTHER]:
            with tempfile.TemporaryDirectory() as place:
                try:
                    run(name, Path(place))
                    print(f"{name}: the same", flush=True)
                except Exception as error:
                    print(f"{name}: FAILED {str(error)[:300]!r}", flush=True)
