"""One family of models on a device: its numbers in bfloat16 against exact ones.

    python -m benchmarks.gpu_family llama --device cuda --result FILE

The checkpoint is one of `tests/families.py`: two layers with random weights. Exact numbers are
those of a float32 engine on the CPU, or of a forward pass of each row alone on the device. Every
figure is a largest distance or a relative one, and has a tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_models import check_placed
from benchmarks.gpu_section import strict
from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import constant
from potstill.engines.torch.engine import TorchEngine
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Ids, Limits, ModelSpec, Prompt, Sample

TESTS = Path(__file__).parents[1] / "tests"
PROMPTS: list[Ids] = [(5, 300, 77, 8, 121, 9), (41,), (200, 17, 33), (88, 6, 250, 4, 61, 90, 301)]
LIMITS = [7, 4, 9, 1]  # rows leave the batch one after another
QUESTIONS = "Tom has 3", "7", "Ann has 12 pens, buys 5", "Eva"

# Tolerances. Log-probs in nats: float32 adds in another order; a bfloat16 has 8 bits, and experts
# or recurrent states carry one rounding far, so the median row counts. Losses, gradients: shares.
FLOAT32, HALF, LOSS, GRADIENT = 1e-3, 0.15, 0.05, 0.25


class Family:
    """The pair of a family, and engines on it, opened once each."""

    def __init__(self, name: str, folder: Path, device: str) -> None:
        sys.path.insert(0, str(TESTS))
        from families import write_pair  # type: ignore[import-not-found]

        self.device, self.folder = device, write_pair(folder, name)
        self._open: dict[tuple[str, str, int], TorchEngine] = {}

    def engine(self, device: str, dtype: str, lora_rank: int = 0) -> TorchEngine:
        """An engine whose weights nobody has trained."""
        key = device, dtype, lora_rank
        if key not in self._open:
            self._open[key] = self.fresh(*key)
        return self._open[key]

    def fresh(self, device: str, dtype: str, lora_rank: int = 0) -> TorchEngine:
        """A new engine, to be trained."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        config = AutoConfig.from_pretrained(self.folder / "student")
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        sdpa = kind._supports_sdpa
        spec: Any = {"device": device, "dtype": dtype, "attention": "sdpa" if sdpa else "eager"}
        settings = TorchSettings(threads=0, student=ModelSpec(**spec), teacher=ModelSpec(**spec))
        names = str(self.folder / "student"), str(self.folder / "teacher")
        engine = TorchEngine(*names, max_grad_norm=0.0, settings=settings, lora_rank=lora_rank)
        check_placed(engine, device)
        return engine

    @property
    def exact(self) -> TorchEngine:
        return self.engine("cpu", "float32")

    @property
    def half(self) -> TorchEngine:
        return self.engine(self.device, "bfloat16")


def sample(engine: TorchEngine, temperature: float = 1.0) -> list[Sample]:
    prompts = [Prompt.of(ids) for ids in PROMPTS]
    return engine.sample("student", prompts, LIMITS, temperature, np.random.default_rng(0))


def alone(engine: TorchEngine, prompt: Ids, completion: Ids) -> Any:
    """Full-vocabulary log-probs from a forward pass of one row."""
    return engine.rows("student", Prompt.of(prompt), completion)


def distances(engine: TorchEngine) -> tuple[list[float], list[float]]:
    """Largest distance of each row's scores and sampled log-probs from its own forward pass."""
    samples = sample(engine)
    rows = [(Prompt.of(ids), s.tokens) for ids, s in zip(PROMPTS, samples, strict=True)]
    scores = engine.score("student", rows)
    read, sampled = [], []
    for (prompt, tokens), one, score in zip(rows, samples, scores, strict=True):
        wanted = alone(engine, prompt.student, tokens)[np.arange(len(tokens)), list(tokens)]
        read.append(float(np.abs(score - wanted).max()))
        sampled.append(float(np.abs(one.logprobs - wanted).max()))
    return read, sampled


def float32(family: Family) -> dict[str, tuple[float, float]]:
    """Float32 on the device: against the CPU, and rows in a batch against rows alone."""
    own, rows = family.engine(family.device, "float32"), []
    for ids, one in zip(PROMPTS, sample(family.exact), strict=True):
        rows.append((Prompt.of(ids), one.tokens))
    pairs = zip(own.score("student", rows), family.exact.score("student", rows), strict=True)
    apart = max(float(np.abs(a - b).max()) for a, b in pairs)
    read, sampled = distances(own)
    return {
        "float32 : CPU": (apart, FLOAT32),
        "float32, batch": (max(*read, *sampled), FLOAT32),
    }


