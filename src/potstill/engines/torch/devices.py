"""Check that this machine has a device, before a model is loaded on it."""

from __future__ import annotations

import torch

from potstill.errors import PotstillError


def check_device(name: str) -> None:
    """Raise a `PotstillError` if this machine does not have a device of torch.

    Args:
        name: such as "cpu" or "cuda:1".
    """
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PotstillError(
            f'device "{name}" needs a GPU, and torch finds no GPU', 'use device = "cpu"'
        )
    if kind == "cuda" and int(number or 0) >= (count := torch.cuda.device_count()):
        raise PotstillError(
            f'device "{name}" does not exist: torch finds {count} GPUs',
            f'their names are "cuda:0" to "cuda:{count - 1}"',
        )
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PotstillError(
            f'device "{name}" cannot be used on this machine: {reason}', 'use device = "cpu"'
        ) from error
