"""Checkpoints whose weights are packed integers or 8-bit floats.

Such a model runs its own forward pass. Its weights cannot be trained; adapters on them can (QLoRA).
The export merges adapters into weights in floating point, as merging into packed ones rounds them
away.
"""

from __future__ import annotations

from typing import Any

from potstill.errors import PotstillError


def is_quantised(model: Any) -> bool:
    """Return whether transformers loaded a model with a quantiser."""
    return getattr(model, "hf_quantizer", None) is not None


def placement(name: str, device: str, trust_remote_code: bool) -> dict[str, Any]:
    """Return the option that loads a quantised checkpoint on a device, to which it cannot move."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    parts = config, config.get_text_config()
    packed = any(getattr(part, "quantization_config", None) for part in parts)
    return {"device_map": {"": device}} if packed else {}


def check_adapters(model: Any, name: str) -> None:
    """Raise a `PotstillError` if no gradient passes through a quantised model."""
    if is_quantised(model) and not model.hf_quantizer.is_trainable:
        method = getattr(model, "quantization_method", "") or type(model.hf_quantizer).__name__
        raise PotstillError(
            f'adapters need a base that gradients pass through, "{name}" is quantised by {method}',
            "give the checkpoint before quantisation, or one in bitsandbytes' 4-bit format",
        )


def cannot_train(name: str) -> PotstillError:
    """The error of a step without trainable weights."""
    return PotstillError(
        f'the weights of a quantised student cannot be trained: "{name}"',
        "train adapters on it, train.lora_rank = 16 for example, or give the checkpoint before "
        "quantisation",
    )


def in_floating_point(model: Any, name: str) -> Any:
    """Return a model with ordinary weights."""
    if not is_quantised(model):
        return model
    try:
        return model.dequantize()
    except (NotImplementedError, ValueError, AttributeError) as error:
        method = getattr(model, "quantization_method", "") or type(model.hf_quantizer).__name__
        raise PotstillError(
            f'adapters are merged in floating point, and "{name}" ({method}) cannot be converted',
            "use the adapters in the checkpoint of the run, or train on an unquantised student",
        ) from error
