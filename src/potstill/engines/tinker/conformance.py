"""What a server that speaks Tinker's API really does, asked with a dozen tokens.

Servers of this API differ where it is silent: who shifts, what a sum is divided by, how long
log-probabilities are, what an old sampler does. None of it shows in a loss curve. Each question is
put on students made for it, which are thrown away; ids outside the vocabulary are asked for as
targets only and never trained on, as some servers hand them on to every tenant. It leaves out
speed and quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from potstill.engines.tinker.client import Row, Sampler, Service, Trainer
from potstill.engines.tinker.connection import settle
from potstill.errors import PotstillError
from potstill.types import Floats, Ids

Verdict = Literal["good", "adapted to", "not used", "refused", "unknown"]
Reduction = Literal["sum", "sequence mean"]

CLOSE = 1e-3  # nats: two ways to the same log-probability
RATE = 1e-2  # learning rate of a probing step: large enough to see


@dataclass(frozen=True)
class Fact:
    """An answer, and what potstill makes of it."""

    question: str
    answer: str
    verdict: Verdict


@dataclass(frozen=True)
class Facts:
    """What the engine adapts to."""

    reduction: Reduction
    raw: bool  # sampled log-probabilities are the model's own at any temperature
    table: tuple[Fact, ...]

    @property
    def refused(self) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.table if fact.verdict == "refused")


def texts(vocabulary: int) -> tuple[Ids, Ids]:
    """Two sequences of different lengths, the same ones for every server."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, min(vocabulary, 256), 15).tolist()
    return tuple(ids[:6]), tuple(ids[6:])


def row_of(ids: Ids, weight: float = 1.0, targets: Ids | None = None) -> Row:
    """A sequence that asks every position for the next token."""
    size = len(ids) - 1
    ones = np.ones(size, np.float32)
    return Row(ids[:-1], targets or ids[1:], ones, ones * np.float32(weight), ones * 0)


class Subject:
    """A server under question."""

    def __init__(self, service: Service, rank: int = 8) -> None:
        self.service, self.rank = service, rank
        self.short, self.long = texts(service.vocabulary)

    def student(self) -> Trainer:
        return self.service.trainer(self.rank, 0)

    def scores(self, sampler: Sampler) -> Floats:
        """What a sampler makes of both texts."""
        return np.concatenate(
            sampler.score([(ids[:1], ids[1:]) for ids in (self.short, self.long)])
        )

    def values(self, trainer: Trainer) -> Floats:
        """What a student makes of both texts."""
        return np.concatenate(trainer.forward([row_of(self.short), row_of(self.long)]))


def _silent(_: str) -> None:
    pass


def ask(service: Service, brief: bool = False, tell: Callable[[str], None] = _silent) -> Facts:
    """Put the questions to a server.

    Args:
        service: a session with it.
        brief: only what the engine cannot do without.
        tell: hears each question before it is put.
    """
    asked = Subject(service)
    tell("does position i predict token i + 1")
    table = [shift(asked)]
    tell("are a sequence's losses added up or averaged")
    reduction, fact = reduced(asked)
    table.append(fact)
    tell("do sampled log-probabilities depend on the temperature")
    raw, fact = sampled(asked, asked.student().sampler())
    table.append(fact)
    if not brief:
        for name, question in QUESTIONS.items():
            tell(name)
            try:
                table.extend(question(asked))
            except Exception as error:  # a server's refusal is an answer
                table.append(Fact(name, f"an error: {_first_line(error)}", "unknown"))
    return Facts(reduction, raw, tuple(table))


_known: dict[tuple[str, str], Facts] = {}  # what servers do, by address and base model
_raw: dict[tuple[str, str], tuple[bool, Fact]] = {}


def facts_of(service: Service) -> Facts:
    """What the engine adapts to of a student's server, asked once a process.

    Raises:
        PotstillError: it does what cannot be made right.
    """
    key = service.url, service.model
    if key not in _known:
        try:
            _known[key] = ask(service, brief=True)
        except AssertionError as error:  # how newer SDKs meet an older server's samples
            if "sample_sequence_ids" not in str(error):
                raise
            raise PotstillError(
                f"SDK {service.sdk} does not understand {service.url}: {error}",
                "SkyRL 0.4 needs pip install 'tinker==0.25.*', the hosted service the newest",
            ) from error
    for fact in _known[key].refused:
        _refuse(service, fact)
    return _known[key]


