"""The fake engine: one numpy table of bigram logits per role, for tests.

It implements the whole engine protocol with closed-form gradients, so the loop, the study and the
command line can be tested in milliseconds and without torch. The teacher answers a digit with a
letter and then EOS; after any other character it prefers EOS, and all other tokens are equally
likely. Its results do not carry over to language models.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from potstill.algorithms.losses import CrossEntropy, ReverseKL, ReverseKLSampled, SampledLoss
from potstill.engines.host import host_memory
from potstill.engines.prompts import Prompting
from potstill.engines.registry import ENGINES
from potstill.engines.truncation import truncated
from potstill.errors import NonFinite, PotstillError
from potstill.fields import brief
from potstill.problems import Messages
from potstill.settings import Adam
from potstill.tasks.rendering import plain
from potstill.types import (
    WHOLE,
    Datum,
    Expectation,
    Floats,
    Ids,
    Loss,
    Prompt,
    Reading,
    Role,
    Sample,
    StepStats,
    Term,
    Truncation,
)

Table = npt.NDArray[np.float64]

FIRST, SIZE = 32, 96  # printable ASCII, then EOS
EOS = SIZE - 1
TINY = 1e-8  # of Adam
# A hook for tests that act in mid-run: this environment variable names a file, and while the file
# has a number, no fake engine of any process makes more optimizer steps than that.
GATE = "POTSTILL_FAKE_GATE"


def answer(digit: int) -> str:
    """Return the teacher's answer to a digit.

    >>> answer(3)
    'k'
    """
    return chr(ord("a") + (3 * digit + 1) % 26)


def log_softmax(logits: Table) -> Table:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _tempered(logp: Table, temperature: float) -> Table:
    """Return the log-probabilities to draw from; at temperature 0 of the likeliest id alone."""
    if temperature:
        return log_softmax(logp / temperature)
    greedy = np.full_like(logp, -np.inf)
    greedy[np.arange(len(logp)), logp.argmax(-1)] = 0.0
    return greedy


def teacher_table() -> Table:
    """Return the teacher's logits: digit -> letter -> EOS."""
    table = np.zeros((SIZE, SIZE))
    table[:, EOS] = 6.0
    for digit in range(10):
        row = ord(str(digit)) - FIRST
        table[row] = 0.0
        table[row, ord(answer(digit)) - FIRST] = 8.0
    return table


def _allowed_steps() -> float:
    try:
        return int(Path(os.environ[GATE]).read_text())
    except (KeyError, FileNotFoundError):
        return math.inf


