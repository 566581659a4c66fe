"""The machine of `benchmarks.gpu`: card, driver, versions, and whether its arithmetic is right."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time

import torch
from torch import Tensor

from benchmarks import gpu_packages as packages
from benchmarks.gpu_section import Section

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "pydantic")
QUERY = "name,memory.total,memory.used,driver_version,temperature.gpu,power.limit"
SIZE, FULL = 1024, 8192  # of the matrices that are compared with float64, and timed on a card


def run(section: Section) -> None:
    facts = section.table("", ["fact", "value"])
    for name, value in _host():
        facts.row(name, value)
    if section.device == "cuda":
        with section.part("the card"):
            for name, value in _card():
                facts.row(name, value)
    for module, (_, what) in packages.OPTIONAL.items():
        if packages.missing([module]):
            section.skip(what, f"{module} is not installed")
    section.text(
        "A product of two random matrices against float64, as the relative distance of the whole "
        "result. Float32 is to be far below 1e-3 (TF32 would give about 3e-4), half precision "
        "about 3e-3."
    )
    products = section.table("", ["dtype", "relative distance", "TFLOP/s"])
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        with section.part(f"{dtype}"):
            distance, rate = _product(section.device, dtype, 256 if section.tiny else SIZE)
            products.row(str(dtype).removeprefix("torch."), distance, rate / 1e12)
            if not distance < most:
                section.fail(f"{dtype}", f"the product is off by {distance:.2g}, at most {most}")


def _host() -> list[tuple[str, str]]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("host", f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB, {platform.platform()}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("torch was built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"),
        ("GPUs that torch finds", str(torch.cuda.device_count())),
    ]


def _card() -> list[tuple[str, str]]:
    rows = []
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        rows.append(
            (
                f"GPU {i}",
                f"{card.name}, {total / 1e9:.1f} GB ({free / 1e9:.1f} GB free), "
                f"{card.multi_processor_count} multiprocessors, "
                f"compute capability {card.major}.{card.minor}",
            )
        )
    rows.append(("bfloat16", "supported" if torch.cuda.is_bf16_supported() else "not supported"))
    rows.append(("cuDNN", str(torch.backends.cudnn.version())))
    if program := shutil.which("nvidia-smi"):
        words = [program, f"--query-gpu={QUERY}", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
        rows.append((f"nvidia-smi ({QUERY})", (done.stdout or done.stderr).strip()))
    return rows


def _product(device: str, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """Relative distance of a product from float64, and operations a second."""
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, dtype=torch.float64) for _ in range(2))
    half_a, half_b = (x.to(device, dtype) for x in (a, b))
    exact = half_a.double().cpu() @ half_b.double().cpu()
    out = (half_a @ half_b).double().cpu()
    distance = float((out - exact).norm() / exact.norm())
    if device == "cuda":  # large enough to fill the card
        size = FULL
        half_a, half_b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return distance, 2.0 * size**3 / _seconds(half_a, half_b, device)


def _seconds(a: Tensor, b: Tensor, device: str, calls: int = 10) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
    return best
