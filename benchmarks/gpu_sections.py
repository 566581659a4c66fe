"""The sections of `benchmarks.gpu`: `python -m benchmarks.gpu_sections NAME DEVICE FOLDER SECONDS`.

Each prints Markdown and exits with 1 if what it checks does not hold.
"""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.beside import trl_python
from benchmarks.memory import measured
from benchmarks.shapes import gsm8k_questions, make_smol
from potstill.algorithms.losses import REVERSE_KL
from potstill.engines.torch import decoding
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.footprint import footprint, full_rows
from potstill.settings import TorchSettings
from potstill.types import ModelSpec, Prompt

ROOT = Path(__file__).parents[1]
GREEDY_AGREE = 0.9  # share of greedy tokens that two decoders agree on in bfloat16, ties included
CLOSE = 0.1  # nats per token between two decoders in bfloat16, on average


def machine(device: str, work: Path, seconds: float) -> None:
    """Versions, and the card's name and memory."""
    import peft
    import transformers

    rows = {
        "potstill": _git(),
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "CPU cores": str(os.cpu_count()),
    }
    if device == "cuda":
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            rows[f"card {index}"] = f"{card.name}, {card.total_memory / 1e9:.0f} GB"
        rows["CUDA"] = str(torch.version.cuda)
        rows["bfloat16"] = str(torch.cuda.is_bf16_supported())
    _table(("what", "version"), rows.items())


def contract(device: str, work: Path, seconds: float) -> None:
    """The promises of an engine, as the tests have them, in float32 and in bfloat16."""
    rows, failed = [], False
    for dtype in ("float32", "bfloat16"):
        code, lines = _tests("tests/test_engine_contract.py", device, dtype, seconds / 2)
        # In bfloat16 the tests' tolerances, which are float32's, are too narrow: it is counted.
        failed |= bool(code) and dtype == "float32"
        rows.append((dtype, lines[-1] if lines else "no result"))
        if code:
            rows += [("", line) for line in lines if line.startswith("FAILED")][:20]
    _table(("weights", "pytest tests/test_engine_contract.py"), rows)
    print("\nThe tolerances are those of float32; in bfloat16 failures are counted, not judged.")
    if failed:
        raise SystemExit("the contract fails in float32")


def families(device: str, work: Path, seconds: float) -> None:
    """The table of model families, as many as the time allows, in several processes."""
    sys.path[:0] = [str(ROOT / "tests")]
    from families import FAMILIES

    workers = min(8, os.cpu_count() or 1) if device == "cuda" else 1
    end, failed, lines = time.perf_counter() + 0.9 * seconds, 0, 0
    names, head = iter(FAMILIES), False
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def one(name: str) -> list[str]:
            words = [sys.executable, "tests/test_families.py", name]
            left = max(1.0, end - time.perf_counter())
            try:
                done = subprocess.run(
                    words, cwd=ROOT, env=_environment(device), capture_output=True, text=True,
                    timeout=left, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return []
            return done.stdout.splitlines() or ["", "", f"| {name} | {done.stderr[-200:]!r} |"]

        for printed in pool.map(one, names):
            if not printed:
                continue
            print("\n".join(printed if not head else printed[2:]), flush=True)
            head, lines = True, lines + 1
            failed += any("FAILED" in line for line in printed)
    print(f"\n{lines} of {len(FAMILIES)} families in the time, on {device}.")
    if failed:
        raise SystemExit(f"{failed} families fail")


def decoder(device: str, work: Path, seconds: float) -> None:
    """The fast decoder against the plain one: tokens, log-probabilities and speed."""
    engine, data, large = _engine(device, work)
    rows, worst = [], 0.0
    length = 128 if large else 8
    for batch in (1, 8, 64) if large else (1, 4):
        prompts = [data[i % len(data)] for i in range(batch)]
        results: dict[str, Any] = {}
        times: dict[str, list[float]] = {"fast": [], "plain": []}
        for repeat in range(4):
            for way in times:
                with _plain(way == "plain"):
                    _wait(device)
                    start = time.perf_counter()
                    results[way] = engine.sample(
                        "student", prompts, [length] * batch, 0.0, np.random.default_rng(0)
                    )
                    _wait(device)
                    if repeat:
                        times[way].append(time.perf_counter() - start)
        pairs = list(zip(results["fast"], results["plain"], strict=True))
        same = [_common(a.tokens, b.tokens) / max(1, len(a.tokens)) for a, b in pairs]
        gaps = [
            float(np.abs(a.logprobs[:n] - b.logprobs[:n]).mean())
            for a, b in pairs
            if (n := _common(a.tokens, b.tokens))
        ]
        worst = max([worst, *gaps])
        count = sum(len(a.tokens) for a, _ in pairs)
        ratios = [p / f for f, p in zip(times["fast"], times["plain"], strict=True)]
        rate = [f"{count / statistics.median(times[way]):,.0f}" for way in times]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append((batch, *rate, spread, f"{np.mean(same):.0%}", f"{max(gaps, default=0):.1e}"))
    heads = ("rows", "fast, tokens/s", "plain, tokens/s", "ratio")
    _table((*heads, "greedy tokens before the first difference", "nats per token"), rows)
    if worst > CLOSE:
        raise SystemExit(f"the decoders are {worst:.2g} nats per token apart")


def training(device: str, work: Path, seconds: float) -> None:
    """Seconds and memory of a step: all weights, LoRA, recomputed activations."""
    rows = []
    for name, options in (
        ("all weights", {}),
        ("all weights, recomputed", {"gradient_checkpointing": True}),
        ("LoRA, rank 16", {"lora_rank": 16}),
    ):
        engine, prompts, large = _engine(device, work, **options)
        prompt = max(prompts, key=lambda prompt: len(prompt.student))
        batch, length = (16, 256) if large else (2, 8)
        data = full_rows(prompt, length, batch, [REVERSE_KL])
        predicted = footprint(engine, prompt, length, batch, [REVERSE_KL]).peak
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(4):
            _wait(device)
            start = time.perf_counter()
            stats = engine.step(data, 1e-5)
            _wait(device)
            times.append(time.perf_counter() - start)
        if not np.isfinite(stats.loss):
            raise SystemExit(f"{name}: the loss is {stats.loss}")
        peak = (
            torch.cuda.max_memory_allocated() if large else measured(engine, prompt, length, batch)
        )
        took, count = statistics.median(times[1:]), batch * length
        spread = f"{took:.3f} ({min(times[1:]):.3f} to {max(times[1:]):.3f})"
        memory = f"{predicted / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{predicted / peak:.2f}"
        rows.append((name, count, spread, f"{count / took:,.0f}", *memory))
        engine.close()
    heads = ("student", "tokens", "seconds", "tokens/s", "predicted GB", "peak GB", "ratio")
    _table(heads, rows)
    print("\nReverse KL; the teacher is twice as deep. The peak is that of the tensors.")


def study(device: str, work: Path, seconds: float) -> None:
    """A short study of the embedded pair, with pre-flight and report."""
    out = work / f"study-{int(time.time())}"
    changes = ["pairs=tiny-qwen", "methods=on_policy_gkd,hybrid", "seeds=0,1,2", "train.steps=20"]
    changes += ["eval.problems=100", *_placed(device)]
    if device == "cpu":
        changes[2:4] = ["seeds=0", "train.steps=4"]
    words = [sys.executable, "-m", "potstill", "study", "--out", str(out), *changes]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    print("```text", *lines[-14:], "```", sep="\n")
    print(f"\n{time.perf_counter() - start:.0f} s, pre-flight and report included.")
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-400:])


