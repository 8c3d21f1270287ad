"""Tables of what can be masked: model types, and names of the projections that write into the residual stream.

A decoder layer is searched for these names, so layers of one model may differ: attention here and a recurrent mixer there, both
side by side, a dense MLP or experts. Widths and units are read from the modules that are found. One more model type is one more
word, and a new name of a projection one more name.
"""

from dataclasses import dataclass

from bigcircuit.model.granularity import ATTENTION, EXPERT, MLP

LAYERS = [
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
    "cpmant.encoder.layers",
    "encoder.layer",
    "git.encoder.layer",
]
"""Paths of the list of decoder layers, relative to the model."""

PROJECTIONS: dict[str, list[str]] = {
    ATTENTION: [
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
        "linear_attn.o_proj",
        "shared_transf.self_attn.o_proj",
        "shared_transformer.self_attn.o_proj",
        "mamba_decoder.mamba.out_proj",
        "self_att.self_attention.attention_out",
        "attention.output.dense",
        "mamba.out_proj",
        "mixer.out_proj",
        "mixer.o_proj",
        "conv.out_proj",
        "temporal_block.o_proj",
        "temporal_block.linear_out",
        "mlstm_layer.out_proj",
    ],
    MLP: [
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
        "shared_transf.feed_forward.down_proj",
        "shared_transformer.feed_forward.down_proj",
        "ffn.ffn.w_out",
        "output.dense",
        "mixer.down_proj",
        "shared_mlp.down_proj",
        "shared_mlp.output_linear",
        "mlp.shared_mlp.down_proj",
        "mlp.shared_expert.down_proj",
        "mlp.shared_experts.down_proj",
        "mixer.shared_experts.down_proj",
        "feed_forward.shared_expert.down_proj",
        "feed_forward.shared_experts.down_proj",
    ],
    EXPERT: [
        "mlp.experts",
        "block_sparse_moe.experts",
        "feed_forward.experts",
        "mixer.experts",
        "moe.experts",
        "experts",
    ],
}
"""Site -> paths of its projection, or of the module of all experts, relative to a layer. An output projection listed for attention
belongs to a mixer where its module has one of the parts in RECURRENT."""
RECURRENT = ("conv1d", "q_conv1d", "conv", "conv_1d", "slope_rate", "ogate_preact")
"""Parts of token mixers that are no attention."""
QUERIES, KEYS, VALUES = ("q_proj", "Wq"), ("k_proj", "Wk"), ("v_proj", "Wv")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
"""Projections before attention, by what they compute; FUSED: all three, as many rows for each head."""
LATENT = ("q_b_proj", "kv_b_proj")
"""Projections of multi-head latent attention that have rows of their own for each head."""


@dataclass(frozen=True)
class Architecture:
    """What is known about a model type that works."""

    kind: str
    """In words, for tables."""
    suffix: bool = False
    """Whether what a layer keeps of earlier tokens is the key/value cache, so that passes over a suffix are exact."""
    always_open: tuple[str, ...] = ()
    """Parts of a layer that change the residual stream and have no gates, by the beginning of their path."""
    needs: str = ""
    """Setting of config.json that must be true."""
    meta_mask: str = "finished"
    """Attention mask that the model takes on the meta device: `finished` [R, 1, T, T], `flat` [R, T] or `none`."""
    needs_all_rows: bool = False
    """Whether the outer model reshapes the last hidden state to the rows of its input."""

    @property
    def trains_weights(self) -> bool:
        """Whether weights of such a model are trained where that is asked for: experts and recurrent mixers are not."""
        return not self.kind.startswith(("mixture", "hybrid", "recurrent"))


_SINGLE_INPUT = ("per_layer_input_gate", "per_layer_projection")

