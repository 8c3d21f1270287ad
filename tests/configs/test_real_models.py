"""Configs for real models: they are valid, and what their comments say is what `check` predicts from a bare config.json."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bigcircuit.cli import answer, run_check
from bigcircuit.model.load import EMBEDDED

CONFIGS = Path(__file__).parents[2] / "configs"
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


def _gemma3(**text):
    """The multimodal checkpoints of Gemma 3; what their config.json leaves out are the defaults of transformers."""
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {"model_type": "gemma3_text", "sliding_window": 1024, **text},
        "vision_config": _SIGLIP,
        "dtype": "bfloat16",
    }


MODELS = {
    "llama3_8b_ioi": _LLAMA
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "llama3_70b_ioi": _LLAMA
    | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
    "qwen3_8b_ioi": _LLAMA
    | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "head_dim": 128,
        "intermediate_size": 12288,
    },
    "gemma3_1b_ioi": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 262144,
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 6912,
        "dtype": "bfloat16",
    },
    "gemma3_4b_ioi": _gemma3(hidden_size=2560, num_hidden_layers=34, intermediate_size=10240),
    "gemma3_12b_ioi": _gemma3(
        hidden_size=3840,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=15360,
    ),
    "gemma3_27b_ioi": _gemma3(
        hidden_size=5376,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
        intermediate_size=21504,
    ),
    "qwen3_30b_a3b_ioi": _LLAMA
    | {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
}
"""Name of a config -> the sizes in the config.json of its model."""
_SAID = re.compile(
    r"^# Predicted by check --ranks (\d+) --device cuda --memory (\d+): ([\d.]+) GiB a rank\.$", re.MULTILINE
)


@pytest.mark.parametrize("name", MODELS)
def test_memory_in_the_comment_is_what_check_predicts(name, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODELS[name]))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / file, model / file)
    path = CONFIGS / f"{name}.yaml"
    monkeypatch.chdir(CONFIGS.parent)
    ranks, memory, said = _SAID.search(path.read_text()).groups()
    words = f"--config {path} --model.path {model} --ranks {ranks} --device cuda --memory {memory}".split()
    assert answer(run_check, words) == 0
    shown = capsys.readouterr().out
    sites = int(re.search(r"# of ([\d,]+) site neurons", path.read_text())[1].replace(",", ""))
    assert f"{sites:,}" in shown
    predicted = float(re.search(r"together +│ +([\d,.]+)", shown)[1].replace(",", "")) / 1024
    assert predicted == pytest.approx(float(said), rel=0.05)
