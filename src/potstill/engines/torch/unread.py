"""Weights in a checkpoint's files that its model does not read.

Without the biases, norms, scales or layers that its files have, a model gives other numbers than
the checkpoint, and transformers only logs it. Parts that a family leaves out on purpose, such as
heads for speculative decoding, are not in transformers' report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers.quantizers.auto import AutoHfQuantizer

from potstill.engines.torch.quantised import is_quantised
from potstill.errors import PotstillError

NUMBER = re.compile(r"\.(\d+)(?=\.)")
# Of a server's cache, which transformers keeps unquantised.
CACHE_SCALES = ("k_proj.k_scale", "v_proj.v_scale", "attn.k_scale", "attn.v_scale")
# Tables that families once saved and now compute: frequencies, masks, positions.
COMPUTED = re.compile(
    r"(inv_freq|masked_bias|causal_mask|position_ids|attn_mask|(attn|attention)\.bias|\.version"
    r"|rotary_emb\.\w+|sin|cos|sin_cached|cos_cached)$"
)
# Parts of a body that are not its text model, and heads of other tasks, which an LM lacks.
OTHER = re.compile(r"vision|visual|image|audio|speech|projector|mtp|value_head|v_head")
HEADS = ("score.", "classifier.", "qa_outputs.")


def check_method(name: str, config: Any) -> None:
    """Raise a `PotstillError` if transformers would skip a checkpoint's quantisation."""
    for part in (config, config.get_text_config()):
        settings: Any = getattr(part, "quantization_config", None)
        named = isinstance(settings, dict) and "quant_method" in settings
        if named and not AutoHfQuantizer.supports_quant_method(settings):
            raise PotstillError(
                f'"{name}" is quantised by "{settings["quant_method"]}", which transformers does '
                "not know: it would read the packed numbers as weights",
                "give the checkpoint before quantisation",
            )


def check_unread(name: str, model: Any, unread: Iterable[str], *, text_part: bool = False) -> None:
    """Raise a `PotstillError` if a model leaves out weights that its files have.

    Args:
        name: hub name or folder.
        model: as loaded, without adapters.
        unread: names of tensors in the files that transformers did not load.
        text_part: whether the model is the text part of the checkpoint.
    """
    if is_quantised(model):
        return  # its scales have names of their own
    names = sorted(key for key in unread if not key.endswith(CACHE_SCALES))
    modules = dict(model.named_modules())
    body = next((name for name, part in model.named_children() if any(part.children())), "")
    for key in names:
        module = modules.get(key.rpartition(".")[0])
        extended = module is not None and getattr(module, "weight", None) is not None
        if extended or _dropped(key, modules, body, text_part=text_part):
            kinds = "scale" in key.rpartition(".")[2]
            raise PotstillError(
                f'"{name}" has {len(names)} weights that its model does not read (first: {key})',
                "it is quantised, and its config.json does not say how: give the checkpoint before "
                "quantisation"
                if kinds
                else "its config.json is of another model: give the one that it was trained with",
            )
    predicted = getattr(model.config.get_text_config(), "num_nextn_predict_layers", 0)
    predicted = predicted if isinstance(predicted, int) else 0
    for key in names:
        for match in NUMBER.finditer(key):
            listed = modules.get(key[: match.start()])
            if isinstance(listed, nn.ModuleList) and int(match[1]) >= len(listed) + predicted:
                raise PotstillError(
                    f'"{name}" has {key} in its files, its config has {len(listed)} of these parts',
                    "give the config.json that it was trained with; to leave layers out, cut "
                    "model.layers of the loaded model and save it again",
                )


def _dropped(key: str, modules: Mapping[str, Any], body: str, *, text_part: bool) -> bool:
    """True if a tensor belongs to a layer that the model has, to its body, or is another head.

    Args:
        key: its name.
        modules: of the model, by name.
        body: prefix of the model without its head.
        text_part: whether the body of the checkpoint has parts that are not text.
    """
    if COMPUTED.search(key) or OTHER.search(key):
        return False
    if not key.startswith(f"{body}."):
        if key.startswith(HEADS):
            return True
        key = f"{body}.{key}"  # of a checkpoint that was saved without its head
        if key.split(".")[1] not in {name.split(".")[1] for name in modules if "." in name}:
            return False
    parts = [(key[: m.start()] in modules, key[: m.end()] in modules) for m in NUMBER.finditer(key)]
    if any(listed and not there for listed, there in parts):
        return False  # a layer that the config leaves out: named as such
    return any(there for _, there in parts) or not text_part
