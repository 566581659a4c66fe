"""Training steps of a student with a larger teacher: seconds, tokens a second and memory.

A step samples the student's completions, reads them with the teacher and trains on the exact
reverse KL. The first step allocates and is not timed. Memory is what torch had allocated at most
(`torch.cuda.max_memory_allocated`), and on a CPU the process's largest resident size.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import gpu_models as models
from benchmarks.beside import peak_memory, spread
from benchmarks.gpu_section import Section
from benchmarks.own_steps import step
from potstill.engines.registry import open_engine
from potstill.settings import Pair, TorchSettings
from potstill.types import ModelSpec, Prompt

STEPS = 2  # timed ones
HEADS = ["student : teacher", "trained", "s a step", "sampling, tokens/s", "training, tokens/s"]
HEADS += ["peak GB", "GB with models loaded", "loss, first : last"]


@dataclass(frozen=True)
class Case:
    """A pair and how its student is trained."""

    student: models.Shape
    teacher: models.Shape
    lora_rank: int = 0
    checkpointing: bool = False

    @property
    def pair(self) -> str:
        return f"{self.student.name} : {self.teacher.name}"

    @property
    def trained(self) -> str:
        name = f"LoRA, rank {self.lora_rank}" if self.lora_rank else "all weights"
        return f"{name}, checkpointing" if self.checkpointing else name

    @property
    def bytes(self) -> float:
        """Weights, gradients and the optimizer's state, at the least."""
        own = 2 if self.lora_rank else 16
        return own * self.student.parameters + 2 * self.teacher.parameters


def cases(section: Section) -> list[Case]:
    """All ways of training the middle pair, then a larger one."""
    small = (models.TINY, models.TINY_TEACHER)
    middle = small if section.tiny else (models.MIDDLE, models.LARGE)
    ways = [(0, False), (16, False), (0, True), (16, True)]
    found = [Case(*middle, *way) for way in ways]
    if not section.tiny:
        found += [Case(models.LARGE, models.LARGEST, *way) for way in ((16, True), (0, True))]
    total = models.memory(section.device)
    fit = [case for case in found if section.tiny or case.bytes < 0.7 * total]
    for case in found:
        if case not in fit:
            section.skip(f"{case.pair}, {case.trained}", f"it does not fit in {total / 1e9:.0f} GB")
    return fit


def run(section: Section) -> None:
    batch, added = (4, 6) if section.tiny else (16, 64)
    section.text(
        f"Random weights; {batch} prompts a step of the arithmetic task, up to {added} new tokens "
        "each. Students are computed in bfloat16, with float32 weights where all are trained."
    )
    rows = section.table("", HEADS)
    for case in cases(section):
        with section.part(f"{case.pair}, {case.trained}", 0 if section.tiny else 12) as go:
            if go:
                rows.row(case.pair, case.trained, *measured(section, case, batch, added))
        models.clear()


def open_case(section: Section, case: Case) -> Any:
    """The engine of a case."""
    spec = ModelSpec(device=section.device, dtype="bfloat16")
    settings = TorchSettings(
        student=spec, teacher=spec, gradient_checkpointing=case.checkpointing, threads=0
    )
    names = Pair(**models.pair(section, case.student, case.teacher))
    return open_engine("torch", names, lora_rank=case.lora_rank, settings=settings)


def measured(section: Section, case: Case, batch: int, added: int) -> list[Any]:
    """Take steps, and return the cells of a row."""
    models.pair(section, case.student, case.teacher)  # written before the peak is counted
    models.clear()
    engine = open_case(section, case)
    try:
        engine.score("teacher", [(Prompt.of((3,)), (3,))])  # loads the second model
        models.check_placed(engine, section.device)
        loaded = peak_memory(section.device)
        job = {
            "batch": batch,
            "max_tokens": added,
            "learning_rate": 1e-4,
            "questions": models.questions(batch) * (STEPS + 2),
        }
        found = [step(engine, job, at + 1) for at in range(STEPS + 1)]
        last = peak_memory(section.device)
    finally:
        engine.close()
    losses = [each["loss"] for each in found]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"the losses are not finite: {losses}")
    timed = found[1:]
    rates = [
        statistics.median(each["tokens"] / each[part] for each in timed)
        for part in ("sampling", "training")
    ]
    return [
        spread([each["seconds"] for each in timed], ".3f"),
        *rates,
        last / 1e9,
        loaded / 1e9,
        f"{losses[0]:.3f} : {losses[-1]:.3f}",
    ]
