"""Test the behavior of a Tinker-compatible server with a dozen tokens.

Servers differ where the API is unspecified: target shifting, loss reduction, the length of
log-probabilities, and the effect of using an old sampler. A loss curve shows none of this. Each
test creates its own students and drops them. An id outside the vocabulary is only used as a target
and never trained on, because on some servers it affects every tenant. Speed and quality are not
tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from potstill.engines.tinker.client import Sampler, Service, Trainer, TrainingRow
from potstill.engines.tinker.connection import settle
from potstill.errors import PotstillError
from potstill.types import Floats, Ids
from potstill.urls import without_secrets

Verdict = Literal["good", "adapted to", "not used", "refused", "unknown"]
Reduction = Literal["sum", "sequence mean"]

CLOSE = 1e-3  # nats: tolerance between two ways to compute one log-probability
RATE = 1e-2  # learning rate of a test step: large enough for a visible change


@dataclass(frozen=True)
class Fact:
    """The result of one test, and its consequence for potstill."""

    question: str
    answer: str
    verdict: Verdict


@dataclass(frozen=True)
class Facts:
    """The behavior of a server that the engine adapts to."""

    reduction: Reduction
    raw: bool  # sampled log-probabilities are those at temperature 1 for any sampling temperature
    table: tuple[Fact, ...]

    @property
    def refused(self) -> tuple[Fact, ...]:
        """Facts that make a server unusable."""
        return tuple(fact for fact in self.table if fact.verdict == "refused")


def texts(vocabulary: int) -> tuple[Ids, Ids]:
    """Return two sequences of different lengths; they are the same for every server."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, min(vocabulary, 256), 15).tolist()
    return tuple(ids[:6]), tuple(ids[6:])


def row_of(ids: Ids, weight: float = 1.0, targets: Ids | None = None) -> TrainingRow:
    """Return a sequence whose targets are the next tokens, unless given."""
    size = len(ids) - 1
    ones = np.ones(size, np.float32)
    return TrainingRow(ids[:-1], targets or ids[1:], ones, ones * np.float32(weight), ones * 0)


class Server:
    """A server under test."""

    def __init__(self, service: Service, rank: int = 8) -> None:
        self.service, self.rank = service, rank
        self.short, self.long = texts(service.vocabulary)

    def student(self) -> Trainer:
        """Create a new student."""
        return self.service.trainer(self.rank, 0)

    def scores(self, sampler: Sampler) -> Floats:
        """Return a sampler's log-probabilities of both sequences."""
        return np.concatenate(
            sampler.score([(ids[:1], ids[1:]) for ids in (self.short, self.long)])
        )

    def values(self, trainer: Trainer) -> Floats:
        """Return a student's log-probabilities of both sequences."""
        return np.concatenate(trainer.forward([row_of(self.short), row_of(self.long)]))


def _silent(_: str) -> None:
    pass


def ask(service: Service, brief: bool = False, tell: Callable[[str], None] = _silent) -> Facts:
    """Run the tests on a server.

    Args:
        service: a session with the server.
        brief: run only the tests that the engine needs.
        tell: called with the name of each test before it runs.
    """
    server = Server(service)
    tell("does position i predict token i + 1")
    table = [shift(server)]
    tell("are a sequence's losses added up or averaged")
    reduction, fact = reduced(server)
    table.append(fact)
    tell("do sampled log-probabilities depend on the temperature")
    raw, fact = sampled(server, server.student().sampler())
    table.append(fact)
    if not brief:
        for name, test in TESTS.items():
            tell(name)
            try:
                table.extend(test(server))
            except Exception as error:  # a rejected request is a result too
                table.append(Fact(name, f"an error: {_first_line(error)}", "unknown"))
    return Facts(reduction, raw, tuple(table))


_known: dict[tuple[str, str], Facts] = {}  # by address and base model
_raw: dict[tuple[str, str], tuple[bool, Fact]] = {}


def facts_of(service: Service) -> Facts:
    """Return the facts about a student's server, tested once per process.

    Raises:
        PotstillError: the engine cannot adapt to the server.
    """
    key = service.url, service.model
    if key not in _known:
        try:
            _known[key] = ask(service, brief=True)
        except AssertionError as error:  # a newer SDK received samples from an older server
            if "sample_sequence_ids" not in str(error):
                raise
            raise PotstillError(
                f"the tinker SDK {service.sdk} cannot read samples of {service.url}: {error}",
                "for SkyRL 0.4 pip install 'tinker==0.25.*', for the hosted service the newest SDK",
            ) from error
    for fact in _known[key].refused:
        _reject(service, fact)
    return _known[key]


