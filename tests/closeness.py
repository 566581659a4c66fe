"""The device and dtype on which an engine is tested, and how close its numbers have to be there.

`POTSTILL_TEST_DEVICE` and `POTSTILL_TEST_DTYPE` select them; by default the torch engine's tests
run in float32 on the CPU, with the tolerances that the tests state. Elsewhere those are widened:

- float32 on a GPU, by 20: kernels are chosen by the shape of a batch and add in another order. With
  TF32 off a log-prob of two layers moves by about 1e-5.
- bfloat16: a number has 8 bits, so that a logit of 8 is rounded by up to 0.016 in each of some ten
  products; log-probs, entropies and losses may differ by 0.1, and sums over tokens by a twentieth.

Backward passes on a GPU add in an order that changes between runs, so that equality becomes
closeness there. `POTSTILL_TEST_DISTANCES` names a file to which every comparison is appended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

DEVICE = os.environ.get("POTSTILL_TEST_DEVICE", "cpu")
DTYPE = os.environ.get("POTSTILL_TEST_DTYPE", "float32")
EXACT = DEVICE == "cpu" and DTYPE == "float32"
HALF, HALF_SHARE, GPU_TIMES = 0.1, 0.05, 20.0


def atol(stated: float) -> float:
    """The tolerance of a distance that a test states for float32 on a CPU."""
    return stated if EXACT else max(stated, HALF) if DTYPE == "bfloat16" else stated * GPU_TIMES


def rtol(stated: float) -> float:
    """The same for relative distances."""
    if EXACT:
        return stated
    return max(stated, HALF_SHARE) if DTYPE == "bfloat16" else stated * GPU_TIMES


def near(got: Any, want: Any, absolute: float, relative: float = 0.0) -> None:
    """Assert that numbers of one shape are close; NaN never is."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    allowed = np.maximum(atol(absolute), (rtol(relative) if relative else 0.0) * np.abs(want))
    apart = np.abs(got - want)
    note(float(apart.max(initial=0.0)), float(np.max(allowed, initial=0.0)))
    wrong = ~(apart <= allowed)
    assert not wrong.any(), f"off by {apart[wrong].max():.3g}, allowed {allowed.max():.3g}"


def same_steps(found: list[Any], want: list[Any]) -> None:
    """Assert that steps report the same numbers; bit for bit on a CPU."""
    if DEVICE == "cpu":
        assert found == want
        return
    near([s.loss for s in found], [s.loss for s in want], 1e-6, 1e-4)
    near([s.grad_norm for s in found], [s.grad_norm for s in want], 1e-5, 1e-3)


def note(distance: float, allowed: float) -> None:
    """Append a comparison to the file of the run, if it has one."""
    if place := os.environ.get("POTSTILL_TEST_DISTANCES"):
        name = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].split("[")[0]
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(f"{name} {distance:.9g} {allowed:.9g}\n")


def placed() -> dict[str, Any]:
    """Settings of a torch engine on the chosen device; none by default."""
    if EXACT:
        return {}
    from potstill.settings import TorchSettings
    from potstill.types import ModelSpec

    spec = ModelSpec(device=DEVICE, dtype=DTYPE)  # type: ignore[arg-type]
    return {"settings": TorchSettings(student=spec, teacher=spec, threads=0)}
