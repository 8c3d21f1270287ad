"""Tables of what can be masked: model types, and the names of the projections that write into the residual stream.

A decoder layer is searched for these names, so layers of one model may differ: attention here and a recurrent mixer there, both side
by side, a dense MLP or experts. Widths and units are read from the modules that are found. One more model type is one more word, and
a new name of a projection one more name.
"""

from typing import NamedTuple

from bigcircuit.model.granularity import ATTENTION, EXPERT, MLP

LAYERS = (
    "model.layers",
    "model.language_model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "gpt_neox_japanese.layers",
    "backbone.layers",
    "backbone.blocks",
    "biogpt.layers",
)
"""Paths of the list of decoder layers, relative to the model."""

NAMES: dict[str, tuple[str, ...]] = {
    ATTENTION: (
        "self_attn.o_proj",
        "self_attn.o_proj.linear",
        "self_attn.o_b_proj",
        "self_attn.out_proj",
        "self_attn.dense",
        "self_attention.dense",
        "attention.dense",
        "multi_head_attention.dense",
        "attn.c_proj",
        "attn.out_proj",
        "attn.attention.out_proj",
        "attn.Wo",
        "linear_attn.out_proj",
        "mamba.out_proj",
        "mixer.out_proj",
        "mixer.o_proj",
        "conv.out_proj",
        "temporal_block.o_proj",
        "temporal_block.linear_out",
        "mlstm_layer.out_proj",
    ),
    MLP: (
        "mlp.down_proj",
        "mlp.c_proj",
        "mlp.dense_4h_to_h",
        "mlp.fc2",
        "mlp.fc_out",
        "mlp.Wo",
        "fc2",
        "ffn.2",
        "ffn.down_proj",
        "ffn.proj_down",
        "feed_forward.down_proj",
        "feed_forward.w2",
        "mlp_block.down_proj",
        "mixer.down_proj",
        "shared_mlp.down_proj",
        "shared_mlp.output_linear",
        "mlp.shared_mlp.down_proj",
        "mlp.shared_expert.down_proj",
        "mlp.shared_experts.down_proj",
        "mixer.shared_experts.down_proj",
        "feed_forward.shared_expert.down_proj",
        "feed_forward.shared_experts.down_proj",
    ),
    EXPERT: ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts", "mixer.experts", "moe.experts", "experts"),
}
"""Site -> paths of its projection, or of the module of all experts, relative to a layer. An output projection listed for attention
belongs to a mixer where its module has one of the parts in RECURRENT."""
RECURRENT = ("conv1d", "conv", "conv_1d", "slope_rate", "ogate_preact")
"""Parts of token mixers that are no attention."""
QUERIES, KEYS, VALUES = ("q_proj", "Wq"), ("k_proj", "Wk"), ("v_proj", "Wv")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
"""Projections before attention, by what they compute; FUSED: all three, as many rows for each head."""
LATENT = ("q_b_proj", "kv_b_proj")
"""Projections of multi-head latent attention that have rows of their own for each head."""


class Architecture(NamedTuple):
    """What is known about a model type that works."""

    kind: str
    """In words, for tables."""
    suffix: bool = False
    """Whether what a layer keeps of earlier tokens is the key/value cache, so that passes over a suffix are exact."""


_DENSE, _MIXTURE = Architecture("dense", suffix=True), Architecture("mixture of experts")
_BIASED = Architecture("dense, positions as biases")
_LATENT = Architecture("dense, latent attention")
_LATENT_MIXTURE = Architecture("mixture of experts, latent attention")
_HYBRID = Architecture("hybrid")
_HYBRID_MIXTURE = Architecture("hybrid mixture of experts")
_RECURRENT = Architecture("recurrent")

_TYPES: dict[Architecture, str] = {
    _DENSE: """
        cohere cohere2 exaone4 falcon gemma gemma2 gemma3_text glm gpt2 gpt_neo gpt_neox gptj granite helium llama ministral mistral
        nemotron olmo olmo2 olmo3 opt phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2
    """,
}

ARCHITECTURES: dict[str, Architecture] = {name: row for row, names in _TYPES.items() for name in names.split()}
"""`model_type` of the Hugging Face config -> what is known about it."""

REFUSED: dict[str, str] = {}
"""`model_type` -> kind of a model that no names can make work, for messages."""
