"""What can be known before step 0: does this run train what its recipe says?

A run is set up exactly as it will be trained and rehearses single steps that change nothing.
What reaches the engine is compared with a reference computed from logits (`reference`); where
they differ, with what well-known mistakes would give (`mistakes`), so that the finding has a
name and a remedy. What only training shows is left to the run itself.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.algorithms.losses import CROSSING, FAULTY, GOLD_HINT, REVERSE_KL, REVERSE_KL_SAMPLED
from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.faults import FAULTS
from potstill.diagnostics.preflight import crossed
from potstill.diagnostics.preflight.estimate import estimate
from potstill.diagnostics.preflight.mistakes import mistakes
from potstill.diagnostics.preflight.reference import observed, reference
from potstill.engines.protocol import CrossTokenizer, Engine, Wrapper
from potstill.errors import writing
from potstill.settings import Eval, Train
from potstill.training import objective
from potstill.training.evaluation import evaluate
from potstill.training.rollout import collect, draw, generator
from potstill.training.run import Run
from potstill.types import (
    Datum,
    Limits,
    Loss,
    Prompt,
    Role,
    Rows,
    Source,
    StepStats,
    Term,
    Trajectory,
)

Status = Literal["passed", "warning", "refused"]
BATCH = 12  # prompts of a rehearsed step
LONGEST = 64  # tokens of a rehearsed completion
PROBLEMS = 64  # held-out problems behind the capability gap
TEXTS = 200  # training texts that tokenizers are compared on
MANY = 12  # problems that only the student solves, before the teacher is held to be another's
TIGHT = 0.9  # of the memory, above which a longer text may not fit
SMALLER = "lower engine.batch_tokens and engine.sample_tokens"
TOLERANCE = 2e-3  # of a loss: between a batched float32 sum and its reference
SAMPLER_GAP = 0.02  # mean nats between a sampler and a scorer of the same weights; half precision
# reaches single tokens of 0.05 and more, another model's weights a mean of 0.1


@dataclass(frozen=True)
class Check:
    """One finding before the start; `cause` is the fault that the evidence points to, if any."""

    name: str
    status: Status
    evidence: str
    hint: str = ""
    cause: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)  # for programs


def refusal(name: str, evidence: str, cause: str) -> Check:
    """A check that stops the run, with the remedy of its cause."""
    return Check(name, "refused", evidence, FAULTS[cause].remedy, cause)


class Rehearsal(Wrapper):
    """The innermost engine during pre-flight: steps are remembered and train nothing."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps: list[list[Datum]] = []

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        self.steps.append(list(data))
        return StepStats(0.0, 0.0)


@dataclass(frozen=True)
class Desk:
    """What the checks look at."""

    wire: Callable[[Engine, Recipe], Run]  # sets a run up around an engine, as training will
    engine: Engine  # bare
    recipes: Sequence[Recipe]  # as they were asked for
    seed: int  # as it was asked for
    settings: Train
    grading: Eval

    @property
    def limits(self) -> Limits:
        s = self.settings
        return Limits(min(s.max_tokens, LONGEST), s.temperature, s.teacher_temperature)

    def any_run(self) -> Run:
        return self.wire(self.engine, self.recipes[0])


def preflight(desk: Desk) -> list[Check]:
    """Run every check; the engine's weights are as before afterwards."""
    start = time.perf_counter()
    if impossible := list(computable(desk)):
        return impossible
    return [
        *(Check("pair", "passed", note) for note in desk.engine.notes),
        *tokenizers(desk),
        *disjoint(desk),
        *seeded(desk),
        *sampler_scores(desk),
        *self_divergence(desk),
        *fresh_sampler(desk),
        *capability_gap(desk),
        *(check for recipe in desk.recipes for check in trained_as_written(desk, recipe)),
        *affordable(desk, start),
    ]


def computable(desk: Desk) -> Iterator[Check]:
    """No recipe asks for a loss that the pair, once it is open, cannot have."""
    for recipe in desk.recipes:
        for loss in recipe.losses:
            if loss.to == "teacher" and loss.name not in desk.engine.losses | FAULTY:
                evidence = f"{recipe.name} needs {loss}, which this pair's tokenizers do not allow"
                hint = "write { jsd = 0.5 }" if loss.name in CROSSING else GOLD_HINT
                yield Check("losses", "refused", evidence, hint)


def crossing(desk: Desk) -> CrossTokenizer | None:
    """The engine, if its teacher has a tokenizer of its own."""
    return desk.engine if isinstance(desk.engine, CrossTokenizer) else None


def tokenizers(desk: Desk) -> list[Check]:
    """What two tokenizers have in common, where the pair has two."""
    engine = crossing(desk)
    if engine is None:
        return []
    texts = [p.solution or p.question for p in desk.any_run().task.train[:TEXTS]]
    hint = "much of a text carries no loss: look at how the tokenizers normalise it"
    return [
        Check(name, "passed" if good else "warning", evidence, "" if good else hint)
        for name, evidence, good in crossed.table(engine, texts)
    ]


