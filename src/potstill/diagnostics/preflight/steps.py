"""Checks of a step: the loss that it trains is compared with the recipe's loss from logits.

If they differ, the known mistakes are tried (`faults.explaining`), so that the result has a name
and a remedy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from potstill.algorithms.losses import FAULTY
from potstill.algorithms.recipe import Recipe
from potstill.algorithms.schedules import constant
from potstill.diagnostics.faults.explaining import as_if, candidates
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.budget import CheckSize
from potstill.diagnostics.preflight.check import Check, refusal
from potstill.diagnostics.preflight.reference import Terms, observed, reference
from potstill.diagnostics.preflight.rehearsal import (
    OWN_PASS,
    STEP_SIZES,
    DryRun,
    Rehearsal,
)
from potstill.training import objective
from potstill.training.rollout import collect
from potstill.training.run import RunSpec
from potstill.types import Datum, Prompt, Rows, Source, Trajectory

# Between a batched float32 sum and its reference: relative, and absolute for losses below 1 nat.
REFERENCE_TOLERANCE = 2e-3
ROUNDED = 0.05  # the same in half precision, at most


def trained_as_written(rehearsal: Rehearsal, recipe: Recipe) -> list[Check]:
    """Check that steps train the recipe's loss, at the start and wherever a schedule ends."""
    checks: dict[tuple[str, str], Check] = {}
    for t in change_points(recipe):
        work = partial(_rehearsed, rehearsal, recipe, t)
        for check in rehearsal.budget.scaled(STEP_SIZES, work)[1]:
            checks.setdefault((check.name, check.cause), check)
    return list(checks.values())


def change_points(recipe: Recipe) -> list[float]:
    """Progress values from which on the recipe differs."""
    schedules = (recipe.on_policy, recipe.prefix)
    return sorted({0.0, *(s.until for s in schedules if s.kind != "constant" and s.until < 1)})


def _rehearsed(rehearsal: Rehearsal, recipe: Recipe, t: float, size: CheckSize) -> list[Check]:
    """The checks of one step at progress `t`."""
    dry = DryRun(rehearsal.engine)
    run = rehearsal.wire(dry, recipe)

    def step(batch: Sequence[Trajectory]) -> list[list[Datum]]:
        dry.steps.clear()
        run.engine.step(objective.build(run.recipe, batch, run.engine), 0.0)
        return list(dry.steps)

    batch = _sampled(rehearsal, run, recipe, t, size)
    checks = list(_compare(rehearsal, recipe, batch, step(batch)))
    cut = _cut_short(batch, rehearsal.engine.eos)
    if cut and not any(check.cause == "eos_untrained" for check in checks):
        data = [datum for part in step(cut) for datum in part]
        for source in dict.fromkeys(t.source for t in cut):
            ended = [t for t in cut if t.source == source]
            reached = [datum for datum in data if datum.source == source]
            checks += _untrained_ends(_Part(rehearsal, recipe, source, 1.0, ended, reached))
    return checks


def _sampled(
    rehearsal: Rehearsal, run: RunSpec, recipe: Recipe, t: float, size: CheckSize
) -> list[Trajectory]:
    """A rehearsed batch with the sources of progress `t`, each with a token that is trained.

    Larger sizes are tried if the teacher's prefix has ended every completion.
    """
    problems, share = rehearsal.problems(run), recipe.on_policy(t)
    batch: list[Trajectory] = []
    for larger in (s for s in STEP_SIZES if s.work >= size.work):
        count = larger.problems
        student = min(max(round(share * count), share > 0), count - (share < 1))
        mixed = dataclasses.replace(recipe, on_policy=constant(student / count))
        limits = rehearsal.limits(larger.tokens, recipe.prefix.count(t) if student else 0)
        batch = collect(mixed, run.engine, problems[:count], t, 0, rehearsal.seed, limits)
        if all(any(x.trained for x in batch if x.source == y.source) for y in batch):
            break
    return batch