def sampler_facts_of(service: Service) -> tuple[bool, Fact]:
    """Return the facts about a teacher's server, which only samples and scores.

    They are whether sampled log-probabilities are those at temperature 1. The test runs once per
    process, and does not train.

    Raises:
        PotstillError: the engine cannot adapt to the server.
    """
    key = service.url, service.model
    if key not in _raw:
        _raw[key] = sampled(Server(service), service.base())
    if _raw[key][1].verdict == "refused":
        _reject(service, _raw[key][1])
    return _raw[key]


def _reject(service: Service, fact: Fact) -> None:
    raise PotstillError(
        f"the server {service.label} cannot be used: {fact.question}: {fact.answer}",
        f"run potstill probe {service.url} to see the results of all tests",
    )


def _first_line(error: Exception) -> str:
    return without_secrets((str(error).strip().splitlines() or [repr(error)])[0])[:160]


def shift(server: Server) -> Fact:
    """Test target shifting.

    The caller shifts the targets if position i, with target token i + 1, has the log-probability
    that a sampler gives that token.
    """
    question = "does position i predict token i + 1"
    student = server.student()
    gap = np.abs(server.scores(student.sampler()) - server.values(student)).max()
    if gap < CLOSE:
        return Fact(question, "yes: the caller shifts the targets", "good")
    return Fact(question, f"no: log-probabilities differ by {gap:.2g} nats", "refused")


def reduced(server: Server) -> tuple[Reduction, Fact]:
    """Test loss reduction: larger weights of one sequence change a sum, but not a weighted mean."""
    question = "are a sequence's losses added up or averaged"
    values, norms = [], []
    for weight in (1.0, 4.0):
        student = server.student()
        rows = [row_of(server.short), row_of(server.long, weight)]
        norms.append(student.step(rows, "cross_entropy", RATE)[1])
        values.append(server.values(student))
    moved = np.abs(values[0] - values[1]).max()
    suffix = "" if np.isnan(norms).any() else f"; gradient norms {norms[0]:.4g} and {norms[1]:.4g}"
    effect = f"weights of one sequence times 4 move log-probabilities by {moved:.2g} nats{suffix}"
    if moved < 1e-5:
        return "sequence mean", Fact(question, f"averaged: {effect}", "adapted to")
    return "sum", Fact(question, f"added up: {effect}", "good")


def sampled(server: Server, sampler: Sampler) -> tuple[bool, Fact]:
    """Test whether sampled log-probabilities are those at temperature 1 for any temperature."""
    question = "do sampled log-probabilities depend on the temperature"
    gaps = []
    for temperature in (1.0, 0.5):
        drawn = sampler.sample([server.short], [6], temperature, [1], [])[0]
        score = sampler.score([(server.short, drawn.tokens)])[0]
        gaps.append(float(np.abs(score - drawn.logprobs).max()))
    if gaps[0] > CLOSE:
        return False, Fact(question, f"sampled and scored differ by {gaps[0]:.2g} nats", "refused")
    if gaps[1] < CLOSE:
        return True, Fact(question, f"no: sampled equals scored to {max(gaps):.1g} nats", "good")
    return False, Fact(question, f"yes: by {gaps[1]:.2g} nats at 0.5", "adapted to")


def lengths(server: Server) -> Iterator[Fact]:
    """Test the number of log-probabilities of N ids."""
    from tinker import types

    prompt = types.ModelInput.from_ints(list(server.long))
    client = server.service.base().client
    size, count = len(server.long), len(settle(client.compute_logprobs(prompt)))
    answer = {size: "N, none for the first", size - 1: "N - 1"}.get(count, f"{count} of {size}")
    good: Verdict = "good" if count == size else "adapted to"
    yield Fact(
        "log-probabilities of N ids", answer, good if count in (size, size - 1) else "refused"
    )


