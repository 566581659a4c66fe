"""One server that speaks Tinker's API, as far as potstill needs it.

The `tinker` SDK's names end here. Versions differ in which calls give a future and which wait; in
how long log-probabilities are; in what a training step reports: one place evens that out. Nothing
is sent that was not checked: on a shared server one id outside the vocabulary can turn every
tenant's weights into NaN. The SDK repeats requests that the network lost; what to do when a server
is gone for good is the engine's business.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
from potstill.types import Floats, Ids, Sample

ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence of a training request: position i of `ids` is asked for `targets[i]`."""

    ids: Ids  # (N,) what is read: prompt and completion without the last token
    targets: Ids  # (N,)
    counts: Floats  # (N,) 1 where a completion token is asked for, else 0
    advantages: Floats  # (N,) what the ratio is multiplied with
    logprobs: Floats  # (N,) denominators of the ratio


class Service:
    """A session with a server and its one base model.

    Args:
        url: the server; empty means the hosted service, or TINKER_BASE_URL.
        model: the base model by the name that the server knows it by.
        vocabulary: ids at and above it are never sent.
        in_flight: requests that wait for an answer at the same time.
    """

    def __init__(self, url: str, model: str, vocabulary: int, in_flight: int = 64) -> None:
        self.sdk = check_sdk()
        self.url, self.model, self.vocabulary = url, model, vocabulary
        self.in_flight = in_flight
        self.client = self._connect()

    def _connect(self) -> Any:
        client = connect(self.url)
        names = base_models(client)
        known = [name for name in names if same_model(name, self.model)]
        if not known:
            raise PotstillError(
                f'{self.where} does not serve "{self.model}"',
                f"it serves {', '.join(names[:8]) or 'nothing'}; a server has one base model, so a "
                "teacher of another base needs engine.teacher_url",
            )
        self.model = known[0]
        return client

    def reconnect(self) -> None:
        """A new session, after the old one is lost; a server may take its time to come back."""
        self.close()
        until = time.monotonic() + PATIENCE
        with waiting(lambda: f"{self.where} is gone: waiting for it"):
            while True:
                try:
                    self.client = self._connect()
                    return
                except Unreachable:
                    if time.monotonic() > until:
                        raise
                    time.sleep(2)

    def trainer(self, rank: int, seed: int) -> Trainer:
        """A new LoRA student of the base model."""
        return Trainer(
            self,
            settle(
                self.client.create_lora_training_client(base_model=self.model, rank=rank, seed=seed)
            ),
        )

    def restored(self, path: str) -> Trainer:
        """The student and its optimizer as they were saved."""
        create = self.client.create_training_client_from_state_with_optimizer
        return Trainer(self, settle(create(path)))

    def base(self) -> Sampler:
        """The base model itself."""
        return Sampler(self, settle(self.client.create_sampling_client(base_model=self.model)))

    def all(self, send: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Send every item, at most `in_flight` at a time, and give the answers in order."""
        flying: deque[Any] = deque()
        found: list[Any] = []

        def words() -> str:
            return f"{self.where}: {len(found)} answers came, waiting for {len(flying)} more"

        with waiting(words):
            for item in items:
                if len(flying) >= self.in_flight:
                    found.append(settle(flying.popleft()))
                flying.append(send(item))
            while flying:
                found.append(settle(flying.popleft()))
        return found

    def answer(self, future: Any, what: str) -> Any:
        """One answer, with a line while the service is busy."""
        with waiting(lambda: f"{self.where}: waiting for {what}"):
            return settle(future)

    @property
    def where(self) -> str:
        return self.url or "the hosted service"

    def check_ids(self, rows: Iterable[Ids]) -> None:
        """Refuse ids that no row of the model's embedding has."""
        for row in rows:
            if not row:
                raise PotstillError("a prompt holds at least one token, got none", "")
            if min(row) < 0 or max(row) >= self.vocabulary:
                bad = next(i for i in row if not 0 <= i < self.vocabulary)
                raise PotstillError(
                    f"token ids lie in [0, {self.vocabulary}), got {bad}",
                    "student and teacher must share a tokenizer, and it must be the base model's",
                )

    def close(self) -> None:
        """End the session."""
        end_session(self.client)


class Sampler:
    """Fixed weights to sample from and to score with."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client

    def sample(
        self,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        seeds: Sequence[int],
        stop: Sequence[int],
    ) -> list[Sample]:
        """Continue each prompt; log-probabilities as the server gives them."""
        from tinker import types

        self.service.check_ids(prompts)

        def send(job: tuple[Ids, int, int]) -> Any:
            prompt, limit, seed = job
            params = types.SamplingParams(
                max_tokens=limit, temperature=temperature, seed=seed, stop=list(stop)
            )
            return self.client.sample(
                prompt=types.ModelInput.from_ints(list(prompt)),
                num_samples=1,
                sampling_params=params,
            )

        jobs = zip(prompts, max_tokens, seeds, strict=True)
        found = []
        for answer in self.service.all(send, jobs):
            sequence = answer.sequences[0]
            logprobs = np.asarray(sequence.logprobs, np.float32)
            found.append(Sample(tuple(int(i) for i in sequence.tokens), logprobs))
        return found

    def score(self, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        """Log-probabilities (T,) of completions, whether N or N - 1 numbers come back."""
        from tinker import types

        self.service.check_ids(p + c for p, c in rows)

        def send(row: tuple[Ids, Ids]) -> Any:
            return self.client.compute_logprobs(types.ModelInput.from_ints([*row[0], *row[1]]))

        found = []
        for (prompt, completion), answer in zip(rows, self.service.all(send, rows), strict=True):
            size = len(prompt) + len(completion)
            values = list(answer)[1:] if len(answer) == size else list(answer)
            if len(values) != size - 1:
                raise RuntimeError(f"{len(answer)} log-probabilities of {size} tokens")
            found.append(np.array(values[len(prompt) - 1 :], np.float32))
        return found


class Trainer:
    """A student that is trained on the server."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client

    def forward(self, rows: Sequence[Row]) -> list[Floats]:
        """Log-probabilities (N,) of the targets; trains nothing."""
        self._check(rows)
        sent = [self._datum(row, "cross_entropy") for row in rows]
        return self._logprobs(
            self.service.answer(self.client.forward(sent, "cross_entropy"), "a forward pass"), rows
        )

    def step(
        self, rows: Sequence[Row], loss: str, learning_rate: float, max_grad_norm: float = 0.0
    ) -> tuple[list[Floats], float]:
        """One optimizer step on all rows.

        Both requests are sent before either answer is awaited, so that a service that works in
        cycles can take them together.

        Args:
            rows: what to train on.
            loss: "cross_entropy" with the advantages as weights, or "importance_sampling".
            learning_rate: of this step.
            max_grad_norm: clip to it where the SDK can ask for that; 0 is off.

        Returns:
            Log-probabilities (N,) of the targets before the step, and the gradient's norm, NaN
            where the server does not tell.
        """
        from tinker import types

        self._check(rows)
        options = {**ADAM, "learning_rate": learning_rate}
        if max_grad_norm and "grad_clip_norm" in getattr(types.AdamParams, "model_fields", {}):
            options["grad_clip_norm"] = max_grad_norm
        sent = [self._datum(row, loss) for row in rows]
        forward = self.client.forward_backward(sent, loss)
        update = self.client.optim_step(types.AdamParams(**options))
        logprobs = self._logprobs(self.service.answer(forward, "a training step"), rows)
        metrics = self.service.answer(update, "the optimizer").metrics or {}
        norms = [value for key, value in metrics.items() if key.endswith("grad_norm")]
        return logprobs, float(norms[0]) if norms else float("nan")

    def save(self) -> str:
        """Save weights and optimizer on the server, under a name that was never used."""
        return str(settle(self.client.save_state(f"potstill-{uuid.uuid4().hex[:16]}")).path)

    def sampler(self) -> Sampler:
        """The weights as they are now. One made earlier must not be used any more."""
        client = settle(self.client.save_weights_and_get_sampling_client())
        return Sampler(self.service, client)

    def _check(self, rows: Sequence[Row]) -> None:
        self.service.check_ids(ids for row in rows for ids in (row.ids, row.targets))
        for row in rows:
            parts = (row.targets, row.counts, row.advantages, row.logprobs)
            assert all(len(part) == len(row.ids) for part in parts)
            assert all(np.isfinite(part).all() for part in parts[1:])

    def _datum(self, row: Row, loss: str) -> Any:
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

    def _logprobs(self, answer: Any, rows: Sequence[Row]) -> list[Floats]:
        found = []
        for row, output in zip(rows, answer.loss_fn_outputs, strict=True):
            values = np.asarray(output["logprobs"].to_numpy(), np.float32)
            if values.shape != (len(row.targets),):
                raise RuntimeError(
                    f"log-probabilities {values.shape} of {len(row.targets)} targets"
                )
            found.append(values)
        return found
