"""Checks of a step: the loss that a recipe trains, against the same loss computed from logits.

Where they differ, the known mistakes are tried (`faults.explaining`), so that the finding has a
name and a remedy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from potstill.algorithms.losses import FAULTY
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults.explaining import as_if, candidates
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.reference import observed, reference
from potstill.diagnostics.preflight.rehearsal import Check, DryRun, Rehearsal, refusal
from potstill.training import objective
from potstill.training.rollout import collect, draw
from potstill.types import Datum, Prompt, Rows, Source, Trajectory

BATCH = 12  # prompts of a rehearsed step
TOLERANCE = 2e-3  # of a loss: between a batched float32 sum and its reference


def trained_as_written(rehearsal: Rehearsal, recipe: Recipe) -> list[Check]:
    """What a step trains equals the reference, at the start and wherever the recipe changes."""
    stage = DryRun(rehearsal.engine)
    run = rehearsal.wire(stage, recipe)
    problems = draw(run.task.train, BATCH, rehearsal.seed, 0)
    found: dict[tuple[str, str], Check] = {}
    for t in _moments(recipe):
        batch = collect(recipe, run.engine, problems, t, 0, rehearsal.seed, rehearsal.limits)
        stage.steps.clear()
        run.engine.step(objective.build(run.recipe, batch, run.engine), 0.0)
        for check in _compare(rehearsal, recipe, batch, stage.steps):
            found.setdefault((check.name, check.cause), check)
    return list(found.values())


def _moments(recipe: Recipe) -> list[float]:
    """Progress values at which the recipe does something else."""
    schedules = (recipe.on_policy, recipe.prefix)
    return sorted({0.0, *(s.until for s in schedules if s.kind != "constant" and s.until < 1)})


def _compare(
    rehearsal: Rehearsal,
    recipe: Recipe,
    batch: Sequence[Trajectory],
    steps: Sequence[Sequence[Datum]],
) -> Iterator[Check]:
    """Compare what reached the engine with the semantics, source by source."""
    data = [datum for step in steps for datum in step]
    if len(steps) > 1:
        evidence = f"one training step makes {len(steps)} optimizer steps"
        yield refusal(f"{recipe.name}: one step", evidence, "mixture_unblended")
    sources: tuple[Source, ...] = ("student", "teacher")
    for source in sources:
        written = [t for t in batch if t.source == source and t.trained]
        if not written:
            continue
        share = sum(t.source == source for t in batch) / len(batch) if len(steps) < 2 else 1.0
        got = [datum for datum in data if datum.source == source]
        yield from _compare_source(rehearsal, recipe, written, got, share, source)


def _compare_source(
    rehearsal: Rehearsal,
    recipe: Recipe,
    written: Sequence[Trajectory],
    got: Sequence[Datum],
    share: float,
    source: Source,
) -> Iterator[Check]:
    terms = objective.losses_for(recipe, source)
    asked, used = {loss for loss, _ in terms}, {term.loss for d in got for term in d.terms}
    name = f"{recipe.name}: {source} tokens"
    if any(loss.to == "init" for loss in asked - used):
        yield refusal(name, "no KL to the student of step 0 is in the step", "anchor_absent")
        terms = [(loss, factor) for loss, factor in terms if loss.to != "init"]
    if cut := [loss for loss in used if loss.name in FAULTY]:
        yield refusal(name, f"the step trains {cut[0]}, which has no tail", "top_k_without_tail")
        return
    if misplaced := list(_weights(rehearsal, name, written, got)):
        yield from misplaced
        return
    if engine := rehearsal.crossing:
        trained = crossed.trained(engine, got) / share
        wanted = crossed.reference(engine, written, terms)
    else:
        trained = sum((observed(rehearsal.engine, d) for d in got), start=np.zeros(2)) / share
        wanted = reference(rehearsal.engine, written, terms)
    if _close(trained, wanted):
        yield Check(name, "passed", f"{wanted[0]:.4f} nats per token, as computed from logits")
        yield from _first_loss(rehearsal, recipe, wanted[0], source)
        return
    evidence = f"the step trains {trained[0]:.4f} nats per token, the recipe says {wanted[0]:.4f}"
    if _close(trained[:1], wanted[:1]):
        evidence += ", but on other tokens"
    if all(loss.to != "init" for loss, _ in terms):
        recipe = dataclasses.replace(recipe, anchor=0.0)
    blind = rehearsal.crossing and terms[0][0].name != "cross_entropy"  # has no such log-probs
    for mistakes in () if blind else candidates(rehearsal.engine.losses).values():
        everywhere = tuple(fault.everywhere() for fault in mistakes)
        data = as_if(everywhere, recipe, written, rehearsal.engine)
        value = sum((observed(rehearsal.engine, datum) for datum in data), start=np.zeros(2))
        if _close(trained, value):
            words = ", ".join(fault.explanation for fault in mistakes)
            for fault in mistakes:
                yield refusal(name, f"{evidence}; {words} gives {value[0]:.4f}", fault.name)
            return
    hint = "look at shift, prompt, masks and weights of what the step is given"
    yield Check(name, "refused", evidence, hint)


def _weights(
    rehearsal: Rehearsal, name: str, written: Sequence[Trajectory], got: Sequence[Datum]
) -> Iterator[Check]:
    """Weights on the wrong tokens, which a confident teacher can hide from the loss."""
    weighed = [y for d in got for y, *w in _asked(d) if any(w)]
    ends = sum(t.completion[-1] in rehearsal.engine.eos for t in written)
    if ends and not any(y in rehearsal.engine.eos for y in weighed):
        yield refusal(name, f"{ends} texts end with EOS, none of it is trained", "eos_untrained")
    extra = len(weighed) - sum(t.trained for t in written)
    if extra > 0 and any(t.prefix for t in written):
        evidence = f"{extra} tokens more than the student wrote carry loss: the teacher's prefix"
        yield refusal(name, evidence, "prefix_trained")


def _asked(datum: Datum) -> Iterator[tuple[float, ...]]:
    """Each target with its weights in every term."""
    return zip(datum.targets, *(term.weights for term in datum.terms), strict=True)


def _close(a: Rows, b: Rows) -> bool:
    return bool(np.all(np.abs(a - b) <= TOLERANCE * np.maximum(1.0, np.abs(b))))


def _first_loss(
    rehearsal: Rehearsal, recipe: Recipe, loss: float, source: Source
) -> Iterator[Check]:
    """A first supervised loss above ln(vocabulary) is worse than knowing nothing."""
    if source == "student" or recipe.teacher_loss.name != "cross_entropy":
        return
    uniform = math.log(
        rehearsal.engine.rows("student", Prompt.of(rehearsal.engine.encode("1")), (0,)).shape[1]
    )
    evidence = f"{loss:.2f} nats per token; guessing uniformly gives {uniform:.2f}"
    if loss >= uniform:
        hint = "worse than knowing nothing: check the format, and that both models share their ids"
        yield Check(f"{recipe.name}: first loss", "warning", evidence, hint)
