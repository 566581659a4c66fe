"""Linear layers that cannot have LoRA adapters.

An adapter changes a layer's forward pass. It has no effect, or breaks the model, where the model
reads the weights itself, where a subclass returns more than x W^T, and it cannot be merged into
weights that several layers share.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

FUSED = "out_proj", "conv1d"  # Mamba's kernels read their weights


def without_lora(model: Any) -> list[str]:
    """Return the names of the linear layers that cannot have adapters."""
    named = list(model.named_modules(remove_duplicate=False))
    linear = [(name, module) for name, module in named if isinstance(module, nn.Linear)]
    owners = Counter(id(module.weight) for _, module in linear)
    mixers = [name for name, module in named if hasattr(module, "D") and hasattr(module, FUSED[0])]
    return [f"{name}.{part}" for name in mixers for part in FUSED] + [
        name
        for name, module in linear
        if owners[id(module.weight)] > 1 or not _gives_a_tensor(module)
    ]


def _gives_a_tensor(module: nn.Linear) -> bool:
    """Return whether a layer of a modelling file is applied like any other; a router may not be."""
    if not type(module).__module__.startswith("transformers.models."):
        return True
    row = torch.zeros_like(module.weight[:1])
    with torch.no_grad():
        return isinstance(module(row), torch.Tensor)
