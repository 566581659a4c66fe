"""Decide which short cuts are proved right for a model, from the exact classes of its modules.

A short cut replaces the forward pass of some modules: `decoding.Fast` all of them, the sliced head
(`lm_head`) the embedding, the head and the model around them. A module may be replaced only if its
class is the one that the short cut implements, its weights are plain floating-point tensors, and
nothing changes its forward pass: no hook, no parametrisation, no method set on the module. A
config's `model_type` proves nothing, because custom code and quantised checkpoints keep it. All
other models take the plain path, their own forward pass.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from potstill.engines.torch.loading import without_adapters

# Families that `decoding.Fast` implements, with the prefix of their classes.
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# Models whose logits are exactly lm_head(last hidden state).
PLAIN_HEADS = frozenset(
    {
        "llama.LlamaForCausalLM",
        "mistral.MistralForCausalLM",
        "mixtral.MixtralForCausalLM",
        "olmo2.Olmo2ForCausalLM",
        "qwen2.Qwen2ForCausalLM",
        "qwen2_moe.Qwen2MoeForCausalLM",
        "qwen3.Qwen3ForCausalLM",
        "qwen3_moe.Qwen3MoeForCausalLM",
        "smollm3.SmolLM3ForCausalLM",
    }
)
ROPES = frozenset({"default", "linear", "llama3"})  # rotary tables that do not depend on the length
# Implementations of the same attention, see `attn_implementation`.
ATTENTIONS = ("eager", "sdpa", "flash_attention_", "flex_attention")
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def sliced_head(model: Any, heads: frozenset[str]) -> bool:
    """Return whether a model's logits are its `lm_head` on its last hidden states.

    Args:
        model: a causal language model of transformers, adapters included.
        heads: models whose logits are that, as in `PLAIN_HEADS`.
    """
    inner = without_adapters(model)
    return (
        any(own_class(inner, name) for name in heads)
        and _untouched(inner)
        and plain_linear(inner.lm_head, adapters=False)
        and inner.lm_head.bias is None
        and inner.lm_head.weight.device.type != "meta"  # offloaded until the whole model runs
    )


def plain_embedding(module: Any) -> bool:
    """Return whether a module looks up rows of its weights, and autograd's gradient is theirs."""
    return (
        type(module) is nn.Embedding
        and _untouched(module)
        and _plain_weight(module.weight)
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )


def fast_layers(model: Any) -> bool:
    """Return whether `decoding.Fast` implements every module of a model."""
    inner = without_adapters(model)
    for family, prefix in FAMILIES.items():
        if own_class(inner, f"{family}.{prefix}ForCausalLM"):
            return _untouched(inner) and _implemented(inner, family, prefix)
    return False


def _implemented(inner: Any, family: str, prefix: str) -> bool:
    core, config = inner.model, inner.config
    rope = getattr(config, "rope_parameters", None) or {}
    attention = str(getattr(config, "_attn_implementation", None) or "eager")

    def own(module: Any, kind: str) -> bool:
        return own_class(module, f"{family}.{prefix}{kind}") and _untouched(module)

    def norm(module: Any) -> bool:
        return own(module, "RMSNorm") and _plain_weight(module.weight)

    def layer(module: Any) -> bool:
        mixer, mlp = module.self_attn, module.mlp
        matrices = (
            *(mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj),
            *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
        )
        norms = [module.input_layernorm, module.post_attention_layernorm]
        norms += [mixer.q_norm, mixer.k_norm] if hasattr(mixer, "q_norm") else []
        return (
            own(module, "DecoderLayer")
            and own(mixer, "Attention")
            and own(mlp, "MLP")
            and getattr(mixer, "sliding_window", None) is None
            and all(map(norm, norms))
            and all(map(plain_linear, matrices))
        )

    return (
        own(core, "Model")
        and own(core.rotary_emb, "RotaryEmbedding")
        and rope.get("rope_type", "default") in ROPES
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and attention.startswith(ATTENTIONS)
        and norm(core.norm)
        and plain_embedding(core.embed_tokens)
        and plain_linear(inner.lm_head)
        and all(map(layer, core.layers))
    )


def plain_linear(module: Any, adapters: bool = True) -> bool:
    """Return whether a module computes x W^T + b with plain weights, and LoRA where allowed."""
    base = module
    if adapters and type(module).__module__ == "peft.tuners.lora.layer":
        base = module.base_layer
        if type(module).__name__ != "Linear" or not _plain_lora(module):
            return False
    return (
        type(base) is nn.Linear
        and _untouched(base)
        and _plain_weight(base.weight)
        and (base.bias is None or _plain_weight(base.bias))
    )


def _plain_lora(module: Any) -> bool:
    """Return whether a LoRA module adds B A x, scaled, and nothing else."""
    names = [name for name in module.active_adapters if name in module.lora_A]
    parts = [part[name] for name in names for part in (module.lora_A, module.lora_B)]
    return (
        all(plain_linear(part, adapters=False) and part.bias is None for part in parts)
        and _untouched(module)
        and not module.merged
        and not module.fan_in_fan_out
        and not getattr(module, "lora_variant", None)
    )


def own_class(module: Any, name: str) -> bool:
    """Return whether a module has transformers' own class of this name, in its modelling file."""
    family, kind = name.split(".")
    source = sys.modules.get(f"transformers.models.{family}.modeling_{family}")
    return source is not None and getattr(source, kind, None) is _class(module)


def _class(module: Any) -> Any:
    """The class of a module; FSDP derives one of its own from it."""
    kind = type(module)
    if isinstance(module, FSDPModule) and kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}":
        return kind.__bases__[-1]
    return kind


def _plain_weight(weight: Any) -> bool:
    """Return whether a parameter is an ordinary tensor of floating-point numbers."""
    kinds = (nn.Parameter, Tensor, DTensor)
    return (type(weight) in kinds or isinstance(weight.data, DTensor)) and weight.dtype in FLOATS


def _untouched(module: Any) -> bool:
    """Return whether a module runs its class's forward pass, and nothing before or after it."""
    kind = _class(module)
    if kind.forward.__module__ != kind.__module__:  # replaced on the class
        return False
    if "forward" in vars(module) and not _moved(module, kind):
        return False
    kept = [hook for name in HOOKS for hook in (getattr(module, name, None) or {}).values()]
    return all(map(_known, kept))


def _moved(module: Any, kind: Any) -> bool:
    """Return whether `forward` is accelerate's, which only moves inputs to the module's device."""
    hook: Any = getattr(module, "_hf_hook", None)
    old = getattr(module, "_old_forward", None)
    return (
        type(hook).__module__ == "accelerate.hooks"
        and type(hook).__name__ == "AlignDevicesHook"
        and not hook.offload
        and getattr(old, "__func__", None) is kind.forward
    )


def _known(hook: Any) -> bool:
    """Return whether a hook changes no number: FSDP's, and that of gradient checkpointing."""
    where, name = str(getattr(hook, "__module__", "")), str(getattr(hook, "__qualname__", ""))
    if where.startswith("torch.distributed.fsdp."):
        return True
    marks = "make_inputs_require_grad" in name
    return marks and where.startswith(("transformers.", "peft."))