def other_targets(server: Server) -> Iterator[Fact]:
    """Test whether a position may have a target other than the next token."""
    student, other = server.student(), server.short[0]
    targets = (*server.long[1:3], other, *server.long[4:])
    got = student.forward([row_of(server.long, targets=targets)])[0][2]
    want = student.sampler().score([(server.long[:3], (other,))])[0][0]
    good = abs(got - want) < CLOSE
    answer = "used as given" if good else "ignored: the target is the next token"
    yield Fact("targets that are not the next token", answer, "good" if good else "not used")


def freshness(server: Server) -> Iterator[Fact]:
    """Test samplers made before and after a step: their weights, and the effect of using them."""
    student = server.student()
    old, rows = student.sampler(), [row_of(server.short), row_of(server.long)]
    before = server.scores(old)
    student.step(rows, "cross_entropy", RATE)
    values = server.values(student)
    fresh = server.scores(student.sampler())
    good = np.abs(fresh - values).max() < CLOSE
    answer = f"{np.abs(fresh - values).max():.1g} nats off the trained weights"
    yield Fact("a sampler made after a step", answer, "good" if good else "refused")
    stale = server.scores(old)
    kept = np.abs(stale - before).max() < CLOSE
    answer = "keeps its weights" if kept else "no longer has the weights it was made with"
    yield Fact("a sampler made before it", answer, "good" if kept else "not used")
    moved = np.abs(server.values(student) - values).max()
    answer = (
        f"moves the trained weights by {moved:.2g} nats"
        if moved > CLOSE
        else "does not change the trained weights"
    )
    yield Fact("using the older one", answer, "not used" if moved > CLOSE else "good")


def same_seed(server: Server) -> Iterator[Fact]:
    """Test whether a seed determines samples and adapters."""
    drawn = []
    for _ in range(2):
        sampler = server.student().sampler()
        drawn.append(
            [s.tokens for s in sampler.sample([server.short] * 2, [8] * 2, 1.0, [5, 6], [])]
        )
    same, apart = drawn[0] == drawn[1], drawn[0][0] != drawn[0][1]
    answer = (
        "the same samples" if same and apart else "different samples, or the same for every seed"
    )
    yield Fact("the same seed", answer, "good" if same and apart else "unknown")


def soft_targets(server: Server) -> Iterator[Fact]:
    """Test whether K targets per position are accepted, or flattened to a longer sequence."""
    from tinker import types

    name, size, width = "soft targets (N, K)", len(server.long) - 1, 3
    targets = np.tile(np.array(server.long[1:], np.int64)[:, None], (1, width))
    inputs: dict[str, Any] = {"target_tokens": targets}
    inputs["weights"] = np.full((size, width), 1 / width, np.float32)
    ids = types.ModelInput.from_ints(list(server.long[:-1]))
    datum = types.Datum(model_input=ids, loss_fn_inputs=inputs)
    try:
        output: Any = settle(server.student().client.forward([datum], "cross_entropy"))
    except Exception as error:
        yield Fact(name, f"refused: {_first_line(error)}", "not used")
        return
    shape = tuple(output.loss_fn_outputs[0]["logprobs"].to_numpy().shape)
    accepted = shape == (size, width)
    answer = "accepted" if accepted else f"flattened silently: {shape} for {(size, width)}"
    yield Fact(name, answer, "good" if accepted else "not used")


def bad_ids(server: Server) -> Iterator[Fact]:
    """Test whether an id outside the vocabulary is rejected, as a target in a forward pass only."""
    targets = (*server.short[1:-1], server.service.vocabulary + 1000)
    row = row_of(server.short, targets=targets)
    student, name = server.student(), "an id outside the vocabulary"
    datum = student._datum(row, "cross_entropy")
    try:
        output = settle(student.client.forward([datum], "cross_entropy"))
    except Exception as error:
        yield Fact(name, f"refused: {_first_line(error)}", "good")
        return
    value = float(output.loss_fn_outputs[0]["logprobs"].to_numpy()[-1])
    yield Fact(name, f"accepted, log-probability {value:.3g}: checked before sending", "adapted to")


TESTS: dict[str, Callable[[Server], Iterator[Fact]]] = {
    "log-probabilities of N ids": lengths,
    "targets that are not the next token": other_targets,
    "samplers and steps": freshness,
    "the same seed": same_seed,
    "soft targets (N, K)": soft_targets,
    "an id outside the vocabulary": bad_ids,
}
