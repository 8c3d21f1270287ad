"""Tiny multimodal checkpoints of every type that is opened on its language part, with vision towers larger than the text part."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from bigcircuit.model.text_part import MULTIMODAL
from tests.helpers.tiny_models import TINY

TEXT = {key: value for key, value in TINY.items() if key != "use_cache"} | {"vocab_size": 160}
"""The language model, in proportions of those of 8B: grouped-query attention and an MLP half as wide again as the stream."""
VISION = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 8,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": 32,
    "intermediate_size": 48,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
IMAGE = {"image_token_id": 150}
IMAGE_INDEX = {"image_token_index": 150}
QWEN = {"image_token_id": 150, "video_token_id": 151, "vision_start_token_id": 152, "vision_end_token_id": 153}
COHERE = {**TEXT, "model_type": "cohere2", "logit_scale": 0.25, "layer_types": ["full_attention"] * 3}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
CLIP = {**VISION, "model_type": "clip_vision_model", "projection_dim": 32}
MLLAMA_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "intermediate_layers_indices": [0],
    "vision_output_dim": 64,
}


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": model_type, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "aya_vision": {"text_config": COHERE, "vision_config": SIGLIP, **IMAGE_INDEX},
    "cohere2_vision": {"text_config": COHERE, "vision_config": SIGLIP, **IMAGE},
    "gemma3": {"text_config": {**TEXT, "sliding_window": 4, "query_pre_attn_scalar": 8}, "vision_config": SIGLIP},
    "gemma4": {
        "text_config": {
            **TEXT,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 8,
            "final_logit_softcapping": 3.0,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "position_embedding_size": 16,
        },
    },
    "glm4v": {
        "text_config": {**TEXT, **ROPE},
        "vision_config": QWEN_VISION,
        "image_token_id": 150,
        "video_token_id": 151,
    },
    "idefics3": {"text_config": _text("llama"), "vision_config": VISION, **IMAGE},
    "internvl": {
        "text_config": _text("qwen2"),
        "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        **IMAGE,
    },
    "lfm2_vl": {
        "text_config": _text("lfm2", layer_types=["conv", "full_attention", "conv"]),
        "vision_config": {**VISION, "model_type": "siglip2_vision_model"},
        **IMAGE,
    },
    "llava": {"text_config": _text("llama"), "vision_config": CLIP, **IMAGE_INDEX},
    "llava_next": {"text_config": _text("mistral"), "vision_config": CLIP, **IMAGE_INDEX},
    "llava_onevision": {
        "text_config": _text("qwen2", tie_word_embeddings=True),
        "tie_word_embeddings": True,
        "vision_config": SIGLIP,
        **IMAGE_INDEX,
    },
    "mistral3": {"text_config": _text("mistral"), "vision_config": {**VISION, "model_type": "pixtral"}},
    "mllama": {
        "text_config": _text("mllama_text_model", num_hidden_layers=4, cross_attention_layers=[1]),
        "vision_config": MLLAMA_VISION,
        **IMAGE_INDEX,
    },
    "paligemma": {
        "text_config": _text("gemma2", final_logit_softcapping=3.0),
        "vision_config": {**SIGLIP, "projection_dim": 32},
        "projection_dim": 32,
        **IMAGE_INDEX,
    },
    "qwen2_5_vl": {"text_config": {**TEXT, **ROPE}, "vision_config": QWEN_VISION, **QWEN},
    "qwen2_vl": {
        "text_config": {**TEXT, **ROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14},
        **QWEN,
    },
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": QWEN_VISION},
    "qwen3_vl": {
        "text_config": {**TEXT, **ROPE},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        **QWEN,
    },
    "qwen3_5_moe": {
        "text_config": {**TEXT, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24},
        "vision_config": QWEN_VISION,
    },
    "qwen3_vl_moe": {
        "text_config": {**TEXT, **ROPE, **EXPERTS},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        **QWEN,
    },
    "vipllava": {"text_config": _text("llama"), "vision_config": CLIP, **IMAGE_INDEX},
    "smolvlm": {"text_config": _text("llama"), "vision_config": VISION, **IMAGE},
}
"""Model type -> settings of a tiny model of it."""
assert set(CONFIGS) == set(MULTIMODAL)


def save_multimodal(name: str, folder: Path) -> Path:
    """Save a random model of a type with all of its parts, always the same."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **CONFIGS[name])).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
