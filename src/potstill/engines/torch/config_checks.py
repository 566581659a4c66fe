"""Check a config.json and an adapter_config.json before a library acts on them.

A config decides how much is allocated and which code is loaded: 10^9 layers would be made one by
one, an attention kernel would come from the Hub. transformers checks a family's own keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from potstill.engines.model_files import check_numbers
from potstill.errors import PotstillError

LAYERS = "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"
EXPERTS = "num_experts", "num_local_experts", "n_routed_experts", "num_attention_heads", "n_head"
SIZES = "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "head_dim"
TABLES = "text_config", "quantization_config", "rope_scaling", "rope_parameters"
LIMITS = (
    dict.fromkeys(LAYERS, (1, 10_000))
    | dict.fromkeys(EXPERTS, (0, 100_000))
    | dict.fromkeys(SIZES, (0, 100_000_000))
    | {"vocab_size": (1, 100_000_000)}
)
KERNELS = "attn_implementation", "experts_implementation"


def check_config(name: str, raw: Mapping[str, Any], trust: bool) -> None:
    """Raise a `PotstillError` if a config has sizes, types or code that cannot be meant.

    Args:
        name: hub name or folder.
        raw: the object in config.json.
        trust: whether code that comes with the model may run.
    """
    path = Path(name) / "config.json"
    check_numbers(path, raw)
    if raw.get("transformers_weights") is not None:
        raise _wrong(path, "names no weight file", raw, "transformers_weights", "remove the key")
    for table in _tables(path, raw):
        kind = table.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise _wrong(path, "has a text as model_type", table, "model_type")
        for key, (low, high) in LIMITS.items():
            size = table.get(key)
            if isinstance(size, bool) or (
                isinstance(size, int | float) and not low <= size <= high
            ):
                raise _wrong(path, f"has {key} from {low} to {high:,}", table, key)
        for key, value in table.items():
            if key.lstrip("_").removesuffix("_internal") in KERNELS and not trust:
                _check_kernel(path, table, key, value)
    check_ids(path, "eos_token_id", raw.get("eos_token_id"))
    _check_family(path, raw)


def _check_family(path: Path, raw: Mapping[str, Any]) -> None:
    """Families share names of weights and differ in their use, as Llama and Gemma do."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind or "")
    name = classes[0] if isinstance(classes, list) and classes else None
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if own and own.endswith(("ForCausalLM", "LMHeadModel")) and name != own and name in known:
        hint = f"give the file that the model was trained with; {kind} has {own}"
        raise _wrong(path, f"is of one family, {kind} or another", raw, "architectures", hint)


def check_ids(path: Path, key: str, value: Any, *, several: bool = False) -> None:
    """Raise a `PotstillError` if a key has something else than an id, ids, or nothing."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    one = isinstance(value, int) and several
    if one or not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        rule = f"has {'a list of ids' if several else 'an id or a list of ids'} as {key}"
        raise _wrong(path, rule, {key: value}, key)


def check_adapter(name: str, raw: Mapping[str, Any]) -> None:
    """Raise a `PotstillError` if the settings of an adapter cannot be meant.

    Args:
        name: hub name or folder.
        raw: the object in adapter_config.json.
    """
    path = Path(name) / "adapter_config.json"
    check_numbers(path, raw)
    if raw.get("megatron_config") is not None:  # peft would import the module in megatron_core
        hint = "give an adapter that was made without Megatron"
        raise _wrong(path, "imports no module", raw, "megatron_config", hint)
    if raw.get("alora_invocation_tokens") is not None:
        hint = "give an adapter that is always active, or a whole model"
        raise _wrong(path, "has no tokens that activate it", raw, "alora_invocation_tokens", hint)
    rank = raw.get("r")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise _wrong(path, "has a rank of at least 1", raw, "r")


def _tables(path: Path, raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and the configs within; known tables must be objects."""
    yield raw
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from _tables(path, value)
        elif key in TABLES and value is not None:
            raise _wrong(path, f"has an object as {key}", raw, key)


def _check_kernel(path: Path, table: Mapping[str, Any], key: str, value: Any) -> None:
    """A kernel's name is a repository of the Hub or a path; its code would run."""
    names = value.values() if isinstance(value, dict) else [value]
    if any(not isinstance(name, str | None) or "/" in str(name) for name in names):
        hint = f"remove {key}, or set trust_remote_code = true if you trust that code"
        raise _wrong(path, "names no kernel of its own", table, key, hint)


def _wrong(
    path: Path, rule: str, table: Mapping[str, Any], key: str, hint: str = ""
) -> PotstillError:
    got = repr(table[key])
    got = got if len(got) <= 60 else f"{got[:60]}..."
    return PotstillError(
        f'a model\'s config {rule}, "{path}" has {key} = {got}',
        hint or "give the file that the model was trained with",
    )
