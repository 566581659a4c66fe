"""Decide which rows of a model may share a forward pass, and whether its cache can be trusted.

A row's numbers must not depend on the rows that share its batch. Padding on the right is harmless
to a causal model. Padding on the left changes the state of recurrent layers, and some models ignore
the mask, so their prompts may only share a batch if they have one length. The rotary tables of some
models depend on the longest row. Most of this follows from the model's classes and config. The rest
is measured when the model is opened: a few tokens are decoded and read in a batch, and compared
with forward passes of single rows without a cache. A model that fails falls back to a slower way
that is right, or is rejected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from potstill.engines.torch.decoding import begin
from potstill.engines.torch.forward import cache_keyword, logits_at, parameters
from potstill.engines.torch.lm_head import read
from potstill.engines.torch.loading import without_adapters
from potstill.engines.torch.proved import fast_layers, own_class
from potstill.engines.torch.quantised import is_quantised
from potstill.errors import PotstillError
from potstill.types import Ids, ModelSpec

# Models without position ids whose attention is right with padding on the left.
RELATIVE = "bloom.BloomForCausalLM", "mpt.MptForCausalLM"
# Largest distance between two computations of the same log-probs, as a share of their spread.
FLOAT32, HALF = 2e-3, 0.25
LENGTHS = 9, 1  # prompts of the comparison
ADDED = 4  # tokens that are decoded after them


@dataclass(frozen=True)
class Sharing:
    """The rows of a model that may share a batch.

    Args:
        name: the model's folder or hub name.
        padded: whether prompts of several lengths are sampled together.
        cached: whether the model decodes with its cache; otherwise it reads a row for each token.
        mixed: whether rows of several lengths are read together.
        limit: length at which the rotary table changes; 0: never.
        grows: whether the table of longer rows depends on the rows before.
        rounded: whether quantised activations move a row's numbers with its neighbours.
    """

    name: str = ""
    padded: bool = True
    cached: bool = True
    mixed: bool = True
    limit: int = 0
    grows: bool = False
    rounded: bool = False

    def kind_read(self, length: int) -> tuple[object, ...]:
        """Rows of one kind may be read together."""
        if self.grows and length > self.limit:
            raise PotstillError(
                f'"{self.name}" has dynamic rotary tables, so its rows are limited to '
                f"max_position_embeddings = {self.limit} tokens, got {length}",
                "lower max_tokens, leave out long problems, or set a rope_type of fixed tables",
            )
        return bool(self.limit) and length > self.limit, None if self.mixed else length

    def kind_sampled(self, prompt: int, added: int) -> tuple[object, ...]:
        """Prompts of one kind may be sampled together."""
        if not self.grows and self.limit and prompt <= self.limit < prompt + added:
            raise PotstillError(
                f'"{self.name}" changes its rotary table (longrope) at original_max_position_'
                f"embeddings = {self.limit}, so a completion may not cross that length, got a "
                f"prompt of {prompt} tokens and max_tokens = {added}",
                f"lower max_tokens, so that prompt and completion have at most {self.limit} tokens",
            )
        if self.grows:
            self.kind_read(prompt + added)
        return bool(self.limit) and prompt > self.limit, None if self.padded else prompt

    def notes(self) -> Iterator[str]:
        """Decisions that cost speed, for the run's record."""
        if not self.cached:
            yield (
                f'"{self.name}" cannot decode with its cache: all tokens of a row are read again '
                "for each new one"
            )
        elif not self.padded:
            yield f'"{self.name}" samples prompts of one length at a time: padding would change it'
        if self.rounded:
            yield f'"{self.name}" rounds activations: a row\'s numbers move a little with its batch'
        if not self.mixed:
            yield f'"{self.name}" reads rows of one length at a time: padding would change it'


def sharing_of(model: Any, name: str, vocabulary: int, spec: ModelSpec) -> Sharing:
    """Return how the rows of a model may share a batch.

    Args:
        model: a causal language model of transformers, adapters included, ready to run.
        name: its folder or hub name.
        vocabulary: number of its ids.
        spec: has the dtype of the computation.
    """
    limit, grows = rotary_limit(model.config.get_text_config())
    expected = Sharing(name, limit=limit, grows=grows)
    if fast_layers(model):  # tests compare it for any rows
        return expected
    compare = _Comparison(model, vocabulary, spec)
    best = compare.best(expected)
    if best is None and is_quantised(model):  # activations are rounded by what is in the batch
        compare.tolerance = HALF
        best = compare.best(dataclasses.replace(expected, rounded=True))
    if best is None:
        raise compare.refusal(name)
    return best


def expected_of(model: Any) -> tuple[bool, bool]:
    """Return whether a model's classes allow padding on the left, and decoding with a cache."""
    names, config = parameters(model), model.config.get_text_config()
    if not cache_keyword(names):
        return True, False
    layers = DynamicCache(config=config).layers
    attends = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    inner = without_adapters(model)
    positions = "position_ids" in names or any(own_class(inner, name) for name in RELATIVE)
    return attends and not chunked and positions and "attention_mask" in names, True


