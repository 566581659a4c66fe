"""Weights that cannot be meant: missing, of another shape, not finite, zero, integers.

transformers draws a missing weight at random and only logs it; the model would be evaluated as if
it were the checkpoint. `unread` has the weights that a model leaves out.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from potstill.engines.model_files import AGAIN, Stored, stored_weights
from potstill.errors import PotstillError

INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"})
EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.*weight)")
CHUNK = 1 << 20  # bytes that are read at once
FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64


def check_files(name: str) -> dict[str, Stored]:
    """Check the weight files of a local folder before a model is made; no weights are loaded.

    Args:
        name: folder, or hub name, whose files are not checked.

    Returns:
        The tensors by name; empty for a hub name.

    Raises:
        PotstillError: files are missing or damaged, or do not fit together.
    """
    folder = Path(name).expanduser()
    stored = stored_weights(folder) if folder.is_dir() else {}
    _check_experts(name, stored)
    last = {tensor.file: tensor for tensor in stored.values()}
    for file, tensor in last.items():
        _check_end(file, tensor)
    return stored


def check_integers(name: str, stored: Mapping[str, Stored], *, packed: bool) -> None:
    """Raise a `PotstillError` for packed weights whose scales nothing describes."""
    integers = [
        f"{key}, {tensor.dtype}"
        for key, tensor in stored.items()
        if tensor.dtype in INTEGERS and key.endswith(".weight")
    ]
    if integers and not packed:
        raise PotstillError(
            f'"{name}" has integers for weights (first: {integers[0]}), and its config.json has no '
            "quantization_config with their scales",
            "give the checkpoint before quantisation",
        )


def _check_experts(name: str, stored: Mapping[str, Stored]) -> None:
    """transformers stacks the experts of a layer, and does not name one that is missing."""
    layers: dict[str, tuple[set[int], set[str]]] = {}
    for key in stored:
        if match := EXPERT.fullmatch(key):
            numbers, parts = layers.setdefault(match[1], (set(), set()))
            numbers.add(int(match[2]))
            parts.add(match[3])
    for layer, (numbers, parts) in layers.items():
        for number in range(max(numbers) + 1):
            for part in sorted(parts):
                if (key := f"{layer}{number}.{part}") not in stored:
                    raise PotstillError(f'"{name}" lacks {key}, which other experts have', AGAIN)


def misfit(
    name: str, config: Any, stored: Mapping[str, Stored], error: PotstillError
) -> PotstillError:
    """The error of a model that cannot be loaded, with the weight that does not fit its config."""
    if not any(word in str(error) for word in ("mismatched_sizes", "conversion of the weights")):
        return error
    reason = "the shapes of its weights are not those of its config.json"
    with contextlib.suppress(Exception), torch.device("meta"):
        for key, param in AutoModelForCausalLM.from_config(config).named_parameters():
            if key in stored and stored[key].shape != tuple(param.shape):
                shapes = list(stored[key].shape), list(param.shape)
                reason = f"{key} has the shape {shapes[0]}, by config.json it is {shapes[1]}"
                break
    return PotstillError(
        f'"{name}" does not fit: {reason}', "give the config.json of these weights"
    )


def _check_end(file: Path, last: Stored) -> None:
    """A copy that stopped may have its full size, with zeros at the end."""
    size = last.end - last.start
    if len(last.shape) < 2 or not size:
        return
    with file.open("rb") as data:
        data.seek(-size, 2)
        while chunk := data.read(CHUNK):
            if chunk.count(0) < len(chunk):
                return
    raise PotstillError(
        f'"{file}" ends in {size:,} bytes of zero: the copy of the weights stopped before its end',
        AGAIN,
    )


def check_report(name: str, report: Mapping[str, Any]) -> None:
    """Raise a `PotstillError` for weights that transformers did not find, or not of their shape."""
    if missing := sorted(report.get("missing_keys") or ()):
        raise PotstillError(
            f'"{name}" lacks {len(missing)} weights of its model (first: {missing[0]})',
            "give the checkpoint of a causal language model; a classifier or a reward model has "
            "no head"
            if all(key.endswith(("lm_head.weight", "embed_out.weight")) for key in missing)
            else "download the model again; if it is complete, its config.json is of another model",
        )
    if wrong := sorted(map(str, report.get("mismatched_keys") or ())):
        raise PotstillError(
            f'"{name}" has {len(wrong)} weights of other shapes than its model (first: {wrong[0]})',
            "give the config.json that it was trained with",
        )


def check_values(name: str, model: Any) -> tuple[str, ...]:
    """Check that weights are finite and have values, in one pass on the device that has them.

    Returns:
        A note about matrices of zeros: some models begin with them, others lack a part of a file.

    Raises:
        PotstillError: weights are not finite, or too many are zero.
    """
    matrices, zeros = 0, list[str]()
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    ends = {id(getattr(table, "weight", None)) for table in tables}
    for key, param in _floating(model):
        low, high = check_finite(name, key, param)
        if param.ndim > 1:
            matrices += 1
            zeros += [key] if low == high == 0 else []
            if zeros and zeros[-1] == key and id(param) in ends:
                raise _empty(name, f"{key} is zero")
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and buffer.isnan().any():
            raise PotstillError(f'"{name}" has weights that are not finite: {key} (NaN)', AGAIN)
    if len(zeros) > matrices / 2:
        raise _empty(name, f"{len(zeros)} of {matrices} matrices are zero")
    if not zeros:
        return ()
    return (f'"{name}" has zeros in {len(zeros)} of {matrices} matrices (first: {zeros[0]})',)


def check_finite(name: str, key: str, param: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest number of a tensor.

    Raises:
        PotstillError: one of its numbers is not finite.
    """
    low, high = (float(end) for end in torch.aminmax(param.detach()))
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite"
    dtype = str(param.dtype).removeprefix("torch.")
    raise PotstillError(
        f'"{name}" has weights that are not finite: {key} ({kind}, read as {dtype})',
        'if they are too large for float16, write dtype = "bfloat16"; else give another checkpoint'
        if param.dtype == torch.float16
        else "download it again, or give a checkpoint from before its training diverged",
    )


def _floating(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters that are ordinary tensors of numbers; packed ones have a type of their own."""
    for key, param in model.named_parameters():
        plain = type(param) in (torch.nn.Parameter, Tensor) and not param.is_meta
        if plain and param.dtype in FLOATS and param.numel():
            yield key, param


def _empty(name: str, reason: str) -> PotstillError:
    return PotstillError(f'"{name}" has weights without a value: {reason}', AGAIN)
