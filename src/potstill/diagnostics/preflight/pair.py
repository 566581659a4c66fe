"""Checks of a pair and its task: losses, tokenizers, overlap, seed, sampler and capability gap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from potstill.algorithms.losses import (
    CROSSING,
    FAULTY,
    GOLD_HINT,
    REVERSE_KL,
    REVERSE_KL_SAMPLED,
    ReverseKL,
)
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.rehearsal import (
    BATCH,
    OWN_PASS,
    Check,
    Rehearsal,
    refusal,
    restored,
)
from potstill.diagnostics.sampler import SAMPLER_GAP, sampler_gap
from potstill.engines.protocol import Engine
from potstill.tasks.overlap import overlap
from potstill.training import objective
from potstill.training.evaluation import evaluate
from potstill.training.rollout import collect, draw, generator
from potstill.training.run import RunSpec
from potstill.types import Datum, Floats, Reading, Role, Term

PROBLEMS = 64  # held-out problems of the capability gap
TEXTS = 200  # training problems on which tokenizers are compared
LARGE_GAP = 0.2  # nats per token that no rounding explains
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
    evaluated = task.test[: rehearsal.evaluation.problems]
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


def _sampled(
    engine: Engine, run: RunSpec, role: Role, count: int = 8
) -> tuple[list[Reading], list[Floats]]:
    """Prompts and completions sampled by the run's engine, with the sampler's log-probabilities."""
    prompts = [engine.prompt(problem) for problem in run.task.train[:count]]
    limits = [16] * len(prompts)
    samples = run.engine.sample(role, prompts, limits, 1.0, generator(0, 0, f"preflight:{role}"))
    readings = [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]
    return readings, [s.logprobs for s in samples]


def _gap(engine: Engine, run: RunSpec, role: Role) -> float:
    """Mean distance in nats between the log-probabilities of the run's sampler and the scores."""
    readings, sampled = _sampled(engine, run, role)
    return sampler_gap(engine, role, readings, sampled)


def sampler_scores(rehearsal: Rehearsal) -> list[Check]:
    """Check that scores of sampled tokens equal the sampler's log-probabilities."""
    run = rehearsal.any_run()
    gap = max(_gap(rehearsal.engine, run, role) for role in ("student", "teacher"))
    evidence = f"scores and log-probs of sampled tokens differ by {gap:.1e} nats on average"
    if gap <= SAMPLER_GAP:
        return [Check("sampler", "passed", evidence)]
    hint = "use the same dtype and attention implementation for sampling and training"
    return [Check("sampler", "warning" if gap < LARGE_GAP else "refused", evidence, hint)]


def forward_pass(rehearsal: Rehearsal) -> list[Check]:
    """Check that batched scores are those of the models' own forward pass on single rows."""
    gap = rehearsal.rounding
    evidence = f"scores and the models' own forward passes differ by {gap:.1e} nats on average"
    if gap <= SAMPLER_GAP:
        return [Check("forward pass", "passed", evidence)]
    return [
        Check("forward pass", "warning" if gap < LARGE_GAP / 2 else "refused", evidence, OWN_PASS)
    ]


def self_divergence(rehearsal: Rehearsal) -> list[Check]:
    """Check that the student's divergence from itself is 0 by the engine's own losses."""
    if "reverse_kl" not in rehearsal.engine.losses:
        return []
    readings, sampled = _sampled(rehearsal.engine, rehearsal.any_run(), "student", 4)
    loss, total = ReverseKL(to="init"), sum(map(len, sampled))
    data = [
        Datum(p, c, c, (Term(loss, np.full(len(c), 1 / total, np.float32)),), "student", s)
        for (p, c), s in zip(readings, sampled, strict=True)
    ]
    value = abs(rehearsal.engine.measure(data).loss)
    evidence = f"the student's divergence from itself is {value:.1e} nats per token"
    if value < 1e-2:
        return [Check("identity", "passed", evidence)]
    return [Check("identity", "refused", evidence, "compare dtypes, dropout and adapters")]


def fresh_sampler(rehearsal: Rehearsal) -> list[Check]:
    """Check that the student samples with the new weights after optimizer steps."""
    run = rehearsal.any_run()
    loss = REVERSE_KL_SAMPLED if rehearsal.crossing else REVERSE_KL
    recipe = Recipe(name="rehearsal", student_loss=loss)
    problems = draw(run.task.train, BATCH, rehearsal.seed, 0)
    before = _gap(rehearsal.engine, run, "student")
    with restored(rehearsal.engine):
        batch = collect(recipe, run.engine, problems, 0.0, 0, rehearsal.seed, rehearsal.limits)
        data = objective.build(recipe, batch, rehearsal.engine)
        for _ in range(3):
            run.engine.step(data, min(max(rehearsal.settings.rate(10**6, 0.0), 1e-3), 1e-2))
        gap = _gap(rehearsal.engine, run, "student")
    if gap <= max(SAMPLER_GAP, 3 * before):
        evidence = "samples after a step come from the new weights"
        return [Check("fresh sampler", "passed", evidence)]
    evidence = f"after 3 steps, scores and log-probs of sampled tokens differ by {gap:.2g} nats"
    return [refusal("fresh sampler", evidence, "stale_sampler")]


def capability_gap(rehearsal: Rehearsal) -> list[Check]:
    """Check that the teacher is better than the student on held-out problems."""
    task = rehearsal.any_run().task
    limit = rehearsal.evaluation.max_tokens or rehearsal.settings.max_tokens
    problems = task.test[:PROBLEMS]
    teacher, student = (
        evaluate(rehearsal.engine, role, task, problems, limit) for role in ("teacher", "student")
    )
    outcomes = zip(teacher.outcomes["strict"], student.outcomes["strict"], strict=True)
    lost = sum(q < p for q, p in outcomes)
    evidence = (
        f"the teacher solves {teacher.strict:.0%} of {len(problems)} held-out problems, "
        f"the student {student.strict:.0%}"
    )
    if teacher.strict > student.strict:
        return [Check("capability gap", "passed", evidence)]
    if teacher.strict < student.strict / 2 and lost >= MANY:
        return [refusal("capability gap", evidence, "vocab_permuted")]
    hint = "the teacher is not better and has little to teach: check the task and the prompt"
    return [Check("capability gap", "warning", evidence, hint)]