def bench(device: str, work: Path, seconds: float) -> None:
    """`potstill bench` on the embedded pair."""
    words = [sys.executable, "-m", "potstill", "bench", "--repeats", "3", "pairs=tiny-llama"]
    words += ["methods=on_policy_gkd", *_placed(device)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    print("```text", done.stdout.strip(), "```", sep="\n")
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-400:])


def trl(device: str, work: Path, seconds: float) -> None:
    """The step next to TRL's, where TRL is installed."""
    from importlib.util import find_spec

    if find_spec("trl") is None and not (ROOT / "runs" / "trl" / "ready").exists():
        print("Skipped: TRL is not installed (pip install trl==1.16.0, or make bench).")
        return
    if find_spec("trl") is None:
        trl_python()
    words = [sys.executable, "-m", "benchmarks.steps", "tiny", "--repeats", "3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    print("```text", done.stdout.strip(), "```", sep="\n")
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-400:])


SECTIONS: dict[str, Callable[[str, Path, float], None]] = {
    "machine": machine, "contract": contract, "decoder": decoder, "training": training,
    "study": study, "bench": bench, "trl": trl, "families": families,
}  # fmt: skip


def _engine(device: str, work: Path, **options: Any) -> tuple[TorchEngine, list[Prompt], bool]:
    """A pair with random weights, in bfloat16: of a billion parameters on a card, tiny on a CPU."""
    large = device == "cuda"
    questions = gsm8k_questions("", 64)
    width, layers = (2048, (14, 28)) if large else (192, (1, 2))
    folder = work / ("models" if large else "tiny-models")
    if not (folder / "teacher" / "config.json").exists():
        make_smol(folder, questions, layers, width)
    spec = ModelSpec(device=device, dtype="bfloat16")
    settings = TorchSettings(threads=0, student=spec, teacher=spec)
    names = str(folder / "student"), str(folder / "teacher")
    engine = TorchEngine(*names, settings=settings, **options)
    prompts = [Prompt.of(engine.encode(question)) for question in questions]
    return engine, prompts, large


@contextmanager
def _plain(plain: bool) -> Iterator[None]:
    """Sample with the model's own forward pass."""
    own = decoding.fits
    if plain:
        decoding.fits = lambda model: False
    try:
        yield
    finally:
        decoding.fits = own


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _placed(device: str) -> list[str]:
    """Changes of a study that put both models on a device."""
    spec = f'{{device = "{device}", dtype = "bfloat16"}}'
    return [f"engine.{role}={spec}" for role in ("student", "teacher")]


def _environment(device: str, dtype: str = "float32") -> dict[str, str]:
    return {**os.environ, "POTSTILL_TEST_DEVICE": device, "POTSTILL_TEST_DTYPE": dtype}


def _tests(path: str, device: str, dtype: str, seconds: float) -> tuple[int, list[str]]:
    """The exit code of some tests on a device, and their last lines."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", path]
    words += ["-m", "not server and not slow", "-k", "torch", "--no-header", "--tb=no"]
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=_environment(device, dtype), capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, [f"not done after {seconds:.0f} s"]
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return done.returncode, lines or done.stderr.strip().splitlines()[-1:]


def _git() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git revision"


def _table(heads: Sequence[str], rows: Any) -> None:
    print(f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32
    section, on, folder, limit = sys.argv[1:]
    SECTIONS[section](on, Path(folder), float(limit))
