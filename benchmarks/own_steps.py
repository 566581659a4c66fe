"""potstill's on-policy step, one a request: what `benchmarks.steps` holds against TRL's."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.beside import Work, peak_memory, serve
from potstill import METHODS, open_engine
from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Limits, ModelSpec, Prompt, Trajectory


def step(engine: Engine, job: dict[str, Any], at: int) -> dict[str, float]:
    """Write, weigh, train: the loop's step without diagnosis and grading."""
    start = time.perf_counter()
    recipe, size = METHODS["on_policy_gkd"], job["batch"]
    texts = job["questions"][at * size : (at + 1) * size]
    if at == 0:
        prompts, completions = job["prompts"][:size], job["completions"][:size]
        batch = [
            Trajectory(Prompt.of(tuple(p)), tuple(c), np.zeros(len(c), np.float32), "student")
            for p, c in zip(prompts, completions, strict=True)
        ]
    else:
        problems = [Problem(str(i), text, "") for i, text in enumerate(texts)]
        limits = Limits(job["max_tokens"], 1.0, 1.0)
        batch = collect(recipe, engine, problems, 0.0, at, 0, limits)
    written = time.perf_counter()
    stats = engine.step(build(recipe, batch, engine), job["learning_rate"])
    end, tokens = time.perf_counter(), sum(len(t.completion) for t in batch)
    clocks = {"sampling": written - start, "training": end - written, "seconds": end - start}
    return {**clocks, "loss": stats.loss, "tokens": tokens}


def begin(job: dict[str, Any]) -> Work:
    if job.get("without"):
        from benchmarks.effects import UNDO

        UNDO[job["without"]]()
    pair = {"student": job["student"], "teacher": job["teacher"]}
    device = job.get("device", "cpu")
    spec = ModelSpec(device=device, dtype=job.get("dtype", "float32"))
    options = {"threads": job["threads"], "batch_tokens": job["batch_tokens"]}
    settings = TorchSettings(student=spec, teacher=spec, **options)
    engine = open_engine("torch", SimpleNamespace(**pair), settings=settings)
    engine.score("teacher", [(Prompt.of((1,)), (1,))])  # loads the second model
    done, loaded = 0, peak_memory(device)

    def work(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        found = step(engine, job, done)
        done += 1
        return {**found, "memory": peak_memory(device), "loaded": loaded}

    return work


if __name__ == "__main__":
    serve(begin)
