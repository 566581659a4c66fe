"""Tiny checkpoints of the families of causal language models that transformers knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from potstill.engines import zoo

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
WINDOW: dict[str, Any] = {"head_dim": 8, "sliding_window": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "mistral": {"sliding_window": 8},
    "mixtral": EXPERTS,
    "gemma": {"head_dim": 8},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "phi": {},
    "phi3": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "window_size": 8,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "falcon": {},
    "stablelm": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": EXPERTS,
    "cohere": {},
    "cohere2": WINDOW,
    "starcoder2": {},
    "granite": {},
    "granitemoe": EXPERTS,
    "deepseek_v2": {**EXPERTS, **LATENT},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "smollm3": {},
    "gpt_oss": {**EXPERTS, **WINDOW},
    "llama4_text": {
        **EXPERTS,
        "head_dim": 8,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 48,
    },
    "nemotron": {},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256, "rescale_every": 1},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3},
    "bamba": {**MAMBA, "attn_layer_indices": [1], "attn_rotary_emb": 4},
    "jamba": {
        **EXPERTS,
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "chunk_size": 8,
        "attention_head_dim": 16,
        "kv_channels": 8,
        "use_mem_rope": True,
        "adapter_rank": 4,
    },
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 48,
        "block_multiple_of": 8,
    },
    "granitemoehybrid": {
        **EXPERTS,
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 24,
    },
    "qwen3_next": {**EXPERTS, **LINEAR, "head_dim": 8},
    "qwen3_5_text": {**LINEAR, "head_dim": 8},
    "minimax": {**EXPERTS, "head_dim": 8, "block_size": 8},
}


def write_pair(folder: Path, family: str) -> Path:
    """Write `folder/family/student` and `folder/family/teacher`, with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("tiny-llama", "student"))
    ids = {
        "vocab_size": len(tokenizer) + 8,  # some families' tokenizers add tokens
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for seed, role in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **SIZES | ids | FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # no bias or norm stays at its neutral start
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
            elif parameter.ndim == 2:
                torch.nn.init.normal_(parameter.data, 0, 0.2)
        model.save_pretrained(folder / family / role)
        tokenizer.save_pretrained(folder / family / role)
    return folder / family