def rotary_limit(config: Any) -> tuple[int, bool]:
    """Return the length at which rotary tables change, and whether longer ones keep changing."""
    parts = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in parts.values() if isinstance(part, dict)]
    limits: list[tuple[int, bool]] = []
    for part in [part for part in nested if "rope_type" in part] or [parts]:
        if part.get("rope_type") == "dynamic":
            limits.append((config.max_position_embeddings, True))
        elif part.get("rope_type") == "longrope":
            original = part.get("original_max_position_embeddings")
            limits.append((original or config.max_position_embeddings, False))
    return min(limits, default=(0, False))


class _Comparison:
    """A few rows of a model, read and decoded in several ways."""

    def __init__(self, model: Any, vocabulary: int, spec: ModelSpec) -> None:
        self.model, self.vocabulary, self.spec = model, vocabulary, spec
        self.device = model.get_input_embeddings().weight.device
        self.tolerance = FLOAT32 if spec.dtype == "float32" else HALF
        self.rows = [self._row(i, length + ADDED) for i, length in enumerate(LENGTHS)]
        self.exact = [self._single(row) for row in self.rows]
        self.problem = ""

    def _row(self, number: int, length: int) -> Ids:
        """Ids spread over the vocabulary, the same in every process."""
        return tuple((7919 * (length * number + i) + 31) % self.vocabulary for i in range(length))

    def _single(self, row: Ids) -> Tensor:
        ids = torch.tensor([row], device=self.device)
        return self._logp(logits_at(self.model, ids, torch.arange(len(row)))[0])

    def _logp(self, logits: Tensor) -> Tensor:
        return logits[..., : self.vocabulary].float().log_softmax(-1)

    def best(self, expected: Sharing) -> Sharing | None:
        """Return the fastest way that is right, if any is."""
        mixed = self.fits(self.reading)
        if not mixed and not self.fits(self.reading_singly):
            return None
        padded, cached = expected_of(self.model)
        ways = [(padded, cached), (False, cached), (mixed, False)]
        for padded, cached in dict.fromkeys(ways):
            if self.fits(self.sampling, padded, cached):
                return dataclasses.replace(expected, padded=padded, cached=cached, mixed=mixed)
        return None

    def fits(self, way: Any, *arguments: Any) -> bool:
        """Return whether a computation runs and gives the numbers of single rows."""
        try:
            far = max(map(self._distance, *zip(*way(*arguments), strict=True)))
        except (PotstillError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model raises where it is not meant to be run so
            self.problem = f"{type(error).__name__}: {error}"
            return False
        if far <= self.tolerance:
            return True
        self.problem = f"log-probs differ by {far:.2g} of their spread"
        return False

    def _distance(self, values: Tensor, exact: Tensor) -> float:
        """The distance of a row's log-probs (n, V); in half precision single tokens may differ."""
        apart = (values - exact).abs() / exact.std(-1, keepdim=True).clamp_min(1e-12)
        half = self.spec.dtype != "float32"
        return float(apart.mean(-1).median() if half else apart.max())

    def reading(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows in one batch, as scoring and training do."""
        return self._read(range(len(self.rows)))

    def reading_singly(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows one by one."""
        for i in range(len(self.rows)):
            yield from self._read([i])

    def _read(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        prompts = [self.rows[i][:2] for i in rows]
        completions = [self.rows[i][2:] for i in rows]
        states = read(self.model, prompts, completions, self.vocabulary, self.spec)
        values = states.log_probs(slice(None)).split(states.lengths)
        yield from ((value, self.exact[i][1:-1]) for value, i in zip(values, rows, strict=True))

    def sampling(self, padded: bool, cached: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode the rows together or one by one; the first row leaves the batch on the way."""
        everything = list(range(len(self.rows)))
        for rows in [everything] if padded else [[i, i] for i in everything]:
            yield from self._decode(rows, padded, cached)

    def _decode(
        self, rows: list[int], padded: bool, cached: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        width = max(LENGTHS[i] for i in rows)
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for at, i in enumerate(rows):
            ids[at, width - LENGTHS[i] :] = torch.tensor(self.rows[i][: LENGTHS[i]])
            mask[at, width - LENGTHS[i] :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        decoder = begin(self.model, ids, mask, ADDED, padded=padded, cached=cached)
        logits = {at: [decoder.logits[at]] for at in range(len(rows))}
        alive = list(logits)
        for step in range(ADDED - 1):
            if step == 1:
                decoder.keep(torch.tensor([len(rows) - 1]))
                alive = alive[-1:]
            tokens = [self.rows[rows[at]][LENGTHS[rows[at]] + step] for at in alive]
            decoder.step(torch.tensor(tokens, device=self.device))
            for seat, at in enumerate(alive):
                logits[at].append(decoder.logits[seat])
        for at, values in logits.items():
            start, exact = LENGTHS[rows[at]] - 1, self.exact[rows[at]]
            yield self._logp(torch.stack(values)), exact[start : start + len(values)]

    def refusal(self, name: str) -> PotstillError:
        kind = type(without_adapters(self.model)).__name__
        return PotstillError(
            f"a model must give a row the same log-probs in a batch, token by token and alone: "
            f'"{name}" ({kind}) does not ({self.problem})',
            "choose another model; this one is not a causal language model that transformers can "
            "run in batches",
        )