def _cut_short(batch: Sequence[Trajectory], eos: Collection[int]) -> list[Trajectory]:
    """For each source without a completion that ends with EOS, one that does.

    Whether EOS is trained does not depend on who wrote it, so that no long completion is needed.
    """
    cut: dict[Source, Trajectory] = {}
    ended = {t.source for t in batch if t.trained and t.completion[-1] in eos}
    for t in batch:
        if t.trained and t.source not in ended:
            completion = (*t.completion[:-1], min(eos))
            cut.setdefault(t.source, dataclasses.replace(t, completion=completion))
    return list(cut.values())


def _compare(
    rehearsal: Rehearsal,
    recipe: Recipe,
    batch: Sequence[Trajectory],
    steps: Sequence[Sequence[Datum]],
) -> Iterator[Check]:
    """Compare the data that reached the engine with the recipe, source by source."""
    data = [datum for step in steps for datum in step]
    if len(steps) > 1:
        evidence = f"one training step makes {len(steps)} optimizer steps"
        yield refusal(f"{recipe.name}: one step", evidence, "mixture_unblended")
    sources: tuple[Source, ...] = ("student", "teacher")
    for source in sources:
        trajectories = [t for t in batch if t.source == source and t.trained]
        if not trajectories:
            continue
        share = sum(t.source == source for t in batch) / len(batch) if len(steps) < 2 else 1.0
        reached = [datum for datum in data if datum.source == source]
        yield from _compare_part(_Part(rehearsal, recipe, source, share, trajectories, reached))


@dataclass(frozen=True)
class _Part:
    """The tokens of one source in a rehearsed step."""

    rehearsal: Rehearsal
    recipe: Recipe
    source: Source
    share: float  # of the batch
    trajectories: Sequence[Trajectory]
    data: Sequence[Datum]  # as they reached the engine

    @property
    def name(self) -> str:
        return f"{self.recipe.name}: {self.source} tokens"


def _compare_part(part: _Part) -> Iterator[Check]:
    terms = objective.losses_for(part.recipe, part.source)
    required = {loss for loss, _ in terms}
    used = {term.loss for datum in part.data for term in datum.terms}
    if any(loss.to == "init" for loss in required - used):
        yield refusal(part.name, "the step has no KL to the student of step 0", "anchor_absent")
        terms = [(loss, factor) for loss, factor in terms if loss.to != "init"]
    if faulty := [loss for loss in used if loss.name in FAULTY]:
        evidence = f"the step trains {faulty[0]}, which has no tail"
        yield refusal(part.name, evidence, "top_k_without_tail")
        return
    if misplaced := list(_misplaced_weights(part)):
        yield from misplaced
        return
    trained, correct = _losses(part, terms)
    if _close(trained, correct):
        if differing := list(_measured(part, trained[0])):
            yield from differing
            return
        evidence = f"{correct[0]:.4f} nats per token, as computed from logits"
        yield Check(part.name, "passed", evidence)
        yield from _first_loss(part, correct[0])
        return
    yield from _explain(part, terms, trained, correct)


def _losses(part: _Part, terms: Terms) -> tuple[Rows, Rows]:
    """The loss that the step trains and the recipe's, as `reference.moments`."""
    if engine := part.rehearsal.crossing:
        trained = crossed.trained(engine, part.data) / part.share
        return trained, crossed.reference(engine, part.trajectories, terms)
    trained = _observed(part, part.data) / part.share
    return trained, reference(part.rehearsal.engine, part.trajectories, terms)


def _measured(part: _Part, observed: float) -> Iterator[Check]:
    """A failed check if the engine's own code computes another loss from the same data."""
    measured = part.rehearsal.engine.measure(part.data).loss / part.share
    limit = min(max(REFERENCE_TOLERANCE, 3 * part.rehearsal.rounding), ROUNDED)
    if abs(measured - observed) > limit * max(1.0, abs(observed)):
        evidence = (
            f"the engine computes {measured:.4f} nats per token from the data of the step, the "
            f"models' own forward passes give {observed:.4f}"
        )
        yield Check(part.name, "refused", evidence, OWN_PASS)


