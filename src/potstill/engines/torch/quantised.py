"""Checkpoints whose weights are packed integers or 8-bit floats.

Such a model runs its own forward pass. Its weights cannot be trained; adapters on them can (QLoRA).
The export merges adapters into weights in floating point, as merging into packed ones rounds them
away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer

from potstill.errors import PotstillError


def is_quantised(model: Any) -> bool:
    """Return whether transformers loaded a model with a quantiser."""
    return getattr(model, "hf_quantizer", None) is not None


def placement(config: Any, device: str) -> dict[str, Any]:
    """Return the option that loads a quantised checkpoint on a device, to which it cannot move."""
    parts = config, config.get_text_config()
    packed = any(getattr(part, "quantization_config", None) for part in parts)
    return {"device_map": {"": device}} if packed else {}


def keep_layout(model: Any) -> None:
    """Stop bitsandbytes from repacking weights at the first token on a CPU.

    The repacked weights pass no gradient on, without a word, and compute in bfloat16.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_adapters(model: Any, name: str) -> None:
    """Raise a `PotstillError` if adapters on a quantised model cannot be trained and merged."""
    if is_quantised(model) and not (model.hf_quantizer.is_trainable and _converts(model)):
        raise PotstillError(
            "adapters need a base that gradients pass through and that has a floating-point form, "
            f'"{name}" is quantised by {_method(model)}',
            "give the checkpoint before quantisation, or one in bitsandbytes' 4-bit format",
        )


def _method(model: Any) -> str:
    method = getattr(model, "quantization_method", None)
    return str(getattr(method, "value", method) or type(model.hf_quantizer).__name__)


def _converts(model: Any) -> bool:
    """Return whether transformers, or the weights' own class, can undo the quantisation."""
    own = type(model.hf_quantizer)._dequantize is not HfQuantizer._dequantize
    return own or any(_packed(module) for module in model.modules())


def _packed(module: Any) -> bool:
    """Return whether a layer's weights are a tensor class that packs them, as torchao's do."""
    weight = getattr(module, "weight", None)
    kinds = nn.Parameter, Tensor
    return type(module) is nn.Linear and type(weight) not in kinds and hasattr(weight, "dequantize")


def cannot_train(name: str) -> PotstillError:
    """The error of a step without trainable weights."""
    return PotstillError(
        f'the weights of a quantised student cannot be trained: "{name}"',
        "train adapters on it, train.lora_rank = 16 for example, or give the checkpoint before "
        "quantisation",
    )


def in_floating_point(model: Any, dtype: torch.dtype) -> Any:
    """Return a model with ordinary weights of a dtype."""
    if not is_quantised(model):
        return model
    layers = [module for module in model.modules() if _packed(module)]
    if not layers:
        return model.dequantize(dtype=dtype).to(dtype)
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight.dequantize().to(dtype), requires_grad=False)
    for part in (model.config, model.config.get_text_config()):
        vars(part).pop("quantization_config", None)
    model.hf_quantizer = model.quantization_method = model._weight_conversions = None
    return model