class FakeEngine(Prompting):
    """Bigram tables behind the engine protocol; the pair's names and the seed have no effect."""

    losses = ENGINES["fake"].losses
    eos = frozenset({EOS})
    notes: tuple[str, ...] = ()
    devices = 1

    def __init__(
        self, student: str = "", teacher: str = "fake", *, seed: int = 0, adam: Adam | None = None
    ) -> None:
        self._settings = adam or Adam()
        start = np.random.default_rng(7).normal(size=(SIZE, SIZE)) * 0.5
        self._tables: dict[Role, Table] = {
            "student": start.copy(),
            "init": start,
            "teacher": teacher_table(),
        }
        self._moments = [np.zeros_like(start), np.zeros_like(start)]
        self._steps = 0
        self.has_teacher = bool(teacher)

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        text = text if isinstance(text, str) else plain(text).rstrip("\n")
        return tuple(min(max(ord(c) - FIRST, 0), EOS - 1) for c in text)

    def decode(self, tokens: Ids) -> str:
        return "".join(chr(token + FIRST) for token in tokens if token != EOS)

    def encode_completion(self, prompt: Prompt, text: str) -> Ids:
        ids = self.encode(text)
        if self.decode(ids) != text or not text.strip():
            raise PotstillError(
                f"{prompt.problem}: a completion has printable ASCII characters, got {brief(text)}",
                "remove the completion, or the characters that the tokenizer has not",
            )
        return (*ids, EOS)

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        logp = log_softmax(self._table(role))
        draws = truncated(_tempered(logp, temperature), truncation)
        if np.isnan(draws).any():
            raise NonFinite(f"log-probabilities of the {role}")
        cumulative = np.exp(draws).cumsum(-1)
        noise = rng.random((len(prompts), max(max_tokens, default=0)))
        samples = []
        for prompt, limit, numbers in zip(prompts, max_tokens, noise, strict=True):
            ids = prompt.read_by(role)
            last, tokens = ids[-1], []
            for u in numbers[:limit]:
                point = u * cumulative[last, -1]
                last = int(np.searchsorted(cumulative[last], point, side="right"))
                tokens.append(last)
                if last == EOS:
                    break
            before = [ids[-1], *tokens[:-1]] if tokens else []
            own, drawn = (table[before, tokens].astype(np.float32) for table in (logp, draws))
            samples.append(Sample(tuple(tokens), own, drawn))
        return samples

    def _token_scores(self, role: Role, prompt: Ids, completion: Ids) -> Floats:
        before = [prompt[-1], *completion[:-1]] if completion else []
        logp = log_softmax(self._table(role)[before])
        return logp[range(len(completion)), list(completion)].astype(np.float32)

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        return [self._token_scores(role, p.read_by(role), completion) for p, completion in rows]

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Table:
        return self._rows(role, prompt.read_by(role), completion)

    def _rows(self, role: Role, prompt: Ids, completion: Ids) -> Table:
        return log_softmax(self._table(role)[[prompt[-1], *completion[:-1]]])

    def _table(self, role: Role) -> Table:
        self.check_role(role)
        return self._tables[role]

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        expectations = []
        for prompt, completion in rows:
            before = [prompt.read_by(role)[-1], *completion[:-1]] if completion else []
            logp = log_softmax(self._table(role)[before])
            p, positions = np.exp(logp), np.arange(len(before))
            entropy = -(p * np.where(p > 0, logp, 0.0)).sum(-1)
            scores = logp[positions, list(completion)]
            rank = (logp > scores[:, None]).sum(-1)
            values = scores, entropy, p[positions, before], p[:, EOS], rank
            expectations.append(Expectation(*(value.astype(np.float32) for value in values)))
        return expectations

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        return self._forward(data, np.zeros_like(self._tables["student"]))

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        while self._steps >= _allowed_steps():
            time.sleep(0.01)
        gradient = np.zeros_like(self._tables["student"])
        stats = self._forward(data, gradient)
        norm = float(np.sqrt((gradient**2).sum()))
        if not np.isfinite(stats.loss + norm):
            raise NonFinite(f"loss {stats.loss}, gradient norm {norm}")
        self._adam(gradient, learning_rate)
        return replace(stats, grad_norm=norm)

    def _forward(self, data: Sequence[Datum], gradient: Table) -> StepStats:
        """Return the losses of the data, and add their gradient to `gradient`."""
        loss, parts = 0.0, defaultdict[str, list[float]](list)
        clipped: list[bool] = []
        by_datum = np.zeros(len(data))
        for number, datum in enumerate(data):
            before = np.array([datum.prompt.read_by("student")[-1], *datum.completion[:-1]])
            logp = log_softmax(self._tables["student"][before])
            for term in datum.terms:
                counted = term.weights != 0  # the others count nowhere: 0 x inf is not a number
                values, slope = self._term(datum, term, logp)
                weighted = float((term.weights * np.where(counted, values, 0.0)).sum())
                loss, by_datum[number] = loss + weighted, by_datum[number] + weighted
                np.add.at(gradient, before[counted], term.weights[counted, None] * slope[counted])
                part = "anchor" if term.loss.to == "init" else datum.source
                parts[part].extend(values[counted])
                if isinstance(term.loss, SampledLoss) and term.loss.clip_ratio is not None:
                    clipped.extend(_moved(term.loss, datum, logp)[1][counted])
        means = {key: float(np.mean(v)) for key, v in parts.items() if v}
        share = float(np.mean(clipped)) if clipped else None
        return StepStats(loss, 0.0, means, share, by_datum=by_datum)

    def _term(self, datum: Datum, term: Term, logp: Table) -> tuple[Table, Table]:
        """Return per-token values (T,) of a term and their gradients (T, V), before weighting."""
        loss, logq = term.loss, None
        if loss.needs == "full_logprobs" or loss.to == "init":
            logq = self._rows(loss.to, *datum.read_by(loss.to))
        with np.errstate(invalid="ignore"):  # tokens with weight 0
            return CLOSED_FORMS[type(loss)](loss, datum, logp, logq)

    def _adam(self, gradient: Table, learning_rate: float) -> None:
        self._steps += 1
        (first, second), decay = self._settings.betas, self._settings.weight_decay
        mean, square = self._moments
        mean += (1 - first) * (gradient - mean)
        square += (1 - second) * (gradient**2 - square)
        mean_hat = mean / (1 - first**self._steps)
        scale = np.sqrt(square / (1 - second**self._steps)) + TINY
        self._tables["student"] *= 1 - learning_rate * decay
        self._tables["student"] -= learning_rate * mean_hat / scale

    def size(self, role: Role) -> None:
        """Return None: FLOPs are not counted for a table."""

    def memory(self) -> tuple[int, int]:
        return host_memory()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mean, square = self._moments
        state = {"student": self._tables["student"], "mean": mean, "square": square}
        save_file({**state, "steps": np.array([self._steps])}, folder / "engine.safetensors")

    def load(self, folder: Path) -> None:
        state = load_file(folder / "engine.safetensors")
        self._tables["student"] = state["student"].copy()
        self._moments = [state["mean"].copy(), state["square"].copy()]
        self._steps = int(state["steps"][0])

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"student": self._tables["student"]}, folder / "table.safetensors")

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _cross_entropy(
    loss: Loss, datum: Datum, logp: Table, logq: Table | None
) -> tuple[Table, Table]:
    """-log p(y), and p - 1[y]."""
    at, hit = _chosen(datum, logp)
    return -logp[at], np.exp(logp) - hit