def _observed(part: _Part, data: Sequence[Datum]) -> Rows:
    return sum((observed(part.rehearsal.engine, datum) for datum in data), start=np.zeros(2))


def _explain(part: _Part, terms: Terms, trained: Rows, correct: Rows) -> Iterator[Check]:
    """A failed check, with the known mistakes that give the trained loss, if any do."""
    evidence = f"the step trains {trained[0]:.4f} nats per token, the recipe gives {correct[0]:.4f}"
    if _close(trained[:1], correct[:1]):
        evidence += ", but on other tokens"
    engine, recipe = part.rehearsal.engine, part.recipe
    if all(loss.to != "init" for loss, _ in terms):
        recipe = dataclasses.replace(recipe, anchor=0.0)
    # full-vocabulary log-probs of a cross-tokenizer teacher are not in the student's vocabulary
    unavailable = part.rehearsal.crossing and terms[0][0].name != "cross_entropy"
    for mistakes in () if unavailable else candidates(engine.losses).values():
        everywhere = tuple(fault.everywhere() for fault in mistakes)
        value = _observed(part, as_if(everywhere, recipe, part.trajectories, engine))
        if _close(trained, value):
            explanation = ", ".join(fault.explanation for fault in mistakes)
            for fault in mistakes:
                explained = f"{evidence}; {explanation} gives {value[0]:.4f}"
                yield refusal(part.name, explained, fault.name)
            return
    hint = "check shift, prompt, masks and weights of the data of the step"
    yield Check(part.name, "refused", evidence, hint)


def _misplaced_weights(part: _Part) -> Iterator[Check]:
    """Weights on the wrong tokens, which the loss does not reveal if the teacher is confident."""
    yield from _untrained_ends(part)
    trained = _trained_tokens(part.data)
    extra = len(trained) - sum(t.trained for t in part.trajectories)
    if extra > 0 and any(t.prefix for t in part.trajectories):
        evidence = f"{extra} tokens of the teacher's prefix have a loss"
        yield refusal(part.name, evidence, "prefix_trained")


def _untrained_ends(part: _Part) -> Iterator[Check]:
    """A failed check if completions end with EOS and it has no loss."""
    eos = part.rehearsal.engine.eos
    ends = sum(t.completion[-1] in eos for t in part.trajectories)
    if ends and not any(target in eos for target in _trained_tokens(part.data)):
        evidence = f"{ends} completions end with EOS, which has no loss in any of them"
        yield refusal(part.name, evidence, "eos_untrained")


def _trained_tokens(data: Sequence[Datum]) -> list[int]:
    """The targets that have a loss."""
    return [
        target
        for datum in data
        for target, *weights in zip(datum.targets, *(t.weights for t in datum.terms), strict=True)
        if any(weights)
    ]


def _close(a: Rows, b: Rows) -> bool:
    return bool(np.all(np.abs(a - b) <= REFERENCE_TOLERANCE * np.maximum(1.0, np.abs(b))))


def _first_loss(part: _Part, loss: float) -> Iterator[Check]:
    """A warning if the first supervised loss is not below that of uniform guessing."""
    if part.source == "student" or part.recipe.teacher_loss.name != "cross_entropy":
        return
    engine = part.rehearsal.engine
    vocabulary = engine.rows("student", Prompt.of(engine.encode("1")), (0,)).shape[1]
    uniform = math.log(vocabulary)
    if loss >= uniform:
        evidence = f"{loss:.2f} nats per token; uniform guessing gives {uniform:.2f}"
        hint = "check the prompt format, and that both models share their ids"
        yield Check(f"{part.recipe.name}: first loss", "warning", evidence, hint)
