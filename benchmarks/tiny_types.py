"""Tiny configs of every causal model type of transformers, by the names of their settings.

A type's default config is kept but for its sizes. Settings that many types share have one size each; where a config checks that
its sizes fit each other, OVERRIDES says the rest.
"""

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_WIDTHS = {
    "residual": (
        32,
        "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim lru_width hidden_dim",
    ),
    "MLP": (
        48,
        "intermediate_size ffn_dim n_inner decoder_ffn_dim ffn_hidden_size dff d_ff dim_ff intermediate_size_mlp",
    ),
    "layers": (3, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers"),
    "heads": (
        4,
        "linear_num_heads num_attention_heads n_head n_heads num_heads decoder_attention_heads linear_num_value_heads",
    ),
    "kernels and windows": (
        4,
        "conv_kernel mamba_d_conv sliding_window mamba_dt_rank rotary_dim attention_window_size",
    ),
    "groups": (2, "num_key_value_heads num_kv_heads linear_num_key_heads index_n_heads expand mamba_expand"),
    "chosen experts": (2, "num_experts_per_tok moe_topk moe_k num_selected_experts"),
    "experts": (8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    "width of heads": (8, "head_dim global_head_dim qk_nope_head_dim qk_rope_head_dim mamba_d_head mamba_head_dim"),
    "linear heads": (
        8,
        "linear_key_head_dim linear_value_head_dim mamba_n_heads mamba_num_heads attention_head_dim dim_head",
    ),
    "states": (8, "linear_head_dim state_size mamba_d_state ssm_state_size hidden_size_per_layer_input"),
    "experts' MLP": (
        16,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size",
    ),
    "ranks": (16, "q_lora_rank kv_lora_rank chunk_size mamba_chunk_size index_head_dim qk_head_dim"),
    "values of latent attention": (12, "v_head_dim"),
    "positions": (64, "max_position_embeddings n_positions max_target_positions max_seq_len mamba_d_ssm index_topk"),
    "vocabulary": (96, "vocab_size vocab_size_per_layer_input"),
    "one of": (
        1,
        "n_shared_experts num_shared_experts n_group topk_group first_k_dense_replace num_dense_layers mamba_n_groups",
    ),
    "groups of states": (1, "n_groups"),
    "none of": (0, "num_kv_shared_layers"),
}
"""What a setting says -> its tiny size, and its names in configs."""
SIZES = {name: size for size, names in _WIDTHS.values() for name in names.split()}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ALL_HEADS = {"num_key_value_heads": 4}
_ENCODERS = """
    bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm roc_bert
    roformer xlm-roberta xlm-roberta-xl
"""
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "minicpm3 youtu axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_linear longcat_flash".split(),
        _ALL_HEADS,
    ),
    **dict.fromkeys("hunyuan_v1_dense hunyuan_v1_moe ministral".split(), {"head_dim": 8}),
    "bailing_hybrid": {**_ALL_HEADS, "num_expert_group": 1, "num_experts_per_token": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            k: {"rope_type": "default", "rope_theta": 1e4} for k in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4},
    },
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1},
    "deepseek_v2": {**_ALL_HEADS, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    **dict.fromkeys(_ENCODERS.split(), {"is_decoder": True}),
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    },
    "reformer": {"is_decoder": True},
    "dots3_note_text": {**_ALL_HEADS, "index_topk": 64},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "zamba": {"layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """Make a tiny config of a model type, with the same sizes in the configs that it holds."""
    config = CONFIG_MAPPING[model_type]()
    found = _shrunk(config) | _TOKENS
    for name, value in {**OVERRIDES.get(model_type, {}), **overrides}.items():
        found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
    return type(config)(**found)


def _shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Settings of a config that have tiny sizes."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        own = config.__dict__.get(name)
        if isinstance(own, PretrainedConfig):
            found[name] = {**_shrunk(own), **_TOKENS, "model_type": own.model_type}
        elif name in SIZES and type(value) in (int, float):
            found[name] = SIZES[name]
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and value:
            kinds = list(dict.fromkeys(value))
            found[name] = (kinds + kinds[:1] * SIZES["n_layer"])[: SIZES["n_layer"]]
    return found
