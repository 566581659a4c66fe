"""Checks of a pair and its task: losses, tokenizers, overlap, seed, sampler and capability gap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from potstill.algorithms.losses import (
    CROSS_ENTROPY,
    CROSSING,
    FAULTY,
    GOLD_HINT,
    ReverseKL,
)
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.budget import CheckSize, reduced
from potstill.diagnostics.preflight.check import WITHOUT_TEACHER, Check, Status, refusal
from potstill.diagnostics.preflight.rehearsal import (
    OWN_PASS,
    ROW_SIZES,
    STEP_SIZES,
    Rehearsal,
    restored,
)
from potstill.diagnostics.sampler import SAMPLER_GAP, sampler_gap
from potstill.tasks import is_graded
from potstill.tasks.overlap import overlap
from potstill.training import objective
from potstill.training.completing import held_out
from potstill.training.evaluation import evaluate
from potstill.training.rollout import collect
from potstill.training.run import RunSpec
from potstill.training.ungraded import divergences
from potstill.types import Datum, Prompt, Role, Term

PROBLEMS = 64  # held-out problems of the capability gap
MOVED = (
    0.1  # nats per token by which steps have to move the student before its sampler is looked at
)
MOST_STEPS = 6  # optimizer steps to move it
FASTER = 3.0  # factor on the learning rate from one of them to the next
SELF = 4  # completions of which the student's divergence from itself is computed
TEXTS = 200  # training problems on which tokenizers are compared
FEWEST = 4  # of them, if none is evaluated yet
FEW = "the teacher is not better on so few problems; `potstill eval` compares both models on more"
LARGE_GAP = 0.2  # nats per token that no rounding explains
LITTLE = 0.01  # nats per token between student and teacher, below which there is nothing to learn
MANY = 12  # problems solved by the student alone, from which on the teacher's ids are suspected


def computable(rehearsal: Rehearsal) -> Iterator[Check]:
    """Losses that the opened pair cannot compute."""
    for recipe in rehearsal.recipes:
        for loss in recipe.losses:
            if loss.to == "teacher" and loss.name not in rehearsal.engine.losses | FAULTY:
                evidence = f"{recipe.name} needs {loss}, which this pair's tokenizers rule out"
                hint = "write { jsd = 0.5 }" if loss.name in CROSSING else GOLD_HINT
                yield Check("losses", "refused", evidence, hint)


def tokenizers(rehearsal: Rehearsal) -> list[Check]:
    """Compare the two tokenizers of a cross-tokenizer pair."""
    engine = rehearsal.crossing
    if engine is None:
        return []
    texts = [p.solution or p.question for p in rehearsal.any_run().task.train[:TEXTS]]
    hint = "much of the text has no loss: check how the tokenizers normalise it"
    return [
        Check(name, "passed" if good else "warning", evidence, "" if good else hint)
        for name, evidence, good in crossed.compare_tokenizers(engine, texts)
    ]


def disjoint(rehearsal: Rehearsal) -> list[Check]:
    """Check that no evaluated problem is a training problem."""
    task, name = rehearsal.any_run().task, "train and test"
    evaluated = held_out(task, rehearsal.evaluation)
    if shared := overlap(task.train, evaluated):
        share = f"{len(shared)} of {len(evaluated)}"
        evidence = f"{share} evaluated problems are training problems ({shared[0][0].id}, ...)"
        return [refusal(name, evidence, "eval_on_train")]
    evidence = f"none of {len(evaluated)} evaluated problems is a training problem"
    return [Check(name, "passed", evidence)]


def seeded(rehearsal: Rehearsal) -> list[Check]:
    """Check that the run uses the study's seed."""
    seed = rehearsal.any_run().seed
    if seed != rehearsal.seed:
        evidence = f"the study's seed is {rehearsal.seed}, the run uses {seed}"
        return [refusal("seed", evidence, "seeds_ignored")]
    return [Check("seed", "passed", f"seed {seed} determines prompts and samples")]


def _gap(rehearsal: Rehearsal, run: RunSpec, role: Role) -> float:
    """Mean distance in nats between the log-probabilities of the run's sampler and the scores."""
    readings, sampled = rehearsal.sampled(run.engine, role, rehearsal.row_size)
    return sampler_gap(rehearsal.engine, role, readings, sampled)


