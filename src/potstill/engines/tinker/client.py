"""A client for Tinker-compatible servers, with the calls that potstill needs.

Only this module and `connection` use the names of the `tinker` SDK. It hides the differences
between SDK versions: which calls return a future, the length of log-probabilities, and the metrics
of a training step. All requests are validated first, because on a shared server one id outside the
vocabulary can turn every tenant's weights into NaN. The SDK repeats requests that the network lost;
the engine handles the loss of a server.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from potstill.engines.tinker.connection import (
    PATIENCE,
    Unreachable,
    base_models,
    check_sdk,
    connect,
    end_session,
    same_model,
    settle,
    waiting,
)
from potstill.errors import PotstillError
from potstill.settings import Adam
from potstill.types import WHOLE, Floats, Ids, Sample, Truncation
from potstill.urls import Url

ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


def adam_of(adam: Adam) -> dict[str, float]:
    """The optimizer's settings as the API names them."""
    from tinker import types

    (first, second), decay = adam.betas, adam.weight_decay
    known = getattr(types.AdamParams, "model_fields", {})
    if decay and "weight_decay" not in known:
        raise PotstillError(
            f"this version of the tinker SDK has no weight decay, got {decay:g}",
            "update it, or leave train.weight_decay out",
        )
    betas = {"beta1": first, "beta2": second}
    return {**ADAM, **betas, **({"weight_decay": decay} if decay else {})}


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """One sequence of a training request: position i of `ids` predicts `targets[i]`."""

    ids: Ids  # (N,) prompt and completion without the last token
    targets: Ids  # (N,)
    counts: Floats  # (N,) 1 if the target is a completion token, else 0
    advantages: Floats  # (N,) factors of the importance ratio
    logprobs: Floats  # (N,) denominators of the importance ratio