def _reverse_kl(loss: Loss, datum: Datum, logp: Table, logq: Table | None) -> tuple[Table, Table]:
    """KL(p, q), and p (log p - log q - KL(p, q))."""
    assert logq is not None
    p = np.exp(logp)
    ratio = np.where(p > 0, logp - logq, 0.0)
    values = (p * ratio).sum(-1)
    slope = p * (ratio - values[:, None])
    if loss.cap is not None:
        slope = np.where((values <= loss.cap)[:, None], slope, 0.0)
        values = values.clip(max=loss.cap)
    return values, slope


def _reverse_kl_sampled(
    loss: Loss, datum: Datum, logp: Table, logq: Table | None
) -> tuple[Table, Table]:
    """-r A with r = p(y) / s(y) and A = log q(y) - log p(y), and -r A (1[y] - p)."""
    assert isinstance(loss, SampledLoss)
    at, hit = _chosen(datum, logp)
    if logq is not None:  # towards the student of step 0
        advantage = logq[at] - logp[at]
    else:
        assert datum.teacher_logprobs is not None
        advantage = datum.teacher_logprobs.astype(float) - logp[at]
    if loss.cap is not None:
        advantage = advantage.clip(-loss.cap, loss.cap)
    then = datum.logprobs.astype(float)
    values = -np.exp(_moved(loss, datum, logp)[0] + then - datum.behavior_logprobs) * advantage
    return values, values[:, None] * (hit - np.exp(logp))


def _moved(loss: SampledLoss, datum: Datum, logp: Table) -> tuple[Table, Any]:
    """log p(y) / p_then(y) (T,) up to the loss's limit, and where the limit is exceeded."""
    moved = logp[_chosen(datum, logp)[0]] - datum.logprobs
    if loss.clip_ratio is None:
        return moved, np.zeros(len(moved), bool)
    limit = math.log(loss.clip_ratio)
    return moved.clip(max=limit), moved > limit


def _chosen(datum: Datum, logp: Table) -> tuple[tuple[Any, Any], Table]:
    """Where the targets are in a table (T, V), as an index and as ones in a table of zeros."""
    at, hit = (np.arange(len(logp)), np.array(datum.targets)), np.zeros_like(logp)
    hit[at] = 1.0
    return at, hit


# Values (T,) of a loss and their gradients (T, V) with respect to the student's logits, from the
# student's log-probabilities (T, V) and, where the loss needs them, another model's.
ClosedForm = Callable[[Loss, Datum, Table, Table | None], tuple[Table, Table]]
CLOSED_FORMS: dict[type[Loss], ClosedForm] = {
    CrossEntropy: _cross_entropy,
    ReverseKL: _reverse_kl,
    ReverseKLSampled: _reverse_kl_sampled,
}

ENGINE = FakeEngine
