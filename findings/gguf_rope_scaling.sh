#!/usr/bin/env bash
# transformers opens GGUF files of Llama 3.1, 3.2 and of models with YaRN without their rotary scaling, and reports nothing.
#
# Guess: from_pretrained(gguf_file=...) reads what llama.cpp's converter writes for these models, or says what it left out: tensors that
# no module takes are in unexpected_keys.
# What happens (transformers 5.24.0, gguf 0.19.0): for Llama 3.1 the converter stores the factors of each frequency as a tensor
# `rope_freqs.weight`, and for YaRN and linear scaling the keys `llama.rope.scaling.*`. Both are passed over, for every architecture but
# gpt-oss: rope_type is "default", and missing_keys, unexpected_keys and mismatched_keys are empty. All weights are right, logits are not.
# Consequence: pass the config of the original model, from_pretrained(DIR, gguf_file=..., config=AutoConfig.from_pretrained(ORIGINAL));
# figures that were computed from such GGUF files through transformers are not of the model that llama.cpp runs.
#
# Output seen: largest difference of logits from those of the model that was written, in a prompt of 57 tokens
#   transformers 5.24.0, gguf 0.19.0
#   llama3: rope_type default, keys reported 0, difference 2.029; with the config 0.000
#   yarn: rope_type default, keys reported 0, difference 1.830; with the config 0.000
#   linear: rope_type default, keys reported 0, difference 2.610; with the config 0.000
#   default: rope_type default, keys reported 0, difference 0.000; with the config 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6
cat > scaling.py <<'PYTHON'
from importlib.metadata import version

import numpy
import torch
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM

print(f"transformers {version('transformers')}, gguf {version('gguf')}")
SCALINGS = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
    "default": {},
}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}


def build(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **SCALINGS[kind]},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models are nearly uniform: make attention matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write(model, kind):
    """Write the file as llama.cpp's converter does."""
    config = model.config
    writer = GGUFWriter("model.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(64)
    if kind == "llama3":
        plain = 1e4 ** (-torch.arange(0, 16, 2) / 16)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy().astype(numpy.float32))
    elif kind != "default":
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(4.0)
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(64)
    for key, value in model.state_dict().items():
        module = key.removesuffix(".weight")
        block, _, inner = module.removeprefix("model.layers.").partition(".") if ".layers." in module else ("", "", module)
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp rotates neighbours, transformers halves
            heads = 4 if "q_proj" in inner else 2
            value = value.view(heads, 2, 8, 64).transpose(1, 2).reshape(value.shape)
        name = f"blk.{block}.{NAMES[inner]}" if block else NAMES[inner]
        writer.add_tensor(f"{name}.weight", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


tokens = torch.arange(3, 60).view(1, 57)
for kind in SCALINGS:
    model = build(kind)
    write(model, kind)
    read, info = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", output_loading_info=True)
    helped = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", config=model.config)
    with torch.no_grad():
        logits = model(tokens).logits
        wrong, right = ((one.eval()(tokens).logits - logits).abs().max().item() for one in (read, helped))
    reported, found = sum(map(len, info.values())), read.config.rope_parameters["rope_type"]
    print(f"{kind}: rope_type {found}, keys reported {reported}, difference {wrong:.3f}; with the config {right:.3f}")
    assert found == "default" and reported == 0 and right < 1e-4 and (wrong > 0.1) == (kind != "default")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" scaling.py 2> errors || { cat errors; exit 1; }
