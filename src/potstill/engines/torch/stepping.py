"""Optimizer steps of the torch engine: accumulate losses and gradients over micro-batches.

Batches are dealt to processes and split into micro-batches of rows of similar length (`batching`).
The gradient is the sum over all micro-batches and does not depend on the split, up to rounding.
`loss_terms` computes the losses.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from potstill.algorithms.losses import token_logprobs
from potstill.engines.prompts import addressed
from potstill.engines.torch.distributed import World
from potstill.engines.torch.fsdp import gathered
from potstill.engines.torch.lm_head import States, matched_states, read
from potstill.engines.torch.loading import ModelPair
from potstill.engines.torch.loss_terms import Columns, Tally, idle, needs_rows, take
from potstill.engines.torch.models import Models
from potstill.engines.torch.quantised import cannot_train
from potstill.engines.torch.recomputing import training_mode
from potstill.errors import NonFinite
from potstill.types import Datum, Ids, Loss, Role, StepStats


class Stepper:
    """Trains the student of a pair.

    Args:
        pair: has the vocabularies of the models.
        models: the weights.
        world: the processes that share the work.
        batch_tokens: maximum number of padded tokens per micro-batch.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off.
    """

    def __init__(
        self, pair: ModelPair, models: Models, world: World, batch_tokens: int, max_grad_norm: float
    ) -> None:
        self.pair, self.models, self.world = pair, models, world
        self.batch_tokens, self.max_grad_norm = batch_tokens, max_grad_norm

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        """Take one optimizer step, see `protocol.Engine`."""
        if not self.models.trained:
            raise cannot_train(self.pair.student)
        tally = self._pass(data, backward=True, dropout=True)
        return self._update(learning_rate, tally)

    @torch.no_grad()
    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        """Compute the losses without training, see `protocol.Engine`."""
        tally = self._pass(data, backward=False, dropout=dropout)
        by_datum = np.array([tally.by_datum[i] for i in range(len(data))])
        return StepStats(tally.loss, 0.0, tally.means(), tally.clipped, by_datum=by_datum)

    def _pass(self, data: Sequence[Datum], *, backward: bool, dropout: bool) -> Tally:
        """Compute the losses of all processes' rows; with `backward` accumulate the gradients."""
        tally = Tally()
        data = [addressed(datum) for datum in data]
        numbers = {id(datum): number for number, datum in enumerate(data)}
        losses = {term.loss for datum in data for term in datum.terms}
        roles: set[Role] = {"student", *(loss.to for loss in losses if needs_rows(loss))}
        with ExitStack() as held:
            for role in sorted(roles):
                self.models.ensure(role)
                held.enter_context(self.models.gathered_embeddings(role))
            if dropout := dropout and self.models.adapters.dropout > 0:
                held.enter_context(self._dropout_seed())
            for chunk_losses, chunk in self._chunks(data, roles):
                rows = None if backward else [numbers.get(id(datum), -1) for datum in chunk]
                self._forward(
                    chunk_losses, chunk, tally, rows=rows, backward=backward, dropout=dropout
                )
        with self.models.use("student") as model:
            model.eval()
        return tally.total(self.world.gather(tally))

    def _chunks(
        self, data: Sequence[Datum], roles: set[Role]
    ) -> Iterator[tuple[tuple[Loss, ...], list[Datum]]]:
        """Yield this process's micro-batches; the rows of one have the same losses."""
        groups: dict[tuple[Loss, ...], list[Datum]] = defaultdict(list)
        for datum in data:
            if datum.completion:
                groups[tuple(term.loss for term in datum.terms)].append(datum)
        for losses, members in groups.items():
            sizes = [sum(map(len, d.read_by("student"))) for d in members]
            kinds = [self._kind(datum, roles) for datum in members]
            for chunk in self.world.chunks(sizes, self.batch_tokens, together=True, kinds=kinds):
                yield losses, [members[i] for i in chunk] or [idle(members)]

    def _kind(self, datum: Datum, roles: set[Role]) -> tuple[object, ...]:
        """Rows of one kind may be read together by every model, see `sharing`."""
        sizes = {role: sum(map(len, datum.read_by(role))) for role in roles}
        return tuple(self.models.sharing(role).kind_read(sizes[role]) for role in sorted(roles))

    @contextmanager
    def _dropout_seed(self) -> Iterator[None]:
        """Draw what is dropped from the run's seed and the number of steps so far.

        A measured step, the step itself and its repetition after an interruption drop the same.
        """
        steps = (state.get("step", 0) for state in self.models.optimizer.state.values())
        entropy = self.models.seed, int(max(steps, default=0)), self.world.rank
        devices = {param.device for param in self.models.trained.values()}
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            yield

    def _forward(
        self,
        losses: tuple[Loss, ...],
        data: list[Datum],
        tally: Tally,
        *,
        rows: list[int] | None,
        backward: bool,
        dropout: bool,
    ) -> None:
        """Add the loss of a micro-batch to the tally, and its gradient to the weights.

        The loss of each datum is added under its number in `rows`, if that is given.

        The loss and its gradient down to the hidden states are computed slice by slice of
        positions. From there one backward pass runs through the body of the model.
        """
        with self.models.use("student") as model:
            training_mode(model, dropout=dropout)
            student = self._read("student", model, data)
        targets: dict[Role, States] = {}
        for role in sorted({loss.to for loss in losses if needs_rows(loss)}):
            with torch.no_grad(), self.models.use(role) as model:
                model.eval()  # it may be the student's, without its adapters
                states = self._read(role, model, data)
                targets[role] = matched_states(states, data, role)
        with self.models.use("student") as model:
            training_mode(model, dropout=dropout)  # for what the backward pass computes again
        columns = Columns(data, losses, student.hidden.device, rows)
        if columns.spans is not None:  # a span may cross slices, so all tokens come first
            now = [
                token_logprobs(student.log_probs(at), columns.targets[at])
                for at in student.slices()
            ]
            columns.credit(torch.cat(now))
        grad = torch.zeros_like(student.hidden) if backward else None
        for at in student.slices():
            logits = student.logits(at)
            others = {role: states.logits(at).to(logits.device) for role, states in targets.items()}
            take(losses, columns, at, logits, others, tally, backward=backward)
            if grad is not None:
                student.backward(at, logits, into=grad)
        if grad is not None:
            student.backward_body(grad)

    def _update(self, learning_rate: float, tally: Tally) -> StepStats:
        start, params = self._now(), list(self.models.trained.values())
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        limit = self.max_grad_norm or math.inf
        norm = gathered(torch.nn.utils.clip_grad_norm_(params, limit)).item()
        if not (math.isfinite(tally.loss) and math.isfinite(norm)):
            self.models.optimizer.zero_grad()
            raise NonFinite(f"loss {tally.loss}, gradient norm {norm}")
        for group in self.models.optimizer.param_groups:
            group["lr"] = learning_rate
        self.models.optimizer.step()
        self.models.optimizer.zero_grad()
        seconds = self._now() - start
        return StepStats(tally.loss, norm, tally.means(), tally.clipped, seconds)

    def _now(self) -> float:
        """Return the time, after the student's GPU has finished its work."""
        device = next(iter(self.models.trained.values())).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def _read(self, role: Role, model: Any, data: Sequence[Datum]) -> States:
        prompts, completions = _readings(data, role)
        return read_states(self.pair, self.models, role, model, prompts, completions)


def read_states(
    pair: ModelPair,
    models: Models,
    role: Role,
    model: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
) -> States:
    """Return a model's states at the completion positions of some rows."""
    return read(model, prompts, completions, pair.vocabulary_of(role), models.spec(role))


def _readings(data: Sequence[Datum], role: Role) -> tuple[list[Ids], list[Ids]]:
    """Return the prompts and completions of a micro-batch that a model reads."""
    readings = [datum.read_by(role) for datum in data]
    return [prompt for prompt, _ in readings], [completion for _, completion in readings]