def forward_pass(rehearsal: Rehearsal) -> list[Check]:
    """Check that batched scores are those of the models' own forward pass on single rows."""

    def compared(size: CheckSize) -> list[Check]:
        rehearsal.measured.forward_gap = gap = rehearsal.forward_gap(size)
        evidence = f"scores and the models' own forward passes differ by {gap:.1e} nats on average"
        if gap <= SAMPLER_GAP:
            return [Check("forward pass", "passed", evidence)]
        status: Status = "warning" if gap < LARGE_GAP / 2 else "refused"
        return [Check("forward pass", status, evidence, OWN_PASS)]

    rehearsal.measured.rows, checks = rehearsal.budget.scaled(ROW_SIZES, compared)
    return checks


def sampler_scores(rehearsal: Rehearsal) -> list[Check]:
    """Check that scores of sampled tokens equal the sampler's log-probabilities."""
    run, note = rehearsal.any_run(), rehearsal.row_size.note(ROW_SIZES[-1])
    gap = max(_gap(rehearsal, run, role) for role in rehearsal.roles)
    evidence = f"scores and log-probs of sampled tokens differ by {gap:.1e} nats on average"
    if gap <= SAMPLER_GAP:
        return [Check("sampler", "passed", evidence).noted(note)]
    hint = "use the same dtype and attention implementation for sampling and training"
    status: Status = "warning" if gap < LARGE_GAP else "refused"
    return [Check("sampler", status, evidence, hint).noted(note)]


def self_divergence(rehearsal: Rehearsal) -> list[Check]:
    """Check that the student's divergence from itself is 0 by the engine's own losses."""
    if "reverse_kl" not in rehearsal.engine.losses:
        return []
    engine, size = rehearsal.any_run().engine, rehearsal.row_size
    readings, sampled = rehearsal.sampled(engine, "student", size)
    readings, sampled = readings[:SELF], sampled[:SELF]
    loss, total = ReverseKL(to="init"), sum(map(len, sampled))
    data = [
        Datum(p, c, c, (Term(loss, np.full(len(c), 1 / total, np.float32)),), "student", s)
        for (p, c), s in zip(readings, sampled, strict=True)
    ]
    value = abs(rehearsal.engine.measure(data).loss)
    evidence = f"the student's divergence from itself is {value:.1e} nats per token"
    note = CheckSize(len(data), size.tokens).note(CheckSize(SELF, ROW_SIZES[-1].tokens))
    if value < 1e-2:
        return [Check("identity", "passed", evidence).noted(note)]
    hint = "compare dtypes, dropout and adapters"
    return [Check("identity", "refused", evidence, hint).noted(note)]


def fresh_sampler(rehearsal: Rehearsal) -> list[Check]:
    """Check that the student samples with the new weights after optimizer steps.

    The steps make its own completions likelier, which needs no teacher, until their log-probs have
    moved: adapters need a higher learning rate for it than all weights.
    """
    return rehearsal.budget.scaled(STEP_SIZES, partial(_after_steps, rehearsal))[1]


def _after_steps(rehearsal: Rehearsal, size: CheckSize) -> list[Check]:
    engine, run, name = rehearsal.engine, rehearsal.any_run(), "fresh sampler"
    recipe = Recipe(name="rehearsal", student_loss=CROSS_ENTROPY)
    problems, limits = rehearsal.problems(run)[: size.problems], rehearsal.limits(size.tokens)
    before = _gap(rehearsal, run, "student")
    batch = collect(recipe, run.engine, problems, 0.0, 0, rehearsal.seed, limits)
    data = objective.build(recipe, batch, engine)
    written = [(t.prompt, t.completion) for t in batch if t.completion]
    old = np.concatenate(engine.score("student", written))
    rate, moved, steps = min(max(rehearsal.settings.learning_rate or 0.0, 1e-3), 1e-2), 0.0, 0
    with restored(engine):
        while moved < MOVED and steps < MOST_STEPS:
            run.engine.step(data, min(rate * FASTER**steps, 1e-1))
            moved = float(np.abs(np.concatenate(engine.score("student", written)) - old).mean())
            steps += 1
        gap = _gap(rehearsal, run, "student")
    number = f"{steps} steps" if steps > 1 else "a step"
    moves = f"move{'s' * (steps == 1)} the student by"
    if gap > max(SAMPLER_GAP, 3 * before):
        evidence = (
            f"after {number}, scores and log-probs of sampled tokens differ by {gap:.2g} nats"
        )
        return [refusal(name, evidence, "stale_sampler")]
    if moved < MOVED:
        evidence = f"{number} {moves} {moved:.1g} nats only, too little to show old weights"
        return [Check(name, "warning", evidence, "raise train.learning_rate")]
    evidence = f"samples come from the new weights after {number}, which {moves} {moved:.2g} nats"
    return [Check(name, "passed", evidence)]