def half(family: Family) -> dict[str, tuple[float, float]]:
    """Bfloat16 on the device: rows in a batch against rows alone, and greedy completions."""
    read, sampled = distances(family.half)
    gaps = []
    for ids, one in zip(PROMPTS, sample(family.half, 0.0), strict=True):
        logp = alone(family.half, ids, one.tokens)[:, : family.half.vocabulary]
        at = logp[np.arange(len(one.tokens)), list(one.tokens)]
        gaps.append(float((logp.max(-1) - at).max()))
    return {
        "scores": (float(np.median(read)), HALF),
        "samples": (float(np.median(sampled)), HALF),
        "greedy, gap": (float(np.median(gaps)), 2 * HALF),
    }


def batch_of(engine: TorchEngine) -> list[Datum]:
    """A step's data with every kind of term."""
    recipe = Recipe(name="all", on_policy=constant(0.5), prefix=constant(3), anchor=0.1)
    problems = [Problem(str(i), text, "0") for i, text in enumerate(QUESTIONS)]
    return build(recipe, collect(recipe, engine, problems, 0.0, 0, 0, Limits(7, 1.0, 1.0)), engine)


def step(family: Family, lora_rank: int = 0) -> dict[str, tuple[float, float]]:
    """Loss and gradient norm of a step, and whether steps lower the loss; then the export."""
    name = "LoRA" if lora_rank else "all weights"
    data = batch_of(family.exact)
    exact = family.fresh("cpu", "float32", lora_rank)
    own = family.fresh(family.device, "bfloat16", lora_rank)
    want, got = exact.step(data, 0.0), own.step(data, 0.0)
    before = own.measure(data).loss
    for _ in range(4):
        own.step(data, 0.02 if lora_rank else 0.003)
    after = own.measure(data).loss
    return {
        f"{name}: loss": (abs(got.loss / want.loss - 1), LOSS),
        f"{name}: gradient": (abs(got.grad_norm / want.grad_norm - 1), GRADIENT),
        f"{name}: after 4 steps": (after / before, 1.0),
        f"{name}: export": (exported(own), HALF),
    }


def lora(family: Family) -> dict[str, tuple[float, float]]:
    return step(family, 2)


def exported(engine: TorchEngine) -> float:
    """Median distance of scores from those of the exported student, opened by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = [(ids, one.tokens) for ids, one in zip(PROMPTS, sample(engine), strict=True)]
    scores = engine.score("student", [(Prompt.of(ids), tokens) for ids, tokens in rows])
    apart = []
    with tempfile.TemporaryDirectory() as place:
        engine.export(Path(place) / "out")
        model = AutoModelForCausalLM.from_pretrained(Path(place) / "out", dtype=torch.float32)
        if hasattr(model.config, "rescale_every"):
            model.config.rescale_every = 0
        for (ids, tokens), score in zip(rows, scores, strict=True):
            with torch.inference_mode():
                logits = model.eval()(torch.tensor([ids + tokens]), use_cache=False).logits[0]
            logp = logits[len(ids) - 1 : -1].float().log_softmax(-1)
            wanted = logp[torch.arange(len(tokens)), torch.tensor(tokens)].numpy()
            apart.append(float(np.abs(score - wanted).max()))
    return float(np.median(apart))


CHECKS: dict[str, Callable[[Family], dict[str, tuple[float, float]]]] = {
    "float32": float32,
    "bfloat16": half,
    "all weights": step,
    "LoRA": lora,
}


def measured(name: str, device: str, write: Callable[[dict[str, Any]], None]) -> None:
    """Every check of a family, written as each ends."""
    start, found = time.perf_counter(), {"figures": {}, "errors": {}, "seconds": 0.0}
    figures: Any = found["figures"]
    errors: Any = found["errors"]
    with tempfile.TemporaryDirectory() as place:
        family = Family(name, Path(place), device)
        for check, work in CHECKS.items():
            try:
                figures |= work(family)
            except Exception as error:
                traceback.print_exc()
                errors[check] = f"{type(error).__name__}: {error}"
            found["seconds"] = time.perf_counter() - start
            write(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family")
    parser.add_argument("--device", required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    strict()

    def write(found: dict[str, Any]) -> None:
        draft = args.result.with_suffix(".draft")
        draft.write_text(json.dumps(found), encoding="utf-8")
        draft.replace(args.result)

    measured(args.family, args.device, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
