"""Memory of a training step, predicted before one is taken: no backward pass, no optimizer state.

The forward pass of a step, with what autograd keeps for the backward pass, is run on one row and on
two. Rows of one length cost the same each, so a line through the two gives the step's micro-batch.
Gradients and the optimizer's moments are as large as the trained weights. What the backward pass
needs on top is estimated from the forward pass. Tensors are counted, not the allocator's blocks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from potstill.engines.host import free_host_memory
from potstill.engines.torch.lm_head import SLICE
from potstill.engines.torch.loading import without_adapters
from potstill.engines.torch.loss_terms import BLOCK, needs_rows
from potstill.engines.torch.recomputing import training_mode
from potstill.types import Datum, Loss, Prompt, Role, Term

MOMENTS = 2  # of AdamW, of the size of the trained weights
BLOCKS = 4  # tensors of a block of logits that the gradient of a loss holds at once
AGAIN = 0.4  # share of the backward pass's tensors while a layer's activations are there again
LARGEST = 4  # tensors of the size of the forward pass's largest that its gradient holds at once


@dataclass(frozen=True)
class Footprint:
    """Bytes of a step on one device, by what needs them."""

    weights: int  # of all models that are held
    moments: int  # the optimizer's, of the trained weights
    gradients: int
    first: int  # the head's gradient, which comes before all others
    activations: int  # what the backward pass of one micro-batch reads
    head: int  # logits and their gradient, between the two passes
    backward: int  # tensors that live within the backward pass only, at its peak
    sampling: int  # caches and tensors of the largest batch that is sampled at once
    accumulated: bool  # several micro-batches: gradients are there when the next one begins

    @property
    def parts(self) -> dict[str, int]:
        """Bytes that a step needs in addition to the models, by name."""
        return {
            "moments": self.moments,
            "gradients": self.gradients,
            "activations": self.activations,
            "logits": self.head,
            "backward pass": self.backward,
            "sampling": self.sampling,
        }

    @property
    def peak(self) -> int:
        """Bytes at the peak. While one micro-batch's gradients grow, its activations are freed."""
        before = self.gradients if self.accumulated else self.first
        body = max(self.gradients, self.activations + before)
        head = self.activations + before + self.head
        steps = max(body + self.backward, head, self.gradients, self.sampling)
        return self.weights + self.moments + steps


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.add(storage._cdata)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any) -> Iterable[Any]:
    for tensor in tree_leaves(tree):
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            with contextlib.suppress(NotImplementedError):  # packed by oneDNN
                yield tensor.untyped_storage()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; storages that several share count once."""
    return sum({s._cdata: s.nbytes() for s in _storages(list(tensors))}.values())


def free_memory(device: torch.device) -> int:
    """Bytes that tensors can still use on a device."""
    if device.type != "cuda":
        return free_host_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def footprint(
    engine: Any, prompt: Prompt, max_tokens: int, batch: int, losses: Sequence[Loss]
) -> Footprint:
    """Predict the memory of a step of a torch engine in one process.

    Args:
        engine: a `TorchEngine`.
        prompt: the longest of the study.
        max_tokens: of a completion.
        batch: rows of a step.
        losses: of its tokens.
    """
    models, stepper = engine.models, engine._stepper
    roles = sorted({loss.to for loss in losses if needs_rows(loss)})
    for role in ("student", *(("teacher",) if engine.has_teacher else ()), *roles):
        models.ensure(role)
    limit = engine.settings.batch_tokens // (len(prompt.student) + max_tokens)
    rows = max(1, min(batch, limit))
    gradients = size_of(models.trained.values())

    def at(measure: Callable[[list[Datum]], Sequence[int]]) -> list[int]:
        one, two = (measure(full_rows(prompt, max_tokens, count, losses)) for count in (1, 2))
        return [round(a + (b - a) * (rows - 1)) for a, b in zip(one, two, strict=True)]

    whole, peak, largest, hidden = at(lambda data: _student(stepper, data, recompute=False))
    kept, backward = whole, max(0, peak - whole) + LARGEST * largest
    if models.checkpointed:  # one layer's activations at a time
        kept = at(lambda data: _student(stepper, data, recompute=True))[0]
        layer = (whole - kept) / _layers(models.held["student"])
        backward = round(layer + AGAIN * backward)
    others = rows * _others(stepper, full_rows(prompt, max_tokens, 1, losses), roles)
    first, product = _head(engine)
    entries = rows * max_tokens * engine.vocabulary
    logits = 4 * min(entries, SLICE)
    return Footprint(
        weights=_weights(models.held.values()),
        moments=MOMENTS * gradients,
        gradients=gradients,
        first=first,
        activations=kept,
        head=product
        + hidden
        + others
        + logits * (1 + len(roles))
        + 4 * BLOCKS * min(entries, BLOCK),
        backward=backward,
        sampling=_sampling(engine, prompt, max_tokens, batch),
        accumulated=rows < batch,
    )


def full_rows(prompt: Prompt, max_tokens: int, count: int, losses: Sequence[Loss]) -> list[Datum]:
    """Rows of the largest size; their ids do not matter to memory."""
    ids = tuple(prompt.student[i % len(prompt.student)] for i in range(max_tokens))
    weights = np.full(max_tokens, 1 / (count * max_tokens), np.float32)
    terms = tuple(Term(loss, weights) for loss in losses)
    return [Datum(prompt, ids, ids, terms, "student", -np.ones_like(weights))] * count


def _student(stepper: Any, data: list[Datum], *, recompute: bool) -> tuple[int, int, int, int]:
    """Bytes that the backward pass reads, bytes at the peak, the largest tensor, hidden states."""
    live = Live()
    with stepper.models.use("student") as model:
        training_mode(model, dropout=stepper.models.adapters.dropout > 0, recompute=recompute)
        try:
            with torch.enable_grad(), live:
                states = stepper._read("student", model, data)
                return live.now, live.peak, live.largest, states.hidden.nbytes
        finally:
            model.eval()


def _others(stepper: Any, data: list[Datum], roles: Sequence[Role]) -> int:
    """Bytes of the other models' hidden states, which stay until the losses are computed."""
    total = 0
    for role in roles:
        with torch.no_grad(), stepper.models.use(role) as model:
            total += stepper._read(role, model, data).hidden.nbytes
    return total


def _head(engine: Any) -> tuple[int, int]:
    """Bytes of the head's gradient, and of a product that is added to it in another dtype."""
    weight = without_adapters(engine.models.held["student"]).get_output_embeddings().weight
    if not weight.requires_grad:
        return 0, 0
    dtype = getattr(torch, engine.models.spec("student").dtype)
    return weight.nbytes, 0 if dtype == weight.dtype else weight.numel() * dtype.itemsize


def _layers(model: Any) -> int:
    config = without_adapters(model).config.get_text_config()
    return max(1, int(getattr(config, "num_hidden_layers", 0) or 1))


def _weights(models: Iterable[Any]) -> int:
    return size_of(x for model in models for x in (*model.parameters(), *model.buffers()))


def _sampling(engine: Any, prompt: Prompt, max_tokens: int, batch: int) -> int:
    """Bytes that sampling the student's completions needs at its peak.

    Two tokens of one row are sampled; caches grow with the rows and their tokens.
    """
    width = len(prompt.student) + max_tokens
    rows = max(1, min(batch, engine.settings.sample_tokens // width))
    live = Live()
    with live:
        engine.sample("student", [prompt], [2], 1.0, np.random.default_rng(0))
    return round(rows * live.peak * width / (len(prompt.student) + 2))