def sampler_facts_of(service: Service) -> tuple[bool, Fact]:
    """What matters of a server that only samples and scores, a teacher's: whether sampled
    log-probabilities are the model's own. Asked once a process; trains nothing.

    Raises:
        PotstillError: it does what cannot be made right.
    """
    key = service.url, service.model
    if key not in _raw:
        _raw[key] = sampled(Subject(service), service.base())
    if _raw[key][1].verdict == "refused":
        _refuse(service, _raw[key][1])
    return _raw[key]


def _refuse(service: Service, fact: Fact) -> None:
    raise PotstillError(
        f"{service.url or 'the service'}: {fact.question}: {fact.answer}",
        f"potstill probe {service.url} shows everything that was asked",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:160]


def shift(asked: Subject) -> Fact:
    """The caller shifts when asking i for token i + 1 gives what a sampler gives that token."""
    question = "does position i predict token i + 1"
    student = asked.student()
    gap = np.abs(asked.scores(student.sampler()) - asked.values(student)).max()
    if gap < CLOSE:
        return Fact(question, "as asked: the caller shifts the targets", "good")
    return Fact(question, f"no: log-probabilities differ by {gap:.2g} nats", "refused")


def reduced(asked: Subject) -> tuple[Reduction, Fact]:
    """Larger weights of one sequence move a sum, and not a mean over its weights."""
    question = "are a sequence's losses added up or averaged"
    found, norms = [], []
    for weight in (1.0, 4.0):
        student = asked.student()
        rows = [row_of(asked.short), row_of(asked.long, weight)]
        norms.append(student.step(rows, "cross_entropy", RATE)[1])
        found.append(asked.values(student))
    moved = np.abs(found[0] - found[1]).max()
    told = "" if np.isnan(norms).any() else f"; gradient norms {norms[0]:.4g} and {norms[1]:.4g}"
    words = f"weights of one sequence times 4 move log-probabilities by {moved:.2g} nats{told}"
    if moved < 1e-5:
        return "sequence mean", Fact(question, f"averaged: {words}", "adapted to")
    return "sum", Fact(question, f"added up: {words}", "good")


def sampled(asked: Subject, sampler: Sampler) -> tuple[bool, Fact]:
    """Whether sampled log-probabilities are those of temperature 1 whatever was asked."""
    question = "do sampled log-probabilities depend on the temperature"
    gaps = []
    for temperature in (1.0, 0.5):
        drawn = sampler.sample([asked.short], [6], temperature, [1], [])[0]
        score = sampler.score([(asked.short, drawn.tokens)])[0]
        gaps.append(float(np.abs(score - drawn.logprobs).max()))
    if gaps[0] > CLOSE:
        return False, Fact(question, f"sampled and scored differ by {gaps[0]:.2g} nats", "refused")
    if gaps[1] < CLOSE:
        return True, Fact(question, f"no: sampled equals scored to {max(gaps):.1g} nats", "good")
    return False, Fact(question, f"yes: by {gaps[1]:.2g} nats at 0.5", "adapted to")


def lengths(asked: Subject) -> Iterator[Fact]:
    """How many log-probabilities N ids have."""
    from tinker import types

    prompt = types.ModelInput.from_ints(list(asked.long))
    client = asked.service.base().client
    size, found = len(asked.long), len(settle(client.compute_logprobs(prompt)))
    words = {size: "N, none for the first", size - 1: "N - 1"}.get(found, f"{found} of {size}")
    good: Verdict = "good" if found == size else "adapted to"
    yield Fact(
        "log-probabilities of N ids", words, good if found in (size, size - 1) else "refused"
    )


def other_targets(asked: Subject) -> Iterator[Fact]:
    """Whether a position may be asked for another token than the next one."""
    student, other = asked.student(), asked.short[0]
    targets = (*asked.long[1:3], other, *asked.long[4:])
    got = student.forward([row_of(asked.long, targets=targets)])[0][2]
    want = student.sampler().score([(asked.long[:3], (other,))])[0][0]
    good = abs(got - want) < CLOSE
    words = "asked for as given" if good else "ignored: the next token is asked for"
    yield Fact("targets that are not the next token", words, "good" if good else "not used")