class Service:
    """A session with a server, for one base model.

    Args:
        url: address of the server; empty: the hosted service, or TINKER_BASE_URL.
        model: the server's name of the base model.
        vocabulary: this id and above are never sent.
        in_flight: maximum number of concurrent requests.
    """

    adam: Mapping[str, float] = ADAM

    def __init__(self, url: str, model: str, vocabulary: int, in_flight: int = 64) -> None:
        self.sdk = check_sdk()
        self.url, self.model, self.vocabulary = Url(url), model, vocabulary
        self.in_flight = in_flight
        self.client = self._connect()

    def _connect(self) -> Any:
        client = connect(self.url)
        names = base_models(client)
        matches = [name for name in names if same_model(name, self.model)]
        if not matches:
            raise PotstillError(
                f'{self.label} does not serve "{self.model}"',
                f"it serves {', '.join(names[:8]) or 'nothing'}; your own server has one base "
                "model, so a teacher with another base model needs engine.teacher_url",
            )
        self.model = matches[0]
        return client

    def reconnect(self) -> None:
        """Start a new session after the old one was lost, and wait for the server if needed."""
        self.close()
        deadline = time.monotonic() + PATIENCE
        with waiting(lambda: f"{self.label} is not reachable: waiting for it"):
            while True:
                try:
                    self.client = self._connect()
                    return
                except Unreachable:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(2)

    def trainer(self, rank: int, seed: int) -> Trainer:
        """Create a new LoRA student of the base model."""
        return Trainer(
            self,
            settle(
                self.client.create_lora_training_client(base_model=self.model, rank=rank, seed=seed)
            ),
        )

    def restored(self, path: str) -> Trainer:
        """Restore a student and its optimizer state."""
        create = self.client.create_training_client_from_state_with_optimizer
        return Trainer(self, settle(create(path)))

    def base(self) -> Sampler:
        """Return a sampler of the base model."""
        return Sampler(self, settle(self.client.create_sampling_client(base_model=self.model)))

    def all(self, send: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Send every item, at most `in_flight` at a time, and return the answers in order."""
        pending: deque[Any] = deque()
        answers: list[Any] = []

        def message() -> str:
            return f"{self.label}: {len(answers)} answers received, waiting for {len(pending)} more"

        with waiting(message):
            for item in items:
                if len(pending) >= self.in_flight:
                    answers.append(settle(pending.popleft()))
                pending.append(send(item))
            while pending:
                answers.append(settle(pending.popleft()))
        return answers

    def answer(self, future: Any, what: str) -> Any:
        """Return one answer, and report long waits for `what`."""
        with waiting(lambda: f"{self.label}: waiting for {what}"):
            return settle(future)

    @property
    def label(self) -> str:
        """Name of the server in messages."""
        return self.url or "the hosted service"

    def check_ids(self, rows: Iterable[Ids]) -> None:
        """Raise a `PotstillError` for ids outside the model's vocabulary."""
        for row in rows:
            if not row:
                raise PotstillError("a prompt needs at least one token, got none", "")
            if min(row) < 0 or max(row) >= self.vocabulary:
                invalid = next(i for i in row if not 0 <= i < self.vocabulary)
                raise PotstillError(
                    f"token ids lie in [0, {self.vocabulary}), got {invalid}",
                    "student and teacher must share the tokenizer of the base model",
                )

    def close(self) -> None:
        """End the session."""
        end_session(self.client)


class Sampler:
    """Samples and scores with fixed weights."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client

    def sample(
        self,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        seeds: Sequence[int],
        stop: Sequence[int],
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        """Continue each prompt, and return the server's log-probabilities unchanged."""
        from tinker import types

        self.service.check_ids(prompts)
        cut: dict[str, Any] = {"top_k": truncation.top_k} if truncation.top_k else {}
        cut |= {"top_p": truncation.top_p} if truncation.top_p < 1 else {}

        def send(job: tuple[Ids, int, int]) -> Any:
            prompt, limit, seed = job
            params = types.SamplingParams(
                max_tokens=limit, temperature=temperature, seed=seed, stop=list(stop), **cut
            )
            return self.client.sample(
                prompt=types.ModelInput.from_ints(list(prompt)),
                num_samples=1,
                sampling_params=params,
            )

        jobs = zip(prompts, max_tokens, seeds, strict=True)
        samples = []
        for answer in self.service.all(send, jobs):
            sequence = answer.sequences[0]
            logprobs = np.asarray(sequence.logprobs, np.float32)
            samples.append(Sample(tuple(int(i) for i in sequence.tokens), logprobs))
        return samples

    def score(self, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        """Return log-probabilities (T,) of completions, from answers of length N or N - 1."""
        from tinker import types

        self.service.check_ids(p + c for p, c in rows)

        def send(row: tuple[Ids, Ids]) -> Any:
            return self.client.compute_logprobs(types.ModelInput.from_ints([*row[0], *row[1]]))

        scores = []
        for (prompt, completion), answer in zip(rows, self.service.all(send, rows), strict=True):
            size = len(prompt) + len(completion)
            values = list(answer)[1:] if len(answer) == size else list(answer)
            if len(values) != size - 1:
                raise RuntimeError(f"got {len(answer)} log-probabilities for {size} tokens")
            scores.append(np.array(values[len(prompt) - 1 :], np.float32))
        return scores


class Trainer:
    """A student that is trained on the server."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client

    def forward(self, rows: Sequence[TrainingRow]) -> list[Floats]:
        """Return log-probabilities (N,) of the targets, without training."""
        self._check(rows)
        request = [self._datum(row, "cross_entropy") for row in rows]
        future = self.client.forward(request, "cross_entropy")
        return self._logprobs(self.service.answer(future, "a forward pass"), rows)

    def step(
        self,
        rows: Sequence[TrainingRow],
        loss: str,
        learning_rate: float,
        max_grad_norm: float = 0.0,
    ) -> tuple[list[Floats], float]:
        """Take one optimizer step on all rows.

        Both requests are sent before either answer is awaited, so that a service that works in
        cycles can process them together.

        Args:
            rows: the sequences to train on.
            loss: "cross_entropy" with the advantages as weights, or "importance_sampling".
            learning_rate: learning rate of this step.
            max_grad_norm: clip gradients to this norm, if the SDK supports it; 0 is off.

        Returns:
            Log-probabilities (N,) of the targets before the step, and the gradient norm, or NaN if
            the server does not report it.
        """
        from tinker import types

        self._check(rows)
        options = {**self.service.adam, "learning_rate": learning_rate}
        if max_grad_norm and "grad_clip_norm" in getattr(types.AdamParams, "model_fields", {}):
            options["grad_clip_norm"] = max_grad_norm
        request = [self._datum(row, loss) for row in rows]
        forward = self.client.forward_backward(request, loss)
        update = self.client.optim_step(types.AdamParams(**options))
        logprobs = self._logprobs(self.service.answer(forward, "a training step"), rows)
        metrics = self.service.answer(update, "the optimizer").metrics or {}
        norms = [value for key, value in metrics.items() if key.endswith("grad_norm")]
        return logprobs, float(norms[0]) if norms else float("nan")

    def save(self) -> str:
        """Save weights and optimizer on the server under a new name, and return its path."""
        return str(settle(self.client.save_state(f"potstill-{uuid.uuid4().hex[:16]}")).path)

    def sampler(self) -> Sampler:
        """Return a sampler of the current weights. Older samplers must not be used any more."""
        client = settle(self.client.save_weights_and_get_sampling_client())
        return Sampler(self.service, client)

    def _check(self, rows: Sequence[TrainingRow]) -> None:
        self.service.check_ids(ids for row in rows for ids in (row.ids, row.targets))
        for row in rows:
            parts = (row.targets, row.counts, row.advantages, row.logprobs)
            assert all(len(part) == len(row.ids) for part in parts)
            assert all(np.isfinite(part).all() for part in parts[1:])

    def _datum(self, row: TrainingRow, loss: str) -> Any:
        from tinker import types

        inputs: dict[str, Any] = {"target_tokens": np.array(row.targets, np.int64)}
        if loss == "cross_entropy":
            inputs["weights"] = np.asarray(row.advantages, np.float32)
        else:
            inputs["advantages"] = np.asarray(row.advantages, np.float32)
            inputs["logprobs"] = np.asarray(row.logprobs, np.float32)
            inputs["weights"] = np.asarray(row.counts, np.float32)
        return types.Datum(
            model_input=types.ModelInput.from_ints(list(row.ids)), loss_fn_inputs=inputs
        )

    def _logprobs(self, answer: Any, rows: Sequence[TrainingRow]) -> list[Floats]:
        logprobs = []
        for row, output in zip(rows, answer.loss_fn_outputs, strict=True):
            values = np.asarray(output["logprobs"].to_numpy(), np.float32)
            if values.shape != (len(row.targets),):
                raise RuntimeError(
                    f"got log-probabilities {values.shape} for {len(row.targets)} targets"
                )
            logprobs.append(values)
        return logprobs
