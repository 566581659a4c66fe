"""One server that speaks Tinker's API, as far as potstill needs it.

The `tinker` SDK's names end here. Versions differ in which calls give a future and which wait; in
how long log-probabilities are; in what a training step reports: one place evens that out. Nothing
is sent that was not checked: on a shared server one id outside the vocabulary can turn every
tenant's weights into NaN. The SDK repeats requests that the network lost; what to do when a server
is gone for good is the engine's business.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from potstill.errors import PotstillError
from potstill.types import Floats, Ids, Sample

SDK = "0.25"  # the oldest that can train; SkyRL 0.4 answers no newer one's samples
KEY = "TINKER_API_KEY"
LOCAL_KEY = "tml-dummy"  # servers of one's own ask for none, the SDK does
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}

PATIENCE = 300.0  # seconds that a server which was there may take to come back

T = TypeVar("T")


class Unreachable(PotstillError):
    """No server answers at the address."""


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence of a training request: position i of `ids` is asked for `targets[i]`."""

    ids: Ids  # (N,) what is read: prompt and completion without the last token
    targets: Ids  # (N,)
    counts: Floats  # (N,) 1 where a completion token is asked for, else 0
    advantages: Floats  # (N,) what the ratio is multiplied with
    logprobs: Floats  # (N,) denominators of the ratio


def check_sdk() -> str:
    """The version of the installed SDK."""
    try:
        found = importlib.metadata.version("tinker")
    except importlib.metadata.PackageNotFoundError:
        raise PotstillError(
            'engine "tinker" needs the tinker SDK, which is not installed',
            "pip install 'potstill[tinker]'",
        ) from None
    if _numbers(found) < _numbers(SDK):
        raise PotstillError(
            f"the tinker SDK is version {found}, potstill needs {SDK} or newer",
            "pip install 'potstill[tinker]'",
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def settle(value: Any) -> Any:
    """What a call gives in the end, whether the SDK hands out a future or waits by itself."""
    return value.result() if hasattr(value, "result") else value


def connect(url: str) -> Any:
    """The SDK's client of a server; the key comes from the environment and is kept nowhere."""
    import tinker

    options: dict[str, Any] = {"base_url": url} if url else {}
    if not os.environ.get(KEY):
        if not url:
            raise PotstillError(
                f"the hosted service needs a key, and {KEY} is not set",
                f"export {KEY}=..., or give engine.base_url for a server of your own",
            )
        options["api_key"] = LOCAL_KEY
    if url:
        _answers(url)
    return tinker.ServiceClient(**options)


def _answers(url: str) -> None:
    """Refuse a server that is not there now, where the SDK would try for minutes."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/healthz", timeout=10):
            pass
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"no training service answers at {url}: {error}", "start it, and give its whole address"
        ) from error


def served(url: str) -> list[str]:
    """The base models that a server offers."""
    check_sdk()
    client = connect(url)
    try:
        return _names(client)
    finally:
        _end(client)


def _names(client: Any) -> list[str]:
    models = settle(client.get_server_capabilities()).supported_models
    return sorted(str(getattr(model, "model_name", model)) for model in models)


def _same(served: str, asked: str) -> bool:
    """Whether two names mean one model: folders may be written in several ways."""
    both = os.path.isdir(served) and os.path.isdir(asked)
    return served == asked or (both and os.path.samefile(served, asked))


def _end(client: Any) -> None:
    """End a session: its heartbeat stops, and the server frees what it held."""
    for name in ("_session_holder", "_rest_holder", "holder"):
        holder = vars(client).get(name)
        if holder is not None and hasattr(holder, "close"):
            holder.close()


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
        names = _names(client)
        known = [name for name in names if _same(name, self.model)]
        if not known:
            raise PotstillError(
                f'{self.url or "the hosted service"} does not serve "{self.model}"',
                f"it serves {', '.join(names[:8]) or 'nothing'}; a server has one base model, so a "
                "teacher of another base needs engine.teacher_url",
            )
        self.model = known[0]
        return client

    def reconnect(self) -> None:
        """A new session, after the old one is lost; a server may take its time to come back."""
        self.close()
        until = time.monotonic() + PATIENCE
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
        waiting: deque[Any] = deque()
        found = []
        for item in items:
            if len(waiting) >= self.in_flight:
                found.append(settle(waiting.popleft()))
            waiting.append(send(item))
        return found + [settle(future) for future in waiting]

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
        _end(self.client)


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
        return self._logprobs(settle(self.client.forward(sent, "cross_entropy")), rows)

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
        logprobs, metrics = self._logprobs(settle(forward), rows), settle(update).metrics or {}
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
