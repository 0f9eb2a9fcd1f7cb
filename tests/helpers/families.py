"""Small random models of many families, by the names of transformers' `model_type`: what the sweep and tests make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048, "initializer_range": 0.3}
BLOOM = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
HEADS = SIZES | {"head_dim": 16}
GEMMA = HEADS | {"query_pre_attn_scalar": 16, "sliding_window": 4096}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}

# a name is a model_type, and after a colon what is special
FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": SIZES,
    "arcee": SIZES,
    "bamba": SIZES | MAMBA | {"attn_layer_indices": [1]},
    "biogpt": SIZES,
    "bitnet": SIZES,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": GPT | {"rotary_dim": 8, "n_ctx": 2048},
    "cohere": SIZES | {"logit_scale": 0.25},
    "cohere2": HEADS | {"logit_scale": 0.25, "sliding_window": 4096},
    "deepseek_v2": SIZES | LATENT | ROUTED,
    "deepseek_v3": SIZES | LATENT | ROUTED,
    "diffllama": SIZES,
    "dots1": SIZES | ROUTED | {"sliding_window": 4096},
    "ernie4_5": SIZES,
    "ernie4_5_moe": SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "exaone4": HEADS | {"sliding_window": 4096},
    "falcon": BLOOM,
    "falcon:alibi": BLOOM | {"alibi": True},
    "falcon_h1": SIZES | MAMBA | {"mamba_d_ssm": 128},
    "gemma": HEADS,
    "gemma2": GEMMA | {"final_logit_softcapping": 30.0},
    "gemma3_text": GEMMA,
    "glm": HEADS,
    "glm4": HEADS,
    "glm4_moe": HEADS | ROUTED,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": SIZES,
    "gpt_oss": HEADS | LOCAL,
    "gptj": GPT | {"rotary_dim": 8},
    "granite": SIZES | {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.1},
    "granitemoe": SIZES | LOCAL | {"logits_scaling": 4.0},
    "granitemoehybrid": SIZES
    | MAMBA
    | {"num_local_experts": 4, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS | {"num_experts": 4, "moe_topk": 2},
    "jais2": SIZES,
    "jamba": SIZES
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "expert_layer_period": 2},
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "llama": SIZES,
    "llama4_text": HEADS | {"intermediate_size_mlp": 128, "num_local_experts": 4, "attention_chunk_size": 4096},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 16},
    "minicpm3": HEADS | LATENT,
    "minimax": HEADS | {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": HEADS | LOCAL | {"rotary_dim": 16},
    "ministral": HEADS | {"sliding_window": 4096},
    "mistral": SIZES,
    "mistral:window of 64": SIZES | {"sliding_window": 64},
    "mixtral": SIZES | LOCAL,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048},
    "nanochat": SIZES,
    "nemotron": SIZES,
    "olmo": SIZES,
    "olmo2": SIZES,
    "olmo3": SIZES | {"sliding_window": 4096},
    "olmoe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 64,
        "max_position_embeddings": 2048, "init_std": 0.3,
    },
    "persimmon": SIZES,
    "phi": SIZES,
    "phi3": SIZES,
    "phimoe": SIZES | {"num_local_experts": 4},
    "qwen2": SIZES,
    "qwen2_moe": SIZES | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": HEADS,
    "qwen3_5_text": HEADS | LINEAR,
    "qwen3_moe": HEADS | EXPERTS,
    "qwen3_next": HEADS | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32},
    "recurrent_gemma": HEADS | {"lru_width": 64, "block_types": ["recurrent", "attention"]},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
    "seed_oss": HEADS,
    "smollm3": SIZES,
    "stablelm": SIZES,
    "starcoder2": SIZES,
    "vaultgemma": GEMMA,
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
    "xlstm": {"hidden_size": 64, "num_blocks": 2, "num_heads": 4},
}  # fmt: skip


def config_of(name: str, tokenizer: PreTrainedTokenizerBase, **changes: Any):
    """The transformers config of a family at its smallest, for that tokenizer."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = {"vocab_size": len(tokenizer)} | ids | FAMILIES[name] | changes
    return AutoConfig.for_model(name.split(":")[0], **settings)


def save_family(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Path:
    """Writes a random model of a family, with its tokenizer; returns the folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(name, tokenizer, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