def capability_gap(rehearsal: Rehearsal) -> list[Check]:
    """Check that the teacher is better than the student on held-out problems."""
    if "teacher" not in rehearsal.roles:
        return [Check("capability gap", "passed", WITHOUT_TEACHER)]
    if not is_graded(rehearsal.any_run().task):
        return [_distance(rehearsal)]
    measured, budget = rehearsal.measured, rehearsal.budget
    full = min(PROBLEMS, len(rehearsal.any_run().task.test))
    least = full if budget.limit is None else FEWEST
    count = min(measured.evaluated or least, full)
    if count < full and budget.affords(measured.per_problem * full):
        count = full
    check = _compared(rehearsal, count)
    if count < full and check.status != "passed" and _misread(rehearsal):
        return [_compared(rehearsal, full)]
    if count == full:
        return [check]
    few = replace(check, hint=FEW if check.hint else "")
    return [few.noted(reduced(f"{count} of {full} problems"))]


def _distance(rehearsal: Rehearsal) -> Check:
    """The check of a task without a grader: there is something to learn from the teacher."""
    engine, size = rehearsal.engine, rehearsal.row_size
    readings, sampled = rehearsal.sampled(engine, "student", size)
    values, _ = divergences(engine, readings, sampled, engine.score("teacher", readings))
    distance = float(np.nanmean(values))  # of completions that have tokens
    evidence = (
        f"the task has no grader; KL from the teacher on the student's completions is about "
        f"{distance:.2f} nats per token"
    )
    note = size.note(ROW_SIZES[-1])
    if _misread(rehearsal):
        return refusal("capability gap", evidence, "vocab_permuted").noted(note)
    if distance > LITTLE:
        return Check("capability gap", "passed", evidence).noted(note)
    hint = "the student is the teacher already, or reads another prompt: check the pair"
    return Check("capability gap", "warning", evidence, hint).noted(note)


def _compared(rehearsal: Rehearsal, count: int) -> Check:
    """The check of the capability gap on a number of held-out problems."""
    task = rehearsal.any_run().task
    limit = rehearsal.evaluation.max_tokens or rehearsal.settings.max_tokens
    problems = held_out(task, rehearsal.evaluation, count)
    teacher, student = (
        evaluate(rehearsal.engine, role, task, problems, limit) for role in ("teacher", "student")
    )
    lost = int((teacher.by_problem["strict"] < student.by_problem["strict"]).sum())
    evidence = (
        f"the teacher solves {teacher.strict:.0%} of {len(problems)} held-out problems, "
        f"the student {student.strict:.0%}"
    )
    if teacher.strict > student.strict:
        return Check("capability gap", "passed", evidence)
    if teacher.strict < student.strict / 2 and lost >= MANY:
        return refusal("capability gap", evidence, "vocab_permuted")
    hint = "the teacher is not better and has little to teach: check the task and the prompt"
    return Check("capability gap", "warning", evidence, hint)


def _misread(rehearsal: Rehearsal) -> bool:
    """True if text is less likely to the teacher than by uniform guessing.

    That is so of both prompts and completions of a student that is itself far from guessing. Few
    problems do not show enough then.
    """
    engine = rehearsal.engine
    readings, sampled = rehearsal.sampled(engine, "student", rehearsal.row_size)
    uniform = math.log(engine.rows("student", *readings[0]).shape[1])
    texts = [readings]
    if not rehearsal.crossing:
        texts.insert(0, [(Prompt.of(p.student[:1]), p.student[1:]) for p, _ in readings[:1]])
    unlikely = (-np.concatenate(engine.score("teacher", text)).mean() > uniform for text in texts)
    return bool(-np.concatenate(sampled).mean() < uniform / 2) and all(unlikely)
