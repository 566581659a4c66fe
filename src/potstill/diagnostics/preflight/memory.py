"""The check of memory, before a step is taken: will the study's largest step fit?"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.algorithms.recipe import Recipe, anchor_losses
from potstill.diagnostics.preflight.check import Check
from potstill.diagnostics.preflight.rehearsal import Rehearsal
from potstill.engines.protocol import PredictsMemory
from potstill.tasks.selecting import longest as largest_problems
from potstill.types import Loss

TIGHT = 0.9  # share of the free memory above which a longer prompt may not fit
SHOWN = 0.05  # share of the bytes from which on a part is named


def fits(rehearsal: Rehearsal) -> Iterator[Check]:
    """Compare the predicted memory of a step with what is free on the device."""
    engine = rehearsal.engine
    if not isinstance(engine, PredictsMemory):
        return
    problems = largest_problems(rehearsal.any_run().task.train, 8)
    prompts = [engine.prompt(problem) for problem in problems]
    longest = max(prompts, key=lambda prompt: len(prompt.student))
    settings = rehearsal.settings
    losses = max((_losses(recipe) for recipe in rehearsal.recipes), key=_models)
    predicted = engine.predict_memory(longest, settings.max_tokens, settings.batch_size, losses)
    if predicted is None:
        return
    named = [
        f"{part} {size / 1e9:.2g}"
        for part, size in predicted.parts.items()
        if size >= SHOWN * predicted.needed
    ]
    evidence = (
        f"a step of {settings.batch_size} rows needs about {predicted.needed / 1e9:.2g} GB more "
        f"({', '.join(named)}); {predicted.free / 1e9:.2g} GB are free"
    )
    if predicted.needed <= TIGHT * predicted.free:
        yield Check("memory", "passed", evidence)
        return
    hint = (
        "lower engine.batch_tokens and engine.sample_tokens, set gradient_checkpointing = true, "
        "train adapters (train.lora_rank), or use a smaller model"
    )
    yield Check(
        "memory", "warning" if predicted.needed <= predicted.free else "refused", evidence, hint
    )


def _losses(recipe: Recipe) -> tuple[Loss, ...]:
    """The losses of a token, those of the source with more models to compare."""
    used = [recipe.student_loss] * recipe.uses_student + [recipe.teacher_loss] * recipe.uses_teacher
    return max(((loss, *anchor_losses(recipe)) for loss in used), key=_models)


def _models(losses: tuple[Loss, ...]) -> int:
    return len({loss.to for loss in losses if loss.needs == "full_logprobs" or loss.to == "init"})
