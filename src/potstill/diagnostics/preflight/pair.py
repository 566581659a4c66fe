"""Checks of a pair and its task: tokenizers, overlap, seed, sampler, capability."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from potstill.algorithms.losses import CROSSING, FAULTY, GOLD_HINT, REVERSE_KL, REVERSE_KL_SAMPLED
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.rehearsal import Check, Rehearsal, refusal, undone
from potstill.diagnostics.sampler import SAMPLER_GAP, sampler_gap
from potstill.engines.protocol import Engine
from potstill.training import objective
from potstill.training.evaluation import evaluate
from potstill.training.rollout import collect, draw, generator
from potstill.training.run import RunSpec
from potstill.types import Datum, Loss, Role, Term

BATCH = 12  # prompts of a rehearsed step
PROBLEMS = 64  # held-out problems behind the capability gap
TEXTS = 200  # training texts that tokenizers are compared on
MANY = 12  # problems that only the student solves, before the teacher is held to be another's


def computable(rehearsal: Rehearsal) -> Iterator[Check]:
    """No recipe asks for a loss that the pair, once it is open, cannot have."""
    for recipe in rehearsal.recipes:
        for loss in recipe.losses:
            if loss.to == "teacher" and loss.name not in rehearsal.engine.losses | FAULTY:
                evidence = f"{recipe.name} needs {loss}, which this pair's tokenizers do not allow"
                hint = "write { jsd = 0.5 }" if loss.name in CROSSING else GOLD_HINT
                yield Check("losses", "refused", evidence, hint)


def tokenizers(rehearsal: Rehearsal) -> list[Check]:
    """What two tokenizers have in common, where the pair has two."""
    engine = rehearsal.crossing
    if engine is None:
        return []
    texts = [p.solution or p.question for p in rehearsal.any_run().task.train[:TEXTS]]
    hint = "much of a text carries no loss: look at how the tokenizers normalise it"
    return [
        Check(name, "passed" if good else "warning", evidence, "" if good else hint)
        for name, evidence, good in crossed.table(engine, texts)
    ]


def disjoint(rehearsal: Rehearsal) -> list[Check]:
    """No graded problem is trained on."""
    task, name = rehearsal.any_run().task, "train and test"
    graded = task.test[: rehearsal.grading.problems]
    known = {" ".join(p.question.split()) for p in task.train}
    shared = [p.id for p in graded if " ".join(p.question.split()) in known]
    if shared:
        evidence = (
            f"{len(shared)} of {len(graded)} graded problems are trained on ({shared[0]}, ...)"
        )
        return [refusal(name, evidence, "eval_on_train")]
    return [Check(name, "passed", f"{len(graded)} graded problems, none of them trained on")]


def seeded(rehearsal: Rehearsal) -> list[Check]:
    """The seed that was asked for decides the run."""
    got = rehearsal.any_run().seed
    if got != rehearsal.seed:
        return [
            refusal(
                "seed", f"seed {rehearsal.seed} was asked for, the run has {got}", "seeds_ignored"
            )
        ]
    return [Check("seed", "passed", f"seed {got} decides prompts and samples")]


def _probe(engine: Engine, run: RunSpec, role: Role, count: int = 8) -> tuple[list, list]:
    """Rows (prompt, completion) sampled through the run's engine, and the sampler's scores."""
    prompts = [engine.prompt(problem) for problem in run.task.train[:count]]
    limits = [16] * len(prompts)
    samples = run.engine.sample(role, prompts, limits, 1.0, generator(0, 0, f"preflight:{role}"))
    rows = [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]
    return rows, [s.logprobs for s in samples]


def _gap(engine: Engine, run: RunSpec, role: Role) -> float:
    """Mean difference between the sampler's log-probabilities and their score, in nats."""
    rows, sampled = _probe(engine, run, role)
    return sampler_gap(engine, role, rows, sampled)


def sampler_scores(rehearsal: Rehearsal) -> list[Check]:
    """The score of what was sampled equals the sampler's log-probabilities."""
    run = rehearsal.any_run()
    gap = max(_gap(rehearsal.engine, run, role) for role in ("student", "teacher"))
    evidence = f"scores of sampled tokens are {gap:.1e} nats off the sampler's on average"
    if gap <= SAMPLER_GAP:
        return [Check("sampler", "passed", evidence)]
    hint = "use one dtype and one attention implementation for sampling and training"
    return [Check("sampler", "warning" if gap < 0.2 else "refused", evidence, hint)]


def self_divergence(rehearsal: Rehearsal) -> list[Check]:
    """The student is at distance 0 from itself, through the engine's own losses."""
    if "reverse_kl" not in rehearsal.engine.losses:
        return []
    rows, sampled = _probe(rehearsal.engine, rehearsal.any_run(), "student", 4)
    loss, total = Loss("reverse_kl", to="init"), sum(map(len, sampled))
    data = [
        Datum(p, c, c, (Term(loss, np.full(len(c), 1 / total, np.float32)),), "student", s)
        for (p, c), s in zip(rows, sampled, strict=True)
    ]
    value = abs(rehearsal.engine.measure(data).loss)
    evidence = f"the student's divergence from itself is {value:.1e} nats per token"
    if value < 1e-2:
        return [Check("identity", "passed", evidence)]
    return [Check("identity", "refused", evidence, "compare dtypes, dropout and adapters")]


def fresh_sampler(rehearsal: Rehearsal) -> list[Check]:
    """After optimizer steps, the student samples with the new weights."""
    run = rehearsal.any_run()
    loss = REVERSE_KL_SAMPLED if rehearsal.crossing else REVERSE_KL
    recipe = Recipe(name="rehearsal", student_loss=loss)
    problems = draw(run.task.train, BATCH, rehearsal.seed, 0)
    before = _gap(rehearsal.engine, run, "student")
    with undone(rehearsal.engine):
        batch = collect(recipe, run.engine, problems, 0.0, 0, rehearsal.seed, rehearsal.limits)
        data = objective.build(recipe, batch, rehearsal.engine)
        for _ in range(3):
            run.engine.step(data, min(max(rehearsal.settings.rate(10**6, 0.0), 1e-3), 1e-2))
        gap = _gap(rehearsal.engine, run, "student")
    if gap <= max(SAMPLER_GAP, 3 * before):
        return [Check("fresh sampler", "passed", "samples after a step come from the new weights")]
    evidence = f"after 3 steps the sampler's log-probabilities are {gap:.2g} nats off the weights"
    return [refusal("fresh sampler", evidence, "stale_sampler")]


def capability_gap(rehearsal: Rehearsal) -> list[Check]:
    """The teacher beats the student on held-out problems."""
    task, longest = (
        rehearsal.any_run().task,
        rehearsal.grading.max_tokens or rehearsal.settings.max_tokens,
    )
    tested = task.test[:PROBLEMS]
    graded = [evaluate(rehearsal.engine, r, task, tested, longest) for r in ("teacher", "student")]
    teacher, student = (one.strict for one in graded)
    lost = sum(q < p for q, p in zip(*(one.outcomes["strict"] for one in graded), strict=True))
    evidence = f"teacher {teacher:.0%}, student {student:.0%} of {len(tested)} held-out problems"
    if teacher > student:
        return [Check("capability gap", "passed", evidence)]
    if teacher < student / 2 and lost >= MANY:
        return [refusal("capability gap", evidence, "vocab_permuted")]
    hint = "a teacher that is no better has little to teach: check task and prompt"
    return [Check("capability gap", "warning", evidence, hint)]
