"""Table of the architectures that can be masked. One more dense decoder is one more row.

A row gives, inside the Hugging Face model, the path of the decoder layers and the paths of the projections that write into the
residual stream. Widths, heads and grouping are read from the model itself.
"""

from typing import NamedTuple


class Architecture(NamedTuple):
    """Module paths of an architecture: `layers` relative to the model, the others relative to a decoder layer."""

    layers: str
    """List of decoder layers."""
    attention: str
    """Attention output projection."""
    mlp: str
    """MLP down projection."""
    qkv: tuple[str, ...]
    """Query, key and value projections, or the one projection that computes all three."""
    mlp_inputs: tuple[str, ...]
    """Projections that compute the MLP neurons: (up,), (gate, up) or the one projection that computes both."""


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_FUSED_ATTENTION = ("self_attention.query_key_value",)
_LLAMA = Architecture("model.layers", "self_attn.o_proj", "mlp.down_proj", _QKV, ("mlp.gate_proj", "mlp.up_proj"))
_PHI3 = _LLAMA._replace(qkv=("self_attn.qkv_proj",), mlp_inputs=("mlp.gate_up_proj",))

ARCHITECTURES: dict[str, Architecture] = {
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "exaone4": _LLAMA,
    "falcon": Architecture(
        "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", _FUSED_ATTENTION, ("mlp.dense_h_to_4h",)
    ),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "glm": _LLAMA._replace(mlp_inputs=("mlp.gate_up_proj",)),
    "gpt2": Architecture("transformer.h", "attn.c_proj", "mlp.c_proj", ("attn.c_attn",), ("mlp.c_fc",)),
    "gpt_neo": Architecture(
        "transformer.h",
        "attn.attention.out_proj",
        "mlp.c_proj",
        ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        ("mlp.c_fc",),
    ),
    "gpt_neox": Architecture(
        "gpt_neox.layers",
        "attention.dense",
        "mlp.dense_4h_to_h",
        ("attention.query_key_value",),
        ("mlp.dense_h_to_4h",),
    ),
    "gptj": Architecture(
        "transformer.h", "attn.out_proj", "mlp.fc_out", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), ("mlp.fc_in",)
    ),
    "granite": _LLAMA,
    "helium": _LLAMA,
    "llama": _LLAMA,
    "ministral": _LLAMA,
    "mistral": _LLAMA,
    "nemotron": _LLAMA._replace(mlp_inputs=("mlp.up_proj",)),
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "opt": Architecture("model.decoder.layers", "self_attn.out_proj", "fc2", _QKV, ("fc1",)),
    "phi": Architecture("model.layers", "self_attn.dense", "mlp.fc2", _QKV, ("mlp.fc1",)),
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": Architecture("model.layers", "self_attn.o_proj", "mlp.c_proj", _QKV, ("mlp.c_fc",)),
}
"""`model_type` of the Hugging Face config -> its row."""
