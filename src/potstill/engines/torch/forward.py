"""Call a model's own forward pass with the arguments that it takes."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from potstill.engines.torch.loading import without_adapters

CACHES = "cache", "past_key_values"  # in newer and older transformers


def parameters(model: Any) -> frozenset[str]:
    """Return the arguments of a model's forward pass; adapters hide its signature.

    A subclass may pass on any argument, so the forward passes above it are read too.
    """
    names: set[str] = set()
    inner = without_adapters(model)
    forwards = [vars(inner).get("forward"), *(vars(c).get("forward") for c in type(inner).__mro__)]
    for forward in filter(None, forwards):
        arguments = inspect.signature(forward).parameters
        names |= arguments.keys()
        if not any(value.kind is value.VAR_KEYWORD for value in arguments.values()):
            break
    return frozenset(names)


def cache_keyword(names: frozenset[str]) -> str:
    """Return the name of the argument for a cache; empty if the model takes none."""
    return next((name for name in CACHES if name in names), "")


def logits_at(model: Any, ids: Tensor, columns: Tensor) -> Tensor:
    """Return a model's own logits (B, n, V) at some columns of ids (B, T), without a cache.

    Models without `logits_to_keep` compute all columns.
    """
    keeps = "logits_to_keep" in parameters(model)
    options = {"logits_to_keep": columns} if keeps else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **options).logits
    return logits if keeps else logits[:, columns.to(logits.device)]