_TYPES: dict[Architecture, str] = {
    Architecture("dense", suffix=True): """
        apertus arcee bitnet codegen cohere cohere2 cohere_compass_text ctrl cwm diffllama doge emu3_text_model
        ernie4_5 exaone4 falcon gemma gemma2 gemma3_text gemma4_unified_text glm glm4 glm4v_text gpt-sw3 gpt2 gpt_neo
        gpt_neox gpt_neox_japanese gptj granite granite_swa helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2
        llama ministral ministral3 mistral mllama_text_model modernbert-decoder moshi mpt nanochat nemotron olmo olmo2 olmo3
        opt persimmon phi phi3 phi4_multimodal qwen2 qwen2_5_vl_text qwen2_vl_text qwen3 qwen3_vl_text seed_oss smollm3
        stablelm starcoder2 vaultgemma
    """,
    Architecture("dense, positions as biases", suffix=True, meta_mask="none"): "bloom",
    Architecture("dense", suffix=True, needs_all_rows=True): "gpt_bigcode",
    Architecture("dense", meta_mask="flat", needs_all_rows=True): "openai-gpt",
    Architecture("dense, inputs for each layer", always_open=_SINGLE_INPUT): "gemma4_text",
    Architecture("dense, inputs for each layer", always_open=(*_SINGLE_INPUT, "altup", "laurel")): "gemma3n_text",
    Architecture("dense, latent attention"): "minicpm3 youtu",
    Architecture("mixture of experts"): """
        afmoe aria_text beam cohere2_moe dots1 ernie4_5_moe exaone_moe flex_olmo flint glm4_moe gpt_oss granitemoe
        granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 kolibri1 laguna llama4_text mellum mimo_v2_flash minimax_m2
        minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe qwen3_moe qwen3_vl_moe_text solar_open zaya
    """,
    Architecture("mixture of experts, latent attention"): """
        axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa hy_v4
    """,
    Architecture("mixture of experts, latent attention", always_open=("attn_hc", "ffn_hc")): "deepseek_v4",
    Architecture("hybrid"): "falcon_h1 lfm2 lfm3 olmo_hybrid qwen3_5_text recurrent_gemma zamba zamba2",
    Architecture("hybrid, mixture of experts"): """
        bailing_hybrid bamba granitemoehybrid jamba kimi_linear lfm2_moe minimax nemotron_h qwen3_5_moe_text qwen3_next
       
    """,
    Architecture("recurrent", meta_mask="none"): "falcon_mamba mamba mamba2 xlstm",
    Architecture("decoder of an encoder-decoder", suffix=True): """
        bart bigbird_pegasus biogpt blenderbot blenderbot-small marian mbart mvp pegasus plbart trocr xglm
    """,
    Architecture("decoder of an encoder-decoder"): "whisper",
    Architecture("encoder as a decoder", needs="is_decoder"): """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta
        roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl
    """,
}

ARCHITECTURES: dict[str, Architecture] = {name: row for row, names in _TYPES.items() for name in names.split()}
"""`model_type` of the Hugging Face config, of a multimodal checkpoint that of its language model -> what is known about it."""

_KINDS = {
    "a mixture of experts of its own form": "dbrx longcat_flash",
    "a mixture of experts whose attention heads are experts": "jetmoe",
    "a recurrent model with gates behind its output projections": "rwkv",
    "a model with convolutions behind its output projections": "inkling_text inkling2_text",
    "a model whose layers run in cycles": "hrm_text",
    "a byte model of several stacks": "blt",
    "a model whose memory cannot be predicted (hyper-connections and n-grams)": "qwen4_exp_text",
    "an encoder": "cpmant prophetnet reformer xlm xlnet xmod",
    "a drafter that reads the states of another model": "gemma4_assistant gemma4_unified_assistant",
    "a captioner that needs images": "git",
    "a decoder of sound that needs an encoder": "musicgen musicgen_melody",
}
GUESSED = "guessed"
"""Kind of an architecture that is in no table."""
REFUSED: dict[str, str] = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""`model_type` -> kind of a model that cannot be masked, for messages."""
