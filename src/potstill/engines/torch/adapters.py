"""LoRA: new adapters, adapters that go on, and merged ones; and the share of weights they have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from potstill.engines.model_files import header
from potstill.engines.torch.checkpoints import Checkpoint
from potstill.engines.torch.lora_targets import without_lora
from potstill.engines.torch.weights import check_finite
from potstill.errors import PotstillError, out_of_memory
from potstill.settings import Lora
from potstill.tasks.templates import check_patterns

# Parts of names that peft adds to those in an adapter's file.
PEFT_PARTS = re.compile(r"\.(default|base_layer|original_module|modules_to_save)(?=\.|$)")


def add_lora(model: Any, lora: Lora | int) -> Any:
    """Add LoRA adapters to all linear layers except the head; only the adapters are trained."""
    from peft import LoraConfig, get_peft_model

    lora = Lora(rank=lora) if isinstance(lora, int) else lora
    modules, parameters = _targets(model, lora.target)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        exclude_modules=(without_lora(model) or None) if modules == "all-linear" else None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft uses an attribute that transformers deprecates
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)  # of GPT-2's layers
        try:
            return get_peft_model(model, config).eval()
        except ValueError as error:  # modules that a family cannot have adapters on
            raise PotstillError(
                f"the student cannot have these adapters: {str(error).splitlines()[0]}",
                "name other modules in train.lora_target, or train all weights with lora_rank = 0",
            ) from error


def _targets(model: Any, target: str | tuple[str, ...]) -> tuple[Any, list[str]]:
    """Modules and parameters with adapters; experts of a mixture are often bare parameters."""
    if target == "all-linear":
        return target, []
    target = (target,) if isinstance(target, str) else target
    modules, parameters = [], []
    names = [name for name, _ in model.named_modules()]
    weights = [name for name, _ in model.named_parameters()]
    for suffix in target:
        if any(name == suffix or name.endswith(f".{suffix}") for name in names):
            modules.append(suffix)
        elif any(name == suffix or name.endswith(f".{suffix}") for name in weights):
            parameters.append(suffix)
        else:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in names if name})
            raise PotstillError(
                f'train.lora_target names modules of the student, got "{suffix}"',
                f"its modules: {', '.join(kinds)}",
            )
    return modules, parameters


def continue_lora(model: Any, folder: str, adapter: Mapping[str, Any], lora: Lora) -> Any:
    """Load an adapter to train it further.

    Args:
        model: the base.
        folder: of the adapter, or its hub name.
        adapter: its settings.
        lora: the study's; its rank must be the adapter's, its dropout replaces the adapter's.
    """
    if adapter.get("peft_type") != "LORA" or adapter.get("r") != lora.rank:
        kind = f"{adapter.get('peft_type')} of rank {adapter.get('r')}"
        raise PotstillError(
            f'the student "{folder}" is an adapter ({kind}), train.lora_rank is {lora.rank}',
            f"write lora_rank = {adapter.get('r')} to train it further, or lora_rank = 0 to merge "
            "it and train all weights",
        )
    if lora.alpha and adapter.get("lora_alpha") != lora.alpha:
        raise PotstillError(
            f'the student "{folder}" is an adapter of lora_alpha {adapter.get("lora_alpha")}, '
            f"train.lora_alpha is {lora.alpha}",
            "leave train.lora_alpha out: it is trained further with its own",
        )
    model = _with_adapter(model, folder, trained=True).eval()
    for module in model.modules():
        for name in getattr(module, "lora_dropout", {}):
            drop = torch.nn.Dropout(lora.dropout) if lora.dropout else torch.nn.Identity()
            module.lora_dropout[name] = drop.eval()
    return model


def merge_adapter(model: Any, folder: str) -> Any:
    """Add an adapter to the weights of its base."""
    adapted = _with_adapter(model, folder, trained=False)
    try:
        return adapted.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise PotstillError(
            f'the adapter "{folder}" cannot be merged: {reason}',
            "give a LoRA adapter of an ordinary kind, or a whole model",
        ) from error


def _with_adapter(model: Any, folder: str, *, trained: bool) -> Any:
    from peft import PeftModel

    file = Path(folder).expanduser() / "adapter_model.safetensors"
    tensors = header(file) if file.is_file() else {}
    try:
        check_patterns(_patterns(Checkpoint.find(folder).adapter), [*dict(model.named_modules())])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(
                model, folder, is_trainable=trained, use_safetensors=True
            )
    except Exception as error:
        if out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [repr(error)]
        raise PotstillError(
            f'cannot read the adapter "{folder}": {lines[0]}',
            "give adapter_model.safetensors, made for the base that adapter_config.json names",
        ) from error
    _check_adapter(adapted, folder, tensors)
    return adapted


def _patterns(adapter: Mapping[str, Any]) -> list[str]:
    """Regular expressions in an adapter's settings, which peft matches with the modules' names."""
    keys = "target_modules", "exclude_modules", "layers_pattern", "modules_to_save"
    values = [adapter.get(key) for key in keys]
    values += [[*(adapter.get(key) or {})] for key in ("rank_pattern", "alpha_pattern")]
    several = [value if isinstance(value, list) else [value] for value in values]
    texts = [text for value in several for text in value if isinstance(text, str)]
    return [text for text in texts if not re.fullmatch(r"[\w.-]*", text)]  # the others are names


def _check_adapter(model: Any, folder: str, tensors: Collection[str]) -> None:
    """Every tensor of an adapter must have a place in the model, and be finite."""
    places = {PEFT_PARTS.sub("", name) for name in model.state_dict()}
    if unread := sorted(key for key in tensors if PEFT_PARTS.sub("", key) not in places):
        raise PotstillError(
            f'the adapter "{folder}" has {unread[0]}, which its adapter_config.json leaves out',
            "give the adapter_config.json that it was trained with",
        )
    for name, param in model.named_parameters():
        if "lora_" in name and not param.is_meta:
            check_finite(folder, name, param)


def coverage(model: Any) -> tuple[float, int, int]:
    """The share of a LoRA model's weights that adapters change, and how many experts have one.

    Returns:
        share: weights with an adapter, of all but the embeddings and the head.
        covered: expert tensors with an adapter.
        experts: expert tensors.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    tables = [module for module in inner.modules() if isinstance(module, torch.nn.Embedding)]
    ends = (*tables, inner.get_output_embeddings())
    outside = {id(p) for module in ends if module is not None for p in module.parameters()}
    total = with_adapter = covered = experts = 0
    for name, param in inner.named_parameters():
        if "lora_" in name or id(param) in outside:
            continue
        adapted = ".base_layer." in f".{name}"
        total += param.numel()
        with_adapter += param.numel() * adapted
        if "expert" in name and param.ndim > 1:
            experts += 1
            covered += adapted
    return with_adapter / max(total, 1), covered, experts