def disjoint(desk: Desk) -> list[Check]:
    """No graded problem is trained on."""
    task, name = desk.any_run().task, "train and test"
    graded = task.test[: desk.grading.problems]
    known = {" ".join(p.question.split()) for p in task.train}
    shared = [p.id for p in graded if " ".join(p.question.split()) in known]
    if shared:
        evidence = (
            f"{len(shared)} of {len(graded)} graded problems are trained on ({shared[0]}, ...)"
        )
        return [refusal(name, evidence, "eval_on_train")]
    return [Check(name, "passed", f"{len(graded)} graded problems, none of them trained on")]


def seeded(desk: Desk) -> list[Check]:
    """The seed that was asked for decides the run."""
    got = desk.any_run().seed
    if got != desk.seed:
        return [
            refusal("seed", f"seed {desk.seed} was asked for, the run has {got}", "seeds_ignored")
        ]
    return [Check("seed", "passed", f"seed {got} decides prompts and samples")]


def _probe(engine: Engine, run: Run, role: Role, count: int = 8) -> tuple[list, list]:
    """Rows (prompt, completion) sampled through the run's engine, and the sampler's scores."""
    prompts = [engine.prompt(problem) for problem in run.task.train[:count]]
    limits = [16] * len(prompts)
    samples = run.engine.sample(role, prompts, limits, 1.0, generator(0, 0, f"preflight:{role}"))
    rows = [(prompt, s.tokens) for prompt, s in zip(prompts, samples, strict=True)]
    return rows, [s.logprobs for s in samples]


def _gap(engine: Engine, run: Run, role: Role) -> float:
    """Mean difference between the sampler's log-probabilities and their score, in nats."""
    rows, sampled = _probe(engine, run, role)
    scores = np.concatenate(engine.score(role, rows))
    return float(np.abs(scores - np.concatenate(sampled)).mean())


def sampler_scores(desk: Desk) -> list[Check]:
    """The score of what was sampled equals the sampler's log-probabilities."""
    run = desk.any_run()
    gap = max(_gap(desk.engine, run, role) for role in ("student", "teacher"))
    evidence = f"scores of sampled tokens are {gap:.1e} nats off the sampler's on average"
    if gap <= SAMPLER_GAP:
        return [Check("sampler", "passed", evidence)]
    hint = "use one dtype and one attention implementation for sampling and training"
    return [Check("sampler", "warning" if gap < 0.2 else "refused", evidence, hint)]


def self_divergence(desk: Desk) -> list[Check]:
    """The student is at distance 0 from itself, through the engine's own losses."""
    if "reverse_kl" not in desk.engine.losses:
        return []
    rows, sampled = _probe(desk.engine, desk.any_run(), "student", 4)
    loss, total = Loss("reverse_kl", to="init"), sum(map(len, sampled))
    data = [
        Datum(p, c, c, (Term(loss, np.full(len(c), 1 / total, np.float32)),), "student", s)
        for (p, c), s in zip(rows, sampled, strict=True)
    ]
    value = abs(desk.engine.measure(data).loss)
    evidence = f"the student's divergence from itself is {value:.1e} nats per token"
    if value < 1e-2:
        return [Check("identity", "passed", evidence)]
    return [Check("identity", "refused", evidence, "compare dtypes, dropout and adapters")]


@contextmanager
def undone(engine: Engine) -> Iterator[None]:
    """Put the engine's state back as it was."""
    with tempfile.TemporaryDirectory(prefix="potstill-preflight-") as folder:
        with writing(Path(folder)):
            engine.save(Path(folder))
        try:
            yield
        finally:
            engine.load(Path(folder))


def fresh_sampler(desk: Desk) -> list[Check]:
    """After optimizer steps, the student samples with the new weights."""
    run = desk.any_run()
    loss = REVERSE_KL_SAMPLED if crossing(desk) else REVERSE_KL
    recipe = Recipe(name="rehearsal", student_loss=loss)
    problems = draw(run.task.train, BATCH, desk.seed, 0)
    before = _gap(desk.engine, run, "student")
    with undone(desk.engine):
        batch = collect(recipe, run.engine, problems, 0.0, 0, desk.seed, desk.limits)
        data = objective.build(recipe, batch, desk.engine)
        for _ in range(3):
            run.engine.step(data, min(max(desk.settings.rate(10**6, 0.0), 1e-3), 1e-2))
        gap = _gap(desk.engine, run, "student")
    if gap <= max(SAMPLER_GAP, 3 * before):
        return [Check("fresh sampler", "passed", "samples after a step come from the new weights")]
    evidence = f"after 3 steps the sampler's log-probabilities are {gap:.2g} nats off the weights"
    return [refusal("fresh sampler", evidence, "stale_sampler")]