def freshness(asked: Subject) -> Iterator[Fact]:
    """Whether a sampler made after a step has its weights, and what an older one does."""
    student = asked.student()
    old, rows = student.sampler(), [row_of(asked.short), row_of(asked.long)]
    before = asked.scores(old)
    student.step(rows, "cross_entropy", RATE)
    values = asked.values(student)
    fresh = asked.scores(student.sampler())
    good = np.abs(fresh - values).max() < CLOSE
    words = f"{np.abs(fresh - values).max():.1g} nats off the trained weights"
    yield Fact("a sampler made after a step", words, "good" if good else "refused")
    stale = asked.scores(old)
    kept = np.abs(stale - before).max() < CLOSE
    words = "keeps its weights" if kept else "no longer has the weights it was made with"
    yield Fact("a sampler made before it", words, "good" if kept else "not used")
    moved = np.abs(asked.values(student) - values).max()
    words = f"moves the trained weights by {moved:.2g} nats" if moved > CLOSE else "leaves them"
    yield Fact("using the older one", words, "not used" if moved > CLOSE else "good")


def same_seed(asked: Subject) -> Iterator[Fact]:
    """Whether a seed decides samples and adapters."""
    drawn = []
    for _ in range(2):
        sampler = asked.student().sampler()
        drawn.append(
            [s.tokens for s in sampler.sample([asked.short] * 2, [8] * 2, 1.0, [5, 6], [])]
        )
    same, apart = drawn[0] == drawn[1], drawn[0][0] != drawn[0][1]
    words = "the same samples" if same and apart else "other samples, or the same for every seed"
    yield Fact("the same seed", words, "good" if same and apart else "unknown")


def soft_targets(asked: Subject) -> Iterator[Fact]:
    """Whether K targets a position are K targets, or a longer text of one each."""
    from tinker import types

    name, size, kept = "soft targets (N, K)", len(asked.long) - 1, 3
    ids = np.tile(np.array(asked.long[1:], np.int64)[:, None], (1, kept))
    inputs: dict[str, Any] = {"target_tokens": ids}
    inputs["weights"] = np.full((size, kept), 1 / kept, np.float32)
    read = types.ModelInput.from_ints(list(asked.long[:-1]))
    datum = types.Datum(model_input=read, loss_fn_inputs=inputs)
    try:
        answer: Any = settle(asked.student().client.forward([datum], "cross_entropy"))
    except Exception as error:
        yield Fact(name, f"refused: {_first_line(error)}", "not used")
        return
    shape = tuple(answer.loss_fn_outputs[0]["logprobs"].to_numpy().shape)
    honoured = shape == (size, kept)
    words = "honoured" if honoured else f"flattened without a word: {shape} for {(size, kept)}"
    yield Fact(name, words, "good" if honoured else "not used")


def bad_ids(asked: Subject) -> Iterator[Fact]:
    """Whether an id outside the vocabulary is refused: as a target, in a forward pass alone."""
    targets = (*asked.short[1:-1], asked.service.vocabulary + 1000)
    row = row_of(asked.short, targets=targets)
    student, name = asked.student(), "an id outside the vocabulary"
    datum = student._datum(row, "cross_entropy")
    try:
        answer = settle(student.client.forward([datum], "cross_entropy"))
    except Exception as error:
        yield Fact(name, f"refused: {_first_line(error)}", "good")
        return
    value = float(answer.loss_fn_outputs[0]["logprobs"].to_numpy()[-1])
    yield Fact(name, f"accepted, log-probability {value:.3g}: checked before sending", "adapted to")


QUESTIONS: dict[str, Callable[[Subject], Iterator[Fact]]] = {
    "log-probabilities of N ids": lengths,
    "targets that are not the next token": other_targets,
    "samplers and steps": freshness,
    "the same seed": same_seed,
    "soft targets (N, K)": soft_targets,
    "an id outside the vocabulary": bad_ids,
}
