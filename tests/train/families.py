"""Tiny random models of every family that transformers' AutoModelForCausalLM knows."""

from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

SIZES = {
    300: "vocab_size vocab_size_per_layer_input vocab_size_image encoder_hash_byte_group_vocab ngram_vocab_size_base",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions "
    "context_length",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff d_inner ffn_hidden_size "
    "feed_forward_size n_inner dense_intermediate_size shared_intermediate_size shared_expert_intermediate_size "
    "mamba_d_ssm moe_shared_expert_intermediate_size attention_hidden_size",
    32: "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim input_embedding_size "
    "output_embedding_size lru_width backbone_hidden_size pronunciation_embed_dim shape_embed_dim projection_dim "
    "ple_embed_dim",
    28: "image_size",
    16: "moe_intermediate_size expert_ffn_hidden_size sliding_window local_attention attention_window_size "
    "attention_chunk_size mamba_d_head mamba_head_dim mamba_headdim mamba_chunk_size chunk_size prompt_mid_dim "
    "num_mel_bins",
    14: "patch_size",
    8: "head_dim dim_head d_head attention_head_size attention_head_dim kv_channels global_head_dim kv_lora_rank "
    "q_lora_rank o_lora_rank time_step_rank mamba_dt_rank laurel_rank adapter_rank index_topk qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim mamba_d_state state_size "
    "ssm_state_size hidden_size_per_layer_input prompt_length hc_lowrank split_ngram_parts",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "num_encoder_attention_heads num_decoder_attention_heads num_local_experts n_routed_experts moe_num_experts "
    "mamba_n_heads mamba_num_heads n_mamba_heads rotary_dim index_n_heads",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_blocks num_encoder_layers "
    "num_decoder_layers depth num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk linear_num_key_heads "
    "linear_num_value_heads max_window_layers num_codebooks",
    1: "mamba_n_groups n_groups n_group topk_group first_k_dense_replace eos_token_id",
    0: "pad_token_id bos_token_id",
}  # fmt: skip
"""Values of configurations' fields, by name."""

OTHERS: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "intermediate_size": 64, "activation_sparsity_pattern": None,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama": {"tie_word_embeddings": True},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "mixtral": {"num_local_experts": 12},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ple_embed_dim": 32,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["hybrid", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Values that a family needs, where they differ from those above or have no number as default."""

UNABLE = {
    "cohere_compass_text": "its class needs rope_parameters that its configuration does not accept",
    "dbrx": "its class reads attn_config.rope_theta, which its configuration lacks",
    "emu3": "its text model is saved with a configuration that AutoModelForCausalLM does not know",
    "gemma3n": "its vision tower needs timm and Pillow",
    "gemma4_assistant": "its configuration needs another model's",
    "gemma4_unified_assistant": "its configuration needs another model's",
    "mllama": "its text model is saved with a configuration that AutoModelForCausalLM does not know",
    "musicgen": "its configuration needs those of three other models",
    "musicgen_melody": "its configuration needs those of three other models",
}
"""Families that cannot be made here, with the reason."""

REPRESENTATIVES = ("llama", "gemma3_text", "mixtral", "qwen3_moe", "olmo_hybrid", "phi3", "inkling_text")
"""Tied weights; two rotary embeddings; experts in two layouts; a hybrid; fused projections; float32 modules."""

REST = tuple(family for family in FAMILIES if family not in (*UNABLE, *REPRESENTATIVES))


def tiny(family: str) -> Any:
    """Return the configuration of a tiny model that has every kind of layer of its family."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(family)
    return type(default)(**_shrunk(default))


def _shrunk(config: Any) -> dict[str, Any]:
    sizes = {name: size for size, names in SIZES.items() for name in names.split()}
    values: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in config.sub_configs and getattr(config, name) is not None:
            values[name] = _shrunk(getattr(config, name))
        elif name in sizes and type(value) is int:
            values[name] = sizes[name]
    layers = list(dict.fromkeys(config.to_dict().get("layer_types") or []))
    if len(layers) > 1:
        values |= {"layer_types": layers, "num_hidden_layers": len(layers)}
    return values | OTHERS.get(config.model_type, {})


def save_tiny(family: str, directory: Path, **changes: Any) -> Any:
    """Save a tiny model with random values everywhere, in several files; return it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny(family)
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and "balancing_biases" not in name:  # transformers resets one of these
                tensor.normal_()
    model.save_pretrained(directory, max_shard_size="30KB")
    return model