def capability_gap(desk: Desk) -> list[Check]:
    """The teacher beats the student on held-out problems."""
    task, longest = desk.any_run().task, desk.grading.max_tokens or desk.settings.max_tokens
    tested = task.test[:PROBLEMS]
    graded = [evaluate(desk.engine, r, task, tested, longest) for r in ("teacher", "student")]
    teacher, student = (one.strict for one in graded)
    lost = sum(q < p for q, p in zip(*(one.outcomes["strict"] for one in graded), strict=True))
    evidence = f"teacher {teacher:.0%}, student {student:.0%} of {len(tested)} held-out problems"
    if teacher > student:
        return [Check("capability gap", "passed", evidence)]
    if teacher < student / 2 and lost >= MANY:
        return [refusal("capability gap", evidence, "vocab_permuted")]
    hint = "a teacher that is no better has little to teach: check task and prompt"
    return [Check("capability gap", "warning", evidence, hint)]


def affordable(desk: Desk, began: float) -> list[Check]:
    """A step of the study's own size fits, how long the runs take, and what pre-flight took."""
    task, name = desk.any_run().task, "time and memory"
    try:
        found = estimate(desk.engine, desk.recipes, task, desk.settings, desk.grading)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        hint = f"{SMALLER} or train.batch_size, or set gradient_checkpointing = true"
        return [Check(name, "refused", f"one step runs out of memory: {error}", hint)]
    words = f"{found.words}; these checks took {time.perf_counter() - began:.2g} s"
    runs = {method: asdict(run) for method, run in found.runs.items()}
    rows = {role: asdict(one) for role, one in found.gradings.items()}
    numbers = {"runs": runs, "gradings": rows, "peak": found.peak}
    if found.peak > TIGHT * found.memory:
        hint = f"{SMALLER}, or set gradient_checkpointing = true"
        return [Check(name, "warning", words, hint, numbers=numbers)]
    return [Check(name, "passed", words, numbers=numbers)]


def trained_as_written(desk: Desk, recipe: Recipe) -> list[Check]:
    """What a step trains equals the reference, at the start and wherever the recipe changes."""
    stage = Rehearsal(desk.engine)
    run = desk.wire(stage, recipe)
    problems = draw(run.task.train, BATCH, desk.seed, 0)
    found: dict[tuple[str, str], Check] = {}
    for t in _moments(recipe):
        batch = collect(recipe, run.engine, problems, t, 0, desk.seed, desk.limits)
        stage.steps.clear()
        run.engine.step(objective.build(run.recipe, batch, run.engine), 0.0)
        for check in _compare(desk, recipe, batch, stage.steps):
            found.setdefault((check.name, check.cause), check)
    return list(found.values())


def _moments(recipe: Recipe) -> list[float]:
    """Progress values at which the recipe does something else."""
    schedules = (recipe.on_policy, recipe.prefix)
    return sorted({0.0, *(s.until for s in schedules if s.kind != "constant" and s.until < 1)})


def _compare(
    desk: Desk, recipe: Recipe, batch: Sequence[Trajectory], steps: Sequence[Sequence[Datum]]
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
        yield from _compare_source(desk, recipe, written, got, share, source)


def _compare_source(
    desk: Desk,
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
    if misplaced := list(_weights(desk, name, written, got)):
        yield from misplaced
        return
    if engine := crossing(desk):
        trained = crossed.trained(engine, got) / share
        wanted = crossed.reference(engine, written, terms)
    else:
        trained = sum((observed(desk.engine, d) for d in got), start=np.zeros(2)) / share
        wanted = reference(desk.engine, written, terms)
    if _close(trained, wanted):
        yield Check(name, "passed", f"{wanted[0]:.4f} nats per token, as computed from logits")
        yield from _first_loss(desk, recipe, wanted[0], source)
        return
    evidence = f"the step trains {trained[0]:.4f} nats per token, the recipe says {wanted[0]:.4f}"
    if _close(trained[:1], wanted[:1]):
        evidence += ", but on other tokens"
    untold = crossing(desk) and terms[0][0].name != "cross_entropy"  # needs rows that are not there
    for cause, words, value in () if untold else mistakes(desk.engine, written, terms):
        if _close(trained, value):
            yield refusal(name, f"{evidence}; {words} gives {value[0]:.4f}", cause)
            return
    hint = "look at shift, prompt, masks and weights of what the step is given"
    yield Check(name, "refused", evidence, hint)


def _weights(
    desk: Desk, name: str, written: Sequence[Trajectory], got: Sequence[Datum]
) -> Iterator[Check]:
    """Weights on the wrong tokens, which a confident teacher can hide from the loss."""
    weighed = [y for d in got for y, *w in _asked(d) if any(w)]
    ends = sum(t.completion[-1] in desk.engine.eos for t in written)
    if ends and not any(y in desk.engine.eos for y in weighed):
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


def _first_loss(desk: Desk, recipe: Recipe, loss: float, source: Source) -> Iterator[Check]:
    """A first supervised loss above ln(vocabulary) is worse than knowing nothing."""
    if source == "student" or recipe.teacher_loss.name != "cross_entropy":
        return
    uniform = math.log(
        desk.engine.rows("student", Prompt.of(desk.engine.encode("1")), (0,)).shape[1]
    )
    evidence = f"{loss:.2f} nats per token; guessing uniformly gives {uniform:.2f}"
    if loss >= uniform:
        hint = "worse than knowing nothing: check the format, and that both models share their ids"
        yield Check(f"{recipe.name}: first loss", "warning", evidence, hint)
